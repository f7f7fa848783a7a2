"""How sure a difference between two models is: a paired bootstrap over authors.

Posts of one author rise and fall together, so authors are drawn, not posts, and both models are scored on the same draw.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from kit.base.errors import InputError

N_DRAWS = 2000
BLOCK = 2_000_000  # drawn counts held at once as floats
CONSTANT = 1e-12  # product of two variances of ranks (1/144 for two that vary) below which one of them is rounding


@dataclass(frozen=True)
class Difference:
    """Second model minus first, with the range that holds `level` of the draws.

    Attributes:
        src, mae: differences on the posts themselves.
        src_low, src_high, mae_low, mae_high: ends of the ranges.
    """

    src: float
    src_low: float
    src_high: float
    mae: float
    mae_low: float
    mae_high: float


def paired_difference(
    target: np.ndarray, first: np.ndarray, second: np.ndarray, authors: np.ndarray, *, n_draws: int = N_DRAWS,
    level: float = 0.95, seed: int = 0,
) -> Difference:  # fmt: skip
    """SRC and MAE of `second` minus those of `first`, with percentile ranges over draws of authors with replacement.

    Ranks are taken once, over all posts, and a draw is scored by the weighted correlation of these ranks: a draw then
    costs sums over authors instead of a sort of all posts, and differs from re-ranked draws in the fourth digit.

    Args:
        target: (n,) labels, finite.
        first, second: (n,) two predictions of the same posts, finite; or (n_seeds, n) each, of two ways to train, whose
            differences are means over seeds.
        authors: (n,) key of each post's author.
        n_draws: number of draws.
        level: share of the draws inside the ranges.
        seed: of the draws.

    Raises:
        InputError: lengths differ, values are not finite, or there are fewer than two posts.
    """
    target = np.asarray(target, dtype=np.float64)
    first, second = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if first.shape != second.shape or not len(target) == len(authors) == first.shape[1] or len(target) < 2:
        raise InputError("target, both predictions and authors need the same length, and at least two posts")
    if not all(np.isfinite(values).all() for values in (target, first, second)):
        raise InputError("target and predictions must be finite; compare posts that both models have scored")
    author = np.unique(np.asarray(authors).astype(str), return_inverse=True)[1]
    counts = _draws(int(author.max()) + 1, n_draws, seed)
    pairs = list(zip(first, second, strict=True))
    found = np.mean([_measured(_author_sums(target, *pair, author), counts) for pair in pairs], axis=0)
    tails = [100 * (1 - level) / 2, 100 * (1 + level) / 2]
    (src_low, mae_low), (src_high, mae_high) = np.percentile(found[1:], tails, axis=0)
    return Difference(*map(float, (found[0, 0], src_low, src_high, found[0, 1], mae_low, mae_high)))


def _author_sums(target: np.ndarray, first: np.ndarray, second: np.ndarray, author: np.ndarray) -> np.ndarray:
    """(n_authors, 11): posts, absolute errors of both, and the moments of centred ranks that correlations need."""
    t, a, b = (rankdata(values) / len(values) - 0.5 for values in (target, first, second))
    parts = np.ones(len(t)), np.abs(target - first), np.abs(target - second), t, a, b, t * t, a * a, b * b, t * a, t * b
    return np.column_stack([np.bincount(author, part) for part in parts])


@functools.lru_cache(maxsize=2)
def _draws(n_authors: int, n_draws: int, seed: int) -> np.ndarray:
    """(n_draws, n_authors) uint8: how often each author is drawn; the same draws serve every comparison of these authors."""
    rng, out = np.random.default_rng(seed), np.empty((n_draws, n_authors), dtype=np.uint8)
    for row in out:
        row[:] = np.bincount(rng.integers(n_authors, size=n_authors), minlength=n_authors)
    return out


def _measured(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(1 + n_draws, 2) differences of SRC and MAE: of the posts themselves, then of each draw of authors."""
    step = max(1, BLOCK // len(sums))
    parts = [counts[start : start + step] @ sums for start in range(0, len(counts), step)]
    return _differences(np.concatenate([sums.sum(axis=0, keepdims=True), *parts]))


def _differences(moments: np.ndarray) -> np.ndarray:
    """(k, 2) SRC and MAE of the second model minus the first from (k, 11) sums."""
    n, error_a, error_b, t, a, b, tt, aa, bb, ta, tb = moments.T
    first = _correlation(n, t, a, tt, aa, ta)
    second = _correlation(n, t, b, tt, bb, tb)
    return np.column_stack([second - first, (error_b - error_a) / n])


def _correlation(n, x, y, xx, yy, xy) -> np.ndarray:
    """(k,) Pearson's correlation from sums; 0 where one side is constant."""
    variances = (xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2)
    defined = variances > CONSTANT
    return np.where(defined, xy / n - x * y / n**2, 0) / np.sqrt(np.where(defined, variances, 1))
