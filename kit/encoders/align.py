"""How images and texts of posts are brought into one space: regularised CCA, from 5,000 pairs on with trained adapters.

The networks stay as they are; learnt are two heads (``kit.encoders.dual``), from the train posts of the run alone. Everything
that is chosen, shrinkage and the step of training that is kept, is chosen by recall on authors held out from the fit.

Source: CSA, Li et al., ICLR 2025 (ridge CCA, cosine weighted by the correlations); FuseMix, Vouitsis et al., CVPR 2024
(adapters on frozen vectors, latent mixup).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from kit.base.code import code_of
from kit.base.errors import InputError
from kit.base.files import atomic_path, hash_array, read_json, write_json
from kit.base.machine import package_versions
from kit.base.progress import progress
from kit.base.schedule import half_cosine
from kit.encoders.dual import Head
from kit.encoders.pairs import Pairs, recall
from kit.run.folds import inner_holdout

MIN_PAIRS = 40  # fewer say nothing
ADAPTERS_FROM = 5_000  # pairs
WIDTH, DIM, STEP = 256, 128, 8  # of whitened vectors, of the common space; heads of attention divide multiples of STEP
HELD_OUT = 0.15  # of the pairs, by author
SHRINKAGE = np.logspace(-3, 2, 11)  # times the mean eigenvalue
SCALES = np.geomspace(2, 100, 24)
STEPS, BATCH, LOOK, WARMUP = 600, 1_024, 50, 100
PATIENCE = 200  # steps without a better recall
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
HEADS = ("image", "text")


@dataclass(frozen=True)
class Aligned:
    """Two heads, 1 / temperature of their cosines, and how they were found, in words."""

    image: Head
    text: Head
    logit_scale: float
    how: str


def align(pairs: Pairs, seed: int = 0, unit_text: bool = True) -> Aligned:
    """The heads that bring pairs together; the same seed gives the same heads.

    Args:
        pairs: of train posts.
        seed: of the authors held out, and of training.
        unit_text: whether vectors of texts have norm 1, so that words can be brought to it, too.
    Raises:
        InputError: fewer than ``MIN_PAIRS``.
    """
    if len(pairs) < MIN_PAIRS:
        raise InputError(
            f"{len(pairs)} train posts have a readable image and a text of their own; to align images and texts {MIN_PAIRS} are "
            "needed: take --profile quick, or set another model (02.clip_model)"
        )
    frame = pd.DataFrame({"Uid": pairs.author})
    fit, held = map(pairs.take, inner_holdout(frame, np.arange(len(pairs)), HELD_OUT, seed))
    found = [_cca(fit, shrinkage, unit_text) for shrinkage in SHRINKAGE]
    at = max(range(len(found)), key=lambda i: (_recall(*found[i], held, seed), i))  # of equals the most shrinkage
    heads, how = found[at], f"CCA with shrinkage {SHRINKAGE[at]:.3g}"
    if len(pairs) >= ADAPTERS_FROM:
        heads, step = _train_adapters(heads, fit, held, seed)
        how += f", adapters of step {step} of {STEPS}" if step else ", no step of the adapters was better"
    scale = _best_scale(encode_pairs(*heads, held))
    if len(pairs) < ADAPTERS_FROM:
        heads = _cca(pairs, SHRINKAGE[at], unit_text)
    return Aligned(*heads, scale, how)


def encode_pairs(image: Head, text: Head, pairs: Pairs) -> Pairs:
    """The pairs in the common space, rows of norm 1."""
    image_emb, text_emb = image.encode(pairs.image).astype(np.float32), text.encode(pairs.text).astype(np.float32)
    return replace(pairs, image=image_emb, text=text_emb)


def align_and_judge(fit: Pairs, judged: Pairs, folder: Path, seed: int = 0) -> tuple[Aligned, dict[str, float]]:
    """``align``, and the recall on the pairs ``judged`` of heads found from shuffled pairs; both kept in ``folder``."""
    stamp = {
        "pairs": [hash_array(values) for part in (fit, judged) for values in vars(part).values()], "seed": seed,
        "code": code_of("kit.encoders.align"), "libraries": [package_versions().get(name) for name in ("torch", "numpy")],
    }  # fmt: skip
    path = folder / "training.json"
    if not path.is_file() or read_json(path)["stamp"] != stamp:
        path.unlink(missing_ok=True)
        aligned, control = align(fit, seed), align(fit.shuffled(seed), seed)
        shuffled = recall(encode_pairs(control.image, control.text, judged), seed) if len(judged) else {}
        state = {f"{name}.{key}": value for name in HEADS for key, value in getattr(aligned, name).state_dict().items()}
        with atomic_path(folder / "heads.safetensors") as temporary:
            save_file(state, temporary)
        config = {name: getattr(aligned, name).config() for name in HEADS}
        found = {"logit_scale": aligned.logit_scale, "how": aligned.how, "heads": config, "shuffled": shuffled}
        write_json(path, {"stamp": stamp, **found})
    found, state = read_json(path), load_file(folder / "heads.safetensors")
    heads = [Head(**found["heads"][name]) for name in HEADS]
    for name, head in zip(HEADS, heads, strict=True):
        head.load_state_dict(
            {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(f"{name}.")}
        )
    return Aligned(*(head.eval() for head in heads), found["logit_scale"], found["how"]), found["shuffled"]


# --- the closed form --------------------------------------------------------------------------------------------------


def _cca(pairs: Pairs, shrinkage: float, unit_text: bool) -> tuple[Head, Head]:
    """Linear heads: both sides whitened with shrinkage, the directions of the cross-covariance weighted by its root."""
    sides = [_whitening(values, shrinkage) for values in (pairs.image, pairs.text)]
    white = [values @ weight.T + bias for values, (weight, bias) in zip((pairs.image, pairs.text), sides, strict=True)]
    left, correlation, right = np.linalg.svd(white[0].T @ white[1] / len(pairs), full_matrices=False)
    dim = min(DIM, len(correlation) // STEP * STEP)
    root = np.sqrt(correlation[:dim])[:, None]
    projections = (root * left.T[:dim], root * right[:dim])
    heads = []
    for (weight, bias), projection, unit in zip(sides, projections, (False, unit_text), strict=True):
        head = Head((weight.shape[1], len(weight), dim), unit=unit)
        values = {"whiten.weight": weight, "whiten.bias": bias, "project.weight": projection}
        head.load_state_dict({name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()})
        heads.append(head.eval())
    return heads[0], heads[1]


def _whitening(values: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight (w, d) and bias (w,) that standardise columns, turn them to principal components, and shrink their scales."""
    mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    scale = 1 / np.where(std > 1e-6, std, np.inf)  # a constant column counts for nothing
    standard = (values - mean) * scale
    variance, vectors = np.linalg.eigh(standard.T @ standard / len(values))
    width = min(WIDTH, len(values) // 2, values.shape[1])
    variance, vectors = variance[::-1][:width], vectors[:, ::-1][:, :width]
    weight = (vectors / np.sqrt(variance.clip(0) + shrinkage * variance.mean())).T * scale
    return weight, -weight @ mean


# --- adapters ---------------------------------------------------------------------------------------------------------


def _train_adapters(
    start: tuple[Head, Head], fit: Pairs, held: Pairs, seed: int
) -> tuple[tuple[Head, Head], int]:  # fmt: skip
    """Heads with an adapter each, trained from the closed form on; those of the step with the best recall, and the step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = tuple(_with_adapter(head) for head in start)
        best, best_recall, best_step = start, _recall(*start, held, seed), 0
        with torch.no_grad():
            white = [
                head.whiten(_input(head, values)) for head, values in zip(heads, (fit.image, fit.text), strict=True)
            ]
        log_scale = torch.nn.Parameter(torch.tensor(1 / 0.07).log())
        learned = [p for head in heads for part in (head.adapters, head.project) for p in part.parameters()]
        groups = [{"params": learned, "weight_decay": WEIGHT_DECAY}, {"params": [log_scale], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: half_cosine(step, STEPS, WARMUP))
        draw = _batches(fit, np.random.default_rng(seed))
        for step in progress(range(1, STEPS + 1), label="align images and texts", unit="steps"):
            for head in heads:
                head.train()
            loss = _mixed_loss(heads, white, fit.text_id, *next(draw), log_scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            if step % LOOK == 0:
                for head in heads:
                    head.eval()
                if (now := _recall(*heads, held, seed)) > best_recall:
                    best, best_recall, best_step = copy.deepcopy(heads), now, step
                elif step >= best_step + PATIENCE:
                    break
    return best, best_step


def _with_adapter(head: Head) -> Head:
    new = Head(**head.config() | {"n_adapters": 1})
    new.load_state_dict(head.state_dict(), strict=False)  # the adapter begins as the identity
    return new.eval()


def _batches(pairs: Pairs, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Two halves of a batch and a share to mix them by; no author twice in a batch, or its posts would be told by author."""
    order = np.argsort(pairs.author, kind="stable")
    counts = np.bincount(pairs.author)
    present = np.flatnonzero(counts)
    starts = np.cumsum(counts) - counts
    size = min(BATCH, len(present), len(pairs) // 4) // 2
    while True:
        authors = rng.permutation(present)
        for at in range(0, len(authors) - 2 * size + 1, 2 * size):
            chosen = authors[at : at + 2 * size]
            rows = order[starts[chosen] + (rng.random(len(chosen)) * counts[chosen]).astype(np.int64)]
            yield rows[:size], rows[size:], float(rng.random())


def _mixed_loss(
    heads: tuple[Head, Head], white: list[Tensor], text_id: np.ndarray, one: np.ndarray, two: np.ndarray, share: float,
    log_scale: Tensor,
) -> Tensor:  # fmt: skip
    """CLIP's loss of pairs mixed in both modalities by the same share; pairs that share a text do not stand against each
    other."""
    mixed = [share * values[one] + (1 - share) * values[two] for values in white]
    images, texts = (
        F.normalize(head.project(head.adapters(part)), dim=-1) for head, part in zip(heads, mixed, strict=True)
    )
    logits = log_scale.clamp(np.log(2), np.log(1000)).exp() * images @ texts.T
    same = np.zeros((len(one), len(one)), dtype=bool)
    for left in (text_id[one], text_id[two]):
        for right in (text_id[one], text_id[two]):
            same |= left[:, None] == right
    np.fill_diagonal(same, False)
    logits = logits.masked_fill(torch.from_numpy(same), -torch.inf)
    own = torch.arange(len(one))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


# --- helpers ----------------------------------------------------------------------------------------------------------


def _input(head: Head, values: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(values)
    return F.normalize(tensor, dim=-1) if head.unit else tensor


def _recall(image: Head, text: Head, pairs: Pairs, seed: int) -> float:
    return recall(encode_pairs(image, text, pairs), seed)["recall@10"]


def _best_scale(pairs: Pairs) -> float:
    """The factor on cosines at which CLIP's loss of held-out pairs is smallest."""
    cosine = torch.from_numpy(pairs.image @ pairs.text.T)
    own = torch.arange(len(cosine))
    losses = [F.cross_entropy(s * cosine, own) + F.cross_entropy(s * cosine.T, own) for s in map(float, SCALES)]
    return float(SCALES[int(np.argmin([float(loss) for loss in losses]))])
