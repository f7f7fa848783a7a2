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

# the network this process used last on another device or in half precision
_CAST: dict[tuple[str, ...], nn.Module] = {}


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
        encode: ``(encoder, module, items, batch_size, device) -> ((n, d) float32, n reasons)``.
        n_items: number of distinct paths or texts.
        typical: some of them, from their middle, to choose a precision by.
        folder: where the shards lie.
        batch_size: items per forward pass; 0 chooses.
        device: "cpu", or "cuda:0": the only GPU that a task sees.
        precision: "float32", "bfloat16" or "float16"; or "auto": what ``kit.encoders.precision.settle_precision`` finds.
    """

    encoder: ImageEncoder | TextEncoder
    encode: Callable
    n_items: int
    typical: list[str]
    folder: Path
    batch_size: int
    device: str
    precision: str = "float32"

    def shard_path(self, index: int) -> Path:
        """Where a finished shard lies."""
        return self.folder / f"{index:05d}.npz"

    def module_in(self, precision: str) -> nn.Module:
        """The encoder's network on the job's device in a precision, made once per process, however often a job comes to it."""
        if is_as_wanted(self.encoder.module, self.device, precision):
            return self.encoder.module
        key = (self.encoder.name, self.encoder.fingerprint, self.device, precision)
        if key not in _CAST:
            forget_networks()
            _CAST[key] = cast_module(self.encoder.module, self.device, precision)
        return _CAST[key]


@dataclass(frozen=True)
class Shard:
    """What a task encodes: the items of one shard, and its number."""

    index: int
    items: list[str]

    def __str__(self) -> str:
        return f"shard {self.index}, from {self.items[0][:80]!r}"


def forget_networks() -> None:
    """Free the memory of the network that ``Job.module_in`` keeps."""
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
