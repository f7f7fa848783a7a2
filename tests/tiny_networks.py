"""Small networks of the classes the baselines use, each saved in a folder as its library saves it."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from kit.encoders.clip import Clip, wrap_model
from kit.encoders.dual import Head, assemble
from kit.encoders.networks import load_image_encoder, load_text_encoder
from kit.encoders.registry import DUAL_NETWORKS, NETWORKS

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "two", "dog", "##s", "cat", "!", ","]
SPOKEN = "cats san francisco 49ers new year party outfit of the day sea red old big light photo word".split()
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "initializer_range": 0.3}


def save_resnet(folder: Path) -> nn.Module:
    """With a config.json as the kit asks for it, because torchvision has none."""
    folder.mkdir()
    module = torchvision.models.resnet18(weights=None)
    save_file(module.state_dict(), folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "weights": "IMAGENET1K_V1"}))
    return module


def save_vit(folder: Path) -> nn.Module:
    """With a mean of its own, so that another model's preprocessing would show."""
    size = {"img_size": 32, "depth": 2}
    module = timm.create_model("vit_tiny_patch16_224", num_classes=7, **size)
    module.pretrained_cfg.update(num_classes=7, mean=(0.4, 0.5, 0.6))
    timm.models.save_for_hf(module, folder, model_args=size, safe_serialization=True)
    return module


def save_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> int:
    """A tokenizer of few words and its number of words."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return len(words)


def save_bert(folder: Path) -> nn.Module:
    """As the published file: with the heads of its training, and with the old names of layer norms."""
    config = transformers.BertConfig(vocab_size=save_tokenizer(folder), num_hidden_layers=2, **SMALL)
    module = transformers.BertForPreTraining(config)
    module.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {name.replace(new, old[new]): value for name, value in state.items() for new in old if name.endswith(new)}
    kept = {name: value for name, value in state.items() if "LayerNorm" not in name}
    save_file({**kept, **renamed}, folder / "model.safetensors", metadata={"format": "pt"})
    return module.bert


def save_blip(folder: Path) -> nn.Module:
    """With large projections, so that the cosines differ."""
    small = {**SMALL, "num_hidden_layers": 1}
    text = {**small, "vocab_size": save_tokenizer(folder), "encoder_hidden_size": 32, "max_position_embeddings": 20}
    vision = {**small, "image_size": 32, "patch_size": 16}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=24)
    module = transformers.BlipForImageTextRetrieval(config)
    for projection in (module.vision_proj, module.text_proj):
        nn.init.normal_(projection.weight)
    module.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return module


def save_blip2(folder: Path) -> nn.Module:
    """With large projections and queries, so that the cosines differ."""
    small = {**SMALL, "num_hidden_layers": 1}
    n_words = save_tokenizer(folder)
    former = {
        **small,
        "vocab_size": n_words,
        "encoder_hidden_size": 32,
        "max_position_embeddings": 20,
        "use_qformer_text_input": True,
    }
    vision = {**small, "image_size": 32, "patch_size": 16}
    config = transformers.Blip2Config(
        vision_config=vision, qformer_config=former, text_config={"model_type": "opt", **small},
        num_query_tokens=3, image_text_hidden_size=24,
    )  # fmt: skip
    module = transformers.Blip2ForImageTextRetrieval(config)
    for weight in (module.vision_projection.weight, module.text_projection.weight, module.query_tokens):
        nn.init.normal_(weight)
    module.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return module


def save_efficientnet(folder: Path) -> nn.Module:
    """With statistics that are no longer those of the start, as after training."""
    module = timm.create_model("test_efficientnet", num_classes=7)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.1, 0.3)
    module.pretrained_cfg.update(num_classes=7, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    timm.models.save_for_hf(module, folder, safe_serialization=True)
    return module


def save_dual(weights_dir: Path, *readers: str) -> None:
    """Networks of smp-dual under the names of the published ones; those of texts read words and letters, 28 at most.

    readers: by default the one of Latin letters.
    """
    eye, reader = DUAL_NETWORKS
    save_efficientnet(weights_dir / NETWORKS[eye].model.rpartition("/")[2])
    for name in readers or [reader]:
        _save_reader(weights_dir / NETWORKS[name].model.rpartition("/")[2])


def _save_reader(reader: Path) -> None:
    signs = string.ascii_lowercase + string.digits + ".!,"
    n_words = save_tokenizer(reader, [*WORDS[:5], *signs, *(f"##{sign}" for sign in signs), *SPOKEN])
    config = transformers.BertConfig(vocab_size=n_words, num_hidden_layers=2, max_position_embeddings=28, **SMALL)
    transformers.BertModel(config).save_pretrained(reader)


def small_dual(folder: Path, dim: int = 16, reader: str = DUAL_NETWORKS[1]) -> Clip:
    """smp-dual of those networks with random heads that have an adapter each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_dual(folder, reader)
        eye, words = (NETWORKS[name].model for name in (DUAL_NETWORKS[0], reader))
        image = load_image_encoder("efficientnet", eye, folder / eye)
        text = load_text_encoder(reader, words, folder / words.rpartition("/")[2])
        heads = Head((image.module.num_features, 24, dim), 1), Head((SMALL["hidden_size"], 24, dim), 1, unit=True)
        for head in heads:
            nn.init.normal_(head.adapters[0].mlp[-1].weight, std=0.3)
    return wrap_model(*assemble(image, text, heads, 20.0), "smp-dual")


SAVE = {
    "resnet": save_resnet, "vit": save_vit, "bert": save_bert, "blip": save_blip, "blip2": save_blip2,
    "efficientnet": save_efficientnet, "minilm": save_bert, "e5": save_bert,
}  # fmt: skip
