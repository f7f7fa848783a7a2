"""The last step: fuse the models, undo drift with a straight line, and give the result an honest score.

Weights, line and limits are chosen on out-of-fold predictions, so a score on the same predictions would flatter them. The
scores given here are nested: weights, whether there is a line, the line and the limits of a fold come from the other folds,
and of folds that run forward in time from earlier posts only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from kit.base.errors import InputError
from kit.base.metrics import mae, over_folds, src
from kit.evaluation import fusion
from kit.evaluation.level import next_level
from kit.run.directory import Run
from kit.run.folds import TRAIN_ONLY, fold_rows
from kit.run.predictions import read_predictions, split_predictions

METHODS = tuple(fusion.METHODS)
CALIBRATIONS = ("auto", "affine", "none")
SLOPES = (0.5, 2.0)  # a line outside would mean a broken model, not drift


@dataclass(frozen=True)
class Calibrated:
    """A mix, the line applied to it (1 and 0 where none pays), and the range of the labels, to which it is clipped."""

    mix: fusion.Mix
    slope: float
    intercept: float
    low: float
    high: float

    def __call__(self, matrix: np.ndarray) -> np.ndarray:
        """(n,) float64 for (n, n_models) predictions."""
        return np.clip(self.slope * self.mix(matrix) + self.intercept, self.low, self.high)


@dataclass(frozen=True)
class Blend:
    """How to combine the models, and what that is worth.

    Attributes:
        method: one of METHODS.
        weights: model -> weight >= 0; they sum to 1 except for "stack".
        learnt: what all out-of-fold predictions teach: mix, line and limits.
        scores: one row per fold: fold, n, src, mae; nested.
        oof: (n_posts,) float64 nested predictions, NaN where no fold scores a post.
    """

    method: str
    weights: dict[str, float]
    learnt: Calibrated
    scores: pd.DataFrame
    oof: np.ndarray

    def predict(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n,) float64: the blend of each model's predictions for the same n posts, on the scale of the label."""
        if set(predictions) != set(self.weights):
            raise InputError(f"the blend knows {sorted(self.weights)}, but predictions are from {sorted(predictions)}")
        return self.learnt(_stack({name: predictions[name] for name in self.weights}))


def fit_blend(
    oof: Mapping[str, np.ndarray], target: np.ndarray, folds: np.ndarray, *, method: str = "convex", calibrate: str = "auto"
) -> Blend:  # fmt: skip
    """The models fused in one way, with a line on top where nested folds say that it helps.

    Args:
        oof: model -> (n_posts,) predictions; a post counts where all models and the target are finite.
        target: (n_posts,) label, NaN for test posts.
        folds: (n_posts,) from `folds.make_folds`, the ones `oof` was made with.
        method: one of METHODS.
        calibrate: "affine": the line slope * blend + intercept of least absolute error; "none"; "auto": the line if it
            lowers the MAE of folds it was not fitted on. Folds in time show the drift that a line can undo; folds of
            authors show none. Unless it is "none", folds in time also foretell the level of the next period.

    Raises:
        InputError: no model, lengths that differ, unknown method or calibration, or nothing to score.

    Source: the blends of HyFea, USTC and Alonso, without weights that sum to 1.02; the paper's "Fusion" is not specified.
    """
    if calibrate not in CALIBRATIONS:
        raise InputError(f"calibration {calibrate!r} is unknown; choose one of {', '.join(CALIBRATIONS)}")
    if method not in METHODS:
        raise InputError(f"fusion {method!r} is unknown; choose one of {', '.join(METHODS)}")
    matrix, target, folds = _stack(oof), np.asarray(target, dtype=np.float64), np.asarray(folds)
    if not len(matrix) == len(target) == len(folds):
        raise InputError(f"rows differ: oof {len(matrix)}, target {len(target)}, folds {len(folds)}")
    scored = np.isfinite(matrix).all(axis=1) & np.isfinite(target) & (folds >= 0)
    if not scored.any():
        raise InputError("no post has a label and an out-of-fold prediction of every model; nothing to blend")
    learn = partial(_learn, matrix, target, folds, fit=fusion.METHODS[method], calibrate=calibrate)
    nested = np.full(len(target), np.nan)
    for k in np.unique(folds[scored]):
        teach_idx, valid_idx = fold_rows(folds, k)
        rows = valid_idx[scored[valid_idx]]
        nested[rows] = learn(teach_idx, scored)(matrix[rows])
    learnt = learn(np.flatnonzero(np.isfinite(target)), scored)
    named = {name: float(weight) for name, weight in zip(oof, learnt.mix.weights, strict=True)}
    return Blend(method, named, learnt, _scores(target, nested, folds, scored), nested)


def for_the_test_part(blend: Blend, run: Run, posts: pd.DataFrame, scheme: str, calibrate: str) -> Blend:
    """The blend as it is submitted: `levelled` by folds forward in time, if those of its scheme know no drift and test posts
    are later: by matched ones, whose posts are as late after what teaches them as test posts are, or else by time.

    Args:
        blend: fitted on the folds of a scheme.
        calibrate: as for `fit_blend`; "none" leaves the level as it is.
    """
    lag = run.read_table("schemes").set_index("scheme")["lag_days"].get("test part", 0)
    forward = next(filter(run.has_file, ("predictions_matched.parquet", "predictions_time.parquet")), None)
    if not (lag > 0 and scheme in ("user", "plain") and calibrate != "none" and forward):
        return blend
    table = read_predictions(run.input(forward), posts)
    oof, _ = split_predictions(table)
    return levelled(
        blend, {name: oof[name] for name in blend.weights}, posts["label"].to_numpy(), table["fold"].to_numpy()
    )


def levelled(blend: Blend, oof: Mapping[str, np.ndarray], target: np.ndarray, folds: np.ndarray) -> Blend:
    """The blend, moved by the level of the next period as folds that run forward foretell it.

    Its scores stay those of its own folds.

    Args:
        oof, target, folds: as for `fit_blend`, of the same models on folds that run forward.
    """
    residual = np.asarray(target, dtype=np.float64) - blend.predict(oof)
    known = np.isfinite(_stack(oof)).all(axis=1) & np.isfinite(residual) & (np.asarray(folds) >= 0)
    level = next_level(residual[known], folds[known])
    return replace(blend, learnt=replace(blend.learnt, intercept=blend.learnt.intercept + level))


def compare_methods(
    oof: Mapping[str, np.ndarray], target: np.ndarray, folds: np.ndarray, *, calibrate: str = "auto"
) -> dict[str, Blend]:
    """Every method fitted (arguments as in `fit_blend`), the best one first.

    Order is that of the challenge: the sum of the ranks in nested SRC and in nested MAE, the lower MAE where sums tie.
    """
    blends = {method: fit_blend(oof, target, folds, method=method, calibrate=calibrate) for method in METHODS}
    table = pd.DataFrame({name: blend.scores[["src", "mae"]].mean() for name, blend in blends.items()}).T
    ranks = table["mae"].rank() + table["src"].rank(ascending=False)
    order = sorted(METHODS, key=lambda name: (ranks[name], table["mae"][name]))
    return {name: blends[name] for name in order}


def method_table(
    blends: Mapping[str, Blend], oof: Mapping[str, np.ndarray], target: np.ndarray, folds: np.ndarray
) -> pd.DataFrame:
    """The best single model and every way of fusion: name, src, src_sd, mae, mae_sd, n, models used; best first as given.

    Args:
        blends: from `compare_methods`.
        oof, target, folds: what they were fitted on; single models are scored on the posts that the blends score.
    """
    scored = np.isfinite(next(iter(blends.values())).oof)
    single = {name: _scores(np.asarray(target, float), values, folds, scored) for name, values in oof.items()}
    best = min(single, key=lambda name: single[name]["mae"].mean())
    tables = {name: blend.scores for name, blend in blends.items()} | {f"best single model: {best}": single[best]}
    used = {name: sum(weight > 0 for weight in blend.weights.values()) for name, blend in blends.items()}
    rows = [
        {"fusion": name, **over_folds(table), "n": int(table["n"].sum()), "models": used.get(name, 1)}
        for name, table in tables.items()
    ]
    return pd.DataFrame(rows)


def _learn(
    matrix, target, folds, teach_idx: np.ndarray, scored: np.ndarray, *, fit: Callable, calibrate: str
) -> Calibrated:
    """What the posts `teach_idx` teach: mix, line, level and limits; nothing else is read."""
    low, high = np.nanmin(target[teach_idx]), np.nanmax(target[teach_idx])
    rows = teach_idx[scored[teach_idx]]  # those with predictions of all models
    if not len(rows):
        return Calibrated(fusion.equal(matrix), 1.0, 0.0, low, high)
    mix, forward = fit(matrix[rows], target[rows]), (folds == TRAIN_ONLY).any()
    mixed, label, fold = mix(matrix[rows]), target[rows], folds[rows]
    lined = calibrate == "affine" or (calibrate == "auto" and _line_pays(mixed, label, fold, forward, (low, high)))
    slope, intercept = _line(mixed, label) if lined else (1.0, 0.0)
    if forward and calibrate != "none":
        intercept += next_level(label - slope * mixed - intercept, fold)
    return Calibrated(mix, slope, intercept, low, high)


def _line_pays(mixed: np.ndarray, label: np.ndarray, fold: np.ndarray, forward: bool, limits: tuple) -> bool:
    """Whether a line lowers the MAE of folds it was not fitted on: each by the line of the others (in time: of the earlier).

    Where all posts are of one fold, the line is taken: two numbers fit no noise.
    """
    numbers, lined = np.unique(fold), mixed.copy()
    for k in numbers:
        others = (fold < k) if forward else (fold != k)
        if others.any():
            slope, intercept = _line(mixed[others], label[others])
            lined[fold == k] = slope * mixed[fold == k] + intercept
    return len(numbers) == 1 or mae(label, np.clip(lined, *limits)) < mae(label, np.clip(mixed, *limits))


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
    return pd.DataFrame([
        {"fold": k, "n": int(at.sum()), "src": src(target[at], nested[at]), "mae": mae(target[at], nested[at])}
        for k, at in rows.items()
    ])  # fmt: skip
