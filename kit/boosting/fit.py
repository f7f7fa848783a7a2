"""Gradient boosting over folds: out-of-fold and test predictions, scores, importance; each fold is kept on disk.

The scored fold decides nothing. When to stop boosting is decided by authors held out of the *training* side; then the model
is fitted once more on the whole training side with the number of trees found, unless they are so few of it that this would
bring nothing. Columns taught by labels (`kit.boosting.taught`)
are made anew for each fold from its training side, and once more without the labels of the authors who decide when to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.machine import usable_cores
from kit.base.progress import progress
from kit.boosting.data import ROWS_PER_THREAD, Data, TrainingSide, some_rows
from kit.boosting.learners import device_for, kinds, learner_of
from kit.boosting.result import FoldResult, collect
from kit.boosting.store import Store
from kit.boosting.taught import TAUGHT, TaughtColumns
from kit.features.past import Past, post_times
from kit.run.block import Block
from kit.run.folds import TEST, fold_rows, inner_holdout

STOP_POSTS = 10_000  # held out at most to decide when to stop: enough to see a difference of trees
REFIT = 0.1  # share of a training side above which those who decided teach, too, in a fit of their own
COUNTED = 2  # times the learning rate at which the trees of such a fit are counted: so many times fewer


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        model: one of `learners.LEARNERS`, or a regressor of scikit-learn by its dotted name.
        params: the library's own parameters, on top of the defaults in `kit.boosting.lightgbm` and `kit.boosting.catboost`.
        rounds: at most so many trees.
        patience: stop after so many trees without a better MAE on the held-out authors.
        stop_share: of the training side, at most STOP_POSTS, held out by author for early stopping; 0 fits exactly `rounds`
            trees.
        taught: add the columns TAUGHT, made for each fold from the labels of its training side.
        final: fit the model on all train posts that predicts the test part; without it `test` is NaN.
        seed: of sampling and held-out authors.
    """

    model: str = "lightgbm"
    params: dict[str, Any] = field(default_factory=dict)
    rounds: int = 3000
    patience: int = 50
    stop_share: float = 0.2
    taught: bool = True
    final: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Machine:
    """On what is trained.

    Attributes:
        threads: of all fits that go on side by side; 0: all cores.
        device: "cpu", "gpu" or "auto", see `learners.device_for`.
    """

    threads: int = 0
    device: str = "auto"

    def threads_of_fit(self, n_posts: int) -> int:
        """Of few posts a fit cannot use many; the number never depends on what goes on beside it."""
        return max(1, min(self.threads or usable_cores(), n_posts // ROWS_PER_THREAD))


def fit_folds(
    block: Block, target: np.ndarray, folds: np.ndarray, posts: pd.DataFrame, training: Training = Training(),
    machine: Machine = Machine(), *, weight: np.ndarray | None = None, copies: np.ndarray | None = None,
    out_dir: Path | None = None, taught_dir: Path | None = None, tuned: Mapping[str, np.ndarray] | None = None,
) -> FoldResult:  # fmt: skip
    """A model per fold, one on all train posts, and what they predict; what is on disk with the same inputs is read back.

    Args:
        block: features of all posts; `matrix.join_blocks` puts several together.
        target: (n_posts,) label, NaN for test posts.
        folds: (n_posts,) from `folds.make_folds`.
        posts: the posts table, for authors, tags, titles and dates.
        training: what is trained.
        machine: on what; of no consequence for the result but for rounding, and for what a GPU does otherwise.
        weight: (n_posts,) or, one row per fit, (n_folds, n_posts) >= 0: what a post's error counts in training; 0 leaves
            it out. Early stopping and scores are never weighted.
        copies: as `weight`, whole numbers: how often a post stands in the training side; 0 leaves it out. With
            `training.final`, arrays of one row per fit need one row more, for the model on all train posts.
        out_dir: where to keep `fold_<k>.npz`, `final.npz`, the models, `oof.npy`, `test.npy` and `scores.json`.
        taught_dir: where to keep label-taught columns, which are the same for other models of the block; by default in
            out_dir.
        tuned: columns to stand behind TAUGHT, with `training.taught`: name -> (n_fits, n_posts) float32, each row taught by
            that fit's training side alone; fits as for `copies`.

    Raises:
        InputError: unknown model, lengths that differ, or missing labels on train posts.

    Source: settings from HyFea, USTC and Alonso; held-out authors because test authors are new.
    """
    target = _checked_target(block, target, folds, posts)
    n_folds = int(np.max(folds)) + 1
    weight = _per_fit("weight", weight, n_folds + training.final, len(target))
    copies = _per_fit("copies", copies, n_folds + training.final, len(target))
    params = learner_of(training.model).settings(training.params, len(block.columns))
    device = device_for(training.model, machine.device, len(target))
    settings = asdict(training) | {"params": params, "device": device}
    post_hashes = _post_hashes(posts)
    store = Store(out_dir, settings, block, target, folds, post_hashes)
    teachers = TaughtColumns(
        block, target, posts, post_hashes, training.seed, taught_dir or (out_dir and out_dir / "taught")
    )
    fitter = _Fitter(block, target, posts, training, params, machine.threads_of_fit(len(target)), device, teachers)

    beside = (
        [np.column_stack(columns) for columns in zip(*tuned.values(), strict=True)] if tuned else [None] * len(copies)
    )
    sides = [TrainingSide(fold_rows(folds, k)[0], weight[k], copies[k], beside[k]) for k in range(n_folds)]

    def fold(k: int) -> dict:
        return store.get(f"fold_{k}", sides[k], lambda: fitter.fit(sides[k], fold_rows(folds, k)[1]))

    to_do = progress(range(n_folds), None, f"{training.model} folds", "fold", lambda k: store.fitted[k])
    parts = [fold(k) for k in to_do]
    test_idx = np.flatnonzero(folds == TEST)
    test = np.full(len(test_idx), np.nan)
    if training.final:
        side = TrainingSide(np.flatnonzero(folds != TEST), weight[-1], copies[-1], beside[-1])
        more = [len(side.kept(side.rows)) / len(one.kept(one.rows)) for one in sides] if training.stop_share else 1
        n_trees = round(np.mean(np.multiply(more, [part["rounds"] for part in parts])))  # more posts bear more trees
        test = store.get("final", side, lambda: fitter.fit(side, test_idx, n_trees), n_trees)["prediction"]
    columns = [*block.columns, *((*TAUGHT, *(tuned or ())) if training.taught else ())]
    result = collect(training.model, device, columns, target, folds, parts, test, np.mean(store.fitted))
    store.finish(result)
    return result


@dataclass(frozen=True)
class _Fitter:
    """How one model is fitted; what all folds share is made when a first fit needs it."""

    block: Block
    target: np.ndarray
    posts: pd.DataFrame
    training: Training
    params: dict
    n_threads: int
    device: str
    teachers: TaughtColumns

    @cached_property
    def _prepared(self) -> object:
        author = pd.factorize(self.posts["Uid"])[0]
        data = _data(self.block, self.target, author, Past(author, post_times(self.posts)))
        prepare = learner_of(self.training.model).prepare
        return prepare(data, self.params, self.n_threads, self.training.seed, self.device)

    def fit(self, side: TrainingSide, predict_idx: np.ndarray, n_trees: int | None = None) -> tuple[dict, object]:
        """Predictions for predict_idx, gain, rounds and seconds of a model taught by a training side; and its learner.

        The number of trees is n_trees, or else found on authors of the side that are held out for it.
        """
        started, stopped = time.perf_counter(), None
        if n_trees is None:
            n_trees, stopped = self._count_trees(side)
        learner, name = stopped or self._refitted(side, n_trees)
        part = {"prediction": learner.predict(predict_idx), "gain": learner.gain(), "rounds": n_trees, "taught": name}
        return part | {"seconds": time.perf_counter() - started}, learner

    def _refitted(self, side: TrainingSide, n_trees: int) -> tuple[Any, str]:
        rows = some_rows(side.kept(side.rows))
        learner, name = self._learner(side, rows)
        learner.fit(side.copied(rows), n_trees)
        return learner, name

    def _count_trees(self, side: TrainingSide) -> tuple[int, tuple[Any, str] | None]:
        """The best number of trees for held-out authors, who are the same whatever is left out or copied.

        With it, where they are few, the learner that has them and the name of its taught columns.
        """
        training = self.training
        if not learner_of(training.model).has_rounds:
            return 1, None
        if not training.stop_share:
            return training.rounds, None
        fit_idx, stop_idx = self._stop_parts(side)
        learner, name = self._learner(side, fit_idx)
        stands = self._stop_share(side) <= REFIT
        times, more = (1, 1) if stands else (COUNTED, len(side.kept(side.rows)) / len(fit_idx))
        most, patience = (math.ceil(n / times) for n in (training.rounds, training.patience))
        n_trees = learner.fit(side.copied(fit_idx), most, stop_idx, patience, times)
        stopped = (learner, name) if stands and n_trees else None
        return min(max(1, round(n_trees * times * more)), training.rounds), stopped  # more posts bear more trees

    def _stop_share(self, side: TrainingSide) -> float:
        return min(self.training.stop_share, STOP_POSTS / len(side.rows))

    def _stop_parts(self, side: TrainingSide) -> list[np.ndarray]:
        """Row positions of a side that trees are fitted on while they are counted, and of those that end it."""
        parts = inner_holdout(self.posts, side.rows, self._stop_share(side), self.training.seed)
        return [some_rows(side.kept(part)) for part in parts]

    def _learner(self, side: TrainingSide, rows: np.ndarray) -> tuple[Any, str]:
        """A learner that sees the columns taught by these rows, and the name under which the columns are kept."""
        prepared, weight, (name, taught) = self._prepared, side.weight * side.copies, ("", None)
        if self.training.taught:
            judges = self._stop_parts(side)[0] if self.training.stop_share else rows  # they choose once for both fits
            name, taught = self.teachers.columns(rows, weight, self.n_threads, judges)
            taught = taught if side.tuned is None else np.hstack([taught, side.tuned])
        return learner_of(self.training.model)(prepared, taught, side.weight, self.n_threads), name


def load_fold(block: Block, out_dir: Path, name: str = "final", taught: np.ndarray | None = None) -> Any:
    """A kept model; its ``predict(rows)`` says of any posts what the model says, (len(rows),) float64.

    Args:
        block: as it was fitted on, or the same columns of other posts.
        out_dir: as given to `fit_folds`.
        name: "fold_<k>" or "final".
        taught: (n_posts, t) the columns behind the block's, where the model has learnt from such; see `kept_teaching`.

    Raises:
        InputError: the model is not there.
    """
    path, learner = _kept_model(out_dir, name)
    n_posts = len(block.values)
    prepared = learner.prepare(_data(block, np.full(n_posts, np.nan)), {}, 1, 0, "cpu")
    return learner(prepared, taught, np.ones(n_posts), 1).load(path)


def kept_teaching(out_dir: Path, name: str = "final", taught_dir: Path | None = None) -> dict[str, np.ndarray] | None:
    """What labels have taught for a kept model; None where it has learnt from no such columns.

    Args:
        out_dir, taught_dir: as given to `fit_folds`.
        name: "fold_<k>" or "final".

    Returns:
        "columns", (n_posts, len(TAUGHT)) float32; "alpha" and "view" of the ridge, with which it can be fitted again.

    Raises:
        InputError: the columns are not there.
    """
    with np.load(out_dir / f"{name}.npz") as stored:
        kept = str(stored["taught"])
    if not kept:
        return None
    path = (taught_dir or out_dir / "taught") / kept
    if not path.is_file():
        raise InputError(f"no {path}, the label-taught columns of {out_dir}: ./run_all.sh --force 06 makes them again")
    with np.load(path) as teaching:
        return dict(teaching)


def load_final(
    block: Block, target: np.ndarray, folds: np.ndarray, posts: pd.DataFrame, training: Training, machine: Machine,
    out_dir: Path, taught_dir: Path,
) -> Any:  # fmt: skip
    """The kept model on all train posts, for more posts than it was fitted with: its ``predict(rows)`` as of `load_fold`.

    Columns taught by labels are made anew over all posts. So is what keeps predictions instead of a model, in closed form.

    Args:
        block, target, folds, posts: as for `fit_folds`, the further posts behind the others, TEST among the folds.
        training, machine: as the model was fitted.
        out_dir: as given to `fit_folds`.
        taught_dir: where taught columns are kept for other models of the block.

    Raises:
        InputError: the model is not there.
    """
    path, _ = _kept_model(out_dir, "final")
    teachers = TaughtColumns(block, target, posts, _post_hashes(posts), training.seed, taught_dir)
    params = learner_of(training.model).settings(training.params, len(block.columns))
    fitter = _Fitter(block, target, posts, training, params, machine.threads_of_fit(len(folds)), "cpu", teachers)
    side = TrainingSide(np.flatnonzero(folds != TEST), np.ones(len(folds)), np.ones(len(folds)))
    learner, _ = fitter._learner(side, side.rows)
    if learner.needs_taught:
        learner.fit(side.rows, 1)
        return learner
    return learner.load(path)


def _kept_model(out_dir: Path, name: str) -> tuple[Path, type]:
    """The file of a kept model, and its learner."""
    found = ((path, kind) for kind in kinds() if (path := out_dir / f"{name}{kind.suffix}").is_file())
    if (kept := next(found, None)) is None:
        raise InputError(f"no model {name} in {out_dir}: ./run_all.sh --force 06 fits and keeps it again")
    return kept


def _post_hashes(posts: pd.DataFrame) -> np.ndarray:
    """(n_posts,) a hash of each row; vectors of old releases, which teach by the block, are left out."""
    plain = posts.drop(columns=posts.columns[posts.columns.str.endswith("_vector")])
    return pd.util.hash_pandas_object(plain, index=False).to_numpy()


def _data(block: Block, target: np.ndarray, *authors: Any) -> Data:
    return Data(block.values, np.isin(block.columns, block.categorical), target, *authors)


def _checked_target(block: Block, target: np.ndarray, folds: np.ndarray, posts: pd.DataFrame) -> np.ndarray:
    target = np.asarray(target, dtype=np.float64)
    lengths = {"block": len(block.values), "target": len(target), "folds": len(folds), "posts": len(posts)}
    if len(set(lengths.values())) > 1:
        raise InputError(f"rows differ: {lengths}; all four must come from one run")
    missing = np.flatnonzero((folds != TEST) & ~np.isfinite(target))
    if len(missing):
        raise InputError(
            f"{len(missing)} train posts have no label, the first in row {missing[0]} "
            f"(Pid {posts['Pid'].iloc[missing[0]]}); every train post needs one"
        )
    return target


def _per_fit(name: str, values: np.ndarray | None, n_fits: int, n_posts: int) -> np.ndarray:
    """(n_fits, n_posts) float64 from one row for all fits, one row per fit, or None (all ones)."""
    values = np.ones(n_posts) if values is None else np.asarray(values, dtype=np.float64)
    if values.shape not in ((n_posts,), (n_fits, n_posts)) or not np.isfinite(values).all() or (values < 0).any():
        raise InputError(
            f"{name} must be finite numbers >= 0, one per post ({n_posts}) or one row of them per fit ({n_fits}); "
            f"got shape {values.shape}"
        )
    return np.broadcast_to(values, (n_fits, n_posts))
