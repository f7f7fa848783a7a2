"""Encoding speed: kit.encode against the plain loops, on a real-size model with random weights (speed needs no others).

    python tests/bench/bench_encode.py --data inputs/smpd --limit 1000

Prints (a) texts: ours against every text at full length; (b) images: ours against DataLoader + float32, and against the
forward pass alone at the precision ours chose. Rounds alternate, so that other work on the machine meets all alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from kit import encode
from kit.clip import Clip, wrap_model
from kit.images import decode_image
from kit.smpd import read_release

BATCH = 32


def random_clip(name: str) -> Clip:
    """A real architecture with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    return wrap_model(model, open_clip.get_tokenizer(name), open_clip.get_model_config(name), name)


@torch.inference_mode()
def plain_texts(clip: Clip, texts: list[str]) -> np.ndarray:
    """Every text at full length, float32."""
    parts = [
        clip.model.encode_text(clip.text.tokenizer(texts[start : start + BATCH]), normalize=True)
        for start in range(0, len(texts), BATCH)
    ]
    return torch.cat(parts).numpy()


class PlainImages(Dataset):
    """The usual data set: decode in full, the model's own preprocessing."""

    def __init__(self, paths: list[str], preprocess: Callable):
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.preprocess(decode_image(self.paths[index])[0])


@torch.inference_mode()
def plain_images(clip: Clip, paths: list[str]) -> np.ndarray:
    """DataLoader with one worker and float32."""
    loader = DataLoader(PlainImages(paths, clip.preprocess), batch_size=BATCH, num_workers=1)
    return torch.cat([clip.model.encode_image(images, normalize=True) for images in loader]).numpy()


def encoded(function: Callable, items: list[str], encoder, precision: str) -> np.ndarray:
    """Ours, into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        result = function(items, encoder, Path(folder), precision=precision)
        return result if isinstance(result, np.ndarray) else result.values


def forward_alone(clip: Clip, pixels: list[torch.Tensor], precision: str) -> Callable[[], None]:
    """The image tower over ready-made batches, nothing else."""
    module = encode.cast_module(clip.model.visual, "cpu", precision)
    batches = [batch.to(getattr(torch, precision)) for batch in pixels]

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            module(batch)

    return run


def compare(ways: dict[str, Callable], n_items: int, rounds: int) -> tuple[dict[str, list[float]], dict]:
    """Seconds of each way per round, in turns, and the result of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            results[name] = way()
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"  {name:28s} {n_items / min(times):8.1f} /s   {[round(value, 2) for value in times]}")
    return seconds, results


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Best time of the slow way over best time of the fast way: other work on the machine only ever adds time."""
    return min(seconds[slow]) / min(seconds[fast])


def min_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest cosine of two matrices' rows."""
    return float(F.cosine_similarity(torch.tensor(a).double(), torch.tensor(b).double()).min())


def bench_texts(clip: Clip, texts: list[str], rounds: int) -> None:
    """Bench (a)."""
    encoder = clip.text_encoder()
    print(f"(a) {len(texts):,} texts ({len(set(texts)):,} distinct), {clip.name}, {torch.get_num_threads()} threads")
    ways = {
        "plain loop float32": lambda: plain_texts(clip, texts),
        "ours float32": lambda: encoded(encode.encode_texts, texts, encoder, "float32"),
        "ours probed": lambda: encoded(encode.encode_texts, texts, encoder, "auto"),
    }
    seconds, results = compare(ways, len(texts), rounds)
    exact = np.concatenate(
        [
            encode.encode_strings(encoder, encoder.module, texts[:200], BATCH, "cpu")[0]
            - results["plain loop float32"][:200]
        ]
    )
    print(f"  largest difference in float32 before storing as float16: {np.abs(exact).max():.1e}")
    for name in ("ours float32", "ours probed"):
        print(f"  {name}: {ratio(seconds, 'plain loop float32', name):.2f} x the plain loop, "
              f"min cosine {min_cosine(results[name], results['plain loop float32']):.6f}")  # fmt: skip


def bench_images(clip: Clip, paths: list[str], rounds: int) -> None:
    """Bench (b)."""
    encoder = clip.image_encoder()
    print(f"(b) {len(paths):,} images, {clip.name}, {torch.get_num_threads()} threads")
    job = encode.Job(encoder, encode.encode_files, paths, Path(), encode.SHARD_IMAGES, BATCH)
    precision, words = encode.probe_precision(job, "cpu")
    print(f"  probe: {precision} ({words})")
    pixels = list(DataLoader(PlainImages(paths, clip.preprocess), batch_size=BATCH))
    ways = {
        "DataLoader float32": lambda: plain_images(clip, paths),
        f"ours {precision}": lambda: encoded(encode.encode_images, paths, encoder, precision),
        f"forward alone {precision}": forward_alone(clip, pixels, precision),
    }
    seconds, results = compare(ways, len(paths), rounds)
    print(f"  ours: {ratio(seconds, 'DataLoader float32', f'ours {precision}'):.2f} x DataLoader float32, "
          f"{ratio(seconds, f'forward alone {precision}', f'ours {precision}'):.2f} of the forward pass alone, "
          f"min cosine {min_cosine(results[f'ours {precision}'], results['DataLoader float32']):.6f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of a release")
    parser.add_argument("--limit", type=int, default=512, help="posts used of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="ViT-B-32")
    arguments = parser.parse_args()
    posts = read_release(arguments.data).head(arguments.limit)
    clip = random_clip(arguments.model)
    bench_texts(clip, (posts["Title"] + ". " + posts["Alltags"]).tolist(), arguments.rounds)
    bench_images(clip, posts["image_path"].tolist(), arguments.rounds)


if __name__ == "__main__":
    main()
