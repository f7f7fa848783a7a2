"""The last step: convex weights for the models, a straight line to undo drift, and an honest score for the result.

Models and lines are chosen on out-of-fold predictions, so a score on the same predictions would flatter them. The scores
given here are nested: every fold is predicted with weights and line fitted without it, and folds that run forward in time
with earlier folds only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from kit.errors import InputError
from kit.folds import TRAIN_ONLY
from kit.metrics import mae, src

CALIBRATIONS = ("auto", "affine", "none")
STEPS = (0.2, 0.05, 0.01)  # weight moved between two models, coarse to fine
SLOPES = (0.5, 2.0)  # a line outside would mean a broken model, not drift


@dataclass(frozen=True)
class Blend:
    """How to combine the models, and what that is worth.

    Attributes:
        weights: model -> weight >= 0; they sum to 1.
        slope, intercept: the line applied to the weighted mean; 1 and 0 where calibration does not pay.
        low, high: range of the labels; predictions are clipped to it.
        scores: one row per fold: fold, n, src, mae; nested.
        oof: (n_posts,) float64 nested predictions, NaN where no fold scores a post.
    """

    weights: dict[str, float]
    slope: float
    intercept: float
    low: float
    high: float
    scores: pd.DataFrame
    oof: np.ndarray

    def predict(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n,) float64: the blend of each model's predictions for the same n posts, on the scale of the label."""
        if set(predictions) != set(self.weights):
            raise InputError(f"the blend knows {sorted(self.weights)}, but predictions are from {sorted(predictions)}")
        matrix = _stack({name: predictions[name] for name in self.weights})
        mixed = matrix @ np.array(list(self.weights.values()))
        return np.clip(self.slope * mixed + self.intercept, self.low, self.high)


def fit_blend(
    oof: Mapping[str, np.ndarray], target: np.ndarray, folds: np.ndarray, *, calibrate: str = "auto"
) -> Blend:
    """The convex blend with the least MAE out of fold, with a line on top where nested folds say that it helps.

    Args:
        oof: model -> (n_posts,) predictions; a post counts where all models and the target are finite.
        target: (n_posts,) label, NaN for test posts.
        folds: (n_posts,) from `folds.make_folds`, the ones `oof` was made with.
        calibrate: "affine": the line slope * blend + intercept of least absolute error; "none"; "auto": the line if it
            lowers the nested MAE. Folds in time show the drift that a line can undo; folds of authors show none.

    Raises:
        InputError: no model, lengths that differ, unknown calibration or nothing to score.

    Source: the blends of HyFea, USTC and Alonso, without weights that sum to 1.02.
    """
    if calibrate not in CALIBRATIONS:
        raise InputError(f"calibration {calibrate!r} is unknown; choose one of {', '.join(CALIBRATIONS)}")
    matrix, target, folds = _stack(oof), np.asarray(target, dtype=np.float64), np.asarray(folds)
    if not len(matrix) == len(target) == len(folds):
        raise InputError(f"rows differ: oof {len(matrix)}, target {len(target)}, folds {len(folds)}")
    scored = np.isfinite(matrix).all(axis=1) & np.isfinite(target) & (folds >= 0)
    if not scored.any():
        raise InputError("no post has a label and an out-of-fold prediction of every model; nothing to blend")
    limits = float(np.nanmin(target)), float(np.nanmax(target))
    lines = {"auto": (False, True), "affine": (True,), "none": (False,)}[calibrate]
    tried = {line: _nested(matrix, target, folds, scored, line, limits) for line in lines}
    line = min(tried, key=lambda line: mae(target[scored], tried[line][scored]))
    weights, slope, intercept = _fit(matrix[scored], target[scored], line)
    named = {name: float(weight) for name, weight in zip(oof, weights, strict=True)}
    return Blend(named, slope, intercept, *limits, _scores(target, tried[line], folds, scored), tried[line])


def _nested(matrix, target, folds, scored, line: bool, limits: tuple[float, float]) -> np.ndarray:
    """(n_posts,) each fold blended by what the other folds (in time: the earlier ones) teach; NaN where not scored."""
    out = np.full(len(target), np.nan)
    forward = (folds == TRAIN_ONLY).any()
    for k in np.unique(folds[scored]):
        teach = scored & ((folds < k) if forward else (folds != k))
        rows = scored & (folds == k)
        n_models = matrix.shape[1]
        equal = np.full(n_models, 1 / n_models), 1.0, 0.0  # the first fold in time has none to learn from
        weights, slope, intercept = _fit(matrix[teach], target[teach], line) if teach.any() else equal
        out[rows] = np.clip(slope * (matrix[rows] @ weights) + intercept, *limits)
    return out


def _fit(matrix: np.ndarray, target: np.ndarray, line: bool) -> tuple[np.ndarray, float, float]:
    """Weights, slope and intercept of least absolute error."""
    weights = _weights(matrix, target)
    return (weights, *_line(matrix @ weights, target)) if line else (weights, 1.0, 0.0)


def _weights(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Convex weights: from equal ones, move weight between two models while MAE falls (it is convex in the weights)."""
    n_models = matrix.shape[1]
    weights = np.full(n_models, 1 / n_models)
    mixed = matrix @ weights
    best = np.abs(target - mixed).mean()
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for giver, taker in ((i, j) for i in range(n_models) for j in range(n_models) if i != j):
                moved = min(step, weights[giver])
                trial = mixed + moved * (matrix[:, taker] - matrix[:, giver])
                error = np.abs(target - trial).mean()
                if error < best - 1e-9:
                    weights[giver], weights[taker] = weights[giver] - moved, weights[taker] + moved
                    mixed, best, improved = trial, error, True
    return weights


def _line(mixed: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of least absolute error; for a given slope the best intercept is a median."""
    found = minimize_scalar(
        lambda slope: np.abs(target - slope * mixed - np.median(target - slope * mixed)).mean(),
        bounds=SLOPES,
        method="bounded",
    )
    return float(found.x), float(np.median(target - found.x * mixed))


def _stack(predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, n_models) float64, one column per model."""
    if not predictions:
        raise InputError("no model to blend; give predictions of at least one")
    if len({len(values) for values in predictions.values()}) > 1:
        raise InputError(f"models differ in rows: { {name: len(values) for name, values in predictions.items()} }")
    return np.column_stack([np.asarray(values, dtype=np.float64) for values in predictions.values()])


def _scores(target: np.ndarray, nested: np.ndarray, folds: np.ndarray, scored: np.ndarray) -> pd.DataFrame:
    rows = {int(k): scored & (folds == k) for k in np.unique(folds[scored])}
    return pd.DataFrame(
        [
            {"fold": k, "n": int(at.sum()), "src": src(target[at], nested[at]), "mae": mae(target[at], nested[at])}
            for k, at in rows.items()
        ]
    )
