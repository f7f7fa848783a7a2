"""Token features of the posts' texts (Eq. 3), served in batches: every distinct text once, cached where they fit.

The text tower is frozen, so the features of a text never change. Kept for its valid tokens only and in float16, a
text of 15 tokens costs 15 kB at d = 512; where all texts fit, on the GPU or else in main memory, is decided from their
true lengths before anything is encoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.base.files import write_npy
from kit.base.machine import GB, memory_gb
from kit.base.progress import progress
from kit.clip_ft.prompts import tower_precision
from kit.encoders.text_tower import TextTower

TOKENIZE_CHUNK = 4096
KEPT = ("tokens.npy", "pooled.npy")  # files of a saved bank


class TextBank:
    """Text features of posts by row number.

    Args:
        tower: frozen text tower, on the device the batches shall be on.
        texts: n_posts texts; equal ones are encoded once.
        cache_share: share of the free memory that the token features may take, of the tower's GPU or else of the machine;
            more than that and each batch is encoded when it is asked for.
        batch_size: texts per pass when the cache is filled.
        mask_sot: leave out the start-of-text token, which under causal attention is one constant vector, and a prefix that
            the tower reads before each text.
        dtype: precision of the tower under autocast.
        kept: folder in which a bank of the same tower and texts was saved; its word features are mapped, not made again.
    Attributes:
        options: how it was made, without the tower.
        n_distinct: number of distinct texts.
        place: where the token features are held, a device or None.
        cache_bytes: memory they take, or would take.
    """

    def __init__(
        self, tower: TextTower, texts: Sequence[str], *, cache_share: float = 0.5, batch_size: int = 256,
        mask_sot: bool = True, dtype: torch.dtype = torch.float32, kept: Path | None = None,
    ):  # fmt: skip
        self.tower, self.dtype = tower.eval().requires_grad_(False), dtype
        self.device = next(tower.parameters()).device
        self.options = {"cache_share": cache_share, "batch_size": batch_size, "mask_sot": mask_sot}
        self._n_skipped = tower.n_start if mask_sot else 0
        self.text_idx, self._distinct = pd.factorize(np.asarray(texts, dtype=object))
        self.ids = _tokenize(tower, list(self._distinct))  # (n_distinct, L) int32
        self._lengths = torch.cat([tower.valid_mask(part).sum(dim=1) for part in self.ids.split(TOKENIZE_CHUNK)])
        self.cache_bytes = 2 * tower.dim * (int(self._lengths.sum()) + len(self.ids))
        self.n_distinct = len(self.ids)
        self._starts = self._lengths.cumsum(dim=0) - self._lengths
        self.place = _place(self.device, self.cache_bytes, cache_share) if kept is None else torch.device("cpu")
        if kept is not None:
            self._tokens, self._pooled = (torch.from_numpy(np.load(kept / name, mmap_mode="c")) for name in KEPT)
        elif self.place is not None:
            self._fill(batch_size)

    def __len__(self) -> int:
        return len(self.text_idx)

    @property
    def texts(self) -> np.ndarray:
        """(n_posts,) object array, the text of each post."""
        return self._distinct[self.text_idx]

    def save(self, folder: Path) -> None:
        """Write the word features, held in main memory, for the banks of other processes, which share them as ``kept``."""
        for name, values in zip(KEPT, (self._tokens, self._pooled), strict=True):
            write_npy(folder / name, values.numpy())

    @property
    def precision(self) -> str:
        """Of the tower's weights, as "float32"."""
        return str(self.tower.token_embedding.weight.dtype).removeprefix("torch.")

    @property
    def fingerprint(self) -> str:
        """Hash of the token ids, of which post has which text, of the mask and of a lower precision."""
        content = [self.ids.numpy().tobytes(), self.text_idx.tobytes(), bytes([self._n_skipped])]
        content += [] if self.precision == "float32" else [self.precision.encode()]
        return hashlib.sha256(b"".join(content)).hexdigest()[:16]

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """h (B, d), H (B, L, d) and mask (B, L) of the posts ``rows`` (B,); rows of H beyond the mask mean nothing.

        Features are float16 rows of norm 1, cached or not, so that results do not hang on how much memory was free.
        """
        index = torch.from_numpy(self.text_idx[rows])
        pooled, tokens, mask = self._encode(index) if self.place is None else self._gather(index)
        mask[:, : self._n_skipped] = False
        return pooled, tokens, mask

    @torch.no_grad()
    def _encode(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ids = to_device(self.ids[index].long(), self.device)
        with tower_precision(self.device, self.dtype):
            pooled, tokens, mask = self.tower.encode_ids(ids)
        return F.normalize(pooled.float(), dim=-1).half(), F.normalize(tokens.float(), dim=-1).half(), mask

    def _gather(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lengths = self._lengths[index]
        position = torch.arange(int(lengths.max()))
        mask = position < lengths[:, None]
        flat = self._starts[index][:, None] + torch.where(mask, position, 0)  # (B, L) rows of the ragged cache
        pooled, tokens = self._pooled[to_device(index, self.place)], self._tokens[to_device(flat, self.place)]
        return to_device(pooled, self.device), to_device(tokens, self.device), to_device(mask, self.device)

    def _fill(self, batch_size: int) -> None:
        """Encode all distinct texts, shortest first so that batches hold few pads."""
        half = {"dtype": torch.float16, "device": self.place}
        self._tokens = torch.empty((int(self._lengths.sum()), self.tower.dim), **half)
        self._pooled = torch.empty((len(self.ids), self.tower.dim), **half)
        parts = self._lengths.argsort().split(batch_size)
        for index in progress(parts, label="text tokens", unit="batches"):
            pooled, tokens, mask = self._encode(index)
            spans = zip(self._starts[index], self._lengths[index], strict=True)
            flat = torch.cat([torch.arange(start, start + length) for start, length in spans])
            self._pooled[index.to(self.place)] = pooled.to(self.place)
            self._tokens[flat.to(self.place)] = tokens[mask].to(self.place)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``; from main memory to a GPU by way of pinned memory, without waiting for the copy."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _place(device: torch.device, n_bytes: int, share: float) -> torch.device | None:
    """Where a cache of ``n_bytes`` is held: on the tower's device, else in main memory, else (too large) nowhere."""
    if device.type == "cuda" and n_bytes <= share * torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu") if n_bytes <= share * GB * memory_gb()[1] else None


def _tokenize(tower: TextTower, texts: list[str]) -> Tensor:
    """(N, L) int32 token ids, cut to the longest text where the tower allows."""
    chunks = [
        tower.tokenize(texts[start : start + TOKENIZE_CHUNK]).int() for start in range(0, len(texts), TOKENIZE_CHUNK)
    ]
    return tower.truncate(torch.cat(chunks))
