"""Token features of the posts' texts (Eq. 3), served in batches: every distinct text once, cached where they fit.

The text tower is frozen, so the features of a text never change. Kept for its valid tokens only and in float16, a
text of 15 tokens costs 15 kB at d = 512; whether all texts fit is decided from their true lengths before anything is
encoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.base.progress import progress
from kit.clip_ft.prompts import tower_precision
from kit.encoders.text_tower import TextTower

TOKENIZE_CHUNK = 4096


class TextBank:
    """Text features of posts by row number.

    Args:
        tower: frozen text tower, on the device the batches shall be on.
        texts: n_posts texts; equal ones are encoded once.
        cache_gb: memory the token features may take; more than that and each batch is encoded when it is asked for.
        batch_size: texts per pass when the cache is filled.
        mask_sot: leave out the start-of-text token, which under causal attention is one constant vector.
        dtype: precision of the tower under autocast.
    Attributes:
        options: how it was made, without the tower.
        cached: whether the token features are held in memory.
        cache_bytes: memory they take, or would take.
    """

    def __init__(
        self,
        tower: TextTower,
        texts: Sequence[str],
        *,
        cache_gb: float = 4.0,
        batch_size: int = 256,
        mask_sot: bool = True,
        dtype: torch.dtype = torch.float32,
    ):
        self.tower, self.dtype = tower.eval().requires_grad_(False), dtype
        self.device = next(tower.parameters()).device
        self.options = {"cache_gb": cache_gb, "batch_size": batch_size, "mask_sot": mask_sot}
        self._skip_sot = mask_sot and tower.has_sot
        self.text_idx, self._distinct = pd.factorize(np.asarray(texts, dtype=object))
        self.ids = _tokenize(tower, list(self._distinct))  # (n_distinct, L) int32
        self._lengths = torch.cat([tower.valid_mask(part).sum(dim=1) for part in self.ids.split(TOKENIZE_CHUNK)])
        self.cache_bytes = 2 * tower.dim * (int(self._lengths.sum()) + len(self.ids))
        self.cached = self.cache_bytes <= cache_gb * 1e9
        if self.cached:
            self._fill(batch_size)

    def __len__(self) -> int:
        return len(self.text_idx)

    @property
    def texts(self) -> np.ndarray:
        """(n_posts,) object array, the text of each post."""
        return self._distinct[self.text_idx]

    @property
    def fingerprint(self) -> str:
        """Hash of the token ids, of which post has which text, and of the mask."""
        content = [self.ids.numpy().tobytes(), self.text_idx.tobytes(), bytes([self._skip_sot])]
        return hashlib.sha256(b"".join(content)).hexdigest()[:16]

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """h (B, d), H (B, L, d) and mask (B, L) of the posts ``rows`` (B,); rows of H beyond the mask mean nothing.

        From the cache both are float16 rows of norm 1, else what the tower gives in its own length.
        """
        index = torch.from_numpy(self.text_idx[rows])
        pooled, tokens, mask = self._gather(index) if self.cached else self._encode(index)
        if self._skip_sot:
            mask[:, 0] = False
        return pooled, tokens, mask

    @torch.no_grad()
    def _encode(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ids = self.ids[index].long().to(self.device)
        with tower_precision(self.device, self.dtype):
            return self.tower.encode_ids(ids)

    def _gather(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lengths = self._lengths[index]
        place = torch.arange(int(lengths.max()))
        mask = place < lengths[:, None]
        flat = self._starts[index][:, None] + torch.where(mask, place, 0)  # (B, L) rows of the ragged cache
        return self._pooled[index].to(self.device), self._tokens[flat].to(self.device), mask.to(self.device)

    def _fill(self, batch_size: int) -> None:
        """Encode all distinct texts, shortest first so that batches hold few pads."""
        self._starts = self._lengths.cumsum(dim=0) - self._lengths
        self._tokens = torch.empty((int(self._lengths.sum()), self.tower.dim), dtype=torch.float16)
        self._pooled = torch.empty((len(self.ids), self.tower.dim), dtype=torch.float16)
        parts = self._lengths.argsort().split(batch_size)
        for index in progress(parts, label="text tokens", unit="batches"):
            pooled, tokens, mask = self._encode(index)
            self._pooled[index] = F.normalize(pooled.float(), dim=-1).half().cpu()
            spans = zip(self._starts[index], self._lengths[index], strict=True)
            flat = torch.cat([torch.arange(start, start + length) for start, length in spans])
            self._tokens[flat] = F.normalize(tokens[mask].float(), dim=-1).half().cpu()


def _tokenize(tower: TextTower, texts: list[str]) -> Tensor:
    """(N, L) int32 token ids, cut to the longest text where the tower allows."""
    chunks = [
        tower.tokenize(texts[start : start + TOKENIZE_CHUNK]).int() for start in range(0, len(texts), TOKENIZE_CHUNK)
    ]
    return tower.truncate(torch.cat(chunks))
