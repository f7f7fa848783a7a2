"""A network in two halves: what the frozen one gives is computed once and kept, the other one is tuned on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.base.code import code_of
from kit.base.files import atomic_path, digest, read_json, write_json, write_npz
from kit.encoders.bulk import libraries, mtime_ns, usual_batch
from kit.encoders.encoders import ImageEncoder, TextEncoder
from kit.release.images import ImageDataset, file_size

LAST = 2  # layers of a transformer that are tuned; of EfficientNet the last block and the convolution behind it
STAMP = "stamp.json"


@dataclass(frozen=True)
class Activations:
    """What the frozen half gives for the distinct texts or images of a run, its items.

    Attributes:
        values: (n_rows, width) float16, memory-mapped: a row per token of a text, or per place of an image's last map.
        starts: (n_items + 1,) first row of each item.
        vectors: (n_items, d) float32, what the other half makes of them before it is tuned.
        item: (n_posts,) of each post; -1 where its image cannot be read.
    """

    values: np.ndarray
    starts: np.ndarray
    vectors: np.ndarray
    item: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Activations:
        """As ``keep_activations`` left them."""
        with np.load(folder / "items.npz") as kept:
            return cls(np.load(folder / "values.npy", mmap_mode="r"), **kept)

    def batch(self, posts: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
        """(B, L, width) float32, padded with zeros, and (B,) rows of each."""
        bounds = [self.starts[item : item + 2] for item in self.item[posts]]
        lengths = torch.tensor([int(end - start) for start, end in bounds])
        hidden = torch.zeros(len(posts), int(lengths.max()), self.values.shape[1])
        for place, (start, end) in enumerate(bounds):
            hidden[place, : end - start] = torch.from_numpy(self.values[start:end].astype(np.float32))
        return hidden.to(device), lengths.to(device)

    def lengths(self, posts: np.ndarray) -> np.ndarray:
        """(n,) rows of each post."""
        return np.diff(self.starts)[self.item[posts]]


class TextTop(nn.Module):
    """The last layers of a BERT: (B, L, width) and lengths (B,) -> (B, d), the mean over tokens, of norm 1."""

    def __init__(self, encoder: TextEncoder):
        super().__init__()
        self.model = encoder.module.pool.model
        self.model.encoder.layer, self.model.embeddings = self.model.encoder.layer[-LAST:], _Given()

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        states = self.model(inputs_embeds=hidden, attention_mask=mask.long()).last_hidden_state
        return F.normalize((states * mask[:, :, None]).sum(dim=1), dim=-1)


class ImageTop(nn.Module):
    """The end of a timm EfficientNet: (B, places of a square map, width) -> (B, d); lengths are all the same."""

    def __init__(self, encoder: ImageEncoder):
        super().__init__()
        net = encoder.module
        self.tail = nn.Sequential(net.blocks[-1], net.conv_head, net.bn2, net.global_pool)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        side = math.isqrt(hidden.shape[1])
        return self.tail(hidden.unflatten(1, (side, side)).permute(0, 3, 1, 2))


def top_half(encoder: ImageEncoder | TextEncoder) -> nn.Module:
    """The half that is tuned; the encoder is of no other use afterwards."""
    top = (TextTop if isinstance(encoder, TextEncoder) else ImageTop)(encoder)
    return top.eval().requires_grad_(False)


@torch.inference_mode()
def keep_activations(encoder: ImageEncoder | TextEncoder, items: Sequence[str], folder: Path, device: str) -> str:
    """Write the activations of a run's posts into a folder, unless they are there; their stamp.

    Args:
        encoder: it is of no other use afterwards.
        items: (n_posts,) text or image file of each post.
    """
    is_text, code = isinstance(encoder, TextEncoder), code_of("kit.tuning.activations", encoder.made_by)
    read = list(items) if is_text else [[path, file_size(path), mtime_ns(path)] for path in items]
    stamp = digest([encoder.fingerprint, code, libraries(), read])
    if (folder / STAMP).is_file() and read_json(folder / STAMP) == stamp:
        return stamp
    (folder / STAMP).unlink(missing_ok=True)
    item, distinct = pd.factorize(np.array(items, dtype=object))
    halve = _text_half if is_text else _image_half
    lengths, batches = halve(encoder, [str(one) for one in distinct], device)
    starts, ok = np.r_[0, np.cumsum(lengths)], np.ones(len(distinct), dtype=bool)
    with atomic_path(folder / "values.npy") as temporary:
        values: Any = None
        for places, hidden, readable in batches:
            if values is None:
                values = np.lib.format.open_memmap(temporary, "w+", np.float16, (int(starts[-1]), hidden.shape[-1]))
            ok[places] = readable
            for place, rows in zip(places, hidden.half().cpu().numpy(), strict=True):
                values[starts[place] : starts[place + 1]] = rows[: lengths[place]]
        values.flush()
    kept = Activations(np.load(folder / "values.npy", mmap_mode="r"), starts, np.empty(0), np.arange(len(distinct)))
    top = top_half(encoder).to(device)
    places = np.argsort(lengths, kind="stable")
    parts = [
        top(*kept.batch(some, device)).cpu().numpy() for some in np.array_split(places, math.ceil(len(places) / 64))
    ]
    vectors = np.concatenate(parts)[np.argsort(places)]
    write_npz(folder / "items.npz", starts=starts, vectors=vectors, item=np.where(ok[item], item, -1))
    write_json(folder / STAMP, stamp)
    return stamp


Batches = Iterator[tuple[np.ndarray, Tensor, np.ndarray]]  # places of items, (B, L, width), whether each could be read


def _text_half(encoder: TextEncoder, texts: list[str], device: str) -> tuple[np.ndarray, Batches]:
    model = encoder.module.pool.model
    layers, ids = model.encoder.layer, encoder.tokenize(texts)
    lengths = encoder.lengths(ids)

    def batches() -> Batches:
        model.encoder.layer = layers[:-LAST]
        model.to(device)
        for rows in torch.argsort(lengths, stable=True).split(usual_batch(encoder, device)):
            some = ids[rows, : int(lengths[rows].max())].to(device)
            mask = torch.arange(some.shape[1], device=device) < lengths[rows, None].to(device)
            hidden = model(input_ids=some, attention_mask=mask.long()).last_hidden_state
            yield rows.numpy(), hidden, np.ones(len(rows), dtype=bool)
        model.encoder.layer = layers

    return lengths.numpy(), batches()


def _image_half(encoder: ImageEncoder, paths: list[str], device: str) -> tuple[np.ndarray, Batches]:
    net = encoder.module
    below = nn.Sequential(net.conv_stem, net.bn1, *net.blocks[:-1]).to(device)
    images = ImageDataset(paths, encoder.transform, encoder.draft_px)

    def hidden_of(pixels: np.ndarray) -> Tensor:
        return encoder.encode_batch(below, torch.tensor(pixels, device=device)).flatten(2).transpose(1, 2)

    def batches() -> Batches:
        done = 0
        for pixels, why in images.batches(usual_batch(encoder, device), torch.get_num_threads()):
            yield np.arange(done, done + len(why)), hidden_of(pixels), np.array(why) == ""
            done += len(why)

    return np.full(len(paths), hidden_of(images[0][0][None]).shape[1]), batches()


class _Given(nn.Module):
    """In place of a BERT's embeddings: what is given."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds
