"""Bulk encoding of images and texts by any frozen model: each distinct item once, resumable, in the fastest exact-enough way.

An encoder is a small object that knows one model; this module knows none. What it adds: each distinct file content and each
distinct text is encoded once; texts are batched by length and cut to the batch's longest; decoding runs beside the forward
pass; half precision is used where a probe finds it faster at the same features; results lie in shards, each written whole by
one idempotent function, so that an interrupted run loses one shard and other engines can call the same function.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kit.images import ImageDataset, check_bad_share, file_size, group_by_content
from kit.run import atomic_path, digest, progress, read_json, write_json

MIN_COSINE = 0.999  # of every probed row in half precision with the same row in float32
MIN_SPEEDUP = 1.2  # below this the timing may be noise, and float32 is the safer choice
MIN_PROBE_ITEMS = 512  # fewer items are encoded before a probe has paid for itself
SHARD_IMAGES, SHARD_TEXTS = 2048, 8192
SECONDS_BETWEEN_LOOKS = 0.5  # for shards that other processes have finished

Tick = Callable[[int], object]  # told how many more items are done


def no_tick(n_items: int) -> None:
    """No progress is shown."""


class ImageEncoder(Protocol):
    """What ``encode_images`` needs to know of an image model.

    Attributes:
        name: for people.
        fingerprint: hash of weights and preprocessing; shards of another fingerprint are thrown away.
        module: the network in float32; copies of it are moved and cast.
        draft_px: JPEG draft size (see ``kit.images.decode_image``), usually twice the input side.
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


def encode_images(
    paths: Sequence[str], encoder: ImageEncoder, folder: str | Path, max_bad_share: float = 0.2, batch_size: int = 0,
    shard_size: int = SHARD_IMAGES, precision: str = "auto", devices: Sequence[str] | None = None,
) -> EncodedImages:  # fmt: skip
    """Features of image files, one row per path.

    Args:
        paths: n image files; ``""`` and unreadable files are encoded as grey.
        folder: where shards are kept; a second call with the same arguments reads them.
        max_bad_share: share of unreadable images above which the call fails.
        batch_size: images per forward pass; 0 chooses.
        precision: "auto" probes; or "float32", "bfloat16", "float16".
        devices: e.g. ``["cuda:0", "cuda:1"]``; by default all GPUs, else the CPU.
    Raises:
        InputError: more than ``max_bad_share`` of the images are bad.
    """
    paths = [str(path) for path in paths]
    sizes = [file_size(path) for path in paths]
    check_bad_share(paths, [size if isinstance(size, str) else "" for size in sizes], max_bad_share)
    first, inverse = np.unique(group_by_content(paths), return_inverse=True)
    items = [paths[row] for row in first]
    devices = list(devices or default_devices())
    job = Job(encoder, encode_files, items, Path(folder), shard_size, batch_size or default_batch(devices))
    stamp = digest([[paths[row], sizes[row], _mtime_ns(paths[row])] for row in first])
    values, reasons = _run(job, stamp, precision, devices, "images")
    values, reasons = values[inverse], reasons[inverse]
    check_bad_share(paths, reasons, max_bad_share)
    return EncodedImages(values, reasons == "", reasons)


def encode_texts(
    texts: Sequence[str], encoder: TextEncoder, folder: str | Path, batch_size: int = 0, shard_size: int = SHARD_TEXTS,
    precision: str = "auto", devices: Sequence[str] | None = None,
) -> np.ndarray:  # fmt: skip
    """(n, d) float16 features of n texts (arguments as in ``encode_images``)."""
    inverse, distinct = pd.factorize(np.array(list(texts), dtype=object))
    by_length = np.argsort([len(text) for text in distinct], kind="stable")  # texts of one shard need similar lengths
    rank = np.empty_like(by_length)
    rank[by_length] = np.arange(len(by_length))
    devices = list(devices or default_devices())
    items = [str(distinct[row]) for row in by_length]
    job = Job(encoder, encode_strings, items, Path(folder), shard_size, batch_size or default_batch(devices))
    values, _ = _run(job, digest(items), precision, devices, "texts")
    return values[rank[inverse]]


def encode_shard(job: Job, index: int, device: str = "cpu", tick: Tick = no_tick) -> Path:
    """Path of a finished shard, which is made unless it is there; safe to repeat, in any order and on any machine."""
    path = job.shard_path(index)
    if not path.is_file():
        values, reasons = job.encode(
            job.encoder, job.module_on(device), job.shard_items(index), job.batch_size, device, tick
        )
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise ArithmeticError(
                f"{job.encoder.name} gave values beyond float16 in {job.precision}; use precision='float32'"
            )
        with atomic_path(path) as temporary:
            np.savez(temporary, values=values.astype(np.float16), reasons=np.array(reasons, dtype=str))
    return path


def weights_fingerprint(module: nn.Module, settings: Any) -> str:
    """Hash of a network's weights and of what else decides its features: config, preprocessing."""
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()[:16]


@torch.inference_mode()
def encode_files(
    encoder: ImageEncoder, module: nn.Module, paths: Sequence[str], batch_size: int, device: str, tick: Tick = no_tick
) -> tuple[np.ndarray, list[str]]:
    """Features (n, d) float32 and reasons of image files.

    A GPU is fed by threads that decode ahead. On the CPU the cores decode and compute in turns: decoding beside the forward
    pass would take a core from it, and its other threads would wait for that one.
    """
    dataset = ImageDataset(paths, encoder.transform, encoder.draft_px)
    features, reasons = [], []
    on_gpu = device.startswith("cuda")
    n_threads = min(16, os.cpu_count() or 1) if on_gpu else torch.get_num_threads()
    for pixels, why in dataset.batches(batch_size, n_threads, ahead=2 if on_gpu else 0):
        features.append(forward(encoder, module, torch.from_numpy(pixels), device))
        reasons += why
        tick(len(why))
    return torch.cat([part.cpu() for part in features]).numpy(), reasons


@torch.inference_mode()
def encode_strings(
    encoder: TextEncoder, module: nn.Module, texts: Sequence[str], batch_size: int, device: str, tick: Tick = no_tick
) -> tuple[np.ndarray, list[str]]:
    """Features (n, d) float32 of texts, in batches of similar length cut to their longest; reasons are all empty."""
    ids = encoder.tokenize(list(texts))
    lengths = encoder.lengths(ids)
    order = torch.argsort(lengths, stable=True)
    features = []
    for rows in _token_batches(lengths[order], batch_size * ids.shape[1]):
        rows = order[rows]
        features.append(forward(encoder, module, ids[rows, : int(lengths[rows].max())], device))
        tick(len(rows))
    values = torch.cat([part.cpu() for part in features])
    return values[torch.argsort(order)].numpy(), [""] * len(texts)


def forward(encoder: ImageEncoder | TextEncoder, module: nn.Module, batch: Tensor, device: str) -> Tensor:
    """(B, d) float32 features; a batch too large for the GPU's memory is halved."""
    try:
        return encoder.encode_batch(module, batch.to(device, non_blocking=True)).float()
    except torch.cuda.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    return torch.cat([forward(encoder, module, half, device) for half in batch.tensor_split(2)])


# --- precision, devices ----------------------------------------------------------------------------------------------


def cast_module(module: nn.Module, device: str, precision: str) -> nn.Module:
    """A copy of a network on a device in a precision; the network itself where nothing changes."""
    dtype = getattr(torch, precision)
    parameter = next(module.parameters())
    if parameter.dtype == dtype and parameter.device == torch.device(device):
        return module
    return copy.deepcopy(module).to(device=device, dtype=dtype).eval()


@torch.inference_mode()
def probe_precision(job: Job, device: str) -> tuple[str, str]:
    """The fastest precision whose features keep a cosine above 0.999 with float32, and the measurement in words.

    Half precision is faster only on processors with units for it, and very slow on others, so it is timed on the first
    batch of the job. Autocast is not tried: it is slower than float32 on CPUs.
    """
    batch, half_types = _probe_batch(job), ["float16", "bfloat16"] if device.startswith("cuda") else ["bfloat16"]
    exact, exact_s = _timed(job, batch, device, "float32")
    best, best_s, words = "float32", exact_s / MIN_SPEEDUP, [f"float32 {len(batch) / exact_s:,.0f}/s"]
    for name in half_types:
        features, seconds = _timed(job, batch, device, name, give_up_s=exact_s)
        cosine = float(F.cosine_similarity(features, exact).min())
        words.append(f"{name} {len(batch) / seconds:,.0f}/s at cosine {cosine:.5f}")
        if cosine > MIN_COSINE and seconds < best_s:
            best, best_s = name, seconds
    return best, ", ".join(words)


def default_devices() -> list[str]:
    """All GPUs, else the CPU."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def default_batch(devices: Sequence[str]) -> int:
    """Items per forward pass: enough to fill a GPU; on CPUs what stays in the cache."""
    return 256 if devices[0].startswith("cuda") else 32


def _timed(
    job: Job, batch: Tensor, device: str, precision: str, give_up_s: float = float("inf")
) -> tuple[Tensor, float]:
    """Features of a batch and the best of two times, the first pass not counted unless it is already too slow."""
    module = cast_module(job.encoder.module, device, precision)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        features = forward(job.encoder, module, batch, device).cpu()
        seconds.append(time.perf_counter() - started)
        if seconds[0] > 4 * give_up_s:
            break
    return features, min(seconds[1:] or seconds)


def _probe_batch(job: Job) -> Tensor:
    """A typical batch of the job: items from its middle."""
    middle = len(job.items) // 2
    items = job.items[middle : middle + job.batch_size]
    if job.encode is encode_files:
        return torch.from_numpy(
            next(ImageDataset(items, job.encoder.transform, job.encoder.draft_px).batches(len(items)))[0]
        )
    ids = job.encoder.tokenize(items)
    return ids[:, : int(job.encoder.lengths(ids).max())]


# --- shards ----------------------------------------------------------------------------------------------------------


def _run(job: Job, items_stamp: str, precision: str, devices: list[str], label: str) -> tuple[np.ndarray, np.ndarray]:
    """Make the missing shards and read all: values (n_items, d) float16, reasons (n_items,) object."""
    _open_folder(job, items_stamp, precision, devices[0], label)
    missing = [index for index in range(job.n_shards) if not job.shard_path(index).is_file()]
    bar = progress(range(sum(len(job.shard_items(index)) for index in missing)), label=f"encode {label}", unit=label)

    def tick(n_items: int) -> None:
        deque(islice(bar, n_items), maxlen=0)

    if len(devices) > 1 and len(missing) > 1:
        _share(job, missing, devices[: len(missing)], tick)
    else:
        for index in missing:
            encode_shard(job, index, devices[0], tick)
    next(bar, None)  # closes the bar
    job.modules.clear()
    shards = [np.load(job.shard_path(index)) for index in range(job.n_shards)]
    return np.concatenate([shard["values"] for shard in shards]), np.concatenate(
        [shard["reasons"].astype(object) for shard in shards]
    )


def _share(job: Job, indices: list[int], devices: list[str], tick: Tick) -> None:
    """Make shards with one process per device; each takes the next one when it is free, so that none waits for a slow one."""
    taken = torch.multiprocessing.get_context("spawn").Value("q", 0)
    print(f"{len(indices)} shards on {', '.join(devices)}", flush=True)
    workers = torch.multiprocessing.spawn(_work, (job, indices, taken, devices), nprocs=len(devices), join=False)
    waiting, ended = set(indices), False
    while not ended:
        ended = workers.join(timeout=SECONDS_BETWEEN_LOOKS)  # raises what a worker raised
        done = {index for index in waiting if job.shard_path(index).is_file()}
        tick(sum(len(job.shard_items(index)) for index in done))
        waiting -= done


def _work(rank: int, job: Job, indices: list[int], taken: Any, devices: list[str]) -> None:
    while True:
        with taken.get_lock():
            place = taken.value
            taken.value += 1
        if place >= len(indices):
            return
        encode_shard(job, indices[place], devices[rank])


def _open_folder(job: Job, items_stamp: str, precision: str, device: str, label: str) -> None:
    """Keep the shards of an interrupted call with the same model and items, drop others; settle the precision."""
    stamp = {"encoder": job.encoder.name, "fingerprint": job.encoder.fingerprint, "items": items_stamp,
             "shard_size": job.shard_size, "asked": precision, "device": device.split(":")[0]}  # fmt: skip
    path = job.folder / "job.json"
    known = read_json(path) if path.is_file() else {}
    if {key: known.get(key) for key in stamp} == stamp:
        job.precision = known["precision"]
        return
    for old in [*job.folder.glob("[0-9]*.npz"), *job.folder.glob(".*.npz")]:
        old.unlink()
    job.precision, words = ("float32" if precision == "auto" else precision), ""
    if precision == "auto" and len(job.items) >= MIN_PROBE_ITEMS:
        job.precision, words = probe_precision(job, device)
        print(f"{job.encoder.name}: {len(job.items):,} distinct {label}, {job.precision} on {device} ({words})")
    write_json(path, {**stamp, "precision": job.precision, "probe": words})


def _token_batches(lengths: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Positions of consecutive batches over ascending lengths, each of at most ``max_tokens`` tokens once cut."""
    start = 0
    while start < len(lengths):
        size = 1
        while start + size < len(lengths) and (size + 1) * int(lengths[start + size]) <= max_tokens:
            size += 1
        yield torch.arange(start, start + size)
        start += size


def _mtime_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
