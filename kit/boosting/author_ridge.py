"""The ridge, and what it leaves unexplained of an author: a linear mixed model, fitted in two steps.

The ridge says what a post like this one gets, from models that have not seen its author; an author's earlier posts say by
how much this author gets more. Their residuals are pooled partially: the mean of few is drawn to zero, and how strongly is
told by how much authors differ, compared with how much the posts of one author do.

Source: best linear unbiased prediction of a random intercept (Robinson 1991), its variances by moments (Henderson 1953).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kit.base.errors import InputError
from kit.boosting.data import Data


class AuthorRidge:
    """The taught column `ridge` plus the author's effect, which strictly earlier posts of the training side teach.

    Args:
        prepared: from ``prepare``.
        taught: (n_posts, t) float32 columns of this training side, `ridge` first.
        weight: (n_posts,) >= 0.
        n_threads: of no use here.

    Raises:
        InputError: there are no taught columns.
    """

    suffix = ".npy"
    fixed: frozenset[str] = frozenset()
    needs_taught, has_rounds = True, False

    def __init__(self, prepared: Data, taught: np.ndarray | None, weight: np.ndarray, n_threads: int):
        if taught is None:
            raise InputError(
                "model author_ridge needs columns taught by labels: add the word taught to the feature set"
            )
        self._data, self._taught, self._weight = prepared, taught, weight

    @staticmethod
    def settings(params: dict, n_columns: int) -> dict:
        """The caller's parameters, of which there can be none."""
        return params

    @staticmethod
    def names() -> set[str]:
        """Nothing can be set."""
        return set()

    @staticmethod
    def prepare(data: Data, params: dict, n_threads: int, seed: int, device: str) -> Data:
        """The data as they are."""
        return data

    def fit(self, rows: np.ndarray, rounds: int, stop_rows: np.ndarray | None = None, patience: int = 0) -> int:
        """Fits on rows (repeats count); returns 1."""
        ridge, target, past = self._taught[:, 0].astype(np.float64), self._data.target, self._data.author_past
        weight = np.bincount(rows, minlength=len(target)) * self._weight
        residual = np.where(weight > 0, target - ridge, 0)
        taught = np.flatnonzero(weight)
        prior = prior_posts(residual[taught], self._data.author[taught])
        known = past.sums(weight)
        effect = past.sums(weight * residual) / np.where(known > 0, known + prior, 1)  # the prior may be 0
        self._parts = np.column_stack([ridge, effect])
        return 1

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) float64."""
        return self._parts[rows].sum(axis=1)

    def predict_changed(self, row: int, taught: np.ndarray) -> np.ndarray:
        """(m,) float64: of one of the posts, with other taught columns (m, t); the author's effect stays."""
        return taught[:, 0] + self._parts[row, 1]

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), d + t + 1) float64: the ridge, less its mean over all posts, and the effect; last, that mean."""
        first, mean = self._data.values.shape[1], self._parts[:, 0].mean()
        out = np.zeros((len(rows), first + self._taught.shape[1] + 1))
        out[:, first : first + 2], out[:, -1] = self._parts[rows] - [mean, 0], mean
        return out

    def gain(self) -> np.ndarray:
        """(d + t,) variance that the ridge and the author's effect bring, under `ridge` and `author_past_label`."""
        gain = np.zeros(self._data.values.shape[1] + self._taught.shape[1])
        first = self._data.values.shape[1]
        gain[first : first + 2] = self._parts.var(axis=0)
        return gain

    def save(self, path: Path) -> None:
        """Write ridge and effect of every post, (n_posts, 2) float64."""
        with path.open("wb") as file:
            np.save(file, self._parts)

    def load(self, path: Path) -> AuthorRidge:
        """Take over what was written."""
        self._parts = np.load(path)
        return self


def prior_posts(residual: np.ndarray, author: np.ndarray) -> float:
    """How many posts without a deviation an author's posts are pooled with: variance within authors over that between them.

    inf, which leaves no effect, where authors do not differ more than their posts do, none has two posts, or there is but one.

    Args:
        residual: (n,) of the training side.
        author: (n,) code of each post's author.
    """
    _, author, n_own = np.unique(author, return_inverse=True, return_counts=True)
    n, n_authors = len(residual), len(n_own)
    if n_authors in (1, n):
        return np.inf
    mean = np.bincount(author, residual) / n_own
    within = np.square(residual - mean[author]).sum() / (n - n_authors)
    between = (n_own @ np.square(mean - residual.mean()) - (n_authors - 1) * within) / (n - n_own @ n_own / n)
    return within / between if between > 0 else np.inf
