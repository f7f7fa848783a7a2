"""CatBoost: a pool of all posts quantised once, then fit on slices of it."""

from __future__ import annotations

import inspect
from functools import cached_property
from pathlib import Path

import catboost
import numpy as np

from kit.boosting.data import WIDE, Data
from kit.run.matrix import pieces

CATBOOST = {
    "loss_function": "RMSE",
    "eval_metric": "MAE",
    "learning_rate": 0.08,
    "depth": 6,
    "l2_leaf_reg": 3.0,
    "rsm": 0.1,
    "max_ctr_complexity": 1,
}
LEAST_COLUMNS = 24  # that a split chooses from: a tenth of few is none
QUANTISE = ("border_count", "feature_border_type", "nan_mode", "task_type")  # of the parameters of CatBoost


class CatBoost:
    """CatBoost on a pool of all posts, quantised once, of which every fit takes its slice; on a GPU it bins for itself.

    A pool cannot be given more columns, so a training side with taught columns quantises one of its own.

    Args:
        prepared: from ``prepare``.
        taught, weight, n_threads: as for ``LightGBM``.
    """

    suffix = ".cbm"
    needs_taught, has_rounds = False, True
    fixed = frozenset({
        "random_seed", "random_state", "task_type", "thread_count", "verbose", "silent", "logging_level", "allow_writing_files",
        "iterations", "num_boost_round", "n_estimators", "num_trees", "early_stopping_rounds", "od_type", "od_wait", "od_pval",
        "use_best_model", "cat_features", "text_features", "embedding_features", "objective",
    })  # as for ``LightGBM``  # fmt: skip

    def __init__(self, prepared: _CatBoostPool, taught: np.ndarray | None, weight: np.ndarray, n_threads: int):
        self._prepared, self._taught, self._weight = prepared, taught, weight
        self._params = prepared.params | {"thread_count": n_threads}
        self._on_gpu = prepared.params["task_type"] == "GPU"

    @staticmethod
    def settings(params: dict, n_columns: int) -> dict:
        """The defaults, coarser bins for wide data, more columns in narrow data, and on top the caller's parameters."""
        share = max(CATBOOST["rsm"], min(1.0, LEAST_COLUMNS / n_columns))
        return CATBOOST | {"border_count": 64 if n_columns > WIDE else 128, "rsm": share} | params

    @staticmethod
    def names() -> set[str]:
        """CatBoost's parameters."""
        return set(inspect.signature(catboost.CatBoostRegressor.__init__).parameters) - {"self"}

    @staticmethod
    def prepare(data: Data, params: dict, n_threads: int, seed: int, device: str) -> _CatBoostPool:
        """The posts as CatBoost takes them, quantised when first needed."""
        if device != "cpu":
            params = {name: value for name, value in params.items() if name != "rsm"}  # unknown to CatBoost on a GPU
        params = params | {
            "random_seed": seed,
            "task_type": device.upper(),
            "verbose": False,
            "allow_writing_files": False,
        }
        return _CatBoostPool(data, params, n_threads)

    def fit(
        self, rows: np.ndarray, rounds: int, stop_rows: np.ndarray | None = None, patience: int = 0, times: float = 1
    ) -> int:  # fmt: skip
        """As for ``LightGBM``, rows in any order."""
        watch = {}
        binned = not self._on_gpu and len(rows) <= len(self._weight)  # no slice is larger than its pool
        rows_of = self._slice if binned else self._unbinned
        if stop_rows is not None:
            watch = {
                "eval_set": rows_of(stop_rows, np.ones(len(stop_rows))),
                "early_stopping_rounds": patience,
                "use_best_model": True,
            }
        params = self._params | {"learning_rate": times * self._params["learning_rate"]}
        self._model = catboost.CatBoostRegressor(**params, iterations=rounds)
        self._model.fit(rows_of(rows, self._weight[rows]), **watch)
        return self._model.tree_count_

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) float64."""
        out = np.empty(len(rows))
        for piece in pieces(len(rows), self._prepared.data.values.shape[1]):
            features = self._prepared.features(rows[piece], self._taught)
            out[piece] = self._model.predict(features, thread_count=self._params["thread_count"])
        return out

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), d + t + 1) float64, as for ``LightGBM``."""
        pool = catboost.Pool(self._prepared.features(rows, self._taught))
        threads = self._params["thread_count"]
        found = self._model.get_feature_importance(pool, type="ShapValues", thread_count=threads)
        order = self._prepared.order(0 if self._taught is None else self._taught.shape[1])
        out = np.empty_like(found)
        out[:, order], out[:, -1] = found[:, :-1], found[:, -1]
        return out

    def gain(self) -> np.ndarray:
        """(d + t,) importance of each column."""
        order = self._prepared.order(0 if self._taught is None else self._taught.shape[1])
        gain = np.zeros(len(order))
        gain[order] = self._model.get_feature_importance()
        return gain

    def save(self, path: Path) -> None:
        """Write the model in CatBoost's binary format."""
        self._model.save_model(str(path))

    def load(self, path: Path) -> CatBoost:
        """Take over a written model."""
        self._model = catboost.CatBoostRegressor().load_model(str(path))
        return self

    @cached_property
    def _pool(self) -> catboost.Pool:
        return self._prepared.pool if self._taught is None else self._prepared.quantised(self._taught)

    def _slice(self, rows: np.ndarray, weight: np.ndarray) -> catboost.Pool:
        return self._pool.slice(rows).set_weight(weight)

    def _unbinned(self, rows: np.ndarray, weight: np.ndarray) -> catboost.Pool:
        target = self._prepared.data.target[rows]
        return catboost.Pool(self._prepared.features(rows, self._taught), target, weight=weight)


class _CatBoostPool:
    """All posts in CatBoost's shape: numbers first, then codes as words; taught columns are the last numbers."""

    def __init__(self, data: Data, params: dict, n_threads: int):
        self.data, self.params, self._n_threads = data, params, n_threads

    @cached_property
    def pool(self) -> catboost.Pool:
        """Without taught columns."""
        return self.quantised(None)

    def quantised(self, taught: np.ndarray | None) -> catboost.Pool:
        """A pool of all posts, one byte per value; the numbers are held in float32 until it is made."""
        target = np.nan_to_num(self.data.target)
        pool = catboost.Pool(self.features(None, taught), target, thread_count=self._n_threads)
        pool.quantize(**{name: self.params[name] for name in QUANTISE if name in self.params})
        return pool.slice(np.arange(len(self.data.values)))  # shares the bins, and lets go of the float32 numbers

    def features(self, rows: np.ndarray | None, taught: np.ndarray | None) -> catboost.FeaturesData:
        """Some posts, or all."""
        coded, n = self.data.coded, len(self.data.values) if rows is None else len(rows)
        n_numbers, n_taught = int((~coded).sum()), 0 if taught is None else taught.shape[1]
        numbers = np.empty((n, n_numbers + n_taught), dtype=np.float32, order="F")
        codes = np.empty((n, int(coded.sum())), dtype=object)
        for piece in pieces(n, len(coded)):
            taken = piece if rows is None else rows[piece]
            values = self.data.values[taken]
            numbers[piece, :n_numbers] = values[:, ~coded]
            codes[piece] = _words(values[:, coded])
            if n_taught:
                numbers[piece, n_numbers:] = taught[taken]
        return catboost.FeaturesData(numbers if numbers.shape[1] else None, codes if codes.shape[1] else None)

    def order(self, n_taught: int) -> np.ndarray:
        """(d + t,) place among the data's columns of each column of the pool."""
        coded, d = self.data.coded, len(self.data.coded)
        return np.r_[np.flatnonzero(~coded), np.arange(d, d + n_taught), np.flatnonzero(coded)]


def _words(codes: np.ndarray) -> np.ndarray:
    """Codes (-1 and NaN: missing) as words; equal ones are one object, so that a word costs no more than a pointer."""
    codes = np.maximum(np.nan_to_num(codes, nan=-1), -1).astype(np.int64)
    words = np.array([b"%d" % code for code in range(-1, codes.max(initial=-1) + 1)], dtype=object)
    return words[codes + 1]
