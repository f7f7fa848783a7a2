"""Bulk encoding of images and texts by any frozen model: each distinct item once, resumable, in the fastest exact-enough way.

An encoder is a small object that knows one model; this module knows none. What it adds: each distinct file content and each
distinct text is encoded once; texts are batched by length and cut to the batch's longest; decoding runs beside the forward
pass; half precision is used where a probe finds it faster at the same features; results lie in shards, each written whole by
one idempotent function, so that an interrupted run loses one shard and other engines can call the same function.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kit.base.code import code_of
from kit.base.files import atomic_path, digest, read_json, write_json
from kit.base.machine import package_versions, usable_cores
from kit.base.progress import progress
from kit.encoders.encoders import ImageEncoder, TextEncoder
from kit.encoders.job import EncodedImages, Job, forget_networks
from kit.encoders.precision import PRECISION_FILE, default_batch, default_devices, forward, settle_precision
from kit.release.images import ImageDataset, check_bad_share, file_size, group_by_content

SHARD_IMAGES, SHARD_TEXTS = 2048, 8192
LIBRARIES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "pillow",
    "numpy",
)  # that compute features
SECONDS_BETWEEN_LOOKS = 0.5  # for shards that other processes have finished
Tick = Callable[[int], object]  # told how many more items are done


def no_tick(n_items: int) -> None:
    """No progress is shown."""


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
    job = Job(encoder, encode_files, items, Path(folder), shard_size, batch_size or default_batch(devices), precision)
    stamp = digest([[paths[row], sizes[row], _mtime_ns(paths[row])] for row in first])
    values, reasons = _run(job, stamp, devices, "images")
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
    job = Job(encoder, encode_strings, items, Path(folder), shard_size, batch_size or default_batch(devices), precision)
    values, _ = _run(job, digest(items), devices, "texts")
    return values[rank[inverse]]


def encode_shard(job: Job, index: int, device: str = "cpu", tick: Tick = no_tick) -> Path:
    """Path of a finished shard, which is made unless it is there; safe to repeat, in any order and on any machine."""
    path = job.shard_path(index)
    if not path.is_file():
        precision = settle_precision(job, device)
        module = job.module_on(device, precision)
        values, reasons = job.encode(job.encoder, module, job.shard_items(index), job.batch_size, device, tick)
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise ArithmeticError(
                f"{job.encoder.name} gave values beyond float16 in {precision}; use precision='float32'"
            )
        with atomic_path(path) as temporary:
            np.savez(temporary, values=values.astype(np.float16), reasons=np.array(reasons, dtype=str))
    return path


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
    cores = max(1, usable_cores() // max(1, torch.cuda.device_count()))  # each GPU has a process that decodes for it
    n_threads = min(16, cores) if on_gpu else torch.get_num_threads()
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


def _run(job: Job, items_stamp: str, devices: list[str], label: str) -> tuple[np.ndarray, np.ndarray]:
    """Make the missing shards and read all: values (n_items, d) float16, reasons (n_items,) object."""
    _open_folder(job, items_stamp, devices[0])
    missing = [index for index in range(job.n_shards) if not job.shard_path(index).is_file()]
    bar = progress(range(sum(len(job.shard_items(index)) for index in missing)), label=f"encode {label}", unit=label)

    def tick(n_items: int) -> None:
        deque(islice(bar, n_items), maxlen=0)

    try:
        if len(devices) > 1 and len(missing) > 1:
            _share(job, missing, devices[: len(missing)], tick)
        else:
            for index in missing:
                encode_shard(job, index, devices[0], tick)
    finally:
        forget_networks()
    next(bar, None)  # closes the bar
    return _read_shards(job)


def _read_shards(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """All shards, one after the other in memory."""
    values, reasons = np.empty((0, 0), np.float16), []
    for index in range(job.n_shards):
        with np.load(job.shard_path(index)) as shard:
            part = shard["values"]
            reasons += shard["reasons"].tolist()
        if index == 0:
            values = np.empty((len(job.items), part.shape[1]), np.float16)
        values[len(reasons) - len(part) : len(reasons)] = part
    return values, np.array(reasons, dtype=object)


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


def _open_folder(job: Job, items_stamp: str, device: str) -> None:
    """Keep the shards of an interrupted call with the same model, items, code and libraries; drop others.

    Shards in float32 are kept on another kind of device, too; in half precision only where none is left to make.
    """
    stamp = {
        "encoder": job.encoder.name, "fingerprint": job.encoder.fingerprint, "items": items_stamp,
        "shard_size": job.shard_size, "asked": job.precision, "code": code_of("kit.encoders.bulk", job.encoder.made_by),
        "libraries": {name: package_versions().get(name) for name in LIBRARIES},
    }  # fmt: skip
    path, found = job.folder / "job.json", job.folder / PRECISION_FILE
    if path.is_file() and read_json(path) == stamp:
        probed = read_json(found) if found.is_file() else {"precision": "float32"}
        complete = all(job.shard_path(index).is_file() for index in range(job.n_shards))
        if complete or probed["precision"] == "float32" or probed["device"] == device.split(":")[0]:
            return
    for old in [*job.folder.glob("[0-9]*.npz"), *job.folder.glob(".*.npz"), found]:
        old.unlink(missing_ok=True)
    write_json(path, stamp)


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
