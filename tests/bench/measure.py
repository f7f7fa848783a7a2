"""Measure one way of a piece of work in a process of its own, and compare what the ways of one piece of work found.

A fresh process meets no caches, threads or memory of another way. It sets up first, untimed: imports, models, what is read
from disk. Then it does the work, timed. What the way found is looked at afterwards, and every way of a case must have
found the same: a faster way that does other work is an error, not a result.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

PROJECT_ROOT = Path(__file__).parents[2]
KB_PER_MB = 1024  # /proc counts in KiB, and so MB here is MiB
ENOUGH_S = 10  # of repeating work
TAIL_CHARS = 2_000  # of a failed process's messages
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Found = dict[str, np.ndarray]  # what a way found, by name


class NotInstalled(Exception):
    """A way needs a package that is not there; its row says so."""


class OtherWork(Exception):
    """Two ways of one case found different things."""


@dataclass(frozen=True)
class Measured:
    """What one process needed for the work alone.

    Attributes:
        seconds: wall clock.
        cpu_s: seconds of all its cores and of the processes it started.
        base_mb: resident memory before the work, after set-up, in MiB.
        peak_mb: most resident memory during the work, in MiB, base included; of that process only.
        note: what the way has to say about its result.
        skipped: why the way could not run, "" if it did.
    """

    seconds: float = float("nan")
    cpu_s: float = float("nan")
    base_mb: float = float("nan")
    peak_mb: float = float("nan")
    note: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Task:
    """A way that is set up.

    Attributes:
        work: what is timed.
        found: from what ``work`` returns, what other ways are compared by.
        note: in words, from what ``work`` returns and what it needed.
        repeats: how often the work is done at most, the fastest counts; for work that leaves nothing behind which would
            help it the next time. Work of more than ENOUGH_S in all is not repeated.
    """

    work: Callable[[], Any]
    found: Callable[[Any], Found]
    note: Callable[[Any, Measured], str] = lambda value, measured: ""
    repeats: int = 1


Way = Callable[[Path, int], Task]  # (folder of the material, n) -> a way that is set up


def same_values(ours: Found, other: Found, rtol: float = 1e-5, atol: float = 1e-6) -> str:
    """What differs between two ways' arrays, "" for nothing: every array of ours is in other, NaN where it is NaN."""
    for name, values in ours.items():
        if name not in other:
            return f"{name} is missing"
        if values.shape != other[name].shape:
            return f"{name} has shape {other[name].shape}, not {values.shape}"
        if values.dtype.kind != "f":
            wrong = values != other[name]
        else:
            wrong = ~np.isclose(other[name], values, rtol=rtol, atol=atol, equal_nan=True)
        if wrong.any():
            row = np.unravel_index(wrong.argmax(), wrong.shape)
            return f"{name}{list(map(int, row))} is {other[name][row]}, not {values[row]} ({wrong.mean():.2%} differ)"
    return ""


@dataclass(frozen=True)
class Case:
    """One piece of work and the ways to do it.

    Attributes:
        module: ``__name__`` of where it stands in ``CASES``; fresh processes import it from there.
        name: what is done, in words; unique in the module.
        ways: name -> way; the first is ours.
        prepare: (folder, n) -> puts the material on disk that the ways read; does nothing where it lies there.
        size: command-line option that says how many: "posts", "rival_posts" or "items".
        differs: (ours, other) -> what differs between what they found, "" for nothing.
    """

    module: str
    name: str
    ways: dict[str, Way]
    prepare: Callable[[Path, int], Any] | None = None
    size: str = "posts"
    differs: Callable[[Found, Found], str] = same_values

    @property
    def stage(self) -> str:
        """Name of the module."""
        return self.module.rpartition(".")[2]


def run_case(
    case: Case, folder: Path, n: int, rounds: int, threads: int, only_ours: bool = False, tell: Callable = print
) -> dict[str, Measured]:
    """Least time and least memory of each way over rounds in which the ways take turns.

    The least counts because other work on the machine only ever adds; turns, because it comes and goes.

    Args:
        case: the ways and their material.
        folder: where the material is kept.
        n: how many posts or items.
        rounds: turns of each way.
        threads: that each process may use.
        only_ours: leaves the other ways out.
        tell: is given a line after each turn.

    Raises:
        OtherWork: a way found something else than ours.
        RuntimeError: a way failed; with the end of its messages.
    """
    names = list(case.ways)[: 1 if only_ours else None]
    if case.prepare and not (ready := _ready_path(case, folder, n)).is_file():
        _spawn(case, "", folder, n, threads)
        ready.touch()
    turns: dict[str, list[Measured]] = {name: [] for name in names}
    for turn in range(rounds):
        found = {}
        for name in names:
            if turns[name] and turns[name][0].skipped:
                continue
            measured, found[name] = _spawn(case, name, folder, n, threads)
            turns[name].append(measured)
            tell(
                f"{case.stage}, {case.name}: {name}, {turn + 1}/{rounds}: {measured.skipped or f'{measured.seconds:.2f} s'}"
            )
            if not measured.skipped and (difference := case.differs(found[names[0]], found[name])):
                raise OtherWork(f"{case.stage}, {case.name}: '{name}' does other work than '{names[0]}': {difference}")
    return {name: _least(measured) for name, measured in turns.items()}


def n_threads() -> int:
    """Threads that this process was told to use."""
    return int(os.environ[THREADS[0]])


def _ready_path(case: Case, folder: Path, n: int) -> Path:
    """Marks material that is there; cases that need the same share it."""
    return folder / f"{case.prepare.__module__}.{case.prepare.__qualname__}_{n}.ready"


def _least(turns: list[Measured]) -> Measured:
    """The fastest turn, with the least memory of all."""
    fastest = min(turns, key=lambda measured: measured.seconds)
    return replace(fastest, **{name: min(getattr(m, name) for m in turns) for name in ("cpu_s", "base_mb", "peak_mb")})


def _spawn(case: Case, way: str, folder: Path, n: int, threads: int) -> tuple[Measured, Found]:
    """Prepare a case (no way named) or measure a way of it in a fresh process."""
    out = folder / "measured"
    environment = os.environ | dict.fromkeys(THREADS, str(threads)) | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.measure", case.module, case.name, way, str(folder), str(n), str(out)],
        cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        what = f"'{way}'" if way else "preparing"
        raise RuntimeError(
            f"{case.stage}, {case.name}: {what} failed ({done.returncode}):\n{done.stderr[-TAIL_CHARS:]}"
        )
    if not way:
        return Measured(), {}
    with np.load(out.with_suffix(".npz")) as arrays:
        return Measured(**json.loads(out.with_suffix(".json").read_text())), dict(arrays)


def _measure(task: Task) -> tuple[Measured, Any]:
    """What the work of a task needed, and what it returned."""
    gc.collect()
    _forget_peak()
    base_mb, needed = _memory_mb("VmRSS"), []
    while len(needed) < task.repeats and sum(seconds for seconds, _ in needed) < ENOUGH_S:
        value = None  # two results at once would count as memory of the work
        started_cpu, started = _cpu_s(), time.perf_counter()
        value = task.work()
        needed.append((time.perf_counter() - started, _cpu_s() - started_cpu))
    measured = Measured(*min(needed), base_mb, _memory_mb("VmHWM"))
    return replace(measured, note=task.note(value, measured)), value


def _forget_peak() -> None:
    """Let the kernel count the peak anew, so that set-up is no part of it (Linux; see proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _memory_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MiB.

    Not ``ru_maxrss``, which begins at that of the process it was started from. Without /proc there is nothing else.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        scale = 1024 if sys.platform == "darwin" else 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale / KB_PER_MB
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / KB_PER_MB


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    """The fresh process: prepares, or measures one way and leaves numbers (.json) and what was found (.npz)."""
    parser = argparse.ArgumentParser()
    for name, kind in {"module": str, "case": str, "way": str, "folder": Path, "n": int, "out": Path}.items():
        parser.add_argument(name, type=kind)
    options = parser.parse_args()
    case = next(c for c in importlib.import_module(options.module).CASES if c.name == options.case)
    if not options.way:
        case.prepare(options.folder, options.n)
        return
    found: Found = {}
    try:
        task = case.ways[options.way](options.folder, options.n)
        measured, value = _measure(task)
        found = task.found(value)
    except NotInstalled as error:
        measured = Measured(skipped=str(error))
    np.savez(options.out.with_suffix(".npz"), **found)
    options.out.with_suffix(".json").write_text(json.dumps(asdict(measured)))


if __name__ == "__main__":
    # the cases know this module by its name, and their NotInstalled must be the one caught here
    importlib.import_module("tests.bench.measure").main()
    sys.stderr.flush()
    os._exit(
        0
    )  # the results are written; pyarrow's threads may abort or hang an orderly end (apache/arrow#34314, #50482)
