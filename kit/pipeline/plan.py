"""How long each step will take here, said before it starts: as about the same work took before, or else by a probe."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from kit.base.machine import GB, usable_cores
from kit.base.paths import PROJECT_ROOT, resolve
from kit.pipeline.steps import Step
from kit.run.marks import read_mark

SHORT = ("01_eda", "07_blend")  # steps not worth a probe of their own
NETWORKS = ("02_prototypes", "03_clip_ft", "04_features")  # these share them: what one has encoded, a later one finds
PROBES = 4  # at most, side by side
FAR = 2.0  # times as much work or as little: a probe of this machine tells more than what was done before
START_S = 4.0  # of a kernel, a notebook's imports and its figures
ALIKE = {  # parameters that must be the same for one run's time to tell of another's
    "02": ("clip_model",), "03": (), "04": ("baselines", "tuned"), "05": ("model", "learning_rate"),
    "06": ("models", "learning_rate", "rounds"),
}  # fmt: skip
HALVE = {
    "02": "a smaller 02.clip_model", "03": "03.cross_folds=0 or fewer 03.epochs", "04": "fewer 04.baselines",
    "05": "one seed in 05.tail_seeds and 05.selection_seeds", "06": "fewer 06.sets, or 06.models=lightgbm",
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a step, or a run, took when it was last done.

    Attributes:
        run: name of that run directory.
        n_posts: of that run.
        memory_gb, seconds: of the step; disk_gb: of the whole run.
        parameters: of the step.
    """

    run: str
    n_posts: int
    memory_gb: float
    seconds: float
    disk_gb: float
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def grown(self, n_posts: int) -> float:
        """How many times as much it is at most for more posts: as if all of it grew with them."""
        return max(1.0, n_posts / self.n_posts)


@dataclass(frozen=True)
class Forecast:
    """What a step will take: seconds (NaN: nothing tells), and by which measure."""

    step: str
    seconds: float
    measure: str

    def __str__(self) -> str:
        halve = HALVE.get(self.step[:2], "") if self.seconds > 60 else ""
        return f"  {self.step:16}{clock(self.seconds):>9}  {self.measure}" + (f"; less with {halve}" if halve else "")


def forecast(steps: Sequence[Step], run_dir: Path, costs: Mapping[str, Cost | None]) -> list[Forecast]:
    """What the steps that will run take here, in their order.

    Args:
        steps: of the run, each perhaps more than once with other parameters.
        costs: name of a step that will run -> what it took last, see `last_cost`.
    """
    to_run = [step for step in steps if step.name in costs]
    told: dict[str, float] = {}
    n_posts = _n_posts(run_dir)
    unknown = {step.name for step in to_run if not (step.name in SHORT or _near(step, costs[step.name], n_posts))}
    if unknown:  # what has networks is asked only for what will run: a probe of them takes seconds
        done = {name for name in NETWORKS if not unknown & set(NETWORKS)}
        told = _asked([["" if step.name in done else step.name, step.parameters] for step in steps], run_dir)
    n_posts = int(told.get("posts", n_posts))
    return [_one(step, costs[step.name], told.get(str(steps.index(step))), n_posts) for step in to_run]


def last_cost(step: str, run_dir: Path) -> Cost | None:
    """What a step took in this run, or else in the largest other one beside it; None if it has never been done."""
    others = [path.parent.parent for path in resolve("outputs").glob(f"*/done/{step}.json")]
    found = {folder: _cost(step, folder) for folder in [run_dir, *others]}
    if cost := found.pop(run_dir):
        return cost
    return max(filter(None, found.values()), key=lambda cost: cost.n_posts, default=None)


def lines(forecasts: Sequence[Forecast]) -> Iterator[str]:
    """The plan as a table, and its sum."""
    known = [one.seconds for one in forecasts if math.isfinite(one.seconds)]
    if known:
        yield f"time plan, {usable_cores()} cores:"
        yield from map(str, forecasts)
        rest = "" if len(known) == len(forecasts) else "  and what is not known yet"
        yield f"  {'all':16}{clock(sum(known)):>9}{rest}"


# --- by earlier runs ----------------------------------------------------------------------------------------------------


def _cost(step: str, run_dir: Path) -> Cost | None:
    mark, n_posts = read_mark(run_dir, step), _n_posts(run_dir)
    if not mark or not n_posts:
        return None
    disk = sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file() and not path.is_symlink())
    memory = mark["peak_mb"] * (1 << 20) / GB
    return Cost(run_dir.name, n_posts, memory, mark["seconds"], disk / GB, mark["parameters"])


def _n_posts(run_dir: Path) -> int:
    first = read_mark(run_dir, "01_eda")
    return sum(first["metrics"].get(name, 0) for name in ("n_train", "n_test")) if first else 0


def _more(step: Step, cost: Cost | None, n_posts: int) -> float:
    """How many times the work that a cost tells of; NaN where it was other work."""
    if cost is None or any(
        cost.parameters.get(name) != step.parameters.get(name) for name in ALIKE.get(step.number, ())
    ):
        return math.nan
    return n_posts / cost.n_posts * size(step.number, step.parameters) / size(step.number, cost.parameters)


def _near(step: Step, cost: Cost | None, n_posts: int) -> bool:
    return 1 / FAR <= _more(step, cost, n_posts) <= FAR


def _one(step: Step, cost: Cost | None, probed: float | None, n_posts: int) -> Forecast:
    if probed is not None and not _near(step, cost, n_posts):
        return Forecast(step.name, probed, "by a probe of this machine")
    if (more := _more(step, cost, n_posts)) > 0:
        own = START_S + max(0.0, cost.seconds - START_S) * more
        return Forecast(step.name, own, f"as in {cost.run}: {cost.seconds:,.0f} s for {cost.n_posts:,} posts")
    return Forecast(step.name, math.nan, "not known before its first run")


def size(number: str, parameters: Mapping[str, Any]) -> float:
    """How much of the same work the parameters ask for."""
    p = parameters
    if number == "03":
        return p["epochs"] * (1 + p["cross_folds"])
    if number == "05":
        return (2 * len(p["factors"]) + 2) * len(p["tail_seeds"]) + 3 * len(p["ratios"]) * len(p["selection_seeds"])
    return sum(11 if name == "paper" else 1 for name in p["sets"]) * len(p["schemes"]) if number == "06" else 1.0


# --- by a probe ---------------------------------------------------------------------------------------------------------


def _asked(steps: list, run_dir: Path) -> dict[str, float]:
    """What the probe says, the mean of several side by side, since fits will keep all cores busy, too.

    Nothing where it cannot work: whoever runs the steps will be told why.
    """
    command = [sys.executable, "-m", "kit.pipeline.probe", json.dumps(steps), str(run_dir)]
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: _printed(command), range(min(usable_cores(), PROBES))))
    return {name: fmean(one[name] for one in done) for name in done[0]} if all(done) else {}


def _printed(command: list[str]) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}


def clock(seconds: float) -> str:
    """A time in words: "?", "40 s", "12 min" or "3.4 h"."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
