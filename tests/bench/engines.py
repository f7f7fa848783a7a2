"""Independent fits over worker processes: two beside one, and tasks of a Ray cluster beside both.

Fits of five folds, two models with two seeds, each found again to the last bit. Ray's cluster is this machine with two
cores, started before the clock; with one worker the fits are a plain loop.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from kit.base.process import ENGINE
from kit.boosting.fit import Machine, Training
from kit.boosting.tasks import FitTask, fit_all
from kit.features.statistic import statistic_block
from kit.run.directory import Run
from kit.run.folds import make_folds
from tests.bench.material import posts_table
from tests.bench.measure import Case, NotInstalled, Task

SEEDS, WORKERS = 2, 2
HOLD = f"import ray; print(ray.init('local', num_cpus={WORKERS}).address_info['gcs_address'], flush=True); input()"
holders: list[subprocess.Popen] = []  # of clusters


def run_of(folder: Path, n: int) -> Run:
    """A run with posts and block statistic."""
    where = folder / f"engines_{n}"
    run = Run(where, write=not where.is_dir())
    if not where.is_dir():
        posts = posts_table(folder, n)
        run.write_posts(posts)
        run.write_block(statistic_block(posts))
    return run


def fits(cores: int, engine: str, folder: Path, n: int) -> Task:
    """The fits over so many processes of one thread each."""
    run = run_of(folder, n)
    if engine == "ray":
        _start_ray()
    os.environ[ENGINE] = engine
    folds, fit = make_folds(run.posts(), 5, "user"), partial(Training, taught=False, final=False)
    tasks = {
        (model, seed): FitTask(run.dir, ("statistic",), folds, fit(model, seed=seed), Machine(cores))
        for model in ("lightgbm", "catboost") for seed in range(SEEDS)
    }  # fmt: skip
    return Task(
        partial(fit_all, tasks), lambda found: {f"{model} {seed}": one.oof for (model, seed), one in found.items()}
    )


def _start_ray() -> None:
    """A cluster of this machine, which ends with this process, whose end closes the pipe that the holder reads."""
    if not find_spec("ray"):
        raise NotInstalled("ray")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    own = {
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray", dir="/tmp")
    }  # a dead one written down in /tmp/ray is waited for
    slow = os.environ | own | {"RAY_raylet_start_wait_time_s": "60"}  # where other programs use the cores
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holders.append(subprocess.Popen([sys.executable, "-c", HOLD], env=slow, **pipes))
    os.environ["RAY_ADDRESS"] = holders[-1].stdout.readline().strip()


CASES = (
    Case(
        __name__,
        f"{2 * SEEDS} fits of five folds",
        {
            f"ours, {WORKERS} workers": partial(fits, WORKERS, "local"),
            "ours, 1 worker": partial(fits, 1, "local"),
            f"Ray, {WORKERS} workers": partial(fits, WORKERS, "ray"),
        },
        run_of,
    ),
)
