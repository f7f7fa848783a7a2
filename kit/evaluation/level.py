"""The level of the next period: by how much a model will be off, foretold from how it was off in folds that ran forward."""

from __future__ import annotations

import numpy as np


def next_level(residual: np.ndarray, fold: np.ndarray) -> float:
    """Expected median residual (label less prediction) of the period after the last fold; 0 without residuals.

    A local-level model over the folds' medians: they lie around a level that wanders from fold to fold. How far it
    wanders, and how far medians stray from it, is told from their steps: steps that go on in one direction are a level on
    the move, whose last value counts most; steps that go back and forth are noise, and the answer lies near the mean of
    all. It is drawn to 0 the more, the less the medians agree on a sign.

    Args:
        residual: (n,) of scored posts.
        fold: (n,) number of the fold of each, in the order of time.

    Source: local-level model and Kalman filter as in Durbin and Koopman, "Time Series Analysis by State Space Methods".
    """
    parts = [residual[fold == k] for k in np.unique(fold)]
    if not parts:
        return 0.0
    medians = np.array([np.median(part) for part in parts])
    noise, wander = _variances(medians, np.mean([_median_variance(part) for part in parts]))
    level, variance = 0.0, np.square(medians).mean()  # before the first fold: as far from 0 as medians are
    for median in medians:
        gain = variance / (variance + noise) if variance + noise > 0 else 1.0
        level, variance = level + gain * (median - level), variance * (1 - gain) + wander
    return float(level)


def _variances(medians: np.ndarray, sampling: float) -> tuple[float, float]:
    """Variance of a median around its level, at least that of the sample, and of the level's steps, by moments."""
    steps = np.diff(medians)
    if not len(steps):
        return sampling, 0.0
    turning = -np.mean(steps[1:] * steps[:-1]) if len(steps) > 1 else 0.0  # steps of noise turn back: -noise
    noise = max(sampling, turning)
    return noise, max(0.0, np.square(steps).mean() - 2 * noise)


def _median_variance(values: np.ndarray) -> float:
    """Of the median of a sample: pi/2 times that of its mean, for errors that are about normal."""
    low, high = np.quantile(values, [0.25, 0.75])
    return np.pi / 2 * ((high - low) / 1.349) ** 2 / len(values)
