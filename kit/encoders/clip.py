"""open_clip models for the kit: loaded with their own preprocessing or not at all, saved with a fingerprint.

open_clip falls back to random weights with a log line, and to OpenAI's preprocessing when it is given a bare weights file.
Both spoil every later number without an error, so here a model comes from one of three places only: a folder with weights
and ``open_clip_config.json``, the Hugging Face hub, or a tag of open_clip's own table, whose weights may be downloaded or
put by hand under ``inputs/weights``.
"""

from __future__ import annotations

import difflib
import json
import os
import socket
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.pretrained import get_pretrained_cfg
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from kit.base.errors import InputError
from kit.base.files import atomic_path, read_json, write_json
from kit.base.paths import resolve, shown
from kit.encoders.precision import weights_fingerprint
from kit.encoders.text_tower import TextTower, make_text_tower

WEIGHTS_DIR = "inputs/weights"
TINY = "smp-tiny"
WITHOUT_WEIGHTS = f"without such weights: --set 02.clip_model={TINY} trains the bundled tiny model instead"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
MIN_COSINE = 0.999  # between the fingerprint of a saved model and the same image and text embedded after loading


# --- loading and saving ----------------------------------------------------------------------------------------------


@dataclass
class Clip:
    """A frozen open_clip model in float32 on the CPU, with its own preprocessing and tokenizer.

    Attributes:
        name: what it was loaded as, e.g. ``ViT-B-32 laion2b_s34b_b79k``.
        model: the open_clip module, in eval mode, no parameter requires a gradient.
        text: its text tower behind one interface.
        preprocess: PIL image to (3, H, W) float32.
        image_px: side of its input.
        dim: width d of its embeddings.
        logit_scale: factor on cosines, 1 / temperature.
        config: ``model_cfg`` and ``preprocess_cfg``, the content of ``open_clip_config.json``.
        fingerprint: hash of weights and config; features of another fingerprint are never mixed with these.
    """

    name: str
    model: nn.Module
    text: TextTower
    preprocess: open_clip.transform.Compose
    image_px: int
    dim: int
    logit_scale: float
    config: dict
    fingerprint: str

    def image_encoder(self) -> ClipImageEncoder:
        """Its image tower for ``kit.encoders.bulk.encode_images``."""
        return ClipImageEncoder(self)

    def text_encoder(self) -> ClipTextEncoder:
        """Its text tower for ``kit.encoders.bulk.encode_texts``."""
        return ClipTextEncoder(self)


def load_clip(name: str, pretrained: str = "", weights_dir: str | Path = WEIGHTS_DIR) -> Clip:
    """A pre-trained CLIP model; never one with random weights or another model's preprocessing.

    Args:
        name: ``local-dir:PATH``, ``hf-hub:ORG/REPO``, or an open_clip architecture such as ``ViT-B-32``.
        pretrained: the tag of the weights when ``name`` is an architecture, e.g. ``laion2b_s34b_b79k``.
        weights_dir: where weights put by hand lie, as ``<name>-<tag>/`` or ``<name>-<tag>.safetensors``.
    Raises:
        InputError: unknown name or tag, weights missing, damaged or not those the folder's fingerprint tells of.
    """
    if name.startswith(open_clip.factory.LOCAL_DIR_PREFIX):
        return load_folder(resolve(name.removeprefix(open_clip.factory.LOCAL_DIR_PREFIX)))
    if name.startswith(open_clip.factory.HF_HUB_PREFIX):
        return _build(name, name, f"Without network, copy the repository's files into a folder and use local-dir:FOLDER; "
                                  f"{WITHOUT_WEIGHTS}.")  # fmt: skip
    tag = _tag_config(name, pretrained)
    local = local_weights(name, pretrained, weights_dir)
    if local is not None and local.is_dir():
        return load_folder(local)
    missing = missing_weights(name, pretrained, weights_dir)
    if missing and not _hub_reachable():
        raise InputError(missing)
    options = {"pretrained": str(local or pretrained), "force_preprocess_cfg": _preprocess_of_tag(tag)}
    return _build(name, f"{name} {pretrained}", missing or f"Is {local} complete?", **options)


def load_folder(folder: Path) -> Clip:
    """The model saved in a folder, checked against ``fingerprint.json`` if that is there."""
    if not (folder / "open_clip_config.json").is_file():
        raise InputError(f"{folder} holds no open_clip_config.json, so neither architecture nor preprocessing is known")
    if not any(path.suffix in SUFFIXES[:-1] for path in folder.iterdir()):
        odd = ", ".join(path.name for path in folder.iterdir() if path.suffix in (".pt", ".ckpt")) or "none"
        raise InputError(
            f"{folder} holds no weights: a .safetensors, .bin or .pth file is expected (other weights found: {odd}; "
            f"open_clip would ignore these and start from random numbers: rename a .pt file to .pth); {WITHOUT_WEIGHTS}."
        )
    clip = _build(
        f"{open_clip.factory.LOCAL_DIR_PREFIX}{folder}", folder.name, "The folder's config or weights are damaged."
    )
    if (folder / "fingerprint.json").is_file():
        _check_fingerprint(clip, read_json(folder / "fingerprint.json"), folder)
    return clip


def save_clip(clip: Clip, folder: str | Path) -> Path:
    """Save a model as ``open_clip_model.safetensors``, ``open_clip_config.json`` and ``fingerprint.json``; the folder."""
    folder = Path(folder)
    state = {name: value.contiguous().cpu().clone() for name, value in clip.model.state_dict().items()}
    with atomic_path(folder / "open_clip_model.safetensors") as temporary:
        save_file(state, temporary)
    write_json(folder / "open_clip_config.json", clip.config)
    probe = {"hash": clip.fingerprint, **_probe(clip)}
    write_json(folder / "fingerprint.json", probe)
    return folder


def wrap_model(model: nn.Module, tokenizer, model_cfg: dict, name: str) -> Clip:
    """A ``Clip`` around an open_clip module that carries its ``preprocess_cfg`` (frozen, put into eval mode).

    Raises:
        InputError: a text tower that ``TextTower`` cannot serve.
    """
    model = model.float().eval().requires_grad_(False)
    preprocess_cfg = {**model.visual.preprocess_cfg, "size": model.visual.image_size}
    config = json.loads(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    )  # as it will be read back
    size = preprocess_cfg["size"]
    text = make_text_tower(model, tokenizer)
    return Clip(
        name=name, model=model, text=text,
        preprocess=open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**preprocess_cfg), is_train=False),
        image_px=size if isinstance(size, int) else max(size), dim=text.dim,
        logit_scale=float(model.logit_scale.exp().mean()), config=config, fingerprint=weights_fingerprint(model, config),
    )  # fmt: skip


def missing_weights(name: str, pretrained: str = "", weights_dir: str | Path = WEIGHTS_DIR) -> str:
    """What has to be put where before ``load_clip`` works without network; ``""`` if nothing is missing."""
    if name == TINY:
        return ""
    if name.startswith(open_clip.factory.LOCAL_DIR_PREFIX):
        folder = resolve(name.removeprefix(open_clip.factory.LOCAL_DIR_PREFIX))
        return "" if (folder / "open_clip_config.json").is_file() else f"{folder} holds no open_clip_config.json."
    if name.startswith(open_clip.factory.HF_HUB_PREFIX):
        repo = name.removeprefix(open_clip.factory.HF_HUB_PREFIX)
        return "" if _in_hub_cache(repo) else f"{repo} is not in the hub's cache; it has to be downloaded."
    tag = _tag_config(name, pretrained)
    repo = tag.get("hf_hub", "").rstrip("/")
    if local_weights(name, pretrained, weights_dir) or (repo and _in_hub_cache(repo)):
        return ""
    source = f"huggingface.co/{repo} (open_clip_model.safetensors)" if repo else tag.get("url", "")
    target = resolve(weights_dir) / f"{name}-{pretrained}.safetensors"
    return (
        f"The weights '{pretrained}' of {name} are not on this computer. Get them from {source} and save the file as "
        f"{shown(target)} (another suffix of {', '.join(SUFFIXES)} if that is what it is); {WITHOUT_WEIGHTS}."
    )


def _build(source: str, name: str, advice: str, **options) -> Clip:
    try:
        model_cfg = open_clip.get_model_config(source)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # it draws weights before it loads them
            warnings.simplefilter("ignore")
            model = open_clip.create_model(source, require_pretrained=True, **options)
            tokenizer = open_clip.get_tokenizer(source)
    except InputError:
        raise
    except Exception as error:  # network, hub, config and weight errors all come as different types
        raise InputError(f"CLIP model {name} cannot be loaded ({_first_line(error)}). {advice}") from error
    return wrap_model(model, tokenizer, model_cfg, name)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"


def _tag_config(name: str, pretrained: str) -> dict:
    """open_clip's entry of a tag: preprocessing, activation and where its weights lie."""
    if name == TINY:
        raise InputError(
            f"{TINY} has no weights of its own: kit.encoders.tiny.train_tiny trains it on the run's train posts"
        )
    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), n=6, cutoff=0.4)
        raise InputError(
            f"'{name}' is no open_clip model. Similar names: {', '.join(close) or 'none'}; also {TINY}, local-dir:PATH and "
            "hf-hub:ORG/REPO are understood"
        )
    tag = get_pretrained_cfg(name, pretrained)
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


def local_weights(name: str, pretrained: str, weights_dir: str | Path) -> Path | None:
    """Weights put by hand: a folder with its config, else a file (in the folder or beside it) of that name."""
    folder = resolve(weights_dir) / f"{name}-{pretrained}".replace("/", "-")
    if (folder / "open_clip_config.json").is_file():
        return folder
    files = [folder.with_name(folder.name + suffix) for suffix in SUFFIXES]
    files += [path for suffix in SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    return next((path for path in files if path.is_file()), None)


def _preprocess_of_tag(tag: dict) -> dict:
    """The preprocessing a tag was trained with; given by force, because a bare weights file would get OpenAI's."""
    known = asdict(open_clip.transform.PreprocessCfg())
    return {key: value for key, value in tag.items() if key in known and key != "size" and value is not None}


def _in_hub_cache(repo: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repo, name), str) for name in names)


def _hub_reachable() -> bool:
    """Whether a download can begin at all: without this check the hub's client tries for most of a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy knows
    host = urlparse(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


@torch.inference_mode()
def _probe(clip: Clip) -> dict[str, list[float]]:
    """Embeddings of one generated image (not square, so that resizing shows) and one text, rounded."""
    rows, columns = np.mgrid[0:96, 0:144]
    pixels = np.stack([rows * 2, columns, 128 + 100 * np.sin(rows / 7) * np.cos(columns / 5)], axis=-1).astype(np.uint8)
    image = clip.model.encode_image(clip.preprocess(Image.fromarray(pixels))[None], normalize=True)[0]
    text = F.normalize(clip.text.encode_ids(clip.text.tokenize(["a photo of a red bicycle"]))[0], dim=-1)[0]
    return {
        "image": [round(value, 5) for value in image.tolist()],
        "text": [round(value, 5) for value in text.tolist()],
    }


def _check_fingerprint(clip: Clip, saved: dict, folder: Path) -> None:
    now = _probe(clip)
    for part in ("image", "text"):
        cosine = float(F.cosine_similarity(torch.tensor(now[part]), torch.tensor(saved[part]), dim=0))
        if not cosine > MIN_COSINE or clip.fingerprint != saved["hash"]:
            raise InputError(
                f"{folder} is not the model its fingerprint.json tells of (cosine of the test {part} {cosine:.4f}, hash "
                f"{clip.fingerprint}, expected {saved['hash']}): weights or config were changed. Make the folder again, or "
                "delete fingerprint.json if the change is meant."
            )


# --- encoders ---------------------------------------------------------------------------------------------------------


class ClipImageEncoder:
    """Image tower: RGB images to rows of norm 1 (see ``kit.encoders.bulk.ImageEncoder``)."""

    def __init__(self, clip: Clip):
        *resize, to_tensor, normalize = clip.preprocess.transforms
        self.name, self.fingerprint, self.dim = f"{clip.name} image", clip.fingerprint, clip.dim
        self.module, self.draft_px = clip.model.visual, 2 * clip.image_px
        self._resize, self._mean, self._std = resize, torch.tensor(normalize.mean), torch.tensor(normalize.std)

    def transform(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8 at the tower's size: its preprocessing up to the conversion to floats."""
        for step in self._resize:
            image = step(image)
        return np.asarray(image)

    def encode_batch(self, module: nn.Module, pixels: Tensor) -> Tensor:
        """(B, d) float32 rows of norm 1 of ``pixels`` (B, H, W, 3) uint8, by a copy of the tower of any precision."""
        scale, shift = 1 / (255 * self._std), self._mean / self._std
        images = pixels.float() * scale.to(pixels.device) - shift.to(pixels.device)
        dtype = next(module.parameters()).dtype
        return F.normalize(module(images.to(dtype).permute(0, 3, 1, 2).contiguous()).float(), dim=-1)


class ClipTextEncoder:
    """Text tower: texts to rows of norm 1 (see ``kit.encoders.bulk.TextEncoder``)."""

    def __init__(self, clip: Clip):
        self.name, self.fingerprint, self.dim = f"{clip.name} text", clip.fingerprint, clip.dim
        self.module, self.tokenize, self.lengths = clip.text, clip.text.tokenize, clip.text.lengths

    def encode_batch(self, module: TextTower, ids: Tensor) -> Tensor:
        """(B, d) float32 rows of norm 1 of ``ids`` (B, L), cut to the batch's longest text where that is exact."""
        return F.normalize(module.pool_ids(ids).float(), dim=-1)


def weight_files(name: str, pretrained: str, weights_dir: str) -> list[Path]:
    """The files on this computer that the weights of a model come from, so that a step can watch them."""
    if name.startswith("local-dir:"):
        found = resolve(name.removeprefix("local-dir:"))
    else:
        found = local_weights(name, pretrained, weights_dir)
    if found is None or not found.exists():
        return []
    return sorted(path for path in found.iterdir() if path.is_file()) if found.is_dir() else [found]
