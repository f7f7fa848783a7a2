"""The CLIP model that a run's posts are encoded with: pre-trained, aligned from two networks, or the tiny one trained here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from kit.base.files import write_json
from kit.encoders.bulk import encode_images, encode_texts
from kit.encoders.clip import Clip, load_clip, save_clip, wrap_model
from kit.encoders.job import EncodedImages
from kit.encoders.pairs import make_pairs
from kit.encoders.precision import found_precision
from kit.encoders.registry import DUAL, DUAL_NETWORKS, NETWORKS, OTHER_READER, TINY
from kit.encoders.tiny import IMAGE_STEPS, TEXT_STEPS, train_tiny
from kit.encoders.weights import (
    WEIGHTS_DIR,
    choose_clip,
    clip_files,
    dual_reader,
    files_to_watch,
    missing_network,
    ready_network,
)
from kit.release.texts import other_letters
from kit.run.directory import Run


@dataclass(frozen=True)
class Opened:
    """A run's CLIP model and its features of all posts.

    Attributes:
        clip: the model.
        images: (n_posts, d) features of norm 1, and which images could be read.
        texts: (n_posts, d) float16 features of norm 1.
        external: in words what of it comes from outside the release.
        trained_here: whether it learnt from train posts of this run, whose features then flatter it.
        text_precision: in which its texts were read.
        shuffled: of smp-dual, the recall on the posts asked for (see ``pairs.recall``) of heads found from shuffled pairs.
    """

    clip: Clip
    images: EncodedImages
    texts: np.ndarray
    external: str = ""
    trained_here: bool = False
    text_precision: str = "float32"
    shuffled: dict[str, float] = field(default_factory=dict)


def open_model(
    run: Run, posts: pd.DataFrame, texts: np.ndarray, fit_idx: np.ndarray, valid_idx: np.ndarray, *, name: str,
    pretrained: str = "", weights_dir: str = WEIGHTS_DIR, without_weights: str = "leave out", effort: float = 1.0,
    max_bad_images: float = 0.2, seed: int = 0,
) -> Opened:  # fmt: skip
    """The CLIP model of a run, saved in its folder ``clip/``, and its features of all posts.

    Args:
        run: open for the step that encodes.
        posts: the posts table.
        texts: (n_posts,) texts.
        fit_idx: rows that a model made here may learn from.
        valid_idx: rows by authors held out from those, on which shuffled pairs are judged; may be empty.
        name, pretrained, weights_dir: as for ``load_clip``; ``auto``, see ``choose_clip``; ``smp-dual`` aligns two networks and
            ``smp-tiny`` trains the tiny model.
        without_weights: "leave out" the step, or "download" what is missing.
        effort: length of the tiny model's training, 1 as tuned.
        max_bad_images: share of unreadable images above which the call fails.
        seed: of what is trained.
    Raises:
        StepLeftOut: weights are missing, or no image is on this computer; blocks that rest on them are removed.
    """
    download = without_weights == "download"
    model = choose_clip(name, pretrained, weights_dir, download)
    run.use(*clip_files(name, pretrained, weights_dir))
    missing = "" if download else missing_network("clip", model, weights_dir)
    missing = missing and f"needs {missing}"
    if not posts["image_path"].map(os.path.isfile).any():
        missing = f"none of the {len(posts):,} image files is on disk: unpack the images of the release into its folder"
    if missing:
        run.leave_out(missing, blocks=["clip_image", "clip_text", "clip_cosine", "clip", "clip_ft"])
    if model == DUAL:
        opened = _open_dual(run, posts, texts, fit_idx, valid_idx, weights_dir, download, max_bad_images, seed)
    else:
        if model == TINY:
            print(f"{TINY}: a very small model trained on this run's own posts; use a pre-trained CLIP for real work")
            steps = [max(1, round(effort * n)) for n in (TEXT_STEPS, IMAGE_STEPS)]
            paths = posts["image_path"].iloc[fit_idx].tolist()
            clip = train_tiny(paths, texts[fit_idx].tolist(), run.folder("tiny"), seed, *steps)
        else:
            clip = load_clip(*model.split(" "), weights_dir=weights_dir)
        images = encode_images(
            posts["image_path"].tolist(), clip.image_encoder(), run.folder("shards/images"), max_bad_images
        )
        shards = run.folder("shards/texts")
        text_emb = encode_texts(texts.tolist(), clip.text_encoder(), shards)
        external = "" if model == TINY else f"pre-trained CLIP {clip.name}"
        opened = Opened(clip, images, text_emb, external, model == TINY, found_precision(shards))
    save_clip(opened.clip, run.output("clip/open_clip_model.safetensors").parent)
    told = {name: getattr(opened, name) for name in ("trained_here", "text_precision")}
    write_json(run.output("clip/source.json"), {"name": opened.clip.name, **told})
    return opened


def _open_dual(
    run: Run, posts: pd.DataFrame, texts: np.ndarray, fit_idx: np.ndarray, valid_idx: np.ndarray, weights_dir: str,
    download: bool, max_bad_images: float, seed: int,
) -> Opened:  # fmt: skip
    """Two frozen networks, aligned on the pairs of ``fit_idx``; what is found is kept in ``dual/``."""
    from kit.encoders import align, dual, networks

    eye, share = DUAL_NETWORKS[0], other_letters(posts["Title"])
    reader, missing = dual_reader(share, weights_dir, download)
    if missing:
        print(f"{share:.0%} of the titles' letters are not Latin, and {reader} knows none of them: {missing}")
    if missing or reader == OTHER_READER:
        run.use(*files_to_watch(OTHER_READER, NETWORKS[OTHER_READER].model, weights_dir))
    models = {network: NETWORKS[network].model for network in (eye, reader)}
    found = {network: ready_network(network, model, weights_dir, download) for network, model in models.items()}
    image_encoder = networks.load_image_encoder(eye, models[eye], found[eye])
    text_encoder = networks.load_text_encoder(reader, models[reader], found[reader])
    shards = run.folder("shards/encoders")  # where blocks `efficientnet`, `minilm`, `e5` find their vectors, too
    images = encode_images(posts["image_path"].tolist(), image_encoder, shards / f"{eye}_images", max_bad_images)
    text_vectors = encode_texts(texts.tolist(), text_encoder, shards / f"{reader}_texts")
    precision = found_precision(shards / f"{reader}_texts")
    fit, valid = (
        make_pairs(images.values, text_vectors, images.ok, texts, posts["Uid"], rows) for rows in (fit_idx, valid_idx)
    )
    aligned, shuffled = align.align_and_judge(fit, valid, run.folder("dual"), seed)
    print(f"{DUAL}: {' and '.join(models.values())}, aligned on {len(fit):,} train posts by {aligned.how}")
    clip = wrap_model(
        *dual.assemble(image_encoder, text_encoder, (aligned.image, aligned.text), aligned.logit_scale), DUAL
    )
    image_emb = EncodedImages(aligned.image.encode(images.values), images.ok, images.reasons)
    external = " and ".join(f"{models[network]} ({NETWORKS[network].credit})" for network in models)
    text_emb = aligned.text.encode(text_vectors)
    return Opened(clip, image_emb, text_emb, f"pre-trained {external}", True, precision, shuffled)
