"""One CLIP_FT training step: ours against the step written literally, on a real-size model with random weights.

Written literally: the batch's images through the image tower, texts and prompts at all 77 tokens, attention over 2K + 1
tokens per sample. Ours: image features cached, the prompts' shared context once, texts cut to the batch's longest or
cached, attention among prototypes once per batch. All start from the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.clip_ft.alignment import global_similarity, pool_local
from kit.clip_ft.model import ClipFT, class_losses
from kit.clip_ft.projection import prototype_cosine
from kit.clip_ft.prototypes import Prototypes
from kit.clip_ft.texts import TextBank
from kit.clip_ft.train import Settings, TrainingData, _Trainer, build_model
from kit.encoders.clip import Clip
from kit.release.taxonomy import TAXONOMY_PATH, prompt_names
from tests.bench.encoders import MODEL, random_clip
from tests.bench.measure import Case, Found, Task, same_values

BATCH = 128
LOSS_TOLERANCE = 1e-4  # image features are float16 in ours
SETTINGS = Settings(dropout=0.0, precision="fp32")
WORDS = "sunset beach red love photo canon travel old city street night light dog smile summer friends sky".split()


@dataclass
class Batch:
    """The same posts for both ways."""

    pixels: Tensor  # (B, 3, H, W)
    texts: np.ndarray  # (B,) object
    labels: np.ndarray  # (B,)


def random_batch(clip: Clip, size: int, n_classes: int) -> Batch:
    """Noise images, and texts of 2 to 25 words as long as titles with tags."""
    rng = np.random.default_rng(0)
    texts = np.array([" ".join(rng.choice(WORDS, rng.integers(2, 26))) for _ in range(size)], dtype=object)
    pixels = torch.from_numpy(rng.standard_normal((size, 3, clip.image_px, clip.image_px), dtype=np.float32))
    return Batch(pixels, texts, rng.integers(n_classes, size=size))


def literal_step(model: ClipFT, clip: Clip, batch: Batch) -> Callable[[], float]:
    """The step as the equations of the paper and TaI-DPT have it: full lengths, towers in the step, one attention per sample."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, weight_decay=1e-5)
    tower, module = clip.text, model.projection
    attention = nn.MultiheadAttention(clip.dim, module.heads, batch_first=True)
    attention.in_proj_weight, attention.out_proj.weight, attention.out_proj.bias = (
        module.qkv.weight, module.out.weight, module.out.bias
    )  # fmt: skip
    attention.in_proj_bias.requires_grad_(False)
    labels = torch.from_numpy(batch.labels)

    def classes(learner: nn.Module) -> Tensor:
        ids = F.pad(learner.ids, (0, tower.context_length - learner.ids.shape[1]))
        prompts = learner()
        pads = tower.embed(ids[:, prompts.shape[1] :])
        return tower.encode_embeds(torch.cat([prompts, pads], dim=1), ids)[0]

    def step() -> float:
        with torch.no_grad():
            image = clip.model.encode_image(batch.pixels, normalize=True)
            ids = tower.tokenize(list(batch.texts))
            pooled, tokens = tower.encode_embeds(tower.embed(ids), ids)
            mask = tower.valid_mask(ids)
            mask[:, 0] = False
        x = module.visual_proj(image)[:, None]
        bank = torch.cat([module.visual_proj(model.visual), module.textual_proj(model.textual)])
        every = torch.cat([x, bank.expand(len(x), -1, -1)], dim=1)  # (B, 2K + 1, d)
        every = module.norm(every + attention(every, every, every, need_weights=False)[0])
        visual, textual = every[:, 1 : 1 + len(model.visual)], every[:, 1 + len(model.visual) :]
        scale = model.log_scale.exp()
        visual_logits = prototype_cosine(every[:, 0], visual) / model.log_tau_v.exp()
        textual_logits = prototype_cosine(every[:, 0], textual) / model.log_tau_t.exp()
        logits = {
            "global": scale * global_similarity(pooled, classes(model.global_prompt)),
            "local": scale * pool_local(tokens, mask, classes(model.local_prompt), model.tau_s),
            "averaged": (visual_logits + textual_logits) / 2,
        }
        loss = sum(terms.mean() for terms in class_losses(logits, labels).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.clamp_temperatures()
        return loss.item()

    return step


def our_step(start: Scene, cache_share: float) -> Callable[[], float]:
    """``kit.clip_ft.train``'s own step; texts are cached where they need at most the share ``cache_share`` of the free memory."""
    clip, batch = start.clip, start.batch
    with torch.no_grad():
        image = clip.model.encode_image(batch.pixels, normalize=True).half().numpy()
    rows = np.arange(len(batch.labels))
    bank = TextBank(clip.text, batch.texts, cache_share=cache_share)
    trainer = _Trainer(start.model.train(), bank, TrainingData(image, batch.labels, rows), SETTINGS)
    return lambda: float(trainer.step(rows).sum()) / len(rows)


@dataclass
class Scene:
    """Everything both ways start from; the same in every process."""

    clip: Clip
    model: ClipFT
    batch: Batch


def scene(n: int) -> Scene:
    """A model with the prompts and prototypes of all SMPD subcategories, and a batch of at most n posts."""
    clip = random_clip()
    subcategories = pd.read_csv(TAXONOMY_PATH, dtype=str, keep_default_na=False)["subcategory"].unique()
    rng = np.random.default_rng(1)
    visual, textual = (rng.standard_normal((len(subcategories), clip.dim)).astype(np.float32) for _ in range(2))
    visual, textual = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (visual, textual))
    prototypes = Prototypes(list(subcategories), prompt_names(subcategories), visual, textual, pd.DataFrame())
    return Scene(clip, build_model(clip, prototypes, SETTINGS), random_batch(clip, min(BATCH, n), len(subcategories)))


def ours(cache_share: float, folder: Path, n: int) -> Task:
    """The kit's step, over cached image features."""
    start = scene(n)
    return _steps(our_step(start, cache_share), start, n)


def literal(folder: Path, n: int) -> Task:
    """The step written literally."""
    start = scene(n)
    return _steps(literal_step(start.model, start.clip, start.batch), start, n)


def _steps(step: Callable[[], float], start: Scene, n: int) -> Task:
    """Steps over n samples; the loss before the first update, which a step before the clock starts gives, is compared."""
    loss, n_steps = step(), n // len(start.batch.labels)
    return Task(
        lambda: [step() for _ in range(n_steps)],
        lambda losses: {"loss": np.array([loss])},
        lambda losses, m: f"{n_steps} x {len(start.batch.labels)}, K = {len(start.model.visual)}, loss {loss:.5f}",
    )


def _differs(ours: Found, other: Found) -> str:
    return same_values(ours, other, rtol=LOSS_TOLERANCE)


WAYS = {
    "ours, texts cached": partial(ours, 0.5),
    "ours, texts in the step": partial(ours, 0.0),
    "written literally": literal,
}
CASES = (Case(__name__, f"training, {MODEL}", WAYS, size="items", differs=_differs),)
