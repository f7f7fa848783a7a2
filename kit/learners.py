"""LightGBM and CatBoost behind one interface: features of all posts once, then fit on some rows, predict others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import catboost
import lightgbm
import numpy as np

ROWS_PER_THREAD = 10_000  # fewer, and LightGBM's threads mostly wait: 8 times slower beside any other busy process
WIDE = 256  # columns from which coarser bins pay: 2.6 times faster, no loss
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


@dataclass(frozen=True)
class Data:
    """What a learner sees: values (n_posts, d) float32, which columns are codes (NaN: missing), target and weight."""

    values: np.ndarray
    coded: np.ndarray
    target: np.ndarray
    weight: np.ndarray


class LightGBM:
    """One binned dataset of all posts (bins see features, never labels), of which every fit takes its rows."""

    suffix = ".txt"

    def __init__(self, data: Data, params: dict, n_threads: int, seed: int, device: str):
        self._values = np.ascontiguousarray(data.values, dtype=np.float32)
        n_threads = max(1, min(n_threads, len(self._values) // ROWS_PER_THREAD))
        self._threads = n_threads
        self._params = params | {
            "num_threads": n_threads,
            "seed": seed,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
            "device_type": device,
            "feature_pre_filter": False,
        }
        self._data = lightgbm.Dataset(
            self._values,
            np.nan_to_num(data.target),
            weight=data.weight,
            params=self._params,
            free_raw_data=False,
            categorical_feature=np.flatnonzero(data.coded).tolist(),
        )

    @staticmethod
    def settings(params: dict, n_columns: int) -> dict:
        """The defaults, coarser bins for wide data, and on top the caller's parameters."""
        return LIGHTGBM | {"max_bin": 63 if n_columns > WIDE else 255} | params

    def fit(self, rows: np.ndarray, rounds: int, stop_rows: np.ndarray | None = None, patience: int = 0) -> int:
        """Fits on rows (ascending, repeats count); returns the number of trees, the best for stop_rows where given."""
        watch = {}
        if stop_rows is not None:
            watch = {
                "valid_sets": [self._data.subset(stop_rows).construct().set_weight(np.ones(len(stop_rows)))],
                "callbacks": [lightgbm.early_stopping(patience, first_metric_only=True, verbose=False)],
            }
        self._booster = lightgbm.train(self._params, self._data.subset(rows), rounds, **watch)
        return self._booster.best_iteration if stop_rows is not None else rounds

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) float64."""
        return self._booster.predict(self._values[rows], num_threads=self._threads) if len(rows) else np.empty(0)

    def gain(self) -> np.ndarray:
        """(d,) total gain of each column."""
        return self._booster.feature_importance("gain").astype(np.float64)

    def save(self, path: Path) -> None:
        """Write the model in LightGBM's text format."""
        self._booster.save_model(str(path))


class CatBoost:
    """CatBoost on float columns and its own handling of categories."""

    suffix = ".cbm"

    def __init__(self, data: Data, params: dict, n_threads: int, seed: int, device: str):
        self._target, self._weight = data.target, data.weight
        if device != "cpu":
            params = {name: value for name, value in params.items() if name != "rsm"}  # unknown to CatBoost on a GPU
        self._params = params | {
            "thread_count": n_threads,
            "random_seed": seed,
            "task_type": device.upper(),
            "verbose": False,
            "allow_writing_files": False,
        }
        self._order = np.r_[np.flatnonzero(~data.coded), np.flatnonzero(data.coded)]  # CatBoost wants floats first
        self._floats = np.ascontiguousarray(data.values[:, ~data.coded], dtype=np.float32)
        self._codes = np.nan_to_num(data.values[:, data.coded], nan=-1).astype(np.int64).astype("S").astype(object)

    @staticmethod
    def settings(params: dict, n_columns: int) -> dict:
        """The defaults, coarser bins for wide data, and on top the caller's parameters."""
        return CATBOOST | {"border_count": 64 if n_columns > WIDE else 128} | params

    def fit(self, rows: np.ndarray, rounds: int, stop_rows: np.ndarray | None = None, patience: int = 0) -> int:
        """Fits on rows (repeats count); returns the number of trees, the best for stop_rows where given."""
        watch = {}
        if stop_rows is not None:
            watch = {
                "eval_set": self._pool(stop_rows, weighted=False),
                "early_stopping_rounds": patience,
                "use_best_model": True,
            }
        self._model = catboost.CatBoostRegressor(**self._params, iterations=rounds)
        self._model.fit(self._pool(rows), **watch)
        return self._model.tree_count_

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) float64."""
        return self._model.predict(self._features(rows)) if len(rows) else np.empty(0)

    def gain(self) -> np.ndarray:
        """(d,) importance of each column."""
        gain = np.zeros(len(self._order))
        gain[self._order] = self._model.get_feature_importance()
        return gain

    def save(self, path: Path) -> None:
        """Write the model in CatBoost's binary format."""
        self._model.save_model(str(path))

    def _features(self, rows: np.ndarray) -> catboost.FeaturesData:
        floats, codes = self._floats[rows], self._codes[rows]
        return catboost.FeaturesData(floats if floats.shape[1] else None, codes if codes.shape[1] else None)

    def _pool(self, rows: np.ndarray, weighted: bool = True) -> catboost.Pool:
        weight = self._weight[rows] if weighted else None
        return catboost.Pool(self._features(rows), self._target[rows], weight=weight)


LEARNERS = {"lightgbm": LightGBM, "catboost": CatBoost}
