"""Encoding images: ``kit.encoders.bulk`` against the plain loop, clip-retrieval, and the forward pass alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from torch.utils.data import DataLoader, Dataset

from kit.encoders import bulk
from kit.encoders.encoders import ImageEncoder
from kit.release.images import ImageDataset, decode_image
from tests.bench import encoders
from tests.bench.encoders import BATCH, MODEL, features_task, light_images, pictures, random_clip
from tests.bench.measure import Case, NotInstalled, Task


class PlainImages(Dataset):
    """The usual data set: decode in full, the model's own preprocessing."""

    def __init__(self, paths: list[str], preprocess: Callable):
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.preprocess(decode_image(self.paths[index])[0])


def clip_images() -> ImageEncoder:
    """The image tower of CLIP."""
    return random_clip().image_encoder()


def prepare(folder: Path, n: int) -> None:
    """Pictures, and the precision that the kit's probe chooses for CLIP."""
    encoders.probe(folder, clip_images.__name__, clip_images(), bulk.encode_files, pictures(folder, n))


def prepare_light(folder: Path, n: int) -> None:
    """The same for the packaged network; nothing where that is not there, which the ways then say."""
    with suppress(NotInstalled):
        encoders.probe(folder, light_images.__name__, light_images(), bulk.encode_files, pictures(folder, n))


def ours(make: Callable[[], ImageEncoder], folder: Path, n: int) -> Task:
    """``kit.encoders.bulk.encode_images`` in the probed precision: contents compared, decoded, encoded, written to a shard."""
    encoder, precision = encoders.as_probed(make(), folder, make.__name__, n)
    paths = pictures(folder, n)

    def work(paths: list[str] = paths) -> np.ndarray:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return bulk.encode_images(paths, encoder, out, precision=precision, device="cpu").values

    return features_task(work, lambda: work(paths[:BATCH]), precision)


def forward_alone(make: Callable[[], ImageEncoder], folder: Path, n: int) -> Task:
    """Nothing but the network in ours' precision, over pixels that lie ready in memory."""
    encoder, precision = encoders.as_probed(make(), folder, make.__name__, n)
    pixels = torch.from_numpy(next(ImageDataset(pictures(folder, n), encoder.transform).batches(n))[0])

    def work(pixels: torch.Tensor = pixels) -> np.ndarray:
        parts = [encoder.encode_batch(encoder.module, pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)]
        return torch.cat(parts).numpy()

    return features_task(work, lambda: work(pixels[:BATCH]), precision)


def data_loader(folder: Path, n: int) -> Task:
    """open_clip's usual loop: a DataLoader with one worker, float32."""
    clip, paths = random_clip(), pictures(folder, n)

    def work(paths: list[str] = paths) -> np.ndarray:
        batches = DataLoader(PlainImages(paths, clip.preprocess), batch_size=BATCH, num_workers=1)
        return torch.cat([clip.model.encode_image(batch, normalize=True) for batch in batches]).numpy()

    return features_task(work, lambda: work(paths[:BATCH]), "float32")


def light_loader(folder: Path, n: int) -> Task:
    """timm's usual loop: its model and transform as they are, a DataLoader with one worker, float32."""
    model = timm.create_model(f"local-dir:{encoders.packaged('efficientnet')}", pretrained=True).eval()
    model.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    paths = pictures(folder, n)

    def work(paths: list[str] = paths) -> np.ndarray:
        batches = DataLoader(PlainImages(paths, transform), batch_size=BATCH, num_workers=1)
        return torch.cat([model(batch) for batch in batches]).numpy()

    return features_task(work, lambda: work(paths[:BATCH]), "float32")


def clip_retrieval(folder: Path, n: int) -> Task:
    """clip-retrieval's worker, float32."""
    worker = encoders.clip_retrieval_worker()
    home = Path(pictures(folder, n)[0]).parent
    return encoders.clip_retrieval_task(worker, home, random_clip(), "img")


WAYS = {
    "ours": partial(ours, clip_images),
    "forward alone": partial(forward_alone, clip_images),
    "DataLoader, encode_image": data_loader,
    "clip-retrieval": clip_retrieval,
}
LIGHT = {
    "ours": partial(ours, light_images),
    "forward alone": partial(forward_alone, light_images),
    "DataLoader, timm": light_loader,
}
CASES = (
    Case(__name__, f"{MODEL}, random weights", WAYS, prepare, "items", encoders.differing),
    Case(__name__, "EfficientNet-Lite0", LIGHT, prepare_light, "items", encoders.differing),
)
