"""Blocks of the frozen encoders that the paper's Table 1 sets beside CLIP: ResNet and BERT, ViT and BERT, BLIP.

Here stands what each of them needs, where it lies on this computer, and how it becomes a block. Weights come from a folder
that the user names, from files put by hand under ``inputs/weights``, or from the cache of the library they belong to; from the
network only on request, and never from a random generator. The networks themselves are in ``kit.encoders.networks``, which is
imported only where one is used; of the libraries, only those that know where a file lies are asked what is missing.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.encoders.weights import NETWORKS, WEIGHTS_DIR, find_weights, missing_network, ready_network
from kit.run.block import Block


@dataclass(frozen=True)
class Baseline:
    """A block: which networks see the images and the texts, and whether both end in one space."""

    image: str
    text: str
    joint: bool = False


ENCODERS = {
    "resnet_bert": Baseline("resnet", "bert"),
    "vit_bert": Baseline("vit", "bert"),
    "blip": Baseline("blip", "blip", joint=True),
}


def baseline_block(
    name: str, posts: pd.DataFrame, texts: Sequence[str], shard_dir: str | Path, *, train_rows: np.ndarray,
    components: int = 32, models: Mapping[str, str] | None = None, weights_dir: str | Path = WEIGHTS_DIR,
    download: bool = False, max_bad_share: float = 0.2, pooling: str = "mean", **options: Any,
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
        pooling: of BERT's last layer: "mean" over the tokens (start and end among them), or "cls", the first token.
        options: ``precision``, ``devices``, ``batch_size``, ``shard_size`` of ``kit.encoders.bulk``.
    Returns:
        Columns ``<name>_image_00`` ..., NaN where the image could not be read, and ``<name>_text_00`` ...
    Raises:
        InputError: an unknown block or model, weights missing or damaged, too many bad images.
    """
    from kit.encoders import networks
    from kit.encoders.bulk import encode_images, encode_texts
    from kit.encoders.frozen import clip_block

    if len(texts) != len(posts):
        raise InputError(f"block {name}: {len(texts)} texts for {len(posts)} posts; give one text per post, in order")
    baseline, models, shard_dir = ENCODERS[_known(name)], chosen_models(name, models), Path(shard_dir)
    found = {network: ready_network(network, model, weights_dir, download) for network, model in models.items()}
    encoder: Any = networks.load_image_encoder(baseline.image, models[baseline.image], found[baseline.image])
    paths = posts["image_path"].tolist()
    images = encode_images(paths, encoder, shard_dir / f"{baseline.image}_images", max_bad_share, **options)
    del encoder
    gc.collect()  # networks hold references in circles
    encoder = networks.load_text_encoder(baseline.text, models[baseline.text], found[baseline.text], pooling)
    text_emb = encode_texts(texts, encoder, shard_dir / f"{baseline.text}_texts", **options)
    return clip_block(
        images.values, text_emb, images.ok, train_rows, components, cosine=baseline.joint, name=name,
        source=credit(name, models), external=credit(name, models).replace("frozen", "pre-trained", 1),
    )  # fmt: skip


def chosen_models(name: str, models: Mapping[str, str] | None = None) -> dict[str, str]:
    """Network -> model of a block: the user's choice, else the usual one."""
    baseline, models = ENCODERS[_known(name)], dict(models or {})
    if unknown := sorted(set(models) - set(NETWORKS)):
        raise InputError(f"models for {unknown} are given; networks are {', '.join(NETWORKS)}")
    return {network: models.get(network) or NETWORKS[network].model for network in (baseline.image, baseline.text)}


def parse_models(choices: Sequence[str]) -> dict[str, str]:
    """Network -> model from ``network:model`` texts, as notebook 04 takes them.

    Raises:
        InputError: a text of another form, or an unknown network.
    """
    models = {}
    for choice in choices:
        network, colon, model = (part.strip() for part in choice.partition(":"))
        if not colon or not model or network not in NETWORKS:
            raise InputError(f"model choice {choice!r}: expected NETWORK:MODEL with one of {', '.join(NETWORKS)}, "
                             "e.g. resnet:resnet101")  # fmt: skip
        models[network] = model
    return models


def why_not(
    wanted: Sequence[str], posts: pd.DataFrame, models: Mapping[str, str] | None = None,
    weights_dir: str | Path = WEIGHTS_DIR, download: bool = False,
) -> dict[str, str]:  # fmt: skip
    """Every block of ``ENCODERS`` -> what keeps it from being made, ``""`` where nothing does.

    Args:
        wanted: the blocks asked for.
        posts: n posts, of which `image_path` is read.
        models, weights_dir, download: as in ``baseline_block``.
    Raises:
        InputError: an unknown block or model.
    """
    unwanted = set(ENCODERS) - {_known(name) for name in wanted}
    no_image = not posts["image_path"].map(os.path.isfile).any()
    reasons = {}
    for name in ENCODERS:
        missing = "" if download else missing_weights(name, models, weights_dir)
        reasons[name] = (
            "not asked for (04.baselines)" if name in unwanted
            else f"none of the {len(posts):,} image files is on disk" if no_image
            else missing and f"needs {missing}"
        )  # fmt: skip
    return reasons


def credit(name: str, models: Mapping[str, str] | None = None) -> str:
    """Models and papers of a block, for the report."""
    parts = [f"{model} ({NETWORKS[network].credit})" for network, model in chosen_models(name, models).items()]
    return "frozen " + " and ".join(parts)


def missing_weights(
    name: str, models: Mapping[str, str] | None = None, weights_dir: str | Path = WEIGHTS_DIR
) -> str:  # fmt: skip
    """What has to be put where before a block can be made without network; ``""`` if nothing is missing.

    Raises:
        InputError: an unknown block or model.
    """
    needs = [missing_network(network, model, weights_dir) for network, model in chosen_models(name, models).items()]
    return "; ".join(filter(None, needs))


def weight_files(
    name: str, models: Mapping[str, str] | None = None, weights_dir: str | Path = WEIGHTS_DIR
) -> list[Path]:  # fmt: skip
    """The files on this computer that a block's weights come from, so that a step can watch them."""
    found = [find_weights(network, model, weights_dir) for network, model in chosen_models(name, models).items()]
    files = [sorted(path.iterdir()) if path.is_dir() else [path] for path in found if path]
    return [path for part in files for path in part if path.is_file()]


def _known(name: str) -> str:
    if name not in ENCODERS:
        raise InputError(f"'{name}' is no baseline; choose from {', '.join(ENCODERS)}")
    return name
