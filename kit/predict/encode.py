"""Blocks of new posts by the run's own networks, in a process of its own: torch and boosting never share one.

python -m kit.predict.encode RUN POSTS.parquet OUT.npz BLOCK ...
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.files import read_json, write_npz
from kit.release.texts import post_texts
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.marks import read_mark

CLIP = ("clip_image", "clip_text", "clip_cosine", "clip")
CLIP_FT = ("clip_ft", "clip_ft_full")
ANY_SHARE = 1.0  # of the images may be bad: each is told


def encode(run: Run, posts: pd.DataFrame, wanted: list[str], folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Block -> (n, d) values of the posts, columns in the order of the block; and (n,) bool, which images could be read.

    Args:
        run: a finished run.
        posts: n posts, typed as the run's.
        wanted: CLIP, CLIP_FT and names of ``kit.encoders.registry.ENCODERS``.
        folder: for features on the way.
    """
    from kit.encoders import baselines, registry

    parameters = {number: _parameters(run, number) for number in ("02_prototypes", "03_clip_ft", "04_features")}
    first = parameters["02_prototypes"] or parameters["04_features"]
    texts, found = post_texts(posts, first["text_source"]), {}
    ok = np.ones(len(posts), dtype=bool)
    if set(wanted) & {*CLIP, *CLIP_FT}:
        found, ok = _clip_blocks(run, posts, texts, wanted, parameters, folder)
    for name in set(wanted) & set(registry.ENCODERS):
        own = parameters["04_features"]
        found[name] = baselines.baseline_block(
            name, posts, texts.tolist(), folder / "encoders", train_rows=np.empty(0, int), components=own["components"],
            models=registry.parse_models(own["baseline_models"]), weights_dir=own["weights_dir"], max_bad_share=ANY_SHARE,
            pca=run.read_block(name).pca,
        )  # fmt: skip
    return {name: np.asarray(block.values) for name, block in found.items()}, ok


def _clip_blocks(
    run: Run, posts: pd.DataFrame, texts: np.ndarray, wanted: list[str], parameters: dict, folder: Path
) -> tuple[dict[str, Block], np.ndarray]:
    from kit.encoders import bulk, clip, frozen

    source = read_json(run.dir / "clip" / "source.json")
    model = clip.load_clip(f"local-dir:{run.dir / 'clip'}")
    images = bulk.encode_images(posts["image_path"].tolist(), model.image_encoder(), folder / "images", ANY_SHARE)
    text_emb = bulk.encode_texts(texts.tolist(), model.text_encoder(), folder / "texts")
    cosine = frozen.image_text_cosine(images.values, text_emb, images.ok)
    names = [f"clip_{i}" for i in range(model.dim)]
    block = frozen.clip_block(
        images.values, text_emb, images.ok, np.empty(0, int), parameters["02_prototypes"]["components"],
        cosine=not source["trained_here"], pca=run.read_block("clip").pca,
    )  # fmt: skip
    found = {"clip_image": Block("clip_image", images.values, names), "clip_text": Block("clip_text", text_emb, names),
             "clip_cosine": Block("clip_cosine", cosine[:, None], ["cosine"]), "clip": block}  # fmt: skip
    if set(wanted) & set(CLIP_FT):
        full, asked = "clip_ft_full" in wanted, parameters["03_clip_ft"]
        found |= _clip_ft_blocks(run, posts, texts, model, images, full, asked, source)
    return found, images.ok


def _clip_ft_blocks(
    run: Run, posts: pd.DataFrame, texts: np.ndarray, model, images, full: bool, asked: dict, source: dict
):
    """Blocks of CLIP_FT by the model trained on all posts to learn from, as test posts have them."""
    import torch

    from kit.clip_ft import export, prototypes
    from kit.clip_ft.texts import TextBank
    from kit.clip_ft.train import Settings, TrainingData, open_trained, tower_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.text.place(device, source.get("text_precision", "float32"))  # not told by runs of before
    made = prototypes.load_prototypes(run.dir / "prototypes")
    trained = open_trained(model, made, asked, run.dir / "clip_ft", device)
    dtype = tower_dtype(Settings().precision, device)
    bank = TextBank(model.text, texts, cache_share=asked["cache_share"], mask_sot=asked["mask_sot"], dtype=dtype)
    data = TrainingData(
        images.values, prototypes.class_codes(posts, made.classes), np.empty(0, int), image_ok=images.ok
    )
    columns = export.full_columns(model.dim)
    matrix = np.empty((len(posts), len(columns)), np.float16) if full else None
    told = export.export_posts(trained, bank, data, full=matrix)
    pca = run.read_block("clip_ft").pca
    found = {"clip_ft": export.compact_block(told, np.empty(0, int), cosine=not source["trained_here"], pca=pca)}
    return found | ({"clip_ft_full": Block("clip_ft_full", matrix, columns)} if full else {})


def _parameters(run: Run, step: str) -> dict | None:
    mark = read_mark(run.dir, step)
    return mark["parameters"] if mark else None


def main(arguments: list[str]) -> None:
    """What the module's first lines say."""
    run_dir, posts, out, *wanted = arguments
    with tempfile.TemporaryDirectory() as folder:
        found, ok = encode(Run.open(run_dir), pd.read_parquet(posts), wanted, Path(folder))
    write_npz(Path(out), image_ok=ok, **{name: found[name] for name in wanted})


if __name__ == "__main__":
    main(sys.argv[1:])
