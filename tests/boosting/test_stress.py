"""On demand (``pytest -m stress tests/boosting``): many fits side by side on a machine that is busy with something else."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from kit.boosting.fit import Machine, Training
from kit.boosting.tasks import FitTask, fit_all
from kit.run.directory import Run
from kit.run.folds import make_folds
from tests.tiny import tiny_block, tiny_posts

CALLS = int(os.environ.get("STRESS_CALLS", 100))  # of five folds each
BUSY = 4  # loops beside them


@pytest.fixture
def busy():
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.mark.stress
def test_many_fits_on_a_busy_machine_are_equal_byte_for_byte(request, tmp_path, busy):
    if "stress" not in request.config.getoption("-m"):
        pytest.skip("takes minutes: pytest -m stress")
    posts = tiny_posts(800, 80, n_authors=100)
    run = Run(tmp_path, write=True)
    run.write_posts(posts)
    run.write_block(tiny_block(posts, n_noise=20))
    first = FitTask(
        tmp_path, ("tiny",), make_folds(posts, 5, "user"), Training(rounds=60, patience=20), Machine(threads=2)
    )
    tasks = {}
    for number in range(CALLS):
        model = ("lightgbm", "catboost")[number % 2]
        tasks[model, number] = replace(first, training=replace(first.training, model=model))
    seen = {model: set() for model in ("lightgbm", "catboost")}
    for (model, _), result in fit_all(tasks).items():
        seen[model].add((result.oof.tobytes(), result.test.tobytes()))
    assert [len(results) for results in seen.values()] == [1, 1]
