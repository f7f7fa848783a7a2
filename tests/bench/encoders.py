"""What the stages about models share: models of real size, CLIP with random weights (speed needs no others), and its material.

Set-up of every way includes the network in its precision and a first batch, which a run has once however many items there
are. The precision is what the kit's own probe chooses on this machine.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import open_clip
import torch
import torch.nn.functional as F

from kit.encoders import networks
from kit.encoders.clip import Clip, wrap_model
from kit.encoders.encoders import ImageEncoder, TextEncoder
from kit.encoders.job import Job, cast_module
from kit.encoders.precision import probe_precision
from kit.encoders.registry import NETWORKS
from kit.encoders.weights import find_weights
from kit.release.images import decode_image, group_by_content
from tests.bench.material import posts_table
from tests.bench.measure import Found, NotInstalled, Task

MODEL = "ViT-B-32"
BATCH = 32
MIN_COSINE, MIN_CENTRED = 0.999, 0.98  # of each item's features in two ways; centred, or all items would look alike
SPARE = 1.2  # pictures drawn for each one needed: some of a release are broken, some there twice
MIN_POSTS = 50  # of a release

REPEATS = 5  # features are alike each time, and other work on the machine comes and goes within seconds

Encoder = ImageEncoder | TextEncoder


def random_clip() -> Clip:
    """A real architecture with random weights, the same in every process."""
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL, pretrained=None)
    return wrap_model(model, open_clip.get_tokenizer(MODEL), open_clip.get_model_config(MODEL), MODEL)


def packaged(network: str) -> Path:
    """Where the weights of a network of the package index lie; raises NotInstalled."""
    if path := find_weights(network, NETWORKS[network].model):
        return path
    raise NotInstalled("no weights; python -m kit.encoders.packaged fetches them")


def light_images() -> ImageEncoder:
    """EfficientNet-Lite0 as block `efficientnet` has it."""
    return networks.load_image_encoder("efficientnet", NETWORKS["efficientnet"].model, packaged("efficientnet"))


def light_texts() -> TextEncoder:
    """MiniLM as block `minilm` has it."""
    return networks.load_text_encoder("minilm", NETWORKS["minilm"].model, packaged("minilm"))


def pictures(folder: Path, n: int) -> list[str]:
    """Paths of n readable pictures of a synthetic release, no two alike, in a folder of their own."""
    home = folder / f"pictures_{n}"
    if not home.is_dir():
        paths = posts_table(folder, int(SPARE * n) + MIN_POSTS, images=True)["image_path"].to_numpy()
        paths = paths[np.unique(group_by_content(list(paths)))]
        readable = [path for path in paths if not decode_image(path)[1]]
        if len(readable) < n:
            raise ValueError(f"{len(readable)} readable pictures where {n} are needed: raise SPARE")
        partial = folder / f"pictures_{n}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for i, path in enumerate(readable[:n]):
            shutil.copy(path, partial / f"{i:06d}.jpg")
        partial.rename(home)
    return sorted(map(str, home.iterdir()))


def post_texts(folder: Path, n: int) -> list[str]:
    """Title and tags of n synthetic posts."""
    posts = posts_table(folder, max(n, MIN_POSTS)).head(n)
    return (posts["Title"] + ". " + posts["Alltags"]).tolist()


def probe(folder: Path, what: str, encoder: Encoder, batch: Callable, items: Sequence[str]) -> None:
    """Keep the precision that the kit's probe finds for items, for the processes that follow."""
    path = _precision_path(folder, what, len(items))
    if not path.is_file():
        middle, items = len(items) // 2, sorted(items, key=len)
        job = Job(encoder, batch, len(items), items[middle : middle + BATCH], folder, BATCH, "cpu")
        path.write_text(probe_precision(job)[0])


def as_probed(encoder: Encoder, folder: Path, what: str, n: int, precision: str = "") -> tuple[Encoder, str]:
    """The encoder with its network in the probed precision (or another) already, so that nothing need copy it."""
    precision = precision or _precision_path(folder, what, n).read_text()
    encoder.module = cast_module(encoder.module, "cpu", precision)
    return encoder, precision


def features_task(work: Callable[[], np.ndarray], warm_up: Callable[[], object], note: str = "") -> Task:
    """A task whose work gives features (n, d), without gradients, after a first batch."""

    def without_gradients() -> np.ndarray:
        with torch.inference_mode():
            return work()

    with torch.inference_mode():
        warm_up()
    return Task(without_gradients, lambda values: {"features": values.astype(np.float32)}, lambda *_: note, REPEATS)


def differing(ours: Found, other: Found) -> str:
    """What differs between two ways' features, which may come from different precisions and JPEG decoders."""
    a, b = (torch.from_numpy(found["features"]).double() for found in (ours, other))
    if a.shape != b.shape:
        return f"features have shape {tuple(b.shape)}, not {tuple(a.shape)}"
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    cosine, centred = F.cosine_similarity(a, b).min(), F.cosine_similarity(a - a.mean(0), b - a.mean(0)).min()
    if cosine < MIN_COSINE or centred < MIN_CENTRED:
        return f"features agree to a cosine of {cosine:.5f}, {centred:.5f} around their mean"
    return ""


def clip_retrieval_worker() -> ModuleType:
    """The module that runs clip-retrieval's pipeline in one process; raises NotInstalled."""
    try:
        return importlib.import_module("clip_retrieval.clip_inference.worker")
    except ImportError as error:
        raise NotInstalled(f"not installed ({error.name})") from error


def clip_retrieval_task(worker: ModuleType, home: Path, clip: Clip, what: str) -> Task:
    """clip-retrieval's reader, mapper, writer and logger, with this model in place of one that it would download.

    Args:
        worker: see ``clip_retrieval_worker``.
        home: folder of pictures or text files, whose names sort in the order of the items.
        clip: the model.
        what: "img" or "text".

    Source: ``clip_retrieval.clip_inference.worker`` of clip-retrieval 2.45.
    """
    loaded = (clip.model, clip.preprocess, clip.text.tokenizer)

    def work() -> np.ndarray:
        with (
            tempfile.TemporaryDirectory(dir=home.parent) as out,
            patch.object(worker, "load_clip", lambda **_: loaded),
            patch("clip_retrieval.clip_inference.mapper.load_clip", lambda **_: loaded),
        ):
            worker.worker([0], str(home), out, output_partition_count=1, batch_size=BATCH, num_prepro_workers=1,
                          enable_image=what == "img", enable_text=what == "text", use_jit=False)  # fmt: skip
            return np.load(Path(out) / f"{what}_emb" / f"{what}_emb_0.npy")

    def warm_up() -> object:
        if what == "img":
            return clip.model.encode_image(torch.zeros(BATCH, 3, clip.image_px, clip.image_px))
        return clip.model.encode_text(clip.text.tokenizer(["warm"] * BATCH))

    return features_task(work, warm_up, "float32")


def _precision_path(folder: Path, what: str, n: int) -> Path:
    return folder / f"precision_{what}_{n}.txt"
