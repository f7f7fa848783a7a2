"""Small networks of the classes the baselines use, each saved in a folder as its library saves it."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "two", "dog", "##s", "cat", "!", ","]
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


def save_tokenizer(folder: Path) -> int:
    """A tokenizer of few words and its number of words."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return len(WORDS)


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


def save_efficientnet(folder: Path) -> nn.Module:
    """With statistics that are no longer those of the start, as after training."""
    module = timm.create_model("test_efficientnet", num_classes=7)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.1, 0.3)
    module.pretrained_cfg.update(num_classes=7, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    timm.models.save_for_hf(module, folder, safe_serialization=True)
    return module


SAVE = {
    "resnet": save_resnet, "vit": save_vit, "bert": save_bert, "blip": save_blip, "efficientnet": save_efficientnet,
    "minilm": save_bert,
}  # fmt: skip
