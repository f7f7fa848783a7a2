"""Gradient boosting over folds: out-of-fold and test predictions, scores, importance; each fold is kept on disk.

The scored fold decides nothing. When to stop boosting is decided by authors held out of the *training* side; then the model
is fitted once more on the whole training side with the number of trees found. Columns taught by labels (`kit.boosting.history`,
`kit.boosting.ridge`) are made anew for each fold from its training side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from kit.base.errors import InputError
from kit.base.progress import progress
from kit.boosting.data import ROWS_PER_THREAD, Data, Interrupted, TrainingSide, some_rows
from kit.boosting.history import LabelHistory
from kit.boosting.learners import LEARNERS, device_for
from kit.boosting.result import FoldResult, collect
from kit.boosting.ridge import RidgeStack
from kit.boosting.store import Store
from kit.run.block import Block
from kit.run.folds import TEST, fold_rows, inner_holdout

MODELS = tuple(LEARNERS)
TAUGHT = ("ridge", *LabelHistory.names)  # columns made from labels of the training side, after those of the block


def fit_folds(
    block: Block,
    target: np.ndarray,
    folds: np.ndarray,
    posts: pd.DataFrame,
    model: str = "lightgbm",
    params: dict | None = None,
    *,
    rounds: int = 3000,
    patience: int = 100,
    weight: np.ndarray | None = None,
    copies: np.ndarray | None = None,
    taught: bool = True,
    final: bool = True,
    stop_share: float = 0.2,
    n_threads: int = 2,
    seed: int = 0,
    device: str = "auto",
    out_dir: Path | None = None,
) -> FoldResult:
    """A model per fold, one on all train posts, and what they predict; what is on disk with the same inputs is read back.

    Args:
        block: features of all posts; `matrix.join_blocks` puts several together.
        target: (n_posts,) label, NaN for test posts.
        folds: (n_posts,) from `folds.make_folds`.
        posts: the posts table, for authors, tags, titles and dates.
        model: one of MODELS.
        params: the library's own parameters, on top of the defaults in `kit.boosting.learners`.
        rounds: at most so many trees.
        patience: stop after so many trees without a better MAE on the held-out authors.
        weight: (n_posts,) or, one row per fit, (n_folds, n_posts) >= 0: what a post's error counts in training; 0 leaves
            it out. Early stopping and scores are never weighted.
        copies: as `weight`, whole numbers: how often a post stands in the training side; 0 leaves it out. With `final`,
            arrays of one row per fit need one row more, for the model on all train posts.
        taught: add the columns TAUGHT, made for each fold from the labels of its training side.
        final: fit the model on all train posts that predicts the test part; without it `test` is NaN.
        stop_share: of the training side, held out by author for early stopping; 0 fits exactly `rounds` trees.
        n_threads: in all; folds of few posts are fitted side by side and share them.
        seed: of sampling and held-out authors.
        device: "cpu", "gpu" or "auto", see `learners.device_for`.
        out_dir: where to keep `fold_<k>.npz`, `final.npz`, the models, `oof.npy`, `test.npy` and `scores.json`.

    Raises:
        InputError: unknown model, lengths that differ, or missing labels on train posts.

    Source: settings from HyFea, USTC and Alonso; held-out authors because test authors are new.
    """
    target = _checked_target(block, target, folds, posts)
    if model not in LEARNERS:
        raise InputError(f"model {model!r} is unknown; choose one of {', '.join(MODELS)}")
    n_folds = int(np.max(folds)) + 1
    weight = _per_fit("weight", weight, n_folds + final, len(target))
    copies = _per_fit("copies", copies, n_folds + final, len(target))
    params = LEARNERS[model].settings(params or {}, len(block.columns))
    device = device_for(model, device, len(target))
    settings = {
        "model": model,
        "device": device,
        "params": params,
        "rounds": rounds,
        "patience": patience,
        "stop_share": stop_share,
        "seed": seed,
        "taught": taught,
    }
    at_once = _at_once(n_folds, n_threads, len(target)) if device == "cpu" else 1
    fitter = _Fitter(block, target, posts, settings, n_threads, at_once, device, out_dir)
    text = [
        pd.util.hash_pandas_object(posts[c], index=False).to_numpy() for c in ("Uid", "Title", "Alltags", "Postdate")
    ]
    store = Store(out_dir, settings, block, target, folds, *text)

    def fold(k: int) -> dict:
        train_idx, valid_idx = fold_rows(folds, k)
        side = TrainingSide(train_idx, weight[k], copies[k])
        return store.get(f"fold_{k}", side, lambda: fitter.fit(side, valid_idx))

    parts = _side_by_side(fold, n_folds, fitter, f"{model} folds")
    test_idx = np.flatnonzero(folds == TEST)
    test = np.full(len(test_idx), np.nan)
    if final:
        fitter.at_once = 1
        n_trees = round(np.mean([part["rounds"] for part in parts]))
        side = TrainingSide(np.flatnonzero(folds != TEST), weight[-1], copies[-1])
        test = store.get("final", side, lambda: fitter.fit(side, test_idx, n_trees), n_trees)["prediction"]
    result = collect(model, fitter.columns, target, folds, parts, test)
    store.finish(result)
    return result


class _Fitter:
    """The features, prepared when a first fit needs them, and how one model is fitted on them.

    Attributes:
        columns: names of the block's columns and the taught ones.
        at_once: how many fits share the threads.
        cancelled: set to end all fits that are under way.
    """

    def __init__(
        self, block: Block, target, posts: pd.DataFrame, settings: dict, n_threads: int, at_once: int, device: str,
        folder: Path | None,
    ):  # fmt: skip
        self._block, self._target, self._posts, self._settings = block, target, posts, settings
        self.n_threads, self._device, self._folder = n_threads, device, folder
        self._learner = LEARNERS[settings["model"]]
        self._preparing = threading.Lock()
        self.columns = [*block.columns, *(TAUGHT if settings["taught"] else ())]
        self.at_once, self.cancelled = at_once, threading.Event()

    @cached_property
    def _prepared(self) -> object:
        coded = np.isin(self._block.columns, self._block.categorical)
        data = Data(self._block.values, coded, self._target)
        return self._learner.prepare(
            data, self._settings["params"], self.n_threads, self._settings["seed"], self._device
        )

    @cached_property
    def _teachers(self) -> tuple[RidgeStack, LabelHistory]:
        seed = self._settings["seed"]
        return RidgeStack(self._block, self._posts, seed, self._folder), LabelHistory(self._posts, seed)

    def fit(self, side: TrainingSide, predict_idx: np.ndarray, n_trees: int | None = None) -> tuple[dict, object]:
        """Predictions for predict_idx, gain, rounds and seconds of a model taught by a training side; and its learner.

        The number of trees is n_trees, or else found on authors of the side that are held out for it.
        """
        rows = some_rows(side.kept(side.rows))
        with self._preparing:  # once, whichever fit comes first
            prepared, teachers = self._prepared, self._teachers if self._settings["taught"] else None
        started = time.perf_counter()
        taught = None
        if teachers:
            ridge = teachers[0].column(self._target, rows, side.weight * side.copies)
            taught = np.column_stack([ridge, teachers[1].columns(self._target, rows)])
        learner = self._learner(prepared, taught, side.weight, self.n_threads // self.at_once, self.cancelled.is_set)
        n_trees = n_trees or self._count_trees(learner, side)
        learner.fit(side.copied(rows), n_trees)
        part = {"prediction": learner.predict(predict_idx), "gain": learner.gain(), "rounds": n_trees}
        return part | {"seconds": time.perf_counter() - started}, learner

    def _count_trees(self, learner, side: TrainingSide) -> int:
        """The best number of trees for held-out authors, who are the same whatever is left out or copied."""
        rounds, share = self._settings["rounds"], self._settings["stop_share"]
        if not share:
            return rounds
        fit_idx, stop_idx = (
            some_rows(side.kept(part)) for part in inner_holdout(self._posts, side.rows, share, self._settings["seed"])
        )
        return max(1, learner.fit(side.copied(fit_idx), rounds, stop_idx, self._settings["patience"]))


def _at_once(n_folds: int, n_threads: int, n_posts: int) -> int:
    """How many fits share the threads: of few posts a fit cannot use many, of many posts two would share the memory's speed."""
    each = max(1, min(n_threads, n_posts // ROWS_PER_THREAD))
    return min(n_folds, n_threads // each)


def _side_by_side(fold: Callable[[int], dict], n_folds: int, fitter: _Fitter, label: str) -> list[dict]:
    """What `fold` returns for each fold; where one fails or somebody interrupts, those under way are ended, too."""
    if fitter.at_once == 1:
        return [fold(k) for k in progress(range(n_folds), label=label, unit="fold")]

    def guarded(k: int) -> dict:
        if fitter.cancelled.is_set():
            raise Interrupted
        try:
            return fold(k)
        except BaseException:
            fitter.cancelled.set()
            raise

    blas_threads = max(1, fitter.n_threads // fitter.at_once)
    with (
        ThreadPoolExecutor(fitter.at_once) as pool,
        threadpool_limits(blas_threads, "blas"),
    ):
        parts = [pool.submit(guarded, k) for k in range(n_folds)]
        try:
            for part in progress(as_completed(parts), n_folds, label=label, unit="fold"):
                if not isinstance(part.exception(), Interrupted):  # that is told by the one that failed
                    part.result()
        except BaseException:
            fitter.cancelled.set()
            raise
        return [part.result() for part in parts]


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
