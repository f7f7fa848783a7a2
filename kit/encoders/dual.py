"""smp-dual as a model: two frozen networks of a package index and, on each, a head into one space, like an open_clip model.

``kit.encoders.pairs`` finds the heads from a run's own pairs of image and text. The networks are those of blocks
``efficientnet`` and ``minilm`` (or ``e5``): what these made of a post goes through the heads as it is, nothing is encoded twice.
"""

from __future__ import annotations

import math
import operator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import transformers
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, ToTensor

from kit.base.files import read_json
from kit.encoders.encoders import ImageEncoder, TextEncoder
from kit.encoders.networks import fast_convolutions
from kit.encoders.registry import CLIP_CONFIG

PART = "smp_dual"  # of model_cfg: how the towers are built
WEIGHTS_FILE = "open_clip_model.safetensors"
CHUNK = 16_384  # rows through a head at a time


class Adapter(nn.Module):
    """A residual block that begins as the identity: x + MLP(LN(x)).

    Source: FuseMix, Vouitsis et al., CVPR 2024 (layer6ai-labs/fusemix), with a last layer of zeros.
    """

    def __init__(self, width: int, dropout: float = 0.5):
        super().__init__()
        last = nn.Linear(4 * width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


class Head(nn.Module):
    """A network's vectors (..., d_in) in the common space (..., d): whitened, through the adapters, projected; in float32.

    Args:
        sizes: d_in, width of the whitened vector, d.
        n_adapters: blocks between the two linear maps; 0 leaves a linear head.
        unit: bring the vector to norm 1 first, as the network's own are.
    """

    def __init__(self, sizes: tuple[int, int, int], n_adapters: int = 0, unit: bool = False):
        super().__init__()
        self.unit = unit
        self.whiten = nn.Linear(sizes[0], sizes[1])
        self.adapters = nn.Sequential(*(Adapter(sizes[1]) for _ in range(n_adapters)))
        self.project = nn.Linear(sizes[1], sizes[2], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = F.normalize(x.float(), dim=-1) if self.unit else x.float()
            return self.project(self.adapters(self.whiten(x)))

    @torch.inference_mode()
    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, d) float16 rows of norm 1 of vectors (n, d_in)."""
        parts = np.array_split(vectors, max(1, -(-len(vectors) // CHUNK)))
        rows = [F.normalize(self(torch.from_numpy(np.asarray(part, np.float32))), dim=-1) for part in parts]
        return torch.cat(rows).half().numpy()

    def config(self) -> dict[str, Any]:
        """The arguments it was made with."""
        sizes = (self.whiten.in_features, self.whiten.out_features, self.project.out_features)
        return {"sizes": list(sizes), "n_adapters": len(self.adapters), "unit": self.unit}


class ImageTower(nn.Module):
    """A timm network and its head, with the preprocessing of the network."""

    def __init__(self, trunk: nn.Module, head: Head, preprocess_cfg: dict[str, Any]):
        super().__init__()
        self.trunk, self.head, self.preprocess_cfg = trunk, head, preprocess_cfg
        self.image_size = max(preprocess_cfg["input_size"][1:])
        *resize, _, normalize = timm.data.create_transform(**preprocess_cfg, is_training=False).transforms
        self.preprocess = Compose([*resize, ToTensor(), Normalize(normalize.mean.tolist(), normalize.std.tolist())])

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.trunk(pixels))


class DualModel(nn.Module):
    """Image tower, text tower and scale, named as in open_clip's ``CustomTextCLIP``."""

    def __init__(self, visual: ImageTower, text: HFTextEncoder, logit_scale: float):
        super().__init__()
        self.visual, self.text = visual, text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """(B, d) features of normalised pixels (B, 3, H, W)."""
        features = self.visual(pixels)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, ids: Tensor, normalize: bool = False) -> Tensor:
        """(B, d) features of token ids (B, L)."""
        features = self.text(ids)
        return F.normalize(features, dim=-1) if normalize else features


def assemble(
    image: ImageEncoder, text: TextEncoder, heads: tuple[Head, Head], logit_scale: float
) -> tuple[DualModel, HFTokenizer, dict[str, Any]]:
    """The model of two loaded networks and their heads, its tokenizer, and its ``model_cfg``."""
    trunk, tower = image.module, text.module
    network = tower.pool.model
    preprocess_cfg = timm.data.resolve_model_data_config(trunk)
    named = network.config.to_dict() | {"_name_or_path": text.name}  # not the folder it was read from
    part = {
        "image": trunk.pretrained_cfg["architecture"], "preprocess": preprocess_cfg, "text": named,
        "max_tokens": tower.max_tokens, "prefix": tower.prefix, "heads": [head.config() for head in heads],
    }  # fmt: skip
    model = DualModel(ImageTower(trunk, heads[0], preprocess_cfg), _text_tower(network, heads[1]), logit_scale)
    tokenizer = _tokenizer(tower.tokenizer.name_or_path, tower.max_tokens, tower.prefix)
    return model, tokenizer, {"embed_dim": heads[0].project.out_features, PART: part}


def load_dual(folder: Path) -> tuple[DualModel, HFTokenizer, dict[str, Any]]:
    """What ``assemble`` gave, from a folder in which ``kit.encoders.clip.save_clip`` saved it."""
    model_cfg = read_json(folder / CLIP_CONFIG[0])["model_cfg"]
    part = model_cfg[PART]
    trunk = fast_convolutions(timm.create_model(part["image"], pretrained=False, num_classes=0))
    network = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**part["text"]))
    network.pooler = None
    heads = [Head(**config) for config in part["heads"]]
    model = DualModel(ImageTower(trunk, heads[0], part["preprocess"]), _text_tower(network, heads[1]), 1.0)
    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return model, _tokenizer(folder, part["max_tokens"], part["prefix"]), model_cfg


def _text_tower(network: nn.Module, head: Head) -> HFTextEncoder:
    """open_clip's adapter for a transformer of Hugging Face, with mean pooling and the head as its projection."""
    with torch.device("meta"):  # its own network is replaced
        text = HFTextEncoder("", head.project.out_features, config=network.config, pooler_type="mean_pooler")
    text.transformer, text.proj = network, head
    text.can_truncate = True  # the mask hides pads, and positions count from the first token
    return text


def _tokenizer(source: str | Path, max_tokens: int, prefix: str) -> HFTokenizer:
    tokenizer = HFTokenizer(str(source), context_length=max_tokens, local_files_only=True)
    tokenizer.clean_fn = partial(operator.add, prefix)  # texts as the network's block reads them
    return tokenizer
