"""Encoding images: ``kit.encoders.bulk`` against the plain loop, clip-retrieval, and the forward pass alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from kit.encoders import bulk
from kit.release.images import decode_image
from tests.bench import encoders
from tests.bench.encoders import BATCH, MODEL, features_task, pictures, random_clip
from tests.bench.measure import Case, Task


class PlainImages(Dataset):
    """The usual data set: decode in full, the model's own preprocessing."""

    def __init__(self, paths: list[str], preprocess: Callable):
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.preprocess(decode_image(self.paths[index])[0])


def prepare(folder: Path, n: int) -> None:
    """Pictures, and the precision that the kit's probe chooses for them."""
    encoders.probe(folder, "images", random_clip().image_encoder(), bulk.encode_files, pictures(folder, n))


def ours(folder: Path, n: int) -> Task:
    """``kit.encoders.bulk.encode_images`` in the probed precision: contents compared, decoded, encoded, written to a shard."""
    encoder, precision = encoders.as_probed(random_clip().image_encoder(), folder, "images", n)
    paths = pictures(folder, n)

    def work(paths: list[str] = paths) -> np.ndarray:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return bulk.encode_images(paths, encoder, out, precision=precision, device="cpu").values

    return features_task(work, lambda: work(paths[:BATCH]), precision)


def forward_alone(folder: Path, n: int) -> Task:
    """Nothing but the image tower in ours' precision, over pixels that lie ready in memory."""
    encoder, precision = encoders.as_probed(random_clip().image_encoder(), folder, "images", n)
    data = PlainImages(pictures(folder, n), random_clip().preprocess)
    pixels = torch.stack([data[i] for i in range(n)]).to(getattr(torch, precision))
    module = encoder.module

    def work(pixels: torch.Tensor = pixels) -> np.ndarray:
        return torch.cat([module(pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)]).float().numpy()

    return features_task(work, lambda: work(pixels[:BATCH]), precision)


def data_loader(folder: Path, n: int) -> Task:
    """open_clip's usual loop: a DataLoader with one worker, float32."""
    clip, paths = random_clip(), pictures(folder, n)

    def work(paths: list[str] = paths) -> np.ndarray:
        batches = DataLoader(PlainImages(paths, clip.preprocess), batch_size=BATCH, num_workers=1)
        return torch.cat([clip.model.encode_image(batch, normalize=True) for batch in batches]).numpy()

    return features_task(work, lambda: work(paths[:BATCH]), "float32")


def clip_retrieval(folder: Path, n: int) -> Task:
    """clip-retrieval's worker, float32."""
    worker = encoders.clip_retrieval_worker()
    home = Path(pictures(folder, n)[0]).parent
    return encoders.clip_retrieval_task(worker, home, random_clip(), "img")


WAYS = {
    "ours": ours,
    "forward alone": forward_alone,
    "DataLoader, encode_image": data_loader,
    "clip-retrieval": clip_retrieval,
}
CASES = (Case(__name__, f"{MODEL}, random weights", WAYS, prepare, "items", encoders.differing),)
