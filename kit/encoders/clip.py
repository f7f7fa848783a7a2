"""open_clip models for the kit: loaded with their own preprocessing or not at all, saved with a fingerprint.

open_clip falls back to random weights with a log line, and to OpenAI's preprocessing when it is given a bare weights file.
Both spoil every later number without an error, so here a model comes from one of three places only: a folder with weights
and ``open_clip_config.json``, the Hugging Face hub, or a tag of open_clip's own table, whose weights may be downloaded or
put by hand under ``inputs/weights``.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import Compose

from kit.base.errors import InputError
from kit.base.files import atomic_path, read_json, write_json
from kit.base.paths import resolve
from kit.encoders.encoders import ImageEncoder, TextEncoder, weights_fingerprint
from kit.encoders.registry import CLIP_CONFIG, DUAL, LOCAL_DIR, SUFFIXES, TINY, clip_name, clip_tag
from kit.encoders.text_tower import TextTower, make_text_tower
from kit.encoders.weights import WEIGHTS_DIR, WITHOUT_CLIP, ready_network

MIN_COSINE = 0.999  # between the fingerprint of a saved model and the same image and text embedded after loading


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

    def image_encoder(self) -> ImageEncoder:
        """Its image tower for ``kit.encoders.bulk.encode_images``; rows of norm 1."""
        *resize, _, normalize = self.preprocess.transforms
        return ImageEncoder(
            f"{self.name} image", self.model.visual, Compose(resize), normalize.mean, normalize.std, unit=True,
            fingerprint=self.fingerprint, made_by=__name__,
        )  # fmt: skip

    def text_encoder(self) -> TextEncoder:
        """Its text tower for ``kit.encoders.bulk.encode_texts``; rows of norm 1."""
        return TextEncoder(f"{self.name} text", self.text, unit=True, fingerprint=self.fingerprint, made_by=__name__)


def load_clip(name: str, pretrained: str = "", weights_dir: str | Path = WEIGHTS_DIR) -> Clip:
    """A pre-trained CLIP model; never one with random weights or another model's preprocessing.

    Args:
        name: ``local-dir:PATH``, ``hf-hub:ORG/REPO``, or an open_clip architecture such as ``ViT-B-32``; one that is not on
            this computer is downloaded.
        pretrained: the tag of the weights when ``name`` is an architecture, e.g. ``laion2b_s34b_b79k``.
        weights_dir: where weights put by hand lie, as ``<name>-<tag>/`` or ``<name>-<tag>.safetensors``.
    Raises:
        InputError: unknown name or tag, weights missing, damaged or not those the folder's fingerprint tells of.
    """
    if name.startswith(LOCAL_DIR):
        return load_folder(resolve(name.removeprefix(LOCAL_DIR)))
    if name in (TINY, DUAL):
        raise InputError(f"{name} has no weights of its own: notebook 02 trains it on the run's train posts")
    model = clip_name(name, pretrained)
    path = ready_network("clip", model, weights_dir, download=True)
    if path.is_dir():
        return load_folder(path)
    options = {"pretrained": str(path), "force_preprocess_cfg": _preprocess_of_tag(clip_tag(model))}
    return _build(name, model, f"Is {path} complete?", **options)


def load_folder(folder: Path) -> Clip:
    """The model saved in a folder, checked against ``fingerprint.json`` if that is there."""
    if not (folder / CLIP_CONFIG[0]).is_file():
        raise InputError(f"{folder} holds no open_clip_config.json, so neither architecture nor preprocessing is known")
    if not any(path.suffix in SUFFIXES[:-1] for path in folder.iterdir()):
        odd = ", ".join(path.name for path in folder.iterdir() if path.suffix in (".pt", ".ckpt")) or "none"
        raise InputError(
            f"{folder} holds no weights: a .safetensors, .bin or .pth file is expected (other weights found: {odd}; "
            f"open_clip would ignore these and start from random numbers: rename a .pt file to .pth); {WITHOUT_CLIP}."
        )
    advice = "The folder's config or weights are damaged."
    if "smp_dual" in read_json(folder / CLIP_CONFIG[0]).get("model_cfg", {}):
        clip = _build_dual(folder, advice)
    else:
        clip = _build(f"{LOCAL_DIR}{folder}", folder.name, advice)
    if (folder / "fingerprint.json").is_file():
        _check_fingerprint(clip, read_json(folder / "fingerprint.json"), folder)
    return clip


def save_clip(clip: Clip, folder: str | Path) -> Path:
    """Save a model as ``open_clip_model.safetensors``, ``open_clip_config.json`` and ``fingerprint.json``; the folder."""
    folder = Path(folder)
    state = {name: _as_short(value.contiguous().cpu().clone()) for name, value in clip.model.state_dict().items()}
    with atomic_path(folder / "open_clip_model.safetensors") as temporary:
        save_file(state, temporary)
    write_json(folder / CLIP_CONFIG[0], clip.config)
    if "smp_dual" in clip.config["model_cfg"]:
        clip.text.tokenizer.save_pretrained(folder)  # open_clip knows the others by name
    probe = {"hash": clip.fingerprint, **_probe(clip)}
    write_json(folder / "fingerprint.json", probe)
    return folder


def wrap_model(model: nn.Module, tokenizer, model_cfg: dict, name: str) -> Clip:
    """A ``Clip`` around an open_clip module that carries its ``preprocess_cfg`` (frozen, put into eval mode).

    Its preprocessing is open_clip's for that config, or the image tower's own ``preprocess``.

    Raises:
        InputError: a text tower that ``TextTower`` cannot serve.
    """
    model = model.float().eval().requires_grad_(False)
    preprocess_cfg = {**model.visual.preprocess_cfg, "size": model.visual.image_size}
    # as it will be read back
    config = json.loads(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}))
    size = preprocess_cfg["size"]
    text, preprocess = make_text_tower(model, tokenizer), getattr(model.visual, "preprocess", None)
    if preprocess is None:
        known = open_clip.transform.PreprocessCfg(**preprocess_cfg)
        preprocess = open_clip.transform.image_transform_v2(known, is_train=False)
    return Clip(
        name=name, model=model, text=text, preprocess=preprocess,
        image_px=size if isinstance(size, int) else max(size), dim=text.dim,
        logit_scale=float(model.logit_scale.exp().mean()), config=config, fingerprint=weights_fingerprint(model, config),
    )  # fmt: skip


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


def _build_dual(folder: Path, advice: str) -> Clip:
    from kit.encoders.dual import load_dual  # transformers and timm, which no other model needs

    try:
        with torch.random.fork_rng(devices=[]):
            return wrap_model(*load_dual(folder), folder.name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{DUAL} model {folder.name} cannot be loaded ({_first_line(error)}). {advice}") from error


def _as_short(value: torch.Tensor) -> torch.Tensor:
    """In float16 where that holds the same numbers: weights that were packed in 4 bits take half the room."""
    half = value.half() if value.dtype == torch.float32 else value
    return half if torch.equal(half.to(value.dtype), value) else value


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"


def _preprocess_of_tag(tag: dict) -> dict:
    """The preprocessing a tag was trained with; given by force, because a bare weights file would get OpenAI's."""
    known = asdict(open_clip.transform.PreprocessCfg())
    return {key: value for key, value in tag.items() if key in known and key != "size" and value is not None}


@torch.inference_mode()
def _probe(clip: Clip) -> dict[str, list[float]]:
    """Embeddings of one generated image (not square, so that resizing shows) and one text, rounded, where the towers lie."""
    rows, columns = np.mgrid[0:96, 0:144]
    pixels = np.stack([rows * 2, columns, 128 + 100 * np.sin(rows / 7) * np.cos(columns / 5)], axis=-1).astype(np.uint8)
    image, ids = clip.preprocess(Image.fromarray(pixels))[None], clip.text.tokenize(["a photo of a red bicycle"])
    devices = [next(tower.parameters()).device for tower in (clip.model.visual, clip.text)]
    image = clip.model.encode_image(image.to(devices[0]), normalize=True)[0]
    text = F.normalize(clip.text.encode_ids(ids.to(devices[1]))[0], dim=-1)[0]
    return {name: [round(value, 5) for value in row.tolist()] for name, row in (("image", image), ("text", text))}


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
