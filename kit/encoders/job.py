"""The job of encoding many items, and what comes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kit.encoders.encoders import ImageEncoder, TextEncoder

_CAST: dict[
    tuple[str, ...], nn.Module
] = {}  # the network this process used last on another device or in half precision


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
        precision: "float32", "bfloat16" or "float16"; or "auto": what ``kit.encoders.precision.settle_precision`` finds.
    """

    encoder: ImageEncoder | TextEncoder
    encode: Callable
    items: list[str]
    folder: Path
    shard_size: int
    batch_size: int
    precision: str = "float32"

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

    def module_on(self, device: str, precision: str) -> nn.Module:
        """The encoder's network on a device in a precision, made once per process, however often a job is sent to it."""
        if is_as_wanted(self.encoder.module, device, precision):
            return self.encoder.module
        key = (self.encoder.name, self.encoder.fingerprint, device, precision)
        if key not in _CAST:
            forget_networks()
            _CAST[key] = cast_module(self.encoder.module, device, precision)
        return _CAST[key]


def forget_networks() -> None:
    """Free the memory of the network that ``Job.module_on`` keeps."""
    _CAST.clear()


def is_as_wanted(module: nn.Module, device: str, precision: str) -> bool:
    """Whether a network lies on a device in a precision already."""
    parameter = next(module.parameters())
    return parameter.dtype == getattr(torch, precision) and parameter.device == torch.device(device)


def cast_module(module: nn.Module, device: str, precision: str) -> nn.Module:
    """A copy of a network on a device in a precision; the network itself where nothing changes."""
    if is_as_wanted(module, device, precision):
        return module
    return copy.deepcopy(module).to(device=device, dtype=getattr(torch, precision)).eval()
