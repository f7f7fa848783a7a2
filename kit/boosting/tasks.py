"""Many calls of `fit_folds` as tasks: each names a run and its blocks, and is done by whichever process is free."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kit.base.tasks import map_tasks
from kit.boosting.fit import Machine, Training, fit_folds
from kit.boosting.learners import device_for
from kit.boosting.result import FoldResult
from kit.run.directory import Run
from kit.run.matrix import join_blocks
from kit.run.tuned import read_columns


@dataclass(frozen=True)
class FitTask:
    """One call of `fit_folds`.

    Attributes:
        run_dir: holds the posts table and the blocks, which are read where the task is done.
        blocks: names of the blocks, side by side.
        folds: (n_posts,) from `folds.make_folds`.
        training, machine, weight, copies, out_dir, taught_dir: as for `fit_folds`.
        tuned: from `kit.run.tuned.tuned_files`.
    """

    run_dir: Path
    blocks: tuple[str, ...]
    folds: np.ndarray
    training: Training = Training()
    machine: Machine = Machine()
    weight: np.ndarray | None = None
    copies: np.ndarray | None = None
    out_dir: Path | None = None
    taught_dir: Path | None = None
    tuned: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """ "cpu" or "gpu"."""
        return device_for(self.training.model, self.machine.device, len(self.folds))

    def __str__(self) -> str:
        return f"{self.training.model} on {'+'.join(self.blocks)}, seed {self.training.seed}, kept in {self.out_dir}"


def fit_task(task: FitTask) -> FoldResult:
    """What `fit_folds` returns for the task."""
    run = Run(task.run_dir)
    posts, block = run.posts(), join_blocks([run.read_block(name) for name in task.blocks])
    return fit_folds(
        block, posts["label"].to_numpy(), task.folds, posts, task.training, task.machine, weight=task.weight,
        copies=task.copies, out_dir=task.out_dir, taught_dir=task.taught_dir, tuned=read_columns(task.tuned),
    )  # fmt: skip


def fit_all(tasks: Mapping[Hashable, FitTask]) -> dict[Hashable, FoldResult]:
    """The results by name, in the order of the tasks, which share the threads of the machine; fits on a GPU come last."""
    found = {}
    for device in ("cpu", "gpu"):
        # the slowest first, but one model after the other, and sets with tuned columns behind those without: the second
        # finds the label-taught columns of the first
        order = sorted(
            tasks, key=lambda name: (tasks[name].training.model, bool(tasks[name].tuned), -len(tasks[name].blocks))
        )
        names = [name for name in order if tasks[name].device == device]
        chosen = [tasks[name] for name in names]
        cpus = max((task.machine.threads_of_fit(len(task.folds)) for task in chosen), default=1)
        cores = max((task.machine.threads for task in chosen), default=0)
        done = map_tasks(
            fit_task, chosen, cpus=cpus, gpus=int(device == "gpu"), cores=cores, label="fits", unit="fit",
            worked=lambda result: result.fitted,
        )  # fmt: skip
        found |= {names[place]: result for place, result in done}
    return {name: found[name] for name in tasks}


def variants_of(task: FitTask) -> Callable[[Mapping[Hashable, dict[str, Any]]], dict[Hashable, FoldResult]]:
    """A function that fits variants of a task: by name, their weight, copies, out_dir and seed."""

    def fit(variants: Mapping[Hashable, dict[str, Any]]) -> dict[Hashable, FoldResult]:
        return fit_all({
            name: replace(task, training=replace(task.training, seed=variant["seed"]),
                          **{key: value for key, value in variant.items() if key != "seed"})
            for name, variant in variants.items()
        })  # fmt: skip

    return fit
