"""What ``kit.encoders.bulk`` encodes with: a frozen network with its own preprocessing, one class for images, one for texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


class ImageEncoder:
    """An image network with its own preprocessing.

    Args:
        name: for people.
        module: (B, 3, H, W) normalised pixels -> (B, d); copies of it are moved and cast.
        prepare: RGB image -> image of the network's input size.
        mean, std: of each channel, on a scale from 0 to 1.
        unit: whether features get norm 1.
        settings: what else decides the features, for the fingerprint.
        fingerprint: hash of weights and preprocessing where the caller has one; shards of another one are thrown away.
        made_by: module of the kit that loads the network; shards made by other code are thrown away, too.
    Attributes:
        draft_px: JPEG draft size (see ``kit.release.images.decode_image``), twice the input side.
    """

    def __init__(
        self, name: str, module: nn.Module, prepare: Callable[[Image.Image], Image.Image], mean: Sequence[float],
        std: Sequence[float], unit: bool = False, settings: Any = None, fingerprint: str = "", made_by: str = __name__,
    ):  # fmt: skip
        self.name, self.module, self.made_by = name, module.float().eval().requires_grad_(False), made_by
        self._prepare, self._mean, self._std, self._unit = prepare, torch.tensor(mean), torch.tensor(std), unit
        self.draft_px = 2 * max(prepare(Image.new("RGB", (64, 64))).size)
        described = [settings, self._mean.tolist(), self._std.tolist(), self.draft_px, unit]
        self.fingerprint = fingerprint or weights_fingerprint(module, described)

    def transform(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8 at the network's size."""
        return np.asarray(self._prepare(image))

    def encode_batch(self, module: nn.Module, pixels: Tensor) -> Tensor:
        """(B, d) float32 features of ``pixels`` (B, H, W, 3) uint8, by a copy of the network of any precision."""
        scale, shift = 1 / (255 * self._std), self._mean / self._std
        images = pixels.float() * scale.to(pixels.device) - shift.to(pixels.device)
        features = module(images.to(next(module.parameters()).dtype).permute(0, 3, 1, 2)).float()
        return F.normalize(features, dim=-1) if self._unit else features


class TextEncoder:
    """A text network with its tokenizer.

    Args:
        module: ids (B, L) -> (B, d); it has ``tokenize(texts) -> (N, L) int64`` and ``lengths(ids) -> (N,)``, the number of
            tokens that change a text's result (L for all where nothing may be cut).
        name, unit, settings, fingerprint, made_by: as for ``ImageEncoder``.
    """

    def __init__(
        self, name: str, module: nn.Module, unit: bool = False, settings: Any = None, fingerprint: str = "",
        made_by: str = __name__,
    ):  # fmt: skip
        self.name, self.module, self.made_by = name, module.float().eval().requires_grad_(False), made_by
        self.tokenize, self.lengths, self._unit = module.tokenize, module.lengths, unit
        self.fingerprint = fingerprint or weights_fingerprint(module, [settings, unit])

    def encode_batch(self, module: nn.Module, ids: Tensor) -> Tensor:
        """(B, d) float32 features of ``ids`` (B, L), L at least the longest of ``lengths``, by a copy of the network."""
        features = module(ids).float()
        return F.normalize(features, dim=-1) if self._unit else features


def weights_fingerprint(module: nn.Module, settings: Any) -> str:
    """Hash of a network's weights and of what else decides its features: config, preprocessing."""
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()[:16]
