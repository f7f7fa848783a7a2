"""Any regressor of scikit-learn as a learner, by its dotted name."""

from __future__ import annotations

import functools
import importlib
import inspect
from difflib import get_close_matches
from pathlib import Path

import joblib
import numpy as np
from sklearn.base import is_regressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import all_estimators
from sklearn.utils.validation import has_fit_parameter

from kit.base.errors import InputError
from kit.boosting.data import Data

PREFIX = "sklearn."


class Scikit:
    """A regressor on standardised columns, missing values as the median, codes as numbers; a subclass names it.

    Args:
        prepared: from ``prepare``.
        taught, weight, n_threads: as for ``LightGBM``.
    """

    suffix = ".joblib"
    fixed = frozenset({"random_state", "n_jobs"})
    needs_taught, has_rounds = False, False
    regressor: type

    def __init__(self, prepared: tuple[Data, dict], taught: np.ndarray | None, weight: np.ndarray, n_threads: int):
        (self._data, params), self._taught, self._weight = prepared, taught, weight
        self._params = {"n_jobs": n_threads} | params

    @staticmethod
    def settings(params: dict, n_columns: int) -> dict:
        """The caller's parameters; all else is left to scikit-learn."""
        return params

    @classmethod
    def names(cls) -> set[str]:
        """The regressor's parameters."""
        return set(inspect.signature(cls.regressor).parameters)

    @staticmethod
    def prepare(data: Data, params: dict, n_threads: int, seed: int, device: str) -> tuple[Data, dict]:
        """The data, and the parameters of every fit."""
        return data, params | {"random_state": seed}

    def fit(self, rows: np.ndarray, rounds: int, stop_rows: np.ndarray | None = None, patience: int = 0) -> int:
        """Fits on rows (repeats count); returns 1.

        Raises:
            InputError: weights that differ, for a regressor that takes none.
        """
        weight, weighs = self._weight[rows], has_fit_parameter(self.regressor, "sample_weight")
        if not weighs and np.ptp(weight):
            raise InputError(
                f"{self.regressor.__name__} takes no weights; choose another model, or weights that are alike"
            )
        regressor = self.regressor(**{name: value for name, value in self._params.items() if name in self.names()})
        self._model = make_pipeline(
            SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), regressor
        )
        weights = {f"{self._model.steps[-1][0]}__sample_weight": weight} if weighs else {}
        self._model.fit(self._matrix(rows), self._data.target[rows], **weights)
        return 1

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) float64."""
        return self._model.predict(self._matrix(rows)).astype(np.float64).ravel()

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), d + t + 1) float64, as for ``LightGBM``, of a linear regressor; of others all stands in the last one."""
        values, out = (
            self._model[:-1].transform(self._matrix(rows)),
            np.zeros((len(rows), self._model[0].n_features_in_ + 1)),
        )
        linear = np.size(getattr(self._model[-1], "coef_", ())) == values.shape[1]
        if linear:
            out[:, :-1] = values * np.ravel(self._model[-1].coef_)
        out[:, -1] = self.predict(rows) - out[:, :-1].sum(axis=1)
        return out

    def gain(self) -> np.ndarray:
        """(d + t,) importance, or size of the coefficient, of each column; zeros where the regressor knows neither."""
        fitted = self._model[-1]
        gain = getattr(fitted, "feature_importances_", None)
        gain = np.abs(getattr(fitted, "coef_", np.zeros(self._model[0].n_features_in_))) if gain is None else gain
        return np.asarray(gain, dtype=np.float64).ravel()

    def save(self, path: Path) -> None:
        """Write the fitted pipeline."""
        joblib.dump(self._model, path)

    def load(self, path: Path) -> Scikit:
        """Take over a written pipeline."""
        self._model = joblib.load(path)
        return self

    def _matrix(self, rows: np.ndarray) -> np.ndarray:
        values = self._data.take(rows)
        return values if self._taught is None else np.hstack([values, self._taught[rows]])


@functools.cache
def scikit_learner(name: str) -> type[Scikit]:
    """The learner of a regressor, e.g. "sklearn.ensemble.ExtraTreesRegressor".

    Raises:
        InputError: scikit-learn has no regressor of that name; the message says what is most like it.
    """
    module, _, own = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), own)
        right = inspect.isclass(found) and is_regressor(found())
    except (ImportError, AttributeError, TypeError, ValueError):
        right = False
    if not right:
        known = [cls.__name__ for _, cls in all_estimators(type_filter="regressor")]
        near = ", ".join(get_close_matches(own, known, 5, 0.4))
        raise InputError(f"model {name!r} is no regressor of scikit-learn; most like it: {near or ', '.join(known)}")
    return type(own, (Scikit,), {"regressor": found})
