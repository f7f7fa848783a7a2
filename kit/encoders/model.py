"""The CLIP model that a run's posts are encoded with: pre-trained, or the tiny one trained on them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.files import write_json
from kit.encoders.clip import Clip, load_clip, save_clip
from kit.encoders.registry import TINY, clip_name
from kit.encoders.tiny import IMAGE_STEPS, TEXT_STEPS, train_tiny
from kit.encoders.weights import WEIGHTS_DIR, find_weights, missing_network, weight_files
from kit.run.directory import Run


def open_model(
    run: Run, posts: pd.DataFrame, texts: np.ndarray, fit_idx: np.ndarray, tiny_dir: Path, *, name: str,
    pretrained: str = "", weights_dir: str = WEIGHTS_DIR, without_weights: str = "leave out", effort: float = 1.0, seed: int = 0,
) -> tuple[Clip, str]:  # fmt: skip
    """The CLIP model of a run, saved in its folder ``clip/``, and in words what of it comes from outside the release.

    Args:
        run: open for the step that encodes.
        posts: the posts table.
        texts: (n_posts,) texts.
        fit_idx: rows the tiny model may learn from.
        tiny_dir: where the tiny model keeps its training.
        name, pretrained, weights_dir: as for ``load_clip``; ``smp-tiny`` trains the tiny model.
        without_weights: "leave out" the step, or "download" what is missing.
        effort: length of the tiny model's training, 1 as tuned.
        seed: of the tiny model.
    Raises:
        StepLeftOut: weights are missing, or no image is on this computer; blocks that rest on them are removed.
    """
    model = clip_name(name, pretrained)
    run.use(*weight_files(find_weights("clip", model, weights_dir)))
    missing = "" if without_weights == "download" else missing_network("clip", model, weights_dir)
    missing = missing and f"needs {missing}"
    if not posts["image_path"].map(os.path.isfile).any():
        missing = f"none of the {len(posts):,} image files is on disk: unpack the images of the release into its folder"
    if missing:
        run.leave_out(missing, blocks=["clip_image", "clip_text", "clip_cosine", "clip", "clip_ft"])
    if name == TINY:
        print(f"{TINY}: a very small model trained on this run's own posts; use a pre-trained CLIP for real work")
        steps = [max(1, round(effort * n)) for n in (TEXT_STEPS, IMAGE_STEPS)]
        clip = train_tiny(posts["image_path"].iloc[fit_idx].tolist(), texts[fit_idx].tolist(), tiny_dir, seed, *steps)
    else:
        clip = load_clip(name, pretrained, weights_dir)
    save_clip(clip, run.output("clip/open_clip_model.safetensors").parent)
    write_json(run.output("clip/source.json"), {"name": clip.name, "trained_here": name == TINY})
    return clip, "" if name == TINY else f"pre-trained CLIP {clip.name}"
