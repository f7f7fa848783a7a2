"""LightGBM: every fit bins the rows that teach it, and no others.

Two faults of LightGBM 4.7.0 decide how its datasets are made here. ``Dataset.subset`` keeps the bins of all posts, from
which the size of an index is estimated; rows that hold more non-zero values than the estimate allows overflow it, and the
process dies. Exclusive feature bundling takes the wrong rows as used for columns that have one value other than zero in 70 %
of the rows or more, bundles columns that conflict, and loses values. So each fit has a dataset of its own rows, without bundles.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import lightgbm
import numpy as np

from kit.boosting.data import WIDE, Data
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
    "min_data_in_leaf": 20,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 10.0,
    "extra_trees": True,
}


class _Logger:
    """What LightGBM has to say. It builds a process's first dataset before it knows how silent it should be."""

    def info(self, message: str) -> None:
        """Nothing: these are messages of the library itself, whose errors are raised."""

    def warning(self, message: str) -> None:
        warnings.warn(message, stacklevel=3)


class _Rows(lightgbm.Sequence):
    """Some posts as LightGBM reads them: single ones, ascending, to find bins; then all by pieces, to fill them."""

    def __init__(self, data: Data, taught: np.ndarray | None, rows: np.ndarray):
        self._data, self._taught, self._rows = data, taught, rows
        self.batch_size = piece_rows(data.values.shape[1])
        self._piece: tuple[int, np.ndarray] = -1, np.empty(0)

    def __getitem__(self, places: slice | int) -> np.ndarray:
        if isinstance(places, slice):
            rows = self._rows[places]
            values = self._data.take(rows)
            return values if self._taught is None else np.hstack([values, self._taught[rows]])
        number, place = divmod(int(places), self.batch_size)
        if number != self._piece[0]:
            start = number * self.batch_size
            self._piece = number, self[start : start + self.batch_size]
        return self._piece[1][place].astype(np.float64)

    def __len__(self) -> int:
        return len(self._rows)


class LightGBM:
    """LightGBM on the data's columns and, as the last ones, the taught ones.

    Args:
        prepared: from ``prepare``.
        taught: (n_posts, t) float32 columns of this training side, or None.
        weight: (n_posts,) >= 0.
        n_threads: of every fit.
    """

    suffix = ".txt"
    needs_taught, has_rounds = False, True
    fixed = frozenset({
        "seed", "deterministic", "force_col_wise", "force_row_wise", "enable_bundle", "verbosity", "device_type", "num_threads",
        "num_iterations", "early_stopping_round", "categorical_feature",
    })  # parameters that are not for the caller to set  # fmt: skip

    def __init__(self, prepared: tuple[Data, dict], taught: np.ndarray | None, weight: np.ndarray, n_threads: int):
        (self._data, params), self._taught, self._weight = prepared, taught, weight
        self._params = params | {"num_threads": n_threads}

    @staticmethod
    def settings(params: dict, n_columns: int) -> dict:
        """The defaults, coarser bins for wide data, and on top the caller's parameters."""
        return LIGHTGBM | {"max_bin": 63 if n_columns > WIDE else 255} | params

    @staticmethod
    def names() -> set[str]:
        """LightGBM's parameters, each by its first name, as it writes them into a model."""
        quiet = {"verbosity": -1}
        model = lightgbm.train(quiet, lightgbm.Dataset(np.zeros((2, 1)), np.zeros(2), params=quiet), 1)
        return set(re.findall(r"^\[(\w+):", model.model_to_string(), re.MULTILINE))

    @staticmethod
    def prepare(data: Data, params: dict, n_threads: int, seed: int, device: str) -> tuple[Data, dict]:
        """The data, and the parameters of every fit."""
        n_rows = np.clip(BIN_MB * (1 << 20) // (BIN_B * max(1, data.values.shape[1])), *BIN_ROWS)
        fixed = {"seed": seed, "deterministic": True, "force_col_wise": True, "enable_bundle": False, "verbosity": -1,
                 "device_type": device}  # fmt: skip
        return data, {"bin_construct_sample_cnt": int(n_rows)} | params | fixed

    def fit(
        self, rows: np.ndarray, rounds: int, stop_rows: np.ndarray | None = None, patience: int = 0, times: float = 1
    ) -> int:  # fmt: skip
        """Fits on rows (ascending, repeats count); returns the number of trees, the best for stop_rows where given.

        Its learning rate counts so many ``times``.
        """
        lightgbm.register_logger(_Logger())
        watch, taught_by = {}, self._dataset(rows, self._weight[rows])
        if stop_rows is not None:
            stop = lightgbm.early_stopping(patience, first_metric_only=True, verbose=False)
            watched = self._dataset(stop_rows, None, taught_by).construct()
            watched.set_field("weight", None)  # made after one with weights, it has got weights of zero
            watch = {"valid_sets": [watched], "callbacks": [stop]}
        params = self._params | {"learning_rate": times * self._params["learning_rate"]}
        self._booster = lightgbm.train(params, taught_by, rounds, **watch)
        return self._booster.best_iteration if stop_rows is not None else rounds

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) float64."""
        values, out = _Rows(self._data, self._taught, rows), np.empty(len(rows))
        for piece in pieces(len(rows), len(self._data.coded)):
            out[piece] = self._booster.predict(values[piece], num_threads=self._params["num_threads"])
        return out

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), d + t + 1) float64: what each column adds to a prediction (TreeSHAP); last, what is there without."""
        values = _Rows(self._data, self._taught, rows)[:]
        return self._booster.predict(values, pred_contrib=True, num_threads=self._params["num_threads"])

    def gain(self) -> np.ndarray:
        """(d + t,) total gain of each column."""
        return self._booster.feature_importance("gain").astype(np.float64)

    def save(self, path: Path) -> None:
        """Write the model in LightGBM's text format."""
        self._booster.save_model(str(path))

    def load(self, path: Path) -> LightGBM:
        """Take over a written model."""
        self._booster = lightgbm.Booster(model_file=str(path))
        return self

    def _dataset(
        self, rows: np.ndarray, weight: np.ndarray | None, reference: lightgbm.Dataset | None = None
    ) -> lightgbm.Dataset:
        values = _Rows(self._data, self._taught, rows)
        if len(rows) <= values.batch_size:  # one piece: read row by row it takes much longer to bin
            values = values[:]
        return lightgbm.Dataset(
            values, self._data.target[rows], weight=weight, reference=reference,
            params=self._params, categorical_feature=np.flatnonzero(self._data.coded).tolist(),
        )  # fmt: skip
