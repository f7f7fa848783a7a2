"""What can go wrong, looked at before the first minute is spent: packages, machine, data, images, weights, memory, disk.

Nothing is computed and nothing of the run is changed. Every finding says what was found and, where something is amiss, what
to do; those that make a step fail for certain are marked, and only they make the check fail.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.files import check_writable, read_json
from kit.base.locks import lock_holder
from kit.base.machine import GB, memory_gb, package_versions, usable_cores
from kit.base.paths import PROJECT_ROOT, resolve, shown
from kit.encoders.weights import missing_of_step
from kit.pipeline import stamps
from kit.pipeline.steps import Step
from kit.release import smpd
from kit.release.images import decode_image, file_state

SAMPLE_FILES, SAMPLE_DECODED = 20_000, 64  # images looked for, and opened
SURE = 0.05  # share by which a sample must exceed a limit before the whole is sure to


# A kernel with its libraries before it has read a post: 01 and 07, 02 and 03, 04, 05 and 06.
PYTHON_GB, TORCH_GB, FEATURES_GB, BOOSTER_GB = 0.4, 1.2, 0.9, 0.7
READ_B, POST_B = 1_400, 700  # bytes per post of a release while it is read, and of the posts table afterwards
FEATURE_B = 7  # bytes per post and column of 04
BOOSTED_B = {
    "lightgbm": 3,
    "catboost": 6,
}  # the same of a booster: bins of all posts and of a fit; numbers until binned
TAUGHT_B = 1_800  # bytes per post of words and tags for the columns taught by labels
PLAN_POSTS, PLAN_COLUMNS = 486_194, (600, 3_700)  # SMPD; compact features, and all of Eq. 11
TEXT_TOKENS, TEXT_CACHE_GB = 16, 4.0  # of a mean text; limit of kit.clip_ft.texts
COMPACT_COLUMNS = 64  # of block clip_ft, about
TREE_B = 2_000  # of a saved tree
TINY_WEIGHTS_GB = 0.03
DEFAULT_DIM, DEFAULT_WEIGHTS_GB = 768, 1.7  # of a model whose description is not on this computer: those of a ViT-L


@dataclass(frozen=True)
class Finding:
    """One line of the check.

    Attributes:
        topic: first word of the line.
        text: what was found.
        todo: what to do about it; "" where all is well.
        fatal: a step will fail for certain.
    """

    topic: str
    text: str
    todo: str = ""
    fatal: bool = False

    def __str__(self) -> str:
        mark = "FAILS: " if self.fatal else ""
        return f"{self.topic:12}{mark}{self.text}" + (f"\n{'':12}-> {self.todo}" if self.todo else "")


@dataclass(frozen=True)
class Need:
    """What a step needs of the machine, in GB."""

    memory: float
    disk: float


def check(steps: Sequence[Step], data_dir: Path, run_dir: Path) -> int:
    """Print all findings as they come; 1 if a step will fail for certain, else 0."""
    findings: list[Finding] = []

    def tell(found: Iterator[Finding]) -> None:
        for one in found:
            print(one, flush=True)
            findings.append(one)

    tell(packages(PROJECT_ROOT / "requirements.txt", package_versions()))
    tell(machine())
    tell(output(run_dir))
    tell(settings(steps))
    stamp = {step.name: stamps.current_stamp(step.notebook, step.parameters) for step in steps}
    stale = {name: stamps.why_stale(run_dir, name, now) for name, now in stamp.items()}
    tell(weights(steps))
    try:
        posts = smpd.read_release(data_dir)
    except InputError as error:
        tell(iter([Finding("data", str(error), "correct the release, or give another folder with --data", True)]))
    else:
        tell(data(posts, data_dir))
        tell(images(posts["image_path"], _allowed_bad(steps)))
        needs = {step.name: need(steps, step.number, len(posts)) for step in steps}
        print("\n".join([*_step_lines(stale, needs), *plan(steps)]))
        tell(room({name: needs[name] for name, why in stale.items() if why}, *memory_gb(), _free_gb(run_dir)))
    n_fatal = sum(one.fatal for one in findings)
    end = (
        f"{n_fatal} finding{'s' * (n_fatal != 1)} will make the run fail"
        if n_fatal
        else "nothing here will make it fail"
    )
    print(end)
    return 1 if n_fatal else 0


# --- findings ---------------------------------------------------------------------------------------------------------


def packages(requirements: Path, installed: Mapping[str, str]) -> Iterator[Finding]:
    """Python, and the packages that are missing or of another version than the pinned one."""
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", requirements.read_text(encoding="utf-8"), re.M))
    install = f"{shown(Path(sys.executable))} -m pip install -r requirements.txt"
    if absent := [name for name in pins if installed.get(name, "missing") == "missing"]:
        yield Finding("packages", f"missing: {', '.join(absent)}", install, True)
    other = [
        f"{name} {installed[name]} (pinned: {pin})" for name, pin in pins.items()
        if name not in absent and installed[name].split("+")[0] != pin
    ]  # fmt: skip
    if other:
        yield Finding(
            "packages", f"other versions: {', '.join(other)}", f"results may differ; for the pinned ones: {install}"
        )
    if not absent and not other:
        yield Finding("packages", "all of requirements.txt, in the pinned versions")


def machine() -> Iterator[Finding]:
    """Cores, memory and devices, and what runs on them."""
    total, available = memory_gb()
    yield Finding("machine", f"{usable_cores()} cores, {total:.0f} GB memory, {available:.0f} GB of it available")
    try:
        import torch
    except ImportError:
        return  # told among the packages
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    if devices:
        names = ", ".join(f"cuda:{i} {d.name} ({d.total_memory / GB:.0f} GB)" for i, d in enumerate(devices))
        yield Finding(
            "device", f"{names}: used by 02, 03, the encoders of 04, and by CatBoost for many posts (06.device)"
        )
    elif shutil.which("nvidia-smi"):
        yield Finding("device", f"CPU only: torch {torch.__version__} finds no CUDA device, though a driver is installed",
                      "look at nvidia-smi and CUDA_VISIBLE_DEVICES, or install torch for CUDA (pytorch.org)")  # fmt: skip
    else:
        yield Finding("device", f"CPU, {usable_cores()} cores; no CUDA device")


def output(run_dir: Path) -> Iterator[Finding]:
    """Whether the run directory can be written, and whether somebody works in it."""
    try:
        check_writable(run_dir)
    except InputError as error:
        yield Finding("output", str(error), "make it writable, or choose another folder with --out", True)
        return
    yield Finding("output", f"{shown(run_dir)}, {_free_gb(run_dir):,.0f} GB free")
    if holder := lock_holder(run_dir):
        yield Finding("output", f"{holder} is working there", "wait for it, or choose another folder with --out", True)


def settings(steps: Sequence[Step]) -> Iterator[Finding]:
    """Parameters that do not fit together."""
    sets, schemes = _parameter(steps, "06", "sets", []), _parameter(steps, "06", "schemes", [])
    if sets:
        from kit.evaluation.table_one import parse_sets

        try:
            parse_sets(sets)
        except InputError as error:
            yield Finding("parameters", f"06.sets: {error}", "correct it; --list shows the parameters", True)
    scheme = _parameter(steps, "07", "scheme", schemes[0] if schemes else "")
    if schemes and scheme != schemes[0]:
        yield Finding("parameters", f"07.scheme is {scheme}, but only {schemes[0]} has test predictions",
                      f"--set 07.scheme={schemes[0]}, or name {scheme} first in 06.schemes", True)  # fmt: skip


def weights(steps: Sequence[Step]) -> Iterator[Finding]:
    """Weights that a step asks for and that are not on this computer; torch is loaded only for a step that asks."""
    for step in steps:
        try:
            missing = missing_of_step(step.parameters)
        except InputError as error:
            yield Finding("weights", f"{step.name}: {error}", "correct the name; --list shows the parameters", True)
            continue
        for text in missing:
            load = step.parameters.get("without_weights") == "download"
            happens = "downloaded when the step runs" if load else "left out, with all that builds on it"
            yield Finding("weights", f"{step.name}: {text}", f"as it stands: {happens}")


def data(posts: pd.DataFrame, data_dir: Path) -> Iterator[Finding]:
    """Size of a release that could be read, which means that its files are complete and aligned."""
    n_test = int((posts["split"] == "test").sum())
    yield Finding("data", f"{shown(data_dir)}: {len(posts) - n_test:,} train and {n_test:,} test posts, complete and aligned",
                  "" if n_test else "without a test part there will be no submission: add the test files")  # fmt: skip


def images(paths: pd.Series, max_bad: float) -> Iterator[Finding]:
    """The share of images on disk and of those that can be opened, from a sample of the posts.

    Args:
        paths: (n_posts,) image files.
        max_bad: share of unreadable images above which 02 stops.
    """
    rng = np.random.default_rng(0)
    sample = paths.iloc[rng.permutation(len(paths))[:SAMPLE_FILES]].tolist()
    there = [path for path in sample if path and os.path.isfile(path)]
    bad = 1 - len(there) / max(1, len(sample))
    of = f"of {len(sample):,}" + (" sampled posts" if len(sample) < len(paths) else " posts")
    if not there:
        yield Finding("images", f"none {of} has an image, e.g. {sample[0] if sample else '-'}",
                      "unpack the images into the release; else 02, 03 and the encoders of 04 are left out")  # fmt: skip
        return
    reasons = [file_state(path) or decode_image(path, 64)[1] for path in there[:SAMPLE_DECODED]]
    broken = [f"{path} ({why})" for path, why in zip(there, reasons, strict=False) if why]
    bad += (1 - bad) * len(broken) / len(reasons)
    text = f"{len(there):,} {of} are on disk; of {len(reasons)} opened {len(broken)} cannot be read"
    text += f", e.g. {broken[0]}" if broken else ""
    exact = len(sample) == len(paths) and len(reasons) == len(there)
    if bad > max_bad + (0 if exact else SURE):
        todo = f"complete the image folder, or allow more with --set 02.max_bad_images={min(1, bad + SURE):.2f}"
        yield Finding("images", f"{text}: {bad:.0%} bad, {max_bad:.0%} allowed", todo, True)
    else:
        yield Finding("images", text, "these posts get a grey image" if bad else "")


def room(needs: Mapping[str, Need], total_gb: float, available_gb: float, free_gb: float) -> Iterator[Finding]:
    """Whether memory and disk suffice for the steps that will run.

    Args:
        needs: step name -> what it needs.
        total_gb, available_gb: memory of this machine.
        free_gb: disk space for the run.
    """
    if not needs:
        return
    name = max(needs, key=lambda step: needs[step].memory)
    memory, disk = needs[name].memory, sum(step.disk for step in needs.values())
    smaller = "take smaller parameters (--list): fewer blocks in 06.sets, 05.features, components, svd_dim, n_top_tags"
    if memory > total_gb:
        yield Finding("memory", f"{name} needs about {memory:.1f} GB, this machine has {total_gb:.1f}", smaller, True)
    elif memory > available_gb:
        yield Finding("memory", f"{name} needs about {memory:.1f} GB, {available_gb:.1f} GB are available now",
                      f"close other programs, or {smaller}")  # fmt: skip
    if disk > free_gb:
        yield Finding("disk", f"the run needs about {disk:.1f} GB, {free_gb:.1f} GB are free",
                      "make room, or choose a folder on another disk with --out", True)  # fmt: skip


def _step_lines(stale: Mapping[str, str | None], needs: Mapping[str, Need]) -> Iterator[str]:
    """The table of steps: state, and about how much memory and disk each needs."""
    for name, why in stale.items():
        state = f"will run: {why}" if why else "up to date"
        yield f"{name:16}memory {needs[name].memory:5.1f} GB  disk {needs[name].disk:5.1f} GB  {state}"


# --- what a step needs ------------------------------------------------------------------------------------------------


def plan(steps: Sequence[Step]) -> Iterator[str]:
    """A table of what each step holds at the size of SMPD, for compact features and for all of Eq. 11 of the paper."""
    yield f"memory plan for {PLAN_POSTS:,} posts, GB    " + "".join(f"{f'x {n:,} columns':>16}" for n in PLAN_COLUMNS)
    for step in steps:
        held = [need(steps, step.number, PLAN_POSTS, n).memory for n in PLAN_COLUMNS]
        yield f"{step.name:38}" + "".join(f"{gb:16.1f}" for gb in held)


def need(steps: Sequence[Step], number: str, n_posts: int, n_columns: int = 0) -> Need:
    """An estimate of a step's peak memory and of what it adds to the disk.

    Memory: a kernel with its libraries (0.4 GB; 1.2 for CLIP, 0.9 in 04, 0.7 for boosters) + 700 bytes per post for the
    posts table, and for each post also, in
    01: 700 bytes while the release is read;
    02: 12 bytes per dimension of CLIP (two float16 embeddings, one in float32 while it is reduced), and the weights twice;
    03: 4 bytes per dimension, the weights, and the text tokens as far as they are cached (16 per post, 4 GB at most);
    04: 7 bytes per column;
    05 and 06: per column of the widest feature set, 3 bytes for LightGBM (bins of all posts, and of a fit's) and 6 for
    CatBoost (numbers of all posts until they are binned, and bins); 1,800 bytes where columns are taught by labels, whose
    standardised numbers lie in a scratch file.
    Calibrated at 486,194 posts x 568 columns for 01, 04, 05 and 06; the fixed parts on the demo. 02 and 03 are counted from
    what they hold at once, and not measured at that size.

    Disk: 400 bytes per post for the posts table; per post and dimension 8 bytes for shards and blocks of 02, and 14 for all
    of Eq. 11; 4 bytes per column of a block, and of the scratch file; 2 kB per tree; 8 bytes per post and prediction.

    Args:
        n_columns: of the widest feature set; 0 takes what the parameters say.
    """
    dim, weights_gb = clip_size(_parameter(steps, "02", "clip_model", ""))
    columns = block_columns(steps, dim)
    written_by_04 = sum(n for block, n in columns.items() if "clip" not in block)
    per_post = {  # bytes: (memory, disk)
        "01": (READ_B - POST_B, 400),
        "02": (12 * dim, 8 * dim + 4 * columns["clip"]),
        "03": (4 * dim, 4 * COMPACT_COLUMNS + 14 * dim * _parameter(steps, "03", "full", False)),
        "04": (FEATURE_B * (columns["statistic"] + columns["behaviour"]), 4 * written_by_04),
        "05": _boosted(steps, "05", "features", columns, n_columns),
        "06": _boosted(steps, "06", "sets", columns, n_columns),
    }.get(number, (0, 100))  # fmt: skip
    fixed = {
        "02": (TORCH_GB + 2 * weights_gb, weights_gb),
        "03": (TORCH_GB + weights_gb + min(TEXT_CACHE_GB, TEXT_TOKENS * 2 * dim * n_posts / GB), 0.1),
        "04": (FEATURES_GB, 0.02),
        "05": (BOOSTER_GB, _trees_gb(steps, "05")),
        "06": (BOOSTER_GB, _trees_gb(steps, "06")),
    }.get(number, (PYTHON_GB, 0.02))
    return Need(fixed[0] + (POST_B + per_post[0]) * n_posts / GB, fixed[1] + per_post[1] * n_posts / GB)


def block_columns(steps: Sequence[Step], dim: int) -> dict[str, int]:
    """About how many columns each block will have, from the parameters of 02 and 04."""
    svd, tags = _parameter(steps, "04", "svd_dim", 32), _parameter(steps, "04", "n_top_tags", 200)
    clip = 2 * (_parameter(steps, "02", "components", 32) or dim) + 1
    encoders = dict.fromkeys(
        _parameter(steps, "04", "baselines", []), 2 * (_parameter(steps, "04", "components", 32) or 768)
    )
    return {
        "statistic": 84 + 3 * svd + tags, "behaviour": 60 + 4 * svd, "clip": clip, "clip_ft": COMPACT_COLUMNS,
        "clip_ft_full": 7 * dim, **encoders,
    }  # fmt: skip


def clip_size(name: str) -> tuple[int, float]:
    """Dimensions of an open_clip model's embeddings, and the GB its weights take in float32 (about)."""
    from kit.encoders.registry import TINY
    from kit.encoders.tiny import CONFIG_PATH

    if not name:
        return 0, 0.0
    if name == TINY:
        return read_json(CONFIG_PATH)["model_cfg"]["embed_dim"], TINY_WEIGHTS_GB
    if name.startswith("local-dir:"):
        path = resolve(name.removeprefix("local-dir:")) / "open_clip_config.json"
        config = read_json(path)["model_cfg"] if path.is_file() else {}
    else:
        import open_clip

        config = open_clip.get_model_config(name) or {}
    towers = [config.get("vision_cfg", {}), config.get("text_cfg", {})]
    if not all(isinstance(tower.get("layers"), int) and "width" in tower for tower in towers):
        return config.get("embed_dim", DEFAULT_DIM), DEFAULT_WEIGHTS_GB
    n = sum(12 * tower["layers"] * tower["width"] ** 2 for tower in towers)  # a transformer layer has 12 width^2
    return config["embed_dim"], 4 * (n + towers[1].get("vocab_size", 49_408) * towers[1]["width"]) / GB


def _feature_sets(steps: Sequence[Step], number: str, name: str) -> list[set[str]]:
    """The words of every feature set that 05 or 06 learns from; none where the parameter is wrong (see ``settings``)."""
    from kit.evaluation.table_one import parse_sets

    value = _parameter(steps, number, name, [])
    try:
        return [set(one.parts) for one in parse_sets([value] if isinstance(value, str) else value)]
    except InputError:
        return []


def _boosted(
    steps: Sequence[Step], number: str, name: str, columns: Mapping[str, int], n_columns: int
) -> tuple[int, int]:
    """Bytes per post that boosters hold in memory and write to the disk."""
    sets = _feature_sets(steps, number, name)
    models = _parameter(steps, number, "models", None) or [_parameter(steps, number, "model", "lightgbm")]
    widest, taught = n_columns or _widest(sets, columns), any("taught" in one for one in sets)
    memory = widest * max(BOOSTED_B.get(model, 0) for model in models) + TAUGHT_B * taught
    return memory, 4 * widest * taught + 8 * _fits(steps, number)


def _widest(sets: Sequence[set[str]], columns: Mapping[str, int]) -> int:
    """Columns of the widest feature set."""
    return max((sum(columns.get(part, 0) for part in one) for one in sets), default=0)


def _fits(steps: Sequence[Step], number: str) -> int:
    """How many times a booster is fitted with out-of-fold predictions for all posts."""
    if number == "06":
        fits = [len(_parameter(steps, "06", name, [])) for name in ("models", "schemes")]
        return len(_feature_sets(steps, "06", "sets")) * fits[0] * fits[1]
    tail = (len(_parameter(steps, "05", "factors", [])) + 2) * len(_parameter(steps, "05", "tail_seeds", []))
    return tail + 2 * len(_parameter(steps, "05", "ratios", [])) * len(_parameter(steps, "05", "selection_seeds", []))


def _trees_gb(steps: Sequence[Step], number: str) -> float:
    per_fit = _parameter(steps, number, "rounds", 0) * (_parameter(steps, number, "n_folds", 0) + 1) * TREE_B
    return _fits(steps, number) * per_fit / GB / 2  # early stopping halves it, about


# --- small helpers ----------------------------------------------------------------------------------------------------


def _allowed_bad(steps: Sequence[Step]) -> float:
    """Share of unreadable images above which 02 stops; 1 if it will be left out for lack of weights."""
    step = next((step for step in steps if step.number == "02"), None)
    try:
        left_out = step and step.parameters.get("without_weights") != "download" and missing_of_step(step.parameters)
    except InputError:
        left_out = True  # told among the weights
    return 1.0 if left_out else _parameter(steps, "02", "max_bad_images", 1.0)


def _parameter(steps: Sequence[Step], number: str, name: str, default: Any) -> Any:
    return next((step.parameters.get(name, default) for step in steps if step.number == number), default)


def _free_gb(folder: Path) -> float:
    folder = next(path for path in (folder, *folder.parents) if path.is_dir())
    return shutil.disk_usage(folder).free / GB
