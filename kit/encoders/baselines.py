"""Blocks of frozen encoders beside CLIP: the paper's ResNet and BERT, ViT and BERT, BLIP; EfficientNet-Lite0, MiniLM, E5.

The networks themselves are in ``kit.encoders.networks``, which is imported only where one is used.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.encoders.registry import (
    ENCODERS,
    LATIN_READER,
    NETWORKS,
    OTHER_READER,
    SENTENCES,
    chosen_models,
    known_block,
    wanted_blocks,
)
from kit.encoders.weights import WEIGHTS_DIR, find_weights, missing_weights, ready_network, weight_files
from kit.release.texts import other_letters
from kit.run.block import Block


def baseline_block(
    name: str, posts: pd.DataFrame, texts: Sequence[str], shard_dir: str | Path, *, train_rows: np.ndarray,
    components: int = 32, models: Mapping[str, str] | None = None, weights_dir: str | Path = WEIGHTS_DIR,
    download: bool = False, max_bad_share: float = 0.2, pca: Mapping[str, np.ndarray] | None = None, **options: Any,
) -> Block:  # fmt: skip
    """Block of a baseline: principal components of its image and text features, and for BLIP their cosine.

    Only one network is in memory at a time. The two blocks with BERT share its shards: texts are encoded once.

    Args:
        name: a key of ``ENCODERS``.
        posts: n posts, of which `image_path` is read.
        texts: n texts, in the order of the posts.
        shard_dir: where features are kept as they are made, a folder per network and modality.
        train_rows: row positions the PCA is fitted on.
        components: columns per modality; 0 keeps all dimensions of the network.
        models: network -> model, e.g. ``{"resnet": "resnet101", "bert": "local-dir:FOLDER"}``; see ``NETWORKS``.
        download: fetch weights that are not on this computer.
        max_bad_share: share of unreadable images above which the call fails.
        pca: of an earlier block, for further posts; None fits it.
        options: ``precision``, ``device``, ``cpus``, ``batch_size``, ``shard_size`` of ``kit.encoders.bulk``.
    Returns:
        Columns ``<name>_image_00`` ..., NaN where the image could not be read, and ``<name>_text_00`` ..., as far as the
        block has such a network.
    Raises:
        InputError: an unknown block or model, weights missing or damaged, too many bad images.
    """
    from kit.encoders import networks
    from kit.encoders.bulk import encode_images, encode_texts
    from kit.encoders.frozen import clip_block

    if len(texts) != len(posts):
        raise InputError(f"block {name}: {len(texts)} texts for {len(posts)} posts; give one text per post, in order")
    baseline, models, shard_dir = ENCODERS[known_block(name)], chosen_models(name, models), Path(shard_dir)
    found = {network: ready_network(network, model, weights_dir, download) for network, model in models.items()}
    image_emb = text_emb = image_ok = None
    if network := baseline.image:
        encoder: Any = networks.load_image_encoder(network, models[network], found[network])
        images = encode_images(
            posts["image_path"].tolist(), encoder, shard_dir / f"{network}_images", max_bad_share, **options
        )
        image_emb, image_ok = images.values, images.ok
        del encoder
        gc.collect()  # networks hold references in circles
    if network := baseline.text:
        encoder = networks.load_text_encoder(network, models[network], found[network])
        text_emb = encode_texts(texts, encoder, shard_dir / f"{network}_texts", **options)
    return clip_block(
        image_emb, text_emb, image_ok, train_rows, components, cosine=baseline.joint, name=name,
        source=credit(name, models), external=credit(name, models).replace("frozen", "pre-trained", 1), pca=pca,
    )  # fmt: skip


def why_not(
    wanted: Sequence[str], posts: pd.DataFrame, models: Mapping[str, str] | None = None,
    weights_dir: str | Path = WEIGHTS_DIR, download: bool = False,
) -> dict[str, str]:  # fmt: skip
    """Every block of ``ENCODERS`` -> what keeps it from being made, ``""`` where nothing does.

    Args:
        wanted: the blocks asked for; ``SENTENCES`` is MiniLM, or E5 where most of the titles is in other letters than Latin.
        posts: n posts, of which `image_path` is read, and `Title` for ``SENTENCES``.
        models, weights_dir, download: as in ``baseline_block``.
    Raises:
        InputError: an unknown block or model.
    """
    share = other_letters(posts["Title"]) if SENTENCES in wanted else None
    asked = wanted_blocks(wanted, share)
    no_image = not posts["image_path"].map(os.path.isfile).any()
    reasons = {}
    for name in ENCODERS:
        missing = "" if download else missing_weights(name, models, weights_dir)
        reasons[name] = (
            _not_asked(name, share) if name not in asked
            else f"none of the {len(posts):,} image files is on disk" if no_image and ENCODERS[name].image
            else missing and f"needs {missing}"
        )  # fmt: skip
    return reasons


def _not_asked(name: str, share: float | None) -> str:
    """Why a block is not made that the user has not named, for the share of letters that ``SENTENCES`` was decided by."""
    if share is None or name not in (LATIN_READER, OTHER_READER):
        return "not asked for (04.baselines)"
    other = OTHER_READER if name == LATIN_READER else LATIN_READER
    return f"{share:.0%} of the titles' letters are not Latin, so {other} reads them (04.baselines={name} would ask for it)"


def credit(name: str, models: Mapping[str, str] | None = None) -> str:
    """Models and papers of a block, for the report."""
    parts = [f"{model} ({NETWORKS[network].credit})" for network, model in chosen_models(name, models).items()]
    return "frozen " + " and ".join(parts)


def block_files(
    name: str, models: Mapping[str, str] | None = None, weights_dir: str | Path = WEIGHTS_DIR
) -> list[Path]:  # fmt: skip
    """The files on this computer that a block's weights come from, so that a step can watch them."""
    return weight_files(*(find_weights(*pair, weights_dir) for pair in chosen_models(name, models).items()))
