"""LightGBM: all posts binned once, then fit on some rows of the bins, predict others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np

from kit.boosting.data import ROWS_PER_THREAD, WIDE, Data, Interrupted
from kit.run.matrix import piece_rows, pieces

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
