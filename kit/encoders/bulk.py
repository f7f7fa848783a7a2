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
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kit.base.code import code_of
from kit.base.files import digest, read_json, write_json, write_npz
from kit.base.machine import package_versions, usable_cores
from kit.base.tasks import map_tasks
from kit.encoders.encoders import ImageEncoder, TextEncoder
from kit.encoders.job import EncodedImages, Job, Shard, forget_networks
from kit.encoders.precision import PRECISION_FILE, default_device, forward, settle_precision
from kit.release.images import ImageDataset, check_bad_share, file_size, group_by_content

SHARD_IMAGES, SHARD_TEXTS = 2048, 8192
# that compute features
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "pillow", "numpy")
BATCH_GPU = 256  # items per forward pass: enough to fill a GPU
IMAGES_CPU, TEXTS_CPU = 8, 32  # what stays in a CPU's cache
TYPICAL = 32  # items by which a precision is chosen on a CPU


def encode_images(
    paths: Sequence[str], encoder: ImageEncoder, folder: str | Path, max_bad_share: float = 0.2, batch_size: int = 0,
    shard_size: int = SHARD_IMAGES, precision: str = "auto", device: str = "", cpus: int = 0,
) -> EncodedImages:  # fmt: skip
    """Features of image files, one row per path.

    Args:
        paths: n image files; ``""`` and unreadable files are encoded as grey.
        folder: where shards are kept; a second call with the same arguments reads them.
        max_bad_share: share of unreadable images above which the call fails.
        batch_size: images per forward pass; 0 chooses.
        precision: "auto" probes; or "float32", "bfloat16", "float16".
        device: "cpu", or "cuda:0" for the GPU of each task; by default GPUs where there are some.
        cpus: threads of a task; 0: all cores of a machine, or the share of its GPU.
    Raises:
        InputError: more than ``max_bad_share`` of the images are bad.
    """
    paths = [str(path) for path in paths]
    sizes = [file_size(path) for path in paths]
    check_bad_share(paths, [size if isinstance(size, str) else "" for size in sizes], max_bad_share)
    first, inverse = np.unique(group_by_content(paths), return_inverse=True)
    items = [paths[row] for row in first]
    job = _job(encoder, encode_files, items, folder, batch_size, device, precision)
    stamp = digest([[paths[row], sizes[row], mtime_ns(paths[row])] for row in first])
    values, reasons = _run(job, items, inverse, stamp, shard_size, cpus, "images")
    check_bad_share(paths, reasons, max_bad_share)
    return EncodedImages(values, reasons == "", reasons)


def encode_texts(
    texts: Sequence[str], encoder: TextEncoder, folder: str | Path, batch_size: int = 0, shard_size: int = SHARD_TEXTS,
    precision: str = "auto", device: str = "", cpus: int = 0,
) -> np.ndarray:  # fmt: skip
    """(n, d) float16 features of n texts (arguments as in ``encode_images``)."""
    inverse, distinct = pd.factorize(np.array(list(texts), dtype=object))
    by_length = np.argsort([len(text) for text in distinct], kind="stable")  # texts of one shard need similar lengths
    rank = np.empty_like(by_length)
    rank[by_length] = np.arange(len(by_length))
    items = [str(distinct[row]) for row in by_length]
    job = _job(encoder, encode_strings, items, folder, batch_size, device, precision)
    return _run(job, items, rank[inverse], digest(items), shard_size, cpus, "texts")[0]


def encode_shard(job: Job, shard: Shard) -> Path:
    """Path of a finished shard, which is made unless it is there; safe to repeat, in any order and on any machine."""
    path = job.shard_path(shard.index)
    if not path.is_file():
        precision = settle_precision(job)
        module = job.module_in(precision)
        values, reasons = job.encode(job.encoder, module, shard.items, job.batch_size, job.device)
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise ArithmeticError(
                f"{job.encoder.name} gave values beyond float16 in {precision}; use precision='float32'"
            )
        write_npz(path, values=values.astype(np.float16), reasons=np.array(reasons, dtype=str))
    return path


@torch.inference_mode()
def encode_files(
    encoder: ImageEncoder, module: nn.Module, paths: Sequence[str], batch_size: int, device: str
) -> tuple[np.ndarray, list[str]]:
    """Features (n, d) float32 and reasons of image files.

    A GPU is fed by threads that decode ahead. On the CPU the cores decode and compute in turns: decoding beside the forward
    pass would take a core from it, and its other threads would wait for that one.
    """
    dataset = ImageDataset(paths, encoder.transform, encoder.draft_px)
    features, reasons = [], []
    on_gpu = device.startswith("cuda")
    n_threads = min(16, usable_cores()) if on_gpu else torch.get_num_threads()
    for pixels, why in dataset.batches(batch_size, n_threads, ahead=2 if on_gpu else 0):
        features.append(forward(encoder, module, torch.from_numpy(pixels), device))
        reasons += why
    return torch.cat([part.cpu() for part in features]).numpy(), reasons


@torch.inference_mode()
def encode_strings(
    encoder: TextEncoder, module: nn.Module, texts: Sequence[str], batch_size: int, device: str
) -> tuple[np.ndarray, list[str]]:
    """Features (n, d) float32 of texts, in batches of similar length cut to their longest; reasons are all empty."""
    ids = encoder.tokenize(list(texts))
    lengths = encoder.lengths(ids)
    order = torch.argsort(lengths, stable=True)
    features = []
    for rows in _token_batches(lengths[order], batch_size * ids.shape[1]):
        rows = order[rows]
        features.append(forward(encoder, module, ids[rows, : int(lengths[rows].max())], device))
    values = torch.cat([part.cpu() for part in features])
    return values[torch.argsort(order)].numpy(), [""] * len(texts)


def usual_batch(encoder: ImageEncoder | TextEncoder, device: str) -> int:
    """Items per forward pass."""
    return BATCH_GPU if device != "cpu" else IMAGES_CPU if isinstance(encoder, ImageEncoder) else TEXTS_CPU


def libraries() -> dict[str, str | None]:
    """Versions of LIBRARIES, which may change what a network says."""
    return {name: package_versions().get(name) for name in LIBRARIES}


def _job(
    encoder: ImageEncoder | TextEncoder, encode: Callable, items: list[str], folder: str | Path, batch_size: int,
    device: str, precision: str,
) -> Job:  # fmt: skip
    device = device or default_device()
    batch_size, middle = batch_size or usual_batch(encoder, device), len(items) // 2
    typical = items[middle : middle + max(batch_size, TYPICAL)]
    return Job(encoder, encode, len(items), typical, Path(folder), batch_size, device, precision)


def _run(
    job: Job, items: list[str], row_of: np.ndarray, stamp: str, shard_size: int, cpus: int, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """Make the missing shards and read all: values (n, d) float16, reasons (n,) object, of item ``row_of[i]`` in row i."""
    starts = range(0, len(items), shard_size)
    there = _open_folder(job, stamp, shard_size, len(starts))
    missing = [
        Shard(index, items[start : start + shard_size])
        for index, start in enumerate(starts)
        if job.shard_path(index).name not in there
    ]
    try:
        on_gpu = int(job.device != "cpu")
        done = map_tasks(
            encode_shard, missing, common=job, cpus=cpus, gpus=on_gpu, label=f"encode {label}", unit="shard"
        )
        deque(done, maxlen=0)
    finally:
        forget_networks()
    order = np.argsort(row_of, kind="stable")  # posts by shard, so that no shard is held beside another
    bounds = np.searchsorted(row_of[order], [*starts, len(items)])
    values, reasons = np.empty((0, 0), np.float16), np.empty(len(row_of), dtype=object)
    for index, start in enumerate(starts):
        with np.load(job.shard_path(index)) as shard:
            part, why = shard["values"], shard["reasons"]
        if index == 0:
            values = np.empty((len(row_of), part.shape[1]), np.float16)
        rows = order[bounds[index] : bounds[index + 1]]
        values[rows], reasons[rows] = part[row_of[rows] - start], why[row_of[rows] - start]
    return values, reasons


def _open_folder(job: Job, items_stamp: str, shard_size: int, n_shards: int) -> set[str]:
    """Names of the kept shards of an interrupted call with the same model, items, code and libraries; others are dropped.

    Shards in float32 are kept on another kind of device, too; in half precision only where none is left to make. The
    folder is listed and no file asked for: on a network drive one that was not there is believed missing for a while.
    """
    stamp = {
        "encoder": job.encoder.name, "fingerprint": job.encoder.fingerprint, "items": items_stamp,
        "shard_size": shard_size, "asked": job.precision, "code": code_of("kit.encoders.bulk", job.encoder.made_by),
        "libraries": libraries(),
    }  # fmt: skip
    path, found = job.folder / "job.json", job.folder / PRECISION_FILE
    if path.is_file() and read_json(path) == stamp:
        probed = read_json(found) if found.is_file() else {"precision": "float32"}
        there = {shard.name for shard in job.folder.glob("[0-9]*.npz")}
        if len(there) == n_shards or "float32" == probed["precision"] or probed["device"] == job.device.split(":")[0]:
            return there
    for old in [*job.folder.glob("[0-9]*.npz"), *job.folder.glob(".*.npz"), found]:
        old.unlink(missing_ok=True)
    write_json(path, stamp)
    return set()


def _token_batches(lengths: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Positions of consecutive batches over ascending lengths, each of at most ``max_tokens`` tokens once cut."""
    start = 0
    while start < len(lengths):
        size = 1
        while start + size < len(lengths) and (size + 1) * int(lengths[start + size]) <= max_tokens:
            size += 1
        yield torch.arange(start, start + size)
        start += size


def mtime_ns(path: str) -> int:
    """When a file was written last; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
