"""What can go wrong, looked at before the first minute is spent: packages, machine, data, images, weights, memory, disk.

Nothing is computed and nothing of the run is changed; neither torch nor a booster is loaded here: processes of their own look
for weights and names meanwhile. Every finding says what was found and, where something is amiss, what to do; those that make
a step fail for certain are marked, and only they make the check fail.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.files import check_writable
from kit.base.locks import lock_holder
from kit.base.machine import ASK_GPUS, GB, gpu_names, memory_gb, package_versions, usable_cores
from kit.base.paths import PROJECT_ROOT, shown
from kit.encoders.registry import SENTENCES, wanted_blocks
from kit.evaluation.table_one import BLOCKS, RAW, parse_sets
from kit.pipeline import stamps
from kit.pipeline.plan import Cost, forecast, last_cost, lines
from kit.pipeline.steps import Step
from kit.release import smpd
from kit.release.images import decode_image, file_state
from kit.release.quality import replaced
from kit.release.texts import other_letters
from kit.run.folds import SCHEMES
from kit.run.matched import all_folds

SAMPLE_FILES, SAMPLE_DECODED = 20_000, 64  # images looked for, and opened
WIDESPREAD = 0.05  # of the posts, from which on a value that cannot be used is said beforehand
SURE = 0.05  # share by which a sample must exceed a limit before the whole is sure to
LEARNERS = (
    "import json, sys; from kit.boosting.learners import known; print(json.dumps(known(json.loads(sys.argv[1]))))"
)


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


def check(steps: Sequence[Step], data_dir: Path, run_dir: Path, more: Iterable[Finding] = ()) -> int:
    """Print all findings as they come, more of them last; 1 if a step will fail for certain, else 0."""
    findings: list[Finding] = []

    def tell(found: Iterable[Finding]) -> None:
        for one in found:
            print(one, flush=True)
            findings.append(one)

    children = start_children(steps)
    tell(packages(PROJECT_ROOT / "requirements.txt", package_versions()))
    tell(machine())
    tell(output(run_dir))
    try:
        posts = smpd.read_release(data_dir)
    except InputError as error:
        posts = None
        tell(iter([Finding("data", str(error), "correct the release, or give another folder with --data", True)]))
    else:
        tell(data(posts, data_dir))
        tell(folds(posts, _parameter(steps, "01", "scheme", "auto"), _parameter(steps, "01", "n_folds", 0)))
    answers = {name: _answer(child) for name, child in children.items()}
    tell(settings(steps, answers.pop("learners"), {path.parent.name for path in run_dir.glob("blocks/*/meta.json")}))
    tell(weights(steps, answers if posts is None else _needed(steps, answers, other_letters(posts["Title"]))))
    if posts is not None:
        tell(images(posts["image_path"], _allowed_bad(steps, answers)))
        stale = {
            step.name: stamps.why_stale(run_dir, step.name, stamps.current_stamp(step.notebook, step.parameters))
            for step in steps
        }
        costs = {name: last_cost(name, run_dir) for name, why in stale.items() if why}
        for name, why in stale.items():
            print(f"{name:16}{'will run: ' + why if why else 'up to date'}")
        if not any(one.fatal for one in findings):
            print("\n".join(lines(forecast(steps, run_dir, costs))))
        to_run = {name: cost for name, cost in costs.items() if cost}
        tell(room(to_run, len(posts), *memory_gb(), _free_gb(run_dir)))
    tell(more)
    n_fatal = sum(one.fatal for one in findings)
    will = f"{n_fatal} finding{'s' * (n_fatal != 1)} will make the run fail"
    print(will if n_fatal else "nothing here will make it fail")
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
    names, visible = gpu_names(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if names:
        told = ", ".join(f"GPU {index}: {name}" for index, name in enumerate(names))
        hidden = f"CUDA_VISIBLE_DEVICES={visible!r} hides GPUs: unset it" if visible in ("", "-1") else ""
        build = package_versions().get("torch", "")
        wrong = f"torch {build} cannot use them: install torch for CUDA (pytorch.org)" if build.endswith("+cpu") else ""
        yield Finding(
            "device",
            f"{told}: used by 02, 03, the encoders of 04, and by CatBoost for many posts (06.device)",
            hidden or wrong,
        )
    elif shutil.which(ASK_GPUS[0]):
        yield Finding("device", "CPU only: a driver is installed, but it knows no GPU", f"look at {ASK_GPUS[0]}")
    else:
        yield Finding("device", f"CPU, {usable_cores()} cores; no GPU")


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


def settings(steps: Sequence[Step], learners: list[str] | str, own_blocks: set[str]) -> Iterator[Finding]:
    """Parameters that are misspelt or do not fit together.

    Args:
        learners: the boosters there are; a text where none can be loaded.
        own_blocks: blocks that the run holds, whoever made them.
    """
    known = {"model": learners, "scheme": ["auto", *SCHEMES, "matched", "file"]}
    for number, name in (("01", "scheme"), ("05", "model"), ("06", "models"), ("06", "schemes")):
        values, kind = _parameter(steps, number, name, []), name.removesuffix("s")
        for value in [values] if isinstance(values, str) else values:
            if value.partition(":")[0] not in known[kind] and not isinstance(known[kind], str):
                text = f"{number}.{name}: no {kind} {value!r}; there are {', '.join(known[kind])}"
                yield Finding("parameters", text, "correct it; --list shows the parameters", True)
    for number, name in (("05", "features"), ("06", "sets")):
        values = _parameter(steps, number, name, [])
        try:
            sets = parse_sets([values] if isinstance(values, str) else values) if values else []
        except InputError as error:
            yield Finding("parameters", f"{number}.{name}: {error}", "correct it; --list shows the parameters", True)
            continue
        if unknown := sorted({block for one in sets for block in one.blocks} - {*BLOCKS, *RAW} - own_blocks):
            yield Finding("parameters", f"{number}.{name}: no step makes a block {', '.join(map(repr, unknown))}",
                          f"correct it, or write that block first; steps make {', '.join(BLOCKS + RAW)}")  # fmt: skip
        if any(one.tuned for one in sets) and not _parameter(steps, "04", "tuned", []):
            yield Finding(
                "parameters", f"{number}.{name}: tuned asks for encoders that 04 tunes", "--set 04.tuned=minilm"
            )
    schemes = _parameter(steps, "06", "schemes", [])
    scheme = _parameter(steps, "07", "scheme", schemes[0] if schemes else "")
    if schemes and scheme not in ("auto", schemes[0]):
        yield Finding("parameters", f"07.scheme is {scheme}, but only {schemes[0]} has test predictions",
                      f"--set 07.scheme={schemes[0]}, or name {scheme} first in 06.schemes", True)  # fmt: skip


def folds(posts: pd.DataFrame, wanted: str, n_folds: int = 0) -> Iterator[Finding]:
    """Whose folds decide, and why; arguments as of `all_folds`."""
    try:
        schemes = all_folds(posts, n_folds, wanted=wanted)[1].query("decides")
        yield Finding("folds", f"by {schemes['scheme'].item()} decide: {schemes['why'].item()}")
    except InputError as error:
        yield Finding("folds", str(error), "see 01.scheme and 01.n_folds (--list)", True)


def weights(steps: Sequence[Step], missing: Mapping[str, list[str] | str]) -> Iterator[Finding]:
    """Weights that a step asks for and that are not on this computer.

    Args:
        missing: step name -> what it lacks, or in a text what is wrong with its parameters (see ``start_children``).
    """
    for step in steps:
        found = missing.get(step.name, [])
        if isinstance(found, str):
            if found:
                yield Finding("weights", f"{step.name}: {found}", "correct the name; --list shows the parameters", True)
            continue
        load = step.parameters.get("without_weights") == "download"
        happens = "downloaded when the step runs" if load else "left out, with all that builds on it"
        for text in found:
            yield Finding("weights", f"{step.name}: {text}", f"as it stands: {happens}")


def data(posts: pd.DataFrame, data_dir: Path) -> Iterator[Finding]:
    """Size of a release that could be read, so its files are complete and aligned, and what many of its posts have lost."""
    n_test = int((posts["split"] == "test").sum())
    yield Finding("data", f"{shown(data_dir)}: {len(posts) - n_test:,} train and {n_test:,} test posts, complete and aligned",
                  "" if n_test else "without a test part there will be no submission: add the test files")  # fmt: skip
    for fault, rows in replaced(posts).items():
        if rows.mean() > WIDESPREAD:
            yield Finding("data", f"{rows.sum():,} of {len(posts):,} posts: {fault}", "correct it, or go on without")


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


def room(
    costs: Mapping[str, Cost], n_posts: int, total_gb: float, available_gb: float, free_gb: float
) -> Iterator[Finding]:
    """Whether memory and disk suffice for the steps that will run, as far as their last runs tell.

    Args:
        costs: step name -> what it took last.
        n_posts: of the release.
        total_gb, available_gb: memory of this machine.
        free_gb: disk space for the run.
    """
    if not costs:
        return
    name = max(costs, key=lambda step: costs[step].memory_gb * costs[step].grown(n_posts))
    cost, disk = costs[name], max(costs.values(), key=lambda one: one.disk_gb * one.grown(n_posts))
    smaller = "take smaller parameters (--list): fewer blocks in 06.sets, 05.features, components, svd_dim, n_top_tags"
    text = (
        f"{name} held {cost.memory_gb:.1f} GB for {cost.n_posts:,} posts ({cost.run}), so {n_posts:,} may take up to "
    )
    text += f"{cost.memory_gb * cost.grown(n_posts):.1f} GB; this machine has {total_gb:.1f}, {available_gb:.1f} available now"
    if cost.memory_gb * cost.grown(n_posts) > available_gb:
        yield Finding("memory", text, f"close other programs, or {smaller}", cost.memory_gb > total_gb)
    if disk.disk_gb * disk.grown(n_posts) > free_gb:
        text = f"{disk.run} takes {disk.disk_gb:.1f} GB for {disk.n_posts:,} posts, so {n_posts:,} may take up to "
        text += f"{disk.disk_gb * disk.grown(n_posts):.1f} GB; {free_gb:.1f} GB are free"
        yield Finding("disk", text, "make room, or choose a folder on another disk with --out", disk.disk_gb > free_gb)


# --- processes that look things up ------------------------------------------------------------------------------------


def start_children(steps: Sequence[Step]) -> dict[str, subprocess.Popen]:
    """Processes that load the libraries this one does not: what each step lacks of its weights, and "learners"."""
    asked = {step.name: json.dumps(step.parameters) for step in steps if "weights_dir" in step.parameters}
    models = [*_parameter(steps, "06", "models", []), _parameter(steps, "05", "model", "")]
    commands = {name: ["-m", "kit.encoders.weights", parameters] for name, parameters in asked.items()}
    return {
        name: subprocess.Popen([sys.executable, *command], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
        for name, command in {**commands, "learners": ["-c", LEARNERS, json.dumps(models)]}.items()
    }  # fmt: skip


def _needed(
    steps: Sequence[Step], answers: Mapping[str, list[str] | str], share: float
) -> dict[str, list[str] | str]:  # fmt: skip
    """The answers without those about blocks that no step makes of titles with this share of letters that are not Latin."""
    needed = dict(answers)
    for step in steps:
        wanted, lacking = step.parameters.get("baselines", []), answers.get(step.name)
        if SENTENCES in wanted and isinstance(lacking, list):
            made = wanted_blocks(wanted, share)
            needed[step.name] = [text for text in lacking if text.partition(" ")[0] in made]
    return needed


def _answer(child: subprocess.Popen) -> list[str] | str:
    """The list that a process prints last; a mistake of the user in words; "" where a library is missing or broken."""
    out, error = child.communicate()
    return json.loads(out.splitlines()[-1]) if child.returncode == 0 else error.strip() if child.returncode == 2 else ""


# --- small helpers ----------------------------------------------------------------------------------------------------


def _allowed_bad(steps: Sequence[Step], missing: Mapping[str, list[str] | str]) -> float:
    """Share of unreadable images above which 02 stops; 1 if it will be left out for lack of weights."""
    left_out = any(missing.get(step.name) for step in steps if step.number == "02")
    download = _parameter(steps, "02", "without_weights", "") == "download"
    return 1.0 if left_out and not download else _parameter(steps, "02", "max_bad_images", 1.0)


def _parameter(steps: Sequence[Step], number: str, name: str, default: Any) -> Any:
    return next((step.parameters.get(name, default) for step in steps if step.number == number), default)


def _free_gb(folder: Path) -> float:
    folder = next(path for path in (folder, *folder.parents) if path.is_dir())
    return shutil.disk_usage(folder).free / GB
