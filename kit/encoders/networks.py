"""The networks of ``kit.encoders.baselines`` as encoders for ``kit.encoders.bulk``: loaded completely or not at all.

The libraries they come from start a network with random numbers and only log a line where a weight is missing. Here every
weight that a feature depends on has to be in the file, in its shape. Files with pickled objects are read as weights only, and
no code comes with a model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.hub import HASH_REGEX
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.transforms.functional import center_crop, resize
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from kit.base.errors import InputError
from kit.base.files import hash_file, read_json
from kit.encoders.encoders import ImageEncoder, TextEncoder
from kit.encoders.registry import SUFFIXES, resnet_weights

MAX_TOKENS = 128  # of a text; the titles and tags of a post are nearly always shorter
IMAGE_TOKEN = "<image>"  # in BLIP-2's tokenizer, but not in its text network
PREFIXES = {"e5": "query: "}  # before each text, as the network was trained; its model card gives features this one
NOT_USED = ("pooler.", "itm_head.")  # parts of a checkpoint that no feature here depends on


def load_image_encoder(network: str, model: str, path: Path) -> ImageEncoder:
    """The image side of a network.

    Args:
        network: "resnet", "vit", "efficientnet", "blip" or "blip2".
        model: its name, for people and as torchvision and timm know it.
        path: as ``kit.encoders.weights.find_weights`` returns it: a folder, or a file with the weights of ``model``.
    Raises:
        InputError: the file is damaged, incomplete, or holds another model.
    """
    with _loading(model, path):
        return {"resnet": _resnet, "blip": _blip_image, "blip2": _blip2_image}.get(network, _timm)(model, path)


def load_text_encoder(network: str, model: str, path: Path) -> TextEncoder:
    """The text side of a network (arguments as in ``load_image_encoder``).

    ``network`` is "bert", "minilm", "e5", "blip" or "blip2".
    """
    with _loading(model, path):
        if network in ("blip", "blip2"):
            return {"blip": _blip_text, "blip2": _blip2_text}[network](model, path)
        return _bert(model, path, unit=network in ("minilm", "e5"), prefix=PREFIXES.get(network, ""))


# --- texts ------------------------------------------------------------------------------------------------------------


class TokenTower(nn.Module):
    """A text network of transformers with its tokenizer: ids (B, L) -> (B, d); padding changes nothing.

    Args:
        name: for people.
        pool: ids (B, L) and mask (B, L) -> (B, d).
        tokenizer: of transformers.
        config: of the network, for its number of words and of positions.
        prefix: put before each text.
    """

    def __init__(self, name: str, pool: nn.Module, tokenizer: Any, config: Any, prefix: str = ""):
        super().__init__()
        self.prefix = prefix
        self.n_words = config.vocab_size
        n_own = len(tokenizer) - (IMAGE_TOKEN in tokenizer.get_vocab())
        if tokenizer.pad_token_id is None or n_own > self.n_words:
            raise InputError(
                f"{name}: its tokenizer has {len(tokenizer)} tokens (padding: {tokenizer.pad_token}), the network knows "
                f"{config.vocab_size}; tokenizer and weights do not belong together, take both from one model"
            )
        self.pool, self.tokenizer = pool, tokenizer
        self.max_tokens = min(MAX_TOKENS, config.max_position_embeddings, tokenizer.model_max_length)
        tokenizer.padding_side = tokenizer.truncation_side = "right"

    def words(self) -> list:
        """What the tokenizer does, for a fingerprint."""
        sample = self.tokenizer(f"{self.prefix}Ünïcode: a photo of Two dogs").input_ids
        return [sorted(self.tokenizer.get_vocab().items()), sample, self.max_tokens]

    def tokenize(self, texts: list[str]) -> Tensor:
        """(N, L) int64 ids, cut to ``max_tokens`` and padded to the longest: wider padding would make batches too large."""
        options = {"padding": True, "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        ids = self.tokenizer([self.prefix + text for text in texts], **options)["input_ids"]
        return ids.where(ids < self.n_words, self.tokenizer.pad_token_id)  # only IMAGE_TOKEN is no word of the network

    def lengths(self, ids: Tensor) -> Tensor:
        """(N,) tokens before the padding."""
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        return ((ids != self.tokenizer.pad_token_id) * places).amax(dim=1)

    def forward(self, ids: Tensor) -> Tensor:
        mask = torch.arange(ids.shape[1], device=ids.device) < self.lengths(ids)[:, None]
        return self.pool(ids, mask.long())


class MeanToken(nn.Module):
    """A transformer that gives one vector per text: the mean of its last layer over the tokens.

    For a BERT that was not trained further the mean is the usual choice: its first token was trained for the
    next-sentence task alone.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden, weights = self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask[:, :, None].float()
        return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)


class FirstToken(nn.Module):
    """A tower of BLIP: its first token through the projection into the space of images and texts."""

    def __init__(self, tower: nn.Module, projection: nn.Module):
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, *inputs: Tensor) -> Tensor:
        """Pixels, or ids and mask."""
        names = ("pixel_values",) if len(inputs) == 1 else ("input_ids", "attention_mask")
        hidden = self.tower(**dict(zip(names, inputs, strict=True))).last_hidden_state
        return self.projection(hidden[:, 0])


class Blip2Images(nn.Module):
    """BLIP-2's image side: the mean of its queries' embeddings, each of norm 1.

    BLIP-2 itself compares a text with its nearest query; a block needs one vector per image.
    """

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tower(pixel_values=pixels).image_embeds.mean(dim=1)


class Blip2Texts(nn.Module):
    """BLIP-2's text side: its first token in the space of images and texts."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.tower(input_ids=ids, attention_mask=mask).text_embeds[:, 0]


# --- loading ---------------------------------------------------------------------------------------------------------


def _resnet(model: str, path: Path) -> ImageEncoder:
    """torchvision's ResNet up to its pooled feature.

    A folder names the network in its config.json: ``architecture``, and ``weights`` whose preprocessing it takes, e.g.
    ``{"architecture": "resnet50", "weights": "IMAGENET1K_V1"}``.
    """
    if path.is_dir():
        config = read_json(path / "config.json")
        tags = [config["weights"]] if config.get("weights") else []
        entry = resnet_weights(".".join([config["architecture"], *tags]))
        path = next(file for suffix in SUFFIXES for file in sorted(path.glob(f"*{suffix}")))
    else:
        entry = resnet_weights(model)
        _check_hash(path)
    architecture = type(entry).__name__.removesuffix("_Weights").lower()
    module = torchvision.models.get_model(architecture, weights=None)
    module.fc = nn.Identity()
    module.load_state_dict({name: value for name, value in _read_state(path).items() if not name.startswith("fc.")})
    preset = entry.transforms()
    prepare = partial(_crop_middle, preset.resize_size, preset.crop_size, preset.interpolation, preset.antialias)
    return ImageEncoder(
        model, fast_convolutions(module), prepare, preset.mean, preset.std, settings=repr(preset), made_by=__name__
    )


def _timm(model: str, path: Path) -> ImageEncoder:
    """A timm network up to its pooled feature, prepared as its own configuration says."""
    if path.is_dir():
        module = timm.create_model(f"local-dir:{path}", pretrained=True)
    else:
        module = timm.create_model(model, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    if module.num_classes != module.pretrained_cfg["num_classes"]:  # timm would then allow any weight to be missing
        raise InputError(
            f"{model}: a head for {module.num_classes} classes, weights for {module.pretrained_cfg['num_classes']}; "
            "make num_classes in its config.json that of the weights"
        )
    module.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    *steps, _, normalize = transform.transforms
    prepare = torchvision.transforms.Compose(steps)
    mean, std = normalize.mean.tolist(), normalize.std.tolist()
    module = fast_convolutions(module)
    return ImageEncoder(model, module, prepare, mean, std, settings=repr(transform), made_by=__name__)


def fast_convolutions(module: nn.Module) -> nn.Module:
    """The network with each batch norm folded into the convolution before it, in the layout processors convolve fastest.

    Features stay the same but for rounding; on one core EfficientNet-Lite0 is 1.4 times as fast for the first, and 1.8 times
    for the second.
    """
    module.eval()
    for parent in module.modules():
        before = ""
        for name, child in list(parent.named_children()):
            if before and isinstance(child, nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(getattr(parent, before), child))
                setattr(parent, name, getattr(child, "act", nn.Identity()))  # timm's norms hold the activation, too
            before = name if isinstance(child, nn.Conv2d) else ""
    return module.to(memory_format=torch.channels_last)


def _bert(model: str, path: Path, unit: bool, prefix: str = "") -> TextEncoder:
    module = _pretrained(transformers.AutoModel, path)
    if hasattr(module, "pooler"):
        module.pooler = None  # behind the last layer; random where the file has none
    return _text_encoder(model, MeanToken(module), path, module.config, unit, prefix)


def _blip_image(model: str, path: Path) -> ImageEncoder:
    """BLIP's image embedding, rows of norm 1, prepared as preprocessor_config.json says."""
    both = _pretrained(transformers.BlipForImageTextRetrieval, path)
    return _squashed_images(model, FirstToken(both.vision_model, both.vision_proj), path)


def _blip2_image(model: str, path: Path) -> ImageEncoder:
    """BLIP-2's image embedding, rows of norm 1."""
    return _squashed_images(model, Blip2Images(_pretrained(transformers.Blip2VisionModelWithProjection, path)), path)


def _blip2_text(model: str, path: Path) -> TextEncoder:
    """BLIP-2's text embedding, rows of norm 1."""
    tower = _pretrained(transformers.Blip2TextModelWithProjection, path)
    return _text_encoder(f"{model} text", Blip2Texts(tower), path, tower.config.qformer_config, unit=True)


def _squashed_images(model: str, module: nn.Module, path: Path) -> ImageEncoder:
    processor = BlipImageProcessorPil.from_pretrained(path, local_files_only=True)
    size, resample = (processor.size["width"], processor.size["height"]), processor.resample
    return ImageEncoder(
        f"{model} image", module, partial(_squash, size, resample), processor.image_mean, processor.image_std,
        unit=True, settings=[size, int(resample)], made_by=__name__,
    )  # fmt: skip


def _blip_text(model: str, path: Path) -> TextEncoder:
    """BLIP's text embedding, rows of norm 1."""
    both = _pretrained(transformers.BlipForImageTextRetrieval, path)
    module = FirstToken(both.text_encoder, both.text_proj)
    return _text_encoder(f"{model} text", module, path, both.config.text_config, unit=True)


def _text_encoder(
    name: str, pool: nn.Module, path: Path, config: Any, unit: bool, prefix: str = ""
) -> TextEncoder:  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    tower = TokenTower(name, pool, tokenizer, config, prefix)
    return TextEncoder(name, tower, unit, settings=tower.words(), made_by=__name__)


def _pretrained(kind: Any, path: Path) -> nn.Module:
    """A transformers model from a folder, with nothing of what is used left to chance."""
    module, report = kind.from_pretrained(
        path, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
    )
    wrong = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"]), *report["error_msgs"]}
    if used := sorted(key for key in wrong if not key.startswith(NOT_USED)):
        raise InputError(
            f"{path} lacks {len(used)} weights of {type(module).__name__} ({', '.join(used[:3])} ...): the file is not "
            "complete, or of another model; get it anew"
        )
    return module


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_hash(path: Path) -> None:
    """torchvision's own file names end in the beginning of their hash."""
    expected = HASH_REGEX.search(path.name)
    if expected and not hash_file(path).startswith(expected.group(1)):
        raise InputError(f"{path} is damaged: its hash does not begin as its name says; get it anew")


@contextlib.contextmanager
def _loading(model: str, path: Path) -> Iterator[None]:
    """Errors of the libraries as InputError; no drawing from the caller's random numbers, no bars and no warnings."""
    logger = transformers.utils.logging
    verbosity, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity_error()
    logger.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except InputError:
        raise
    except Exception as error:  # each library has its own for a damaged file, a wrong shape, an unknown architecture
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{model} cannot be loaded from {path} ({type(error).__name__}: {reason}). The file is damaged, not complete, "
            "or of another model; get it anew"
        ) from error
    finally:
        logger.set_verbosity(verbosity)
        if bars:
            logger.enable_progress_bar()


def _crop_middle(
    size: list[int], crop: list[int], interpolation: Any, antialias: bool, image: Image.Image
) -> Image.Image:
    return center_crop(resize(image, size, interpolation=interpolation, antialias=antialias), crop)


def _squash(size: tuple[int, int], resample: int, image: Image.Image) -> Image.Image:
    return image.resize(size, resample)
