"""Devices, batch sizes and the fastest precision that changes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.base.files import read_json, write_first
from kit.base.tasks import machine_shape, on_cluster
from kit.encoders.encoders import ImageEncoder, TextEncoder
from kit.encoders.job import Job, cast_module
from kit.release.images import ImageDataset

PRECISION_FILE = "precision.json"  # beside the shards
MIN_COSINE = 0.999  # of every probed row in half precision with the same row in float32
MIN_SPEEDUP = (
    1.5  # a smaller gain may be noise of the timing, and then the run of a busy machine would have other bytes
)
MIN_PROBE_ITEMS = 512  # fewer items are encoded before a probe has paid for itself


def settle_precision(job: Job) -> str:
    """The precision of all shards of a job: the one it names, or what the first worker that comes here finds by a probe.

    The finding lies beside the shards in ``precision.json``, so that all workers, and a later call, go on with it.
    """
    if job.precision != "auto":
        return job.precision
    path = job.folder / PRECISION_FILE
    if not path.is_file():
        found, words = "float32", ""
        if job.n_items >= MIN_PROBE_ITEMS:
            found, words = probe_precision(job)
            print(f"{job.encoder.name}: {job.n_items:,} distinct items, {found} on {job.device} ({words})", flush=True)
        write_first(path, {"precision": found, "device": job.device.split(":")[0], "probe": words})
    return found_precision(job.folder)


def found_precision(folder: Path) -> str:
    """The precision of the shards in a folder; "float32" where none was looked for."""
    path = folder / PRECISION_FILE
    return read_json(path)["precision"] if path.is_file() else "float32"


def forward(encoder: ImageEncoder | TextEncoder, module: nn.Module, batch: Tensor, device: str) -> Tensor:
    """(B, d) float32 features; a batch too large for the GPU's memory is halved."""
    if device.startswith("cuda"):
        batch = batch.pin_memory()  # else the copy waits for the batch before
    try:
        return encoder.encode_batch(module, batch.to(device, non_blocking=True)).float()
    except torch.cuda.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    return torch.cat([forward(encoder, module, half, device) for half in batch.tensor_split(2)])


@torch.inference_mode()
def probe_precision(job: Job) -> tuple[str, str]:
    """The fastest precision whose features keep a cosine above 0.999 with float32, and the measurement in words.

    Half precision is faster only on processors with units for it, and very slow on others, so it is timed on the first
    batch of the job. Autocast is not tried: it is slower than float32 on CPUs.
    """
    batch, half_types = _probe_batch(job), ["bfloat16"] if job.device == "cpu" else ["float16", "bfloat16"]
    exact, exact_s = _timed(job, batch, "float32")
    best, best_s, words = "float32", exact_s / MIN_SPEEDUP, [f"float32 {len(batch) / exact_s:,.0f}/s"]
    for name in half_types:
        features, seconds = _timed(job, batch, name, give_up_s=exact_s)
        cosine = float(F.cosine_similarity(features, exact).min())
        words.append(f"{name} {len(batch) / seconds:,.0f}/s at cosine {cosine:.5f}")
        if cosine > MIN_COSINE and seconds < best_s:
            best, best_s = name, seconds
    return best, ", ".join(words)


def default_device() -> str:
    """ "cuda:0", the one GPU of each task, where the machines that do tasks have GPUs; else "cpu"."""
    return "cuda:0" if (machine_shape()[1] if on_cluster() else torch.cuda.is_available()) else "cpu"


def _timed(job: Job, batch: Tensor, precision: str, give_up_s: float = float("inf")) -> tuple[Tensor, float]:
    """Features of a batch and the best of two times, the first pass not counted unless it is already too slow."""
    module = cast_module(job.encoder.module, job.device, precision)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        parts = [forward(job.encoder, module, part, job.device).cpu() for part in batch.split(job.batch_size)]
        seconds.append(time.perf_counter() - started)
        if seconds[0] > 4 * give_up_s:
            break
    return torch.cat(parts), min(seconds[1:] or seconds)


def _probe_batch(job: Job) -> Tensor:
    """A batch of the job's typical items."""
    items = job.typical
    if hasattr(job.encoder, "transform"):  # images
        return torch.from_numpy(
            next(ImageDataset(items, job.encoder.transform, job.encoder.draft_px).batches(len(items)))[0]
        )
    ids = job.encoder.tokenize(items)
    return ids[:, : int(job.encoder.lengths(ids).max())]
