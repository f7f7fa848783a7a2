"""What an encoder is, and the job of encoding many items with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class ImageEncoder(Protocol):
    """What ``encode_images`` needs to know of an image model.

    Attributes:
        name: for people.
        fingerprint: hash of weights and preprocessing; shards of another fingerprint are thrown away.
        module: the network in float32; copies of it are moved and cast.
        draft_px: JPEG draft size (see ``kit.release.images.decode_image``), usually twice the input side.
    """

    name: str
    fingerprint: str
    module: nn.Module
    draft_px: int

    def transform(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8 at the model's input size."""

    def encode_batch(self, module: nn.Module, pixels: Tensor) -> Tensor:
        """(B, d) features of ``pixels`` (B, H, W, 3) uint8 by ``module``, a copy of ``self.module``."""


class TextEncoder(Protocol):
    """What ``encode_texts`` needs to know of a text model (attributes as in ``ImageEncoder``)."""

    name: str
    fingerprint: str
    module: nn.Module

    def tokenize(self, texts: list[str]) -> Tensor:
        """(N, L) int64 ids."""

    def lengths(self, ids: Tensor) -> Tensor:
        """(N,) tokens of each text that change its result; L for all where nothing may be cut."""

    def encode_batch(self, module: nn.Module, ids: Tensor) -> Tensor:
        """(B, d) features of ``ids`` (B, L'), L' at least the longest of ``lengths``."""


@dataclass(frozen=True)
class EncodedImages:
    """Image features with one row per path.

    Attributes:
        values: (n, d) float16; a bad image has the features of a grey one.
        ok: (n,) bool, whether the image could be read.
        reasons: (n,) object, why not ("" where ok).
    """

    values: np.ndarray
    ok: np.ndarray
    reasons: np.ndarray


@dataclass
class Job:
    """Everything ``encode_shard`` has to know; it can be sent to another process.

    Attributes:
        encoder: an ``ImageEncoder`` or ``TextEncoder``.
        encode: ``(encoder, module, items, batch_size, device, tick) -> ((n, d) float32, n reasons)``.
        items: the distinct paths or texts.
        folder: where the shards lie.
        precision: "float32", "bfloat16" or "float16".
    """

    encoder: ImageEncoder | TextEncoder
    encode: Callable
    items: list[str]
    folder: Path
    shard_size: int
    batch_size: int
    precision: str = "float32"
    modules: dict = field(default_factory=dict, repr=False)

    def shard_items(self, index: int) -> list[str]:
        """The items of one shard."""
        return self.items[index * self.shard_size : (index + 1) * self.shard_size]

    @property
    def n_shards(self) -> int:
        """Number of shards, the last one may be short."""
        return -(-len(self.items) // self.shard_size)

    def shard_path(self, index: int) -> Path:
        """Where a finished shard lies."""
        return self.folder / f"{index:05d}.npz"

    def module_on(self, device: str) -> nn.Module:
        """The encoder's network on a device in the job's precision, made once per process."""
        if device not in self.modules:
            self.modules[device] = cast_module(self.encoder.module, device, self.precision)
        return self.modules[device]


def cast_module(module: nn.Module, device: str, precision: str) -> nn.Module:
    """A copy of a network on a device in a precision; the network itself where nothing changes."""
    dtype = getattr(torch, precision)
    parameter = next(module.parameters())
    if parameter.dtype == dtype and parameter.device == torch.device(device):
        return module
    return copy.deepcopy(module).to(device=device, dtype=dtype).eval()
