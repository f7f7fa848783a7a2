"""One CLIP_FT training step: ours against the step as published, on a real-size model with random weights.

    python tests/bench/bench_clip_ft.py --rounds 3

As published: the batch's images through the image tower, texts and prompts at all 77 tokens, attention over 2K + 1
tokens per sample. Ours: image features cached, the prompts' shared context once, texts cut to the batch's longest or
cached, attention among prototypes once per batch. Both start from the same parameters; their losses are compared
before the first update. Rounds alternate, so that other work on the machine meets both alike.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.clip import Clip, wrap_model
from kit.clip_ft import ClipFT, class_losses, global_similarity, pool_local, prototype_cosine
from kit.clip_ft_text import TextBank
from kit.clip_ft_train import Settings, TrainingData, _Trainer, build_model
from kit.prototypes import TAXONOMY_PATH, Prototypes, prompt_names

WORDS = "sunset beach red love photo canon travel old city street night light dog smile summer friends sky".split()


@dataclass
class Batch:
    """The same posts for both ways."""

    pixels: Tensor  # (B, 3, H, W)
    texts: np.ndarray  # (B,) object
    labels: np.ndarray  # (B,)


def random_clip(name: str) -> Clip:
    """A real architecture with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    return wrap_model(model, open_clip.get_tokenizer(name), open_clip.get_model_config(name), name)


def random_batch(clip: Clip, size: int, n_classes: int) -> Batch:
    """Noise images, and texts of 2 to 25 words as long as titles with tags."""
    rng = np.random.default_rng(0)
    texts = np.array([" ".join(rng.choice(WORDS, rng.integers(2, 26))) for _ in range(size)], dtype=object)
    pixels = torch.from_numpy(rng.standard_normal((size, 3, clip.image_px, clip.image_px), dtype=np.float32))
    return Batch(pixels, texts, rng.integers(n_classes, size=size))


def published_step(model: ClipFT, clip: Clip, batch: Batch) -> Callable[[], float]:
    """The step written as the paper and TaI-DPT have it: full lengths, towers in the step, one attention per sample."""
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


def our_step(model: ClipFT, clip: Clip, batch: Batch, settings: Settings, cache_gb: float) -> Callable[[], float]:
    """``kit.clip_ft_train``'s own step."""
    with torch.no_grad():
        image = clip.model.encode_image(batch.pixels, normalize=True).half().numpy()
    rows = np.arange(len(batch.labels))
    bank = TextBank(clip.text, batch.texts, cache_gb=cache_gb)
    trainer = _Trainer(model.train(), bank, TrainingData(image, batch.labels, rows), settings)
    return lambda: float(trainer.step(rows).sum()) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    clip = random_clip(arguments.model)
    subcategories = pd.read_csv(TAXONOMY_PATH, dtype=str, keep_default_na=False)["subcategory"].unique()
    batch = random_batch(clip, arguments.batch, len(subcategories))
    rng = np.random.default_rng(1)
    visual, textual = (rng.standard_normal((len(subcategories), clip.dim)).astype(np.float32) for _ in range(2))
    visual, textual = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (visual, textual))
    names = prompt_names(subcategories)
    prototypes = Prototypes(list(subcategories), names, visual, textual, pd.DataFrame())
    settings = Settings(dropout=0.0, precision="fp32")
    model = build_model(clip, prototypes, settings)
    ways = {
        "as published": published_step(model, clip, batch),
        "ours, texts in the step": our_step(_copy(model), clip, batch, settings, cache_gb=0),
        "ours, texts cached": our_step(_copy(model), clip, batch, settings, cache_gb=4),
    }
    print(f"(c) {arguments.model}, batch {arguments.batch}, K = {len(names)}, {torch.get_num_threads()} threads")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    first_loss: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name, step in ways.items():
            started = time.perf_counter()
            loss = step()
            seconds[name].append(time.perf_counter() - started)
            first_loss.setdefault(name, loss)
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["as published"], times, strict=True))
        difference = abs(first_loss[name] - first_loss["as published"])
        print(f"  {name:24s} {statistics.median(times):7.2f} s/step  {ratio:5.1f} x  loss {first_loss[name]:.5f} "
              f"(difference {difference:.1e})  {[round(value, 2) for value in times]}")  # fmt: skip


def _copy(model: ClipFT) -> ClipFT:
    """A copy with its own parameters and the same tower."""
    return copy.deepcopy(model, {id(model.tower): model.tower})


if __name__ == "__main__":
    main()
