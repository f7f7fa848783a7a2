"""Blocks of the frozen encoders that the paper's Table 1 sets beside CLIP: ResNet and BERT, ViT and BERT, BLIP.

Here stands what each of them needs, where it lies on this computer, and how it becomes a block. Weights come from a folder
that the user names, from files put by hand under ``inputs/weights``, or from the cache of the library they belong to; from the
network only on request, and never from a random generator. The networks themselves are in ``kit.baseline_models``, which is
imported only where one is used; of the libraries, only those that know where a file lies are asked what is missing.
"""

from __future__ import annotations

import difflib
import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kit.errors import InputError
from kit.run import Block, resolve, shown

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

WEIGHTS_DIR = "inputs/weights"
LOCAL_DIR = "local-dir:"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
CONFIG = ("config.json",)
WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = (*WHOLE_FILES, "model.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Network:
    """A kind of network, and what its weights look like on disk.

    Attributes:
        model: its name unless the user gives another one.
        files: what a folder of it must hold; of each group one pattern must match.
        credit: paper, and the library that loads it.
    """

    model: str
    files: tuple[tuple[str, ...], ...]
    credit: str


@dataclass(frozen=True)
class Baseline:
    """A block: which networks see the images and the texts, and whether both end in one space."""

    image: str
    text: str
    joint: bool = False


NETWORKS = {
    "resnet": Network(
        "resnet50", (CONFIG, tuple(f"*{suffix}" for suffix in SUFFIXES)), "ResNet, He et al., CVPR 2016; torchvision"
    ),
    "vit": Network(
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        (CONFIG, ("*.safetensors", "*.pth", "*.bin")),
        "ViT, Dosovitskiy et al., ICLR 2021, weights of Steiner et al., TMLR 2022; timm",
    ),
    "bert": Network("bert-base-uncased", (CONFIG, WEIGHTS, TOKENIZER), "BERT, Devlin et al., NAACL 2019; transformers"),
    "blip": Network(
        "Salesforce/blip-itm-base-coco",
        (CONFIG, WEIGHTS, TOKENIZER, ("preprocessor_config.json",)),
        "BLIP, Li et al., ICML 2022; transformers",
    ),
}
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
        options: ``precision``, ``devices``, ``batch_size``, ``shard_size`` of ``kit.encode``.
    Returns:
        Columns ``<name>_image_00`` ..., NaN where the image could not be read, and ``<name>_text_00`` ...
    Raises:
        InputError: an unknown block or model, weights missing or damaged, too many bad images.
    """
    from kit import baseline_models as networks
    from kit.clip_features import clip_block
    from kit.encode import encode_images, encode_texts

    if len(texts) != len(posts):
        raise InputError(f"block {name}: {len(texts)} texts for {len(posts)} posts; give one text per post, in order")
    baseline, models, shard_dir = ENCODERS[_known(name)], chosen_models(name, models), Path(shard_dir)
    found = {network: _ready(network, model, weights_dir, download) for network, model in models.items()}
    encoder: Any = networks.load_image_encoder(baseline.image, models[baseline.image], found[baseline.image])
    paths = posts["image_path"].tolist()
    images = encode_images(paths, encoder, shard_dir / f"{baseline.image}_images", max_bad_share, **options)
    del encoder
    gc.collect()  # networks hold references in circles
    encoder = networks.load_text_encoder(baseline.text, models[baseline.text], found[baseline.text], pooling)
    text_emb = encode_texts(texts, encoder, shard_dir / f"{baseline.text}_texts", **options)
    return clip_block(
        images.values, text_emb, images.ok, train_rows, components, cosine=baseline.joint, name=name,
        source=credit(name, models),
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


# --- where weights lie -----------------------------------------------------------------------------------------------


def missing_weights(
    name: str, models: Mapping[str, str] | None = None, weights_dir: str | Path = WEIGHTS_DIR
) -> str:  # fmt: skip
    """What has to be put where before a block can be made without network; ``""`` if nothing is missing.

    Raises:
        InputError: an unknown block or model.
    """
    needs = [_missing(network, model, weights_dir) for network, model in chosen_models(name, models).items()]
    return "; ".join(filter(None, needs))


def weight_files(
    name: str, models: Mapping[str, str] | None = None, weights_dir: str | Path = WEIGHTS_DIR
) -> list[Path]:  # fmt: skip
    """The files on this computer that a block's weights come from, so that a step can watch them."""
    found = [find_weights(network, model, weights_dir) for network, model in chosen_models(name, models).items()]
    files = [sorted(path.iterdir()) if path.is_dir() else [path] for path in found if path]
    return [path for part in files for path in part if path.is_file()]


def find_weights(network: str, model: str, weights_dir: str | Path = WEIGHTS_DIR) -> Path | None:
    """A complete folder, or a file with weights alone, on this computer: the user's, put by hand, or cached."""
    folder = _folder(model, weights_dir)
    if not _lacking(network, folder):
        return folder
    if model.startswith(LOCAL_DIR):
        return None
    by_hand = [folder.with_name(folder.name + suffix) for suffix in SUFFIXES]
    if network == "resnet":
        file_name = Path(resnet_weights(model).url).name
        return _first_file([folder.with_name(file_name), *by_hand, _torch_cache() / file_name])
    if network == "vit":
        return _first_file([*by_hand, *(_hub_file(_vit_repo(model), file_name) for file_name in WHOLE_FILES)])
    configs = [_hub_file(repo, *CONFIG) for repo in _repos(model)]
    return next((path.parent for path in configs if path and not _lacking(network, path.parent)), None)


def resnet_weights(model: str) -> WeightsEnum:
    """torchvision's entry of a ResNet: where its weights lie and how its images are prepared.

    Args:
        model: ``resnet50`` for its newest weights, ``resnet50.IMAGENET1K_V1`` for others.
    """
    from torchvision import models as library

    architecture, _, tag = model.partition(".")
    known = library.list_models(library, include=["resnet*", "resnext*", "wide_resnet*"])
    if architecture not in known:
        raise InputError(f"'{model}' is no ResNet of torchvision; known are {', '.join(known)}, and local-dir:FOLDER")
    entries = library.get_model_weights(architecture)
    if tag and tag not in entries.__members__:
        raise InputError(f"'{tag}' are no weights of {architecture} (known: {', '.join(entries.__members__)})")
    return entries[tag or "DEFAULT"]


def _vit_repo(model: str) -> str:
    """The hub repository of a timm model."""
    import timm

    try:
        config = timm.get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError:
        config = None
    if config is None or not config.hf_hub_id:
        close = difflib.get_close_matches(model, timm.list_pretrained(), n=5, cutoff=0.4)
        raise InputError(
            f"'{model}' is no timm model with weights on the hub. Similar names: {', '.join(close) or 'none'}; "
            "local-dir:FOLDER is understood, too"
        )
    return config.hf_hub_id


def _repos(model: str) -> tuple[str, ...]:
    """The hub names a model may be cached under: names without owner are old, their models have got one since."""
    return (model,) if "/" in model else (model, f"google-bert/{model}")


def _folder(model: str, weights_dir: str | Path) -> Path:
    """The folder the user names, or else the one for files put by hand."""
    if model.startswith(LOCAL_DIR):
        return resolve(model.removeprefix(LOCAL_DIR))
    return resolve(weights_dir) / model.rpartition("/")[2]


def _lacking(network: str, folder: Path) -> str:
    """Which files a folder lacks, in words."""
    groups = [group for group in NETWORKS[network].files if not any(any(folder.glob(name)) for name in group)]
    return ", ".join(" or ".join(group[:2]) for group in groups)


def _missing(network: str, model: str, weights_dir: str | Path) -> str:
    if find_weights(network, model, weights_dir):
        return ""
    folder = _folder(model, weights_dir)
    if model.startswith(LOCAL_DIR):
        return f"{_lacking(network, folder)} of a model for '{network}', put into {shown(folder)}"
    if network == "resnet":
        url = resnet_weights(model).url
        return f"the weights of {model} from {url}, put into {shown(folder.with_name(Path(url).name))}"
    if network == "vit":
        source = f"huggingface.co/{_vit_repo(model)} (model.safetensors)"
        return f"the weights of {model} from {source}, put into {shown(folder)}.safetensors"
    return f"{_lacking(network, folder)} of {model} from huggingface.co/{_repos(model)[-1]}, put into {shown(folder)}/"


def _ready(network: str, model: str, weights_dir: str | Path, download: bool) -> Path:
    """Where a model's weights lie, fetched if that is allowed."""
    if path := find_weights(network, model, weights_dir):
        return path
    missing = _missing(network, model, weights_dir)
    if not download or model.startswith(LOCAL_DIR):
        raise InputError(
            f"Weights are not on this computer: needs {missing}; or allow the download of a model by name."
        )
    try:
        _download(network, model)
    except Exception as error:  # network, hub and disk errors all come as different types
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"{model} cannot be downloaded ({reason}). By hand: {missing}.") from error
    if path := find_weights(network, model, weights_dir):
        return path
    raise InputError(f"What was downloaded of {model} is not complete: needs {_missing(network, model, weights_dir)}.")


def _download(network: str, model: str) -> None:
    """Fetch a model into its library's own cache."""
    if network == "resnet":
        from torch import hub

        url = resnet_weights(model).url
        _torch_cache().mkdir(parents=True, exist_ok=True)
        expected = Path(url).stem.rpartition("-")[2]
        hub.download_url_to_file(url, str(_torch_cache() / Path(url).name), hash_prefix=expected, progress=False)
        return
    from huggingface_hub import list_repo_files, snapshot_download

    repo = _vit_repo(model) if network == "vit" else model
    there = set(list_repo_files(repo))
    weights = next(([name] for name in WEIGHTS if name in there), [])
    shards = ["model-*.safetensors"] if weights and weights[0].endswith(".index.json") else []
    others = ["preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt"]
    snapshot_download(repo, allow_patterns=[*CONFIG, *weights, *shards, *TOKENIZER, *others])


def _torch_cache() -> Path:
    from torch import hub

    return Path(hub.get_dir()) / "checkpoints"


def _hub_file(repo: str, file_name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file_name)
    return Path(found) if isinstance(found, str) else None


def _first_file(paths: Sequence[Path | None]) -> Path | None:
    return next((path for path in paths if path and path.is_file()), None)


def _known(name: str) -> str:
    if name not in ENCODERS:
        raise InputError(f"'{name}' is no baseline; choose from {', '.join(ENCODERS)}")
    return name
