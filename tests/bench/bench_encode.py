"""Encoding speed: kit.encode against the plain loops, on a real-size model with random weights (speed needs no others).

    python tests/bench/bench_encode.py --data inputs/smpd --limit 1000

Prints (a) texts: ours against every text at full length; (b) images: ours against DataLoader + float32, and against the
forward pass alone at the precision ours chose. The ways take turns every 64 items, and the best
turn of each counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kit import encode
from kit.clip import Clip, wrap_model
from kit.images import decode_image
from kit.smpd import read_release

BATCH, PART = 32, 64


def random_clip(name: str) -> Clip:
    """A real architecture with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    return wrap_model(model, open_clip.get_tokenizer(name), open_clip.get_model_config(name), name)


class PlainImages(Dataset):
    """The usual data set: decode in full, the model's own preprocessing."""

    def __init__(self, paths: list[str], preprocess: Callable):
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.preprocess(decode_image(self.paths[index])[0])


def plain_texts(clip: Clip, texts: list[str]) -> Iterator[np.ndarray]:
    """Features of every text at full length, float32, a part of ``PART`` texts at a time."""
    for start in range(0, len(texts), PART):
        part = texts[start : start + PART]
        ids = [clip.text.tokenizer(part[at : at + BATCH]) for at in range(0, len(part), BATCH)]
        yield torch.cat([clip.model.encode_text(batch, normalize=True) for batch in ids]).numpy()


def plain_images(clip: Clip, paths: list[str]) -> Iterator[np.ndarray]:
    """Features by a DataLoader with one worker (which goes on decoding during the others' turns) and float32."""
    loader = iter(DataLoader(PlainImages(paths, clip.preprocess), batch_size=BATCH, num_workers=1))
    while batches := list(islice(loader, PART // BATCH)):
        yield torch.cat([clip.model.encode_image(images, normalize=True) for images in batches]).numpy()


def ours(job: encode.Job) -> Iterator[np.ndarray]:
    """Features by kit.encode, a shard at a time, written to disk as in a run."""
    for index in range(job.n_shards):
        yield np.load(encode.encode_shard(job, index))["values"]


def forward_alone(clip: Clip, paths: list[str], module: nn.Module) -> Iterator[np.ndarray]:
    """Nothing but the image tower, over ready-made pixels in its precision."""
    dtype = next(module.parameters()).dtype
    pixels = torch.stack([image for image in PlainImages(paths[:PART], clip.preprocess)]).to(dtype)
    for _ in range(0, len(paths), PART):
        yield torch.cat([module(pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)]).float().numpy()


@torch.inference_mode()
def compare(ways: dict[str, Iterator]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Best seconds per part of each way, which take turns part by part, and the features of each.

    The best part counts, because other work on the machine only ever adds time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    while True:
        for name, way in ways.items():
            started = time.perf_counter()
            part = next(way, None)
            if part is None:
                return {name: min(times[1:]) for name, times in seconds.items()}, {
                    name: np.concatenate(values) for name, values in parts.items()
                }
            seconds[name].append(time.perf_counter() - started)
            parts[name].append(part)


def report(seconds: dict[str, float], plain: str) -> None:
    """Print the speed of each way, and how many times that of the plain one it is."""
    for name, best in seconds.items():
        print(f"  {name:24s} {PART / best:7.1f} /s   {seconds[plain] / best:5.2f} x {plain}")


def min_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest cosine of two matrices' rows."""
    return float(F.cosine_similarity(torch.tensor(a).double(), torch.tensor(b).double()).min())


def bench_texts(clip: Clip, texts: list[str], folder: Path) -> None:
    """Bench (a)."""
    print(f"(a) {len(texts):,} texts ({len(set(texts)):,} distinct), {clip.name}, {torch.get_num_threads()} threads")
    encoder = clip.text_encoder()
    jobs = {
        name: encode.Job(encoder, encode.encode_strings, texts, folder / name, PART, BATCH)
        for name in ("exact", "probed")
    }
    jobs["probed"].precision, words = encode.probe_precision(jobs["probed"], "cpu")
    print(f"  probe: {words}")
    fast = f"ours {jobs['probed'].precision}, probed"
    seconds, results = compare(
        {
            "plain loop float32": plain_texts(clip, texts),
            "ours float32": ours(jobs["exact"]),
            fast: ours(jobs["probed"]),
        }
    )
    report(seconds, "plain loop float32")
    exact, _ = encode.encode_strings(encoder, encoder.module, texts[:PART], BATCH, "cpu")
    print(f"  largest difference in float32: {np.abs(exact - results['plain loop float32'][:PART]).max():.1e}; "
          f"min cosine probed: {min_cosine(results[fast], results['plain loop float32']):.6f}")  # fmt: skip


def bench_images(clip: Clip, paths: list[str], folder: Path) -> None:
    """Bench (b)."""
    print(f"(b) {len(paths):,} images, {clip.name}, {torch.get_num_threads()} threads")
    job = encode.Job(clip.image_encoder(), encode.encode_files, paths, folder / "images", PART, BATCH)
    job.precision, words = encode.probe_precision(job, "cpu")
    print(f"  probe: {words}")
    fast, alone = f"ours {job.precision}, probed", f"forward alone {job.precision}"
    seconds, results = compare(
        {"DataLoader float32": plain_images(clip, paths), fast: ours(job),
         alone: forward_alone(clip, paths, job.module_on("cpu"))}
    )  # fmt: skip
    report(seconds, "DataLoader float32")
    print(f"  ours at {seconds[alone] / seconds[fast]:.2f} of the forward pass alone; "
          f"min cosine {min_cosine(results[fast], results['DataLoader float32']):.6f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of a release")
    parser.add_argument("--limit", type=int, default=512, help=f"posts used of it, at least {3 * PART}")
    parser.add_argument("--model", default="ViT-B-32")
    arguments = parser.parse_args()
    posts = read_release(arguments.data).head(arguments.limit // PART * PART)
    clip = random_clip(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        bench_texts(clip, (posts["Title"] + ". " + posts["Alltags"]).tolist(), Path(folder))
        bench_images(clip, posts["image_path"].tolist(), Path(folder))


if __name__ == "__main__":
    main()
