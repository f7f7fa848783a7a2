"""Five ways to make one prediction of many: each learns from predictions and labels, and then mixes new predictions.

A way is a function (matrix, target) -> mix, and a mix is called with a matrix; matrices are (n, n_models) float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import nnls
from sklearn.linear_model import Ridge

STEPS = (0.2, 0.05, 0.01)  # weight moved between two models, coarse to fine
ROUNDING = 1e-9  # what is left of a weight that was moved away in steps
DRAWS = 60  # models drawn, with replacement, by ensemble selection
SPREAD = 0.5  # of weights around equal ones, in equal weights, as far as is known before a post is seen
RIDGE = 0.01  # penalty of stacking per post, against models that say nearly the same


class Mix(Protocol):
    """What a way of fusion has learnt.

    Attributes:
        weights: (n_models,) >= 0.
    """

    weights: np.ndarray

    def __call__(self, matrix: np.ndarray) -> np.ndarray:
        """(n,) float64, one prediction per row of `matrix`."""


@dataclass(frozen=True)
class Linear:
    """A weighted sum of the models, and a constant."""

    weights: np.ndarray
    intercept: float = 0.0

    def __call__(self, matrix: np.ndarray) -> np.ndarray:
        return matrix @ self.weights + self.intercept


@dataclass(frozen=True)
class Ranked:
    """A weighted mean of the models' ranks, given the label of that rank.

    Attributes:
        seen: (n, n_models) predictions the ranks refer to, each column ascending.
        means: (n,) mean ranks of these predictions, ascending.
        labels: (m,) different labels, ascending.
        places: (m,) middle rank of the posts that have each, from 0 to 1; in between is interpolated, so that posts of
            different ranks stay apart where many share a label, as with counts.
    """

    weights: np.ndarray
    seen: np.ndarray
    means: np.ndarray
    labels: np.ndarray
    places: np.ndarray

    def __call__(self, matrix: np.ndarray) -> np.ndarray:
        place = _rank(self.means, mean_ranks(matrix, self.seen, self.weights))
        return np.interp(place, self.places, self.labels)


def equal(matrix: np.ndarray) -> Linear:
    """The mean of the models, for where there is nothing to learn weights from."""
    return Linear(np.full(matrix.shape[1], 1 / matrix.shape[1]))


def convex(matrix: np.ndarray, target: np.ndarray) -> Linear:
    """Weights >= 0 that sum to 1 and have near the least MAE (at worst 0.5 % above, in small problems).

    From equal weights, move weight between two models while MAE falls (it is convex in the weights); pairs are tried in
    the order of their gradients.
    """
    n_models = matrix.shape[1]
    weights = np.full(n_models, 1 / n_models)
    mixed = matrix @ weights
    best = np.abs(target - mixed).mean()
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for giver, taker in _pairs(np.sign(mixed - target) @ matrix):
                moved = min(step, weights[giver])
                if moved <= 0:
                    continue
                trial = mixed + moved * (matrix[:, taker] - matrix[:, giver])
                error = np.abs(target - trial).mean()
                if error < best - 1e-9:
                    weights[giver], weights[taker] = weights[giver] - moved, weights[taker] + moved
                    mixed, best, improved = trial, error, True
                    break
    return Linear(np.where(weights > ROUNDING, weights, 0.0))


def selection(matrix: np.ndarray, target: np.ndarray) -> Linear:
    """Ensemble selection: add, again and again, the model that lowers the MAE of the mean most; keep the best moment.

    Source: Caruana et al. 2004, "Ensemble selection from libraries of models".
    """
    total, counts = np.zeros(len(target)), np.zeros(matrix.shape[1])
    best, kept = np.inf, counts
    for n_drawn in range(1, DRAWS + 1):
        errors = [np.abs(target - (total + column) / n_drawn).mean() for column in matrix.T]
        chosen = int(np.argmin(errors))
        total, counts = total + matrix[:, chosen], counts + (np.arange(len(counts)) == chosen)
        if errors[chosen] < best:
            best, kept = errors[chosen], counts
    return Linear(kept / kept.sum())


def shrunk(matrix: np.ndarray, target: np.ndarray) -> Linear:
    """Weights >= 0 that sum to 1, of least squared error, drawn to equal ones: the more, the less the posts can tell.

    The posterior mode of weights that lie around equal ones as SPREAD says, where errors are as large as those of the mean.
    """
    error, n_models = matrix - target[:, None], matrix.shape[1]
    doubt = np.sqrt(np.square(error.mean(axis=1)).mean()) * n_models / SPREAD
    total = 1e3 * (np.linalg.norm(error) + doubt + 1)  # so heavy that the weights sum to 1
    rows = np.vstack([error, doubt * np.eye(n_models), np.full((1, n_models), total)])
    weights, _ = nnls(rows, np.r_[np.zeros(len(error)), np.full(n_models, doubt / n_models), total])
    return Linear(weights / weights.sum())


def rank_average(matrix: np.ndarray, target: np.ndarray) -> Ranked:
    """The mean of the models' ranks, weighted as in `convex`, mapped back to the quantiles of the labels."""
    weights = convex(matrix, target).weights
    seen = np.sort(matrix, axis=0)
    labels, n_posts = np.unique(target, return_counts=True)
    places = (np.cumsum(n_posts) - n_posts / 2) / len(target)
    return Ranked(weights, seen, np.sort(mean_ranks(matrix, seen, weights)), labels, places)


def stack(matrix: np.ndarray, target: np.ndarray) -> Linear:
    """Stacking: a ridge regression on the predictions, no weight below zero."""
    model = Ridge(alpha=RIDGE * len(target), positive=True).fit(matrix, target)
    return Linear(model.coef_, float(model.intercept_))


def mean_ranks(matrix: np.ndarray, seen: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n,) weighted mean, over models, of each prediction's rank among those seen, from 0 to 1."""
    return np.column_stack([_rank(s, m) for s, m in zip(seen.T, matrix.T, strict=True)]) @ weights


def _rank(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Ranks of values among those in `ascending`, 0 to 1; equal ones share the middle."""
    return (np.searchsorted(ascending, values) + np.searchsorted(ascending, values, "right")) / (2 * len(ascending))


def _pairs(gradient: np.ndarray) -> list[tuple[int, int]]:
    """(giver, taker) of all ordered pairs of models, those that promise most first."""
    n = len(gradient)
    gain = gradient[:, None] - gradient[None, :]
    order = np.argsort(-gain, axis=None, kind="stable")
    return [(int(i), int(j)) for i, j in zip(*np.divmod(order, n), strict=True) if i != j]


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Mix]] = {
    "convex": convex, "selection": selection, "shrunk": shrunk, "rank_average": rank_average, "stack": stack,
}  # fmt: skip
