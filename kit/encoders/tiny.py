"""The bundled tiny CLIP: a small open_clip model trained in about two minutes on the run's own train images and texts.

It is there for the demo, for tests and for machines without weights; it knows nothing but these posts, and any pre-trained
model is far better. What makes two minutes enough: the text tower learns first, from texts alone (two random parts of a text
belong together), because words repeat far more often than looks; then its text features are fixed, so that each step of the
image tower costs only a small residual network on 48 px images, decoded once. Texts that mean nearly the same are not told
apart: the targets of the image tower are the similarities of the texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kit.base.code import code_of
from kit.base.files import digest, read_json, write_json, write_table
from kit.base.machine import package_versions
from kit.base.progress import progress
from kit.base.schedule import half_cosine
from kit.encoders.clip import Clip, load_folder, save_clip, wrap_model
from kit.encoders.registry import TINY
from kit.encoders.text_tower import TextTower, make_text_tower
from kit.release.images import ImageDataset

CONFIG_PATH = Path(__file__).with_name("tiny_clip.json")
TEXT_STEPS, IMAGE_STEPS, BATCH = 500, 1000, 64
MAX_POSTS = 20_000  # more are not seen in that many steps
SHIFT_PX = 3  # images are moved by up to this much in training
MAX_WORDS = 16  # of a text in one step
TEMPLATE, TEMPLATE_SHARE = "a photo of a {}.", 0.25  # so that the usual frame of a class name says nothing
LEARNING_RATE, WEIGHT_DECAY, WARMUP_STEPS = 1e-3, 0.05, 20
TOKEN_RATE = 2e-2  # of token embeddings: each step sees few of them; at the rate of the rest texts learn half as much
TARGET_SCALE = 20.0  # sharpness of the soft targets, factor on the cosines between texts


def train_tiny(
    paths: Sequence[str], texts: Sequence[str], folder: str | Path, seed: int = 0, text_steps: int = TEXT_STEPS,
    image_steps: int = IMAGE_STEPS,
) -> Clip:  # fmt: skip
    """The tiny CLIP trained on image files and their texts, saved in ``folder``; read from there if trained before.

    ``folder/history.csv`` keeps stage, step, loss. Give it train posts only.

    Args:
        paths: n image files; unreadable ones are left out, as are posts without a text.
        texts: n texts.
        seed: decides initial weights, order, crops and words; same seed, same model.
    """
    folder = Path(folder)
    stamp = {"posts": digest([list(paths), list(texts)]), "seed": seed, "steps": [text_steps, image_steps],
             "config": read_json(CONFIG_PATH), "code": code_of("kit.encoders.tiny"),
             "libraries": [package_versions()[name] for name in ("torch", "open_clip_torch", "pillow")]}  # fmt: skip
    if (folder / "training.json").is_file() and read_json(folder / "training.json") == stamp:
        return load_folder(folder)
    (folder / "training.json").unlink(missing_ok=True)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip, history = _train(paths, texts, rng, text_steps, image_steps)
    save_clip(clip, folder)
    write_table(folder / "history.csv", history)
    write_json(folder / "training.json", stamp)
    return load_folder(folder)


def _train(
    paths: Sequence[str], texts: Sequence[str], rng: np.random.Generator, text_steps: int, image_steps: int
) -> tuple[Clip, pd.DataFrame]:
    config = read_json(CONFIG_PATH)
    model = open_clip.model.CLIP(**config["model_cfg"])
    open_clip.model.set_model_preprocess_cfg(model, config["preprocess_cfg"])
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    rows = np.array([row for row, text in enumerate(texts) if text.strip()])
    rows = np.sort(rng.choice(rows, min(MAX_POSTS, len(rows)), replace=False))
    pixels, readable = _decode([paths[row] for row in rows], model.visual.image_size)
    pixels, words = pixels[readable], [texts[row].split() for row in rows[readable]]

    tower = make_text_tower(model.eval(), tokenizer)
    text_losses = _train_texts(model, tower, words, rng, text_steps)
    image_losses = _train_images(model, pixels, _embed_texts(tower, words), rng, image_steps)
    history = pd.DataFrame(
        [("text", step, loss) for step, loss in enumerate(text_losses)]
        + [("image", step, loss) for step, loss in enumerate(image_losses)], columns=["stage", "step", "loss"],
    )  # fmt: skip
    return wrap_model(model, tokenizer, config["model_cfg"], TINY), history


def _train_texts(
    model: open_clip.CLIP, tower: TextTower, words: list[list[str]], rng: np.random.Generator, steps: int
) -> list[float]:
    """Losses per step of the text tower: two random parts of a text find each other among the batch."""
    embedding = model.token_embedding
    embedding.sparse = True  # most of the 49,408 tokens never occur: update only those of the batch
    others = [parameter for parameter in tower.parameters() if parameter is not embedding.weight]
    optimizers = [
        torch.optim.AdamW(others, LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        torch.optim.SparseAdam([embedding.weight], TOKEN_RATE),
    ]
    losses = []
    for batch in progress(_batches(len(words), BATCH, steps, rng), steps, "tiny CLIP, texts", "steps"):
        parts = zip(*(_parts(words[row], rng) for row in batch), strict=True)
        first, second = (F.normalize(tower.pool_ids(tower.tokenize(list(part))), dim=-1) for part in parts)
        logits = model.logit_scale.detach().exp() * first @ second.T
        loss = _symmetric_loss(logits, torch.eye(len(batch)))
        losses.append(_step(loss, optimizers, min(1, (len(losses) + 1) / WARMUP_STEPS)))
    embedding.sparse = False
    return losses


def _train_images(
    model: open_clip.CLIP, pixels: np.ndarray, text_features: Tensor, rng: np.random.Generator, steps: int
) -> list[float]:
    """Losses per step of the image tower, against the fixed text features of the same posts."""
    visual = model.visual.train().to(memory_format=torch.channels_last)
    groups = [{"params": visual.parameters()}, {"params": [model.logit_scale], "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, LEARNING_RATE, weight_decay=WEIGHT_DECAY)]
    mean, std = (torch.tensor(visual.preprocess_cfg[key]) for key in ("mean", "std"))
    losses = []
    for batch in progress(_batches(len(pixels), BATCH, steps, rng), steps, "tiny CLIP, images", "steps"):
        images = torch.from_numpy(_shift_and_flip(pixels[batch], rng)).float()
        images = ((images / 255 - mean) / std).permute(0, 3, 1, 2)  # (B, 3, px, px) in channels-last memory
        texts = text_features[torch.from_numpy(batch)]
        logits = model.logit_scale.exp() * F.normalize(visual(images), dim=-1) @ texts.T
        loss = _symmetric_loss(logits, (TARGET_SCALE * texts @ texts.T).softmax(dim=1))
        losses.append(_step(loss, optimizers, half_cosine(len(losses), steps, WARMUP_STEPS)))
    visual.eval().to(memory_format=torch.contiguous_format)
    return losses


def _symmetric_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """CLIP's loss: cross-entropy over rows and over columns, for target weights (B, B) that are symmetric up to scale."""
    columns = targets.T / targets.T.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, columns)) / 2


def _step(loss: Tensor, optimizers: list[torch.optim.Optimizer], rate: float) -> float:
    for optimizer in optimizers:
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * rate
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


@torch.inference_mode()
def _embed_texts(tower: TextTower, words: list[list[str]]) -> Tensor:
    parts = [
        F.normalize(tower.pool_ids(tower.tokenize([" ".join(text) for text in words[start : start + 512]])), dim=-1)
        for start in range(0, len(words), 512)
    ]
    return torch.cat(parts).clone()


def _decode(paths: list[str], px: int) -> tuple[np.ndarray, np.ndarray]:
    """All images squashed to (n, px, px, 3) uint8, and which of them could be read."""

    def squash(image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((px, px), Image.Resampling.BICUBIC))

    batches = ImageDataset(paths, squash, draft_px=2 * px).batches(256, n_threads=torch.get_num_threads())
    pixels, reasons = zip(*progress(batches, -(-len(paths) // 256), "tiny CLIP, decode", "batches"), strict=True)
    return np.concatenate(pixels), np.array([reason == "" for part in reasons for reason in part])


def _batches(n_posts: int, size: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of each step: every post once per epoch, in a new order each time."""
    size, made = min(size, n_posts), 0
    while made < steps:
        order = rng.permutation(n_posts)
        for start in range(0, n_posts - size + 1, size):
            if made < steps:
                yield order[start : start + size]
                made += 1


def _parts(words: list[str], rng: np.random.Generator) -> tuple[str, str]:
    """Two disjoint parts of a text, cut anywhere, words in random order; a word alone stands in both.

    Uneven cuts matter: they teach what single words mean, and class names are single words.
    """
    chosen = [words[at] for at in rng.permutation(len(words))[:MAX_WORDS]]
    cut = int(rng.integers(1, len(chosen))) if len(chosen) > 1 else 0
    first = " ".join(chosen[:cut] or chosen)
    return TEMPLATE.format(first) if rng.random() < TEMPLATE_SHARE else first, " ".join(chosen[cut:])


def _shift_and_flip(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B, H, W, 3) moved by one random shift per batch, edges repeated; half of the images mirrored."""
    height, width = pixels.shape[1:3]
    top, left = rng.integers(0, 2 * SHIFT_PX + 1, size=2)
    margins = ((0, 0), (SHIFT_PX, SHIFT_PX), (SHIFT_PX, SHIFT_PX), (0, 0))
    shifted = np.pad(pixels, margins, mode="edge")[:, top : top + height, left : left + width]
    mirrored = rng.random(len(shifted)) < 0.5
    shifted[mirrored] = shifted[mirrored, :, ::-1]
    return shifted
