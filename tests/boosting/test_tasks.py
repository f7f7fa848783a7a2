"""Calls of `fit_folds` as tasks: the same bytes from one process or two, and after a worker was killed."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from kit.base.tasks import map_tasks
from kit.boosting import tasks
from kit.boosting.fit import Machine, Training, fit_folds
from kit.boosting.tasks import FitTask, fit_all, fit_task, variants_of
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.folds import make_folds
from kit.run.matrix import join_blocks
from tests.tiny import tiny_block, tiny_posts

POSTS = tiny_posts(400, 60)
FOLDS = make_folds(POSTS, 3, "user")
LEAN = Training("lightgbm", {"learning_rate": 0.15}, rounds=30, patience=10)


@pytest.fixture
def run(tmp_path):
    """A run with two blocks."""
    run = Run(tmp_path, write=True)
    run.write_posts(POSTS)
    one = tiny_block(POSTS)
    run.write_block(one)
    run.write_block(Block("more", np.random.default_rng(5).random((len(POSTS), 2), dtype=np.float32), ["x", "y"]))
    return run


def fit_tasks(run, threads, folder, models=("lightgbm", "catboost")):
    found = {}
    for blocks in (("tiny",), ("tiny", "more")):
        home = run.folder(f"{folder}/{'+'.join(blocks)}")
        for model in models:
            training = replace(LEAN, model=model)
            places = {"out_dir": home / model, "taught_dir": home / "taught"}
            found["+".join(blocks), model] = FitTask(run.dir, blocks, FOLDS, training, Machine(threads), **places)
    return found


def kept(task):
    """Its arrays; what a process was writing when it was ended begins with a dot, and the next run sweeps it away."""
    return {path.name: path.read_bytes() for path in task.out_dir.glob("[!.]*.npy")}


def test_one_process_or_two_the_same_bytes(run):
    one, two = fit_tasks(run, 1, "one"), fit_tasks(run, 2, "two")
    alone, beside = fit_all(one), fit_all(two)
    assert list(alone) == list(beside) == list(one)
    for name, result in alone.items():
        other = beside[name]
        assert np.array_equal(result.oof, other.oof, equal_nan=True) and np.array_equal(result.test, other.test)
        assert result.importance.equals(other.importance)
        assert kept(one[name]) == kept(two[name]) != {}
    block = join_blocks([run.read_block("tiny"), run.read_block("more")])
    by_hand = fit_folds(block, POSTS["label"].to_numpy(), FOLDS, POSTS, replace(LEAN, model="lightgbm"), Machine(1))
    assert np.array_equal(by_hand.oof, alone["tiny+more", "lightgbm"].oof, equal_nan=True)


def killed_once(task):
    """The first time, its process is killed while a fold's files are written."""
    marker = task.run_dir / "killed"
    if task.training.model == "lightgbm" and "more" in task.blocks and not marker.exists():
        write, n_written = tasks.fit_folds.__globals__["Store"].get, []

        def get(self, name, *rest):
            part = write(self, name, *rest)
            n_written.append(name)
            if len(n_written) == 2:
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return part

        tasks.fit_folds.__globals__["Store"].get = get
    return fit_task(task)


def test_a_killed_fit_is_repeated_from_its_kept_folds(run, capfd):
    todo = fit_tasks(run, 1, "plain", ["lightgbm"])
    plain = fit_all(todo)
    again = fit_tasks(run, 1, "again", ["lightgbm"])
    found = dict(map_tasks(killed_once, list(again.values()), cores=2, label="fits"))
    assert (run.dir / "killed").exists() and "SIGKILL" in capfd.readouterr().out
    for place, name in enumerate(todo):
        assert np.array_equal(plain[name].oof, found[place].oof, equal_nan=True)
        assert kept(todo[name]) == kept(again[name])


def test_variants_differ_from_their_task_in_what_they_name(run):
    task = FitTask(run.dir, ("tiny",), FOLDS, replace(LEAN, taught=False, final=False), Machine(1))
    copies = np.where(np.arange(len(POSTS)) % 3, 1, 0).astype(np.uint16)
    found = variants_of(task)({"a": {"seed": 0, "out_dir": None}, "b": {"seed": 3, "out_dir": None, "copies": copies}})
    assert np.array_equal(found["a"].oof, fit_task(task).oof, equal_nan=True)
    other = fit_task(replace(task, training=replace(task.training, seed=3), copies=copies))
    assert np.array_equal(found["b"].oof, other.oof, equal_nan=True)
    assert not np.array_equal(found["a"].oof, found["b"].oof, equal_nan=True)


def test_a_set_with_tuned_columns_comes_after_the_one_that_makes_its_ridge(run, monkeypatch):
    asked = []
    monkeypatch.setattr(tasks, "map_tasks", lambda fn, items, **_: asked.extend(items) or enumerate(items))
    small, large = (fit_tasks(run, 1, "sorted")[blocks, "lightgbm"] for blocks in ("tiny", "tiny+more"))
    tuned = replace(large, tuned={"tuned_minilm": ()})
    fit_all({"small": small, "tuned": tuned, "large": large})
    assert list(map(id, asked)) == list(map(id, (large, small, tuned)))


def test_fits_on_a_gpu_have_it_alone(run, monkeypatch):
    """CatBoost takes nearly all of a card's memory: its fits are tasks of a GPU each, after those of the CPU."""
    asked = []

    def map_tasks(fn, items, *, cpus, gpus, cores, **_):
        asked.append((gpus, [item.training.model for item in items]))
        return enumerate(items)

    monkeypatch.setattr(tasks, "map_tasks", map_tasks)
    monkeypatch.setattr(tasks, "device_for", lambda model, *_: "gpu" if model == "catboost" else "cpu")
    todo = fit_tasks(run, 4, "gpu")
    assert fit_all(todo) == todo
    assert asked == [(0, ["lightgbm"] * 2), (1, ["catboost"] * 2)]
