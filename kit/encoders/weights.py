"""Weights of networks: what each needs, where it lies on this computer, what is missing, and how it is fetched.

They come from a folder that the user names, from files put by hand under ``inputs/weights``, or from the cache of the library
they belong to; from the network only on request. Nothing heavy is imported with this module; of the libraries, only those
that know where a file lies are asked, once a name has to be looked up.

What a step lacks can be asked in a process of its own, by the JSON of the step's parameters. It prints a JSON list of texts,
one for each block that cannot be made; a wrong name ends it with status 2 and a message on the error output:

    python -m kit.encoders.weights '{"clip_model": "ViT-B-32", "pretrained": "openai", "weights_dir": "inputs/weights"}'
"""

from __future__ import annotations

import difflib
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from kit.base.errors import InputError
from kit.base.paths import resolve, shown

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


WEIGHTS_DIR = "inputs/weights"
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
TINY = "smp-tiny"  # the CLIP that kit.encoders.tiny trains
WITHOUT_CLIP = f"without such weights: --set 02.clip_model={TINY} trains the bundled tiny model instead"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
CONFIG, CLIP_CONFIG = ("config.json",), ("open_clip_config.json",)
WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
WEIGHTS = (*WHOLE_FILES, "model.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
PACKAGED = "or python -m kit.encoders.packaged"
CONNECT_S = 5  # without this check the hub's client tries for most of a minute


@dataclass(frozen=True)
class Network:
    """A kind of network, and what its weights look like on disk.

    Attributes:
        model: its name unless the user gives another one.
        files: what a folder of it must hold; of each group one pattern must match.
        credit: paper, and the library that loads it.
        hint: another way to get the usual model.
    """

    model: str
    files: tuple[tuple[str, ...], ...]
    credit: str
    hint: str = ""


CLIP = Network(
    "ViT-B-32", (CLIP_CONFIG, ("*.safetensors", "*.bin", "*.pth")), "CLIP, Radford et al., ICML 2021; open_clip"
)
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
    "efficientnet": Network(
        "tf_efficientnet_lite0.in1k",
        (CONFIG, ("*.safetensors", "*.pth", "*.bin")),
        "EfficientNet-Lite, Tan and Le, ICML 2019, trained on ImageNet, Apache 2.0; timm",
        PACKAGED,
    ),
    "minilm": Network(
        "sentence-transformers/all-MiniLM-L6-v2",
        (CONFIG, WEIGHTS, TOKENIZER),
        "MiniLM, Wang et al., NeurIPS 2020, as Sentence-BERT, Reimers and Gurevych, EMNLP 2019, Apache 2.0; transformers",
        PACKAGED,
    ),
}


@dataclass(frozen=True)
class Baseline:
    """A block: which networks see the images and the texts ("": none), and whether both end in one space."""

    image: str = ""
    text: str = ""
    joint: bool = False


ENCODERS = {
    "resnet_bert": Baseline("resnet", "bert"),
    "vit_bert": Baseline("vit", "bert"),
    "blip": Baseline("blip", "blip", joint=True),
    "efficientnet": Baseline(image="efficientnet"),
    "minilm": Baseline(text="minilm"),
}


# --- names ------------------------------------------------------------------------------------------------------------


def clip_name(name: str, pretrained: str = "") -> str:
    """The model of network "clip" in one text: an open_clip architecture and its tag, or ``local-dir:``, ``hf-hub:``."""
    return name if name == TINY or name.startswith((LOCAL_DIR, HF_HUB)) else f"{name} {pretrained}"


def known_block(name: str) -> str:
    """The name of a block, refused if there is none such."""
    if name not in ENCODERS:
        raise InputError(f"'{name}' is no baseline; choose from {', '.join(ENCODERS)}")
    return name


def chosen_models(name: str, models: Mapping[str, str] | None = None) -> dict[str, str]:
    """Network -> model of a block: the user's choice, else the usual one."""
    baseline, models = ENCODERS[known_block(name)], dict(models or {})
    if unknown := sorted(set(models) - set(NETWORKS)):
        raise InputError(f"models for {unknown} are given; networks are {', '.join(NETWORKS)}")
    networks = filter(None, (baseline.image, baseline.text))
    return {network: models.get(network) or NETWORKS[network].model for network in networks}


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


# --- find, say what is missing, fetch ---------------------------------------------------------------------------------


def find_weights(network: str, model: str, weights_dir: str | Path = WEIGHTS_DIR) -> Path | None:
    """A complete folder, or a file with weights alone, on this computer: the user's, put by hand, or cached.

    Args:
        network: "clip" or a key of ``NETWORKS``.
        model: its name; of "clip" as ``clip_name`` gives it.
    Raises:
        InputError: an unknown model.
    """
    folder = _folder(model, weights_dir)
    if model == TINY or model.startswith(LOCAL_DIR):
        return None if model == TINY or _lacking(network, folder) else folder
    if not _lacking(network, folder):
        return folder
    by_hand = [folder.with_name(folder.name + suffix) for suffix in SUFFIXES]
    if network == "clip" and not model.startswith(HF_HUB):
        by_hand += [path for suffix in SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    if network == "resnet":
        file_name = Path(resnet_weights(model).url).name
        return _first_file([folder.with_name(file_name), *by_hand, _torch_cache() / file_name])
    if found := _first_file(by_hand):
        return found
    repos = _repos(network, model)
    if _is_folder(network, model):
        snapshots = (_snapshot(repo) for repo in repos)
        return next((path for path in snapshots if path and not _lacking(network, path)), None)
    return _first_file([_hub_file(repo, name) for repo in repos for name in _weight_names(network, model)])


def missing_network(network: str, model: str, weights_dir: str | Path = WEIGHTS_DIR) -> str:
    """What has to be put where before a network can be loaded (arguments as in ``find_weights``); "" if nothing."""
    if model == TINY or find_weights(network, model, weights_dir):
        return ""
    folder = _folder(model, weights_dir)
    if model.startswith(LOCAL_DIR):
        return f"{_lacking(network, folder)} of a model for '{network}', put into {shown(folder)}"
    if network == "resnet":
        url = resnet_weights(model).url
        return f"the weights of {model} from {url}, put into {shown(folder.with_name(Path(url).name))}"
    source = f"huggingface.co/{_repos(network, model)[-1]}"
    usual = NETWORKS.get(network, CLIP)
    hint = f" ({usual.hint})" if usual.hint and model == usual.model else ""
    if _is_folder(network, model):
        return f"{_lacking(network, folder)} of {model} from {source}, put into {shown(folder)}/{hint}"
    source += f" ({_weight_names(network, model)[0]})"
    advice = (
        f" (another suffix of {', '.join(SUFFIXES)} if that is what it is); {WITHOUT_CLIP}" if network == "clip" else ""
    )
    return f"the weights of {model} from {source}, put into {shown(folder)}.safetensors{advice}{hint}"


def missing_weights(
    name: str, models: Mapping[str, str] | None = None, weights_dir: str | Path = WEIGHTS_DIR
) -> str:  # fmt: skip
    """The same for all networks of a block of ``ENCODERS``.

    Raises:
        InputError: an unknown block or model.
    """
    needs = [missing_network(network, model, weights_dir) for network, model in chosen_models(name, models).items()]
    return "; ".join(filter(None, needs))


def missing_of_step(parameters: Mapping[str, Any]) -> list[str]:
    """What a step of these parameters lacks of the weights it asks for, one text for each block; nothing for most steps."""
    if "clip_model" in parameters:
        model = clip_name(parameters["clip_model"], parameters["pretrained"])
        found = {"clip": missing_network("clip", model, parameters["weights_dir"])}
    else:
        models = parse_models(parameters.get("baseline_models", []))
        found = {
            name: missing_weights(name, models, parameters["weights_dir"]) for name in parameters.get("baselines", [])
        }
    return [f"{name} needs {missing}" for name, missing in found.items() if missing]


def weight_files(*found: Path | None) -> list[Path]:
    """The files of what ``find_weights`` found, so that a step can watch them."""
    parts = [sorted(path.iterdir()) if path.is_dir() else [path] for path in found if path]
    return [path for part in parts for path in part if path.is_file()]


def ready_network(network: str, model: str, weights_dir: str | Path, download: bool) -> Path:
    """Where a model's weights lie, fetched if that is allowed.

    Raises:
        InputError: they are missing, or cannot be fetched.
    """
    if path := find_weights(network, model, weights_dir):
        return path
    missing = missing_network(network, model, weights_dir)
    if not download or model.startswith(LOCAL_DIR) or not _reachable(network, model):
        why = "" if not download or model.startswith(LOCAL_DIR) else " and their source cannot be reached"
        raise InputError(
            f"Weights are not on this computer{why}: needs {missing}; or allow the download of a model by name."
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


# --- the libraries' tables --------------------------------------------------------------------------------------------


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


def clip_tag(model: str) -> dict[str, Any]:
    """open_clip's entry of an architecture with its tag: preprocessing, activation and where its weights lie."""
    import open_clip

    name, _, pretrained = model.partition(" ")
    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), n=6, cutoff=0.4)
        raise InputError(
            f"'{name}' is no open_clip model. Similar names: {', '.join(close) or 'none'}; also {TINY}, local-dir:PATH and "
            "hf-hub:ORG/REPO are understood"
        )
    tag = open_clip.pretrained.get_pretrained_cfg(name, pretrained)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(
            f"'{pretrained}' is no tag of {name} (tags: {known}). For weights of your own make a folder with them and their "
            "open_clip_config.json and use clip_model=local-dir:FOLDER"
        )
    quick_gelu = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    if bool(tag.get("quick_gelu", False)) != quick_gelu:
        better = name.removesuffix("-quickgelu") if quick_gelu else f"{name}-quickgelu"
        raise InputError(f"the weights '{pretrained}' were trained with the other activation: use clip_model={better}")
    return tag


def _timm_repo(model: str) -> str:
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


def _is_folder(network: str, model: str) -> bool:
    """Whether a model needs more than the file with its weights."""
    return network in ("bert", "blip", "minilm") or model.startswith(HF_HUB)


def _repos(network: str, model: str) -> tuple[str, ...]:
    """The hub names a model may be cached under; those of BERT without an owner have got one since."""
    if model.startswith(HF_HUB):
        return (model.removeprefix(HF_HUB),)
    if network == "clip":
        return (clip_tag(model)["hf_hub"].rpartition("/")[0],)
    if network in ("vit", "efficientnet"):
        return (_timm_repo(model),)
    return (model,) if "/" in model else (model, f"google-bert/{model}")


def _weight_names(network: str, model: str) -> tuple[str, ...]:
    """The names that the file with the weights may have in its repository."""
    if network != "clip":
        return WEIGHTS if _is_folder(network, model) else WHOLE_FILES
    file_name = "" if model.startswith(HF_HUB) else clip_tag(model)["hf_hub"].rpartition("/")[2]
    return (file_name,) if file_name else CLIP_FILES


# --- folders, caches, the network -------------------------------------------------------------------------------------


def _folder(model: str, weights_dir: str | Path) -> Path:
    """The folder the user names, or else the one for files put by hand."""
    if model.startswith(LOCAL_DIR):
        return resolve(model.removeprefix(LOCAL_DIR))
    if " " in model:  # a CLIP architecture and its tag
        return resolve(weights_dir) / model.replace(" ", "-").replace("/", "-")
    return resolve(weights_dir) / model.rpartition("/")[2]


def _lacking(network: str, folder: Path) -> str:
    """Which files a folder lacks, in words."""
    files = CLIP.files if network == "clip" else NETWORKS[network].files
    groups = [group for group in files if not any(any(folder.glob(name)) for name in group)]
    return ", ".join(" or ".join(group[:2]) for group in groups)


def _reachable(network: str, model: str) -> bool:
    """Whether a download can begin at all."""
    if network == "resnet":
        host = urlparse(resnet_weights(model).url)
    elif os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return False
    else:
        host = urlparse(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy knows
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


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

    repo = _repos(network, model)[0]
    there = set(list_repo_files(repo))
    weights = [name for name in _weight_names(network, model) if name in there][:1]
    shards = ["model-*.safetensors"] if weights and weights[0].endswith(".index.json") else []
    others = ["preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt"]
    snapshot_download(repo, allow_patterns=[*CONFIG, *CLIP_CONFIG, *weights, *shards, *TOKENIZER, *others])


def _torch_cache() -> Path:
    from torch import hub

    return Path(hub.get_dir()) / "checkpoints"


def _hub_file(repo: str, file_name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file_name)
    return Path(found) if isinstance(found, str) else None


def _snapshot(repo: str) -> Path | None:
    """The folder of a repository in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _first_file(paths: Sequence[Path | None]) -> Path | None:
    return next((path for path in paths if path and path.is_file()), None)


if __name__ == "__main__":
    try:
        print(json.dumps(missing_of_step(json.loads(sys.argv[1]))))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
