"""Weights of networks: what each needs, where it lies on this computer, what is missing, and how it is fetched."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base.errors import InputError
from kit.base.paths import resolve, shown

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


def missing_network(network: str, model: str, weights_dir: str | Path) -> str:
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


def ready_network(network: str, model: str, weights_dir: str | Path, download: bool) -> Path:
    """Where a model's weights lie, fetched if that is allowed."""
    if path := find_weights(network, model, weights_dir):
        return path
    missing = missing_network(network, model, weights_dir)
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
    raise InputError(
        f"What was downloaded of {model} is not complete: needs {missing_network(network, model, weights_dir)}."
    )


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
