"""LightGBM and CatBoost behind one interface: all posts binned once, then fit on some rows of the bins, predict others.

``prepare`` bins the columns that stay the same over folds (bins see features, never labels); an instance belongs to one
training side, with its own weights and its own columns taught by labels. Instances may work side by side in threads.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import catboost
import lightgbm
import numpy as np
from catboost.utils import get_gpu_device_count

from kit.devices import gpu_names
from kit.errors import InputError
from kit.matrix import SideBySide, piece_rows, pieces

ROWS_PER_THREAD = 10_000  # fewer, and LightGBM's threads mostly wait: 8 times slower beside any other busy process
WIDE = 256  # columns from which coarser bins pay: 2.6 times faster, no loss
ROWS_FOR_GPU = 100_000  # fewer, and a GPU mostly waits for the next tree
BIN_ROWS = 10_000, 50_000  # posts on which LightGBM finds bins: at least, at most
BIN_MB = 400  # it may take for that, where the least number of posts allows
BIN_B = 28  # bytes it holds for each of their values
LIGHTGBM = {
    "objective": "regression",
    "metric": "l1",
    "learning_rate": 0.03,
    "num_leaves": 15,
    "max_depth": 8,
    "min_child_samples": 20,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 10.0,
    "extra_trees": True,
}
CATBOOST = {
    "loss_function": "RMSE",
    "eval_metric": "MAE",
    "learning_rate": 0.05,
    "depth": 6,
    "l2_leaf_reg": 3.0,
    "rsm": 0.3,
    "max_ctr_complexity": 1,
}

DEVICES = ("auto", "cpu", "gpu")
QUANTISE = ("border_count", "feature_border_type", "nan_mode", "task_type")  # of the parameters of CatBoost

# that raw data are gone, as they should be, and that a part of a dataset is given its number of threads
EXPECTED = (
    "Cannot add features from NoneType",
    "Resetting categorical features",
    "Overriding the parameters from Reference",
)


class _Logger:
    """What LightGBM has to say, without what it says though told to be silent, and without what is EXPECTED."""

    def info(self, message: str) -> None:
        """Messages of the library itself, whose errors are raised."""

    def warning(self, message: str) -> None:
        if not message.startswith(EXPECTED):
            warnings.warn(message, stacklevel=3)


lightgbm.register_logger(_Logger())


def silence_thread() -> None:
    """Bring the calling thread's messages of LightGBM to the logger, too; without it they go straight to the terminal."""
    library = (
        lightgbm.basic._LIB
    )  # which knows the logger of the thread that imported it, and has no public way to tell it
    library.LGBM_RegisterLogCallback(library.callback)


class Interrupted(Exception):
    """A fit was asked to stop."""


def device_for(model: str, asked: str, n_posts: int) -> str:
    """Where a model is fitted: "gpu" for CatBoost if asked for, or if "auto" finds one and enough posts; else "cpu".

    LightGBM stays on the CPU: its packages are not built for CUDA.

    Raises:
        InputError: `asked` is another word, or a GPU where CatBoost finds none.
    """
    if asked not in DEVICES:
        raise InputError(f"device {asked!r}: expected one of {', '.join(DEVICES)}")
    if model != "catboost" or asked == "cpu" or (asked == "auto" and n_posts < ROWS_FOR_GPU):
        return "cpu"
    found = bool(gpu_names()) and get_gpu_device_count() > 0
    if asked == "gpu" and not found:
        raise InputError(
            "device 'gpu': CatBoost finds none; look at nvidia-smi and CUDA_VISIBLE_DEVICES, or take 'auto'"
        )
    return "gpu" if found else "cpu"


@dataclass(frozen=True)
class Data:
    """What learners see.

    Attributes:
        values: (n_posts, d) float32, read by rows.
        coded: (d,) bool, which columns are codes; -1 is a missing one.
        target: (n_posts,) label; rows that are never fitted may be NaN.
    """

    values: np.ndarray | SideBySide
    coded: np.ndarray
    target: np.ndarray

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        """(k, d) float32 of some rows, missing codes as NaN."""
        out = np.array(self.values[rows], dtype=np.float32)
        codes = out[:, self.coded]
        out[:, self.coded] = np.where(codes < 0, np.nan, codes)
        return out


class _Sequence(lightgbm.Sequence):
    """Data as LightGBM reads it: single rows, ascending, to find bins; then all rows by pieces, to fill them."""

    def __init__(self, data: Data):
        self._data = data
        self.batch_size = piece_rows(data.values.shape[1])
        self._piece: tuple[int, np.ndarray] = -1, np.empty(0)

    def __getitem__(self, rows: slice | int) -> np.ndarray:
        if isinstance(rows, slice):
            return self._data.take(rows)
        number, place = divmod(int(rows), self.batch_size)
        if number != self._piece[0]:
            start = number * self.batch_size
            self._piece = number, self._data.take(slice(start, start + self.batch_size))
        return self._piece[1][place].astype(np.float64)

    def __len__(self) -> int:
        return len(self._data.values)


class LightGBM:
    """One binned dataset of all posts, of which every fit takes its rows; taught columns are binned beside it.

    Args:
        binned: from ``prepare``.
        taught: (n_posts, t) float32 columns of this training side, or None.
        weight: (n_posts,) >= 0.
        n_threads: of every fit.
        stopped: asked after every tree; true ends the fit with ``Interrupted``.
    """

    suffix = ".txt"

    def __init__(
        self, binned: _LightGBMBins, taught: np.ndarray | None, weight: np.ndarray, n_threads: int,
        stopped: Callable[[], bool] = lambda: False,
    ):  # fmt: skip
        self._binned, self._weight, self._stopped = binned, weight, stopped
        n_threads = max(1, min(n_threads, len(weight) // ROWS_PER_THREAD))
        self._params = binned.params | {"num_threads": n_threads}
        self._taught = taught
        self._taught_bins = None if taught is None else lightgbm.Dataset(taught, params=self._params).construct()

    @staticmethod
    def settings(params: dict, n_columns: int) -> dict:
        """The defaults, coarser bins for wide data, and on top the caller's parameters."""
        return LIGHTGBM | {"max_bin": 63 if n_columns > WIDE else 255} | params

    @staticmethod
    def prepare(data: Data, params: dict, n_threads: int, seed: int, device: str) -> _LightGBMBins:
        """The bins of all posts, one byte per value, from a pass over the data by pieces."""
        params = params | {
            "seed": seed,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
            "device_type": device,
            "feature_pre_filter": False,
        }
        return _LightGBMBins(data, params, _binned(data, params | {"num_threads": n_threads}))

    def fit(self, rows: np.ndarray, rounds: int, stop_rows: np.ndarray | None = None, patience: int = 0) -> int:
        """Fits on rows (ascending, repeats count); returns the number of trees, the best for stop_rows where given.

        Raises:
            Interrupted: somebody asked it to stop.
        """
        watch, callbacks = {}, [self._look_up]
        if stop_rows is not None:
            watch = {"valid_sets": [self._rows(stop_rows).set_weight(np.ones(len(stop_rows)))]}
            callbacks.append(lightgbm.early_stopping(patience, first_metric_only=True, verbose=False))
        taught_by = self._rows(rows).set_weight(self._weight[rows])
        self._booster = lightgbm.train(self._params, taught_by, rounds, callbacks=callbacks, **watch)
        return self._booster.best_iteration if stop_rows is not None else rounds

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) float64."""
        data, out = self._binned.data, np.empty(len(rows))
        for piece in pieces(len(rows), data.values.shape[1]):
            values = data.take(rows[piece])
            if self._taught is not None:
                values = np.hstack([values, self._taught[rows[piece]]])
            out[piece] = self._booster.predict(values, num_threads=self._params["num_threads"])
        return out

    def gain(self) -> np.ndarray:
        """(d + t,) total gain of each column."""
        return self._booster.feature_importance("gain").astype(np.float64)

    def save(self, path: Path) -> None:
        """Write the model in LightGBM's text format."""
        self._booster.save_model(str(path))

    def _rows(self, rows: np.ndarray) -> lightgbm.Dataset:
        # every call names the number of threads: it is one for the whole process, and a fit beside this one counts on it
        out = self._binned.bins.subset(rows, self._params).construct()
        if self._taught_bins is not None:
            out.add_features_from(self._taught_bins.subset(rows, self._params).construct())
        return out

    def _look_up(self, _: object) -> None:
        if self._stopped():
            raise Interrupted


@dataclass(frozen=True)
class _LightGBMBins:
    data: Data
    params: dict
    bins: lightgbm.Dataset


def _binned(data: Data, params: dict) -> lightgbm.Dataset:
    """Bins found on some posts, then filled from all posts by pieces."""
    n_rows = np.clip(BIN_MB * (1 << 20) // (BIN_B * max(1, data.values.shape[1])), *BIN_ROWS)
    return lightgbm.Dataset(
        _Sequence(data), np.nan_to_num(data.target), params={"bin_construct_sample_cnt": int(n_rows)} | params,
        categorical_feature=np.flatnonzero(data.coded).tolist(),
    ).construct()  # fmt: skip


class CatBoost:
    """CatBoost on a pool of all posts, quantised once, of which every fit takes its slice; on a GPU it bins for itself.

    A pool cannot be given more columns, so a training side with taught columns quantises one of its own.

    Args:
        prepared: from ``prepare``.
        taught, weight, n_threads, stopped: as for ``LightGBM``.
    """

    suffix = ".cbm"

    def __init__(
        self, prepared: _CatBoostPool, taught: np.ndarray | None, weight: np.ndarray, n_threads: int,
        stopped: Callable[[], bool] = lambda: False,
    ):  # fmt: skip
        self._prepared, self._taught, self._weight, self._stopped = prepared, taught, weight, stopped
        self._params = prepared.params | {"thread_count": n_threads}
        self._on_gpu = prepared.params["task_type"] == "GPU"
        if not self._on_gpu:
            self._pool = prepared.pool if taught is None else prepared.quantised(taught, n_threads)

    @staticmethod
    def settings(params: dict, n_columns: int) -> dict:
        """The defaults, coarser bins for wide data, and on top the caller's parameters."""
        return CATBOOST | {"border_count": 64 if n_columns > WIDE else 128} | params

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

    def fit(self, rows: np.ndarray, rounds: int, stop_rows: np.ndarray | None = None, patience: int = 0) -> int:
        """Fits on rows (repeats count); returns the number of trees, the best for stop_rows where given.

        Raises:
            Interrupted: somebody asked it to stop.
        """
        watch = {} if self._on_gpu else {"callbacks": [self]}  # no callbacks there
        binned = not self._on_gpu and len(rows) <= len(self._weight)  # no slice is larger than its pool
        rows_of = self._slice if binned else self._unbinned
        if stop_rows is not None:
            watch |= {
                "eval_set": rows_of(stop_rows, np.ones(len(stop_rows))),
                "early_stopping_rounds": patience,
                "use_best_model": True,
            }
        self._model = catboost.CatBoostRegressor(**self._params, iterations=rounds)
        self._model.fit(rows_of(rows, self._weight[rows]), **watch)
        if self._stopped():
            raise Interrupted
        return self._model.tree_count_

    def after_iteration(self, _: object) -> bool:
        """Whether CatBoost should go on; it asks after every tree."""
        return not self._stopped()

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) float64."""
        out = np.empty(len(rows))
        for piece in pieces(len(rows), self._prepared.data.values.shape[1]):
            out[piece] = self._model.predict(self._prepared.features(rows[piece], self._taught))
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

    def _slice(self, rows: np.ndarray, weight: np.ndarray) -> catboost.Pool:
        return self._pool.slice(rows).set_weight(weight)

    def _unbinned(self, rows: np.ndarray, weight: np.ndarray) -> catboost.Pool:
        target = self._prepared.data.target[rows]
        return catboost.Pool(self._prepared.features(rows, self._taught), target, weight=weight)


class _CatBoostPool:
    """All posts in CatBoost's shape: numbers first, then codes as words; taught columns are the last numbers."""

    _one_at_a_time = threading.Lock()  # the numbers of all posts are held in float32 until they are quantised

    def __init__(self, data: Data, params: dict, n_threads: int):
        self.data, self.params, self._n_threads = data, params, n_threads

    @cached_property
    def pool(self) -> catboost.Pool:
        """Without taught columns."""
        return self.quantised(None, self._n_threads)

    def quantised(self, taught: np.ndarray | None, n_threads: int) -> catboost.Pool:
        """A pool of all posts, one byte per value."""
        with self._one_at_a_time:
            pool = catboost.Pool(self.features(None, taught), np.nan_to_num(self.data.target), thread_count=n_threads)
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


LEARNERS = {"lightgbm": LightGBM, "catboost": CatBoost}
