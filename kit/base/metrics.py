"""SRC and MAE, the two scores of the challenge; teams are ranked by the sum of their ranks in both."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from kit.base.errors import InputError


def src(target: np.ndarray, prediction: np.ndarray) -> float:
    """Spearman's rank correlation in [-1, 1]: Pearson's correlation of average ranks, so ties share a rank.

    Args:
        target: (n,) true values, finite.
        prediction: (n,) predicted values, finite, same order as `target`.

    Returns:
        The correlation; 0.0 with a warning where one side is constant and the correlation is undefined.

    Raises:
        InputError: lengths differ, nothing to score, or a value is not finite.

    Source: `evaluation.py` of the SMP Challenge (`scipy.stats.spearmanr`).
    """
    target, prediction = _checked(target, prediction)
    target_rank, prediction_rank = _centred_ranks(target), _centred_ranks(prediction)
    scale = np.sqrt((target_rank**2).sum() * (prediction_rank**2).sum())
    if scale == 0:
        side = "prediction" if not prediction_rank.any() else "target"
        warnings.warn(f"SRC is undefined for a constant {side} ({len(target)} values); scored as 0", RuntimeWarning, 2)
        return 0.0
    return float(np.clip(target_rank @ prediction_rank / scale, -1, 1))


def mae(target: np.ndarray, prediction: np.ndarray) -> float:
    """Mean absolute error, in the units of the label.

    Args and Raises: as in `src`.

    Source: `evaluation.py` of the SMP Challenge (`np.mean(np.abs(y_truth - y_pred))`).
    """
    target, prediction = _checked(target, prediction)
    return float(np.abs(target - prediction).mean())


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof=1: of 3 folds, ddof=0 would be 18 % small; NaN for a single value)."""
    values = pd.Series(values, dtype=np.float64)
    return float(values.mean()), float(values.std(ddof=1))


def over_folds(scores: pd.DataFrame) -> dict[str, float]:
    """src, src_sd, mae, mae_sd: `spread` over the folds of a table with columns src and mae."""
    out = {}
    for metric in ("src", "mae"):
        out[metric], out[f"{metric}_sd"] = spread(scores[metric])
    return out


def error_buckets(target: np.ndarray, prediction: np.ndarray, n_buckets: int) -> pd.DataFrame:
    """low, high, n, mae, bias: errors for n_buckets equal steps of the label; NaN where a step holds no post."""
    edges = np.linspace(target.min(), target.max(), n_buckets + 1)
    bucket = np.clip(np.searchsorted(edges, target, "right") - 1, 0, n_buckets - 1)
    error = pd.DataFrame({"bucket": bucket, "mae": np.abs(prediction - target), "bias": prediction - target})
    table = error.groupby("bucket").agg(n=("mae", "size"), mae=("mae", "mean"), bias=("bias", "mean"))
    table = table.reindex(range(n_buckets)).fillna({"n": 0}).astype({"n": int}).reset_index(drop=True)
    table.insert(0, "high", edges[1:])
    table.insert(0, "low", edges[:-1])
    return table


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    return rankdata(values) - (len(values) + 1) / 2


def _checked(target: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as float64 vectors of one length, all finite."""
    pair = {"target": np.asarray(target, dtype=np.float64), "prediction": np.asarray(prediction, dtype=np.float64)}
    for name, values in pair.items():
        if values.ndim != 1:
            raise InputError(f"{name} has shape {values.shape}; scores need one value per post, a vector")
    if len(pair["target"]) != len(pair["prediction"]):
        raise InputError(
            f"{len(pair['target'])} targets but {len(pair['prediction'])} predictions; scores need one of each per post"
        )
    if not len(pair["target"]):
        raise InputError("nothing to score: target and prediction are empty")
    for name, values in pair.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise InputError(
                f"{name} has {len(bad)} values that are not finite, the first at position {bad[0]} ({values[bad[0]]}); "
                "score only rows with a label and a prediction"
            )
    return pair["target"], pair["prediction"]
