"""How far off a prediction may be: quantiles of out-of-fold residuals, scaled by how large errors are for posts like it.

A straight line tells from the prediction and the number of the author's earlier posts how large an error to expect; it is
drawn to "the same for all" where the posts show no more. Residuals divided by that size have quantiles, and these times the
size of a post make its range. The prediction itself is the middle: the fusion has foretold the level of its period, and the
levels at which earlier folds were off say nothing of this one.

Source: normalised conformal prediction (Papadopoulos, Gammerman and Vovk 2008); the line is Bayesian ridge regression.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.linear_model import BayesianRidge

from kit.features.past import Past, post_times
from kit.run.folds import TEST, Folds, fold_rows

QUANTILES = (0.1, 0.9)  # ends of a range; the prediction is the median
FLOOR = 0.05  # of the median error, added to every error, so that its logarithm is finite
TINY = 1e-9


@dataclass(frozen=True)
class Ranges:
    """What out-of-fold residuals teach about ranges.

    Attributes:
        slope: (2,) by how much the logarithm of an error's size grows with the prediction and with n / (n + 1) of earlier posts.
        least, most: (2,) of these two columns, in the posts that taught.
        scaled: (n,) residuals less their median, divided by `size`.
    """

    slope: np.ndarray
    least: np.ndarray
    most: np.ndarray
    scaled: np.ndarray

    def __call__(
        self, prediction: np.ndarray, earlier: np.ndarray, quantiles: tuple[float, ...] = QUANTILES
    ) -> np.ndarray:
        """(n, n_quantiles) float64 of the label, for predictions (n,) and the numbers of their authors' earlier posts (n,)."""
        prediction = np.asarray(prediction, dtype=np.float64)
        return prediction[:, None] + self.size(prediction, earlier)[:, None] * np.quantile(self.scaled, quantiles)

    def size(self, prediction: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """(n,) expected size of the errors, up to a common factor; beyond the columns seen, that at their ends."""
        return np.exp((np.clip(_columns(prediction, earlier), self.least, self.most) - self.least) @ self.slope)


def fit_ranges(prediction: np.ndarray, earlier: np.ndarray, target: np.ndarray) -> Ranges:
    """Ranges taught by out-of-fold predictions.

    Args:
        prediction, target: (n,) in label units, NaN where there is none; at least one post has both.
        earlier: (n,) from `earlier_posts`.
    """
    known = np.isfinite(prediction) & np.isfinite(target)
    residual, columns = (target - prediction)[known], _columns(prediction[known], earlier[known])
    residual -= np.median(residual)
    spread, size = columns.std(axis=0), np.abs(residual)
    spread = np.where(spread > TINY, spread, 1.0)
    line = BayesianRidge().fit(columns / spread, np.log(size + FLOOR * np.median(size) + TINY))
    ranges = Ranges(line.coef_ / spread, columns.min(axis=0), columns.max(axis=0), residual)
    return replace(ranges, scaled=residual / ranges.size(prediction[known], earlier[known]))


def earlier_posts(posts: pd.DataFrame, taught: np.ndarray) -> np.ndarray:
    """(n_posts,) how many of the posts `taught` (row positions) are by a post's author and strictly earlier."""
    marked = np.zeros(len(posts))
    marked[taught] = 1
    return Past(pd.factorize(posts["Uid"])[0], post_times(posts)).sums(marked)


def earlier_in_folds(posts: pd.DataFrame, folds: Folds) -> np.ndarray:
    """(n_posts,) as `earlier_posts`, among those that taught the model which says what a post gets; 0 of unscored posts."""
    earlier, test = np.zeros(len(posts)), folds.fold == TEST
    earlier[test] = earlier_posts(posts, np.flatnonzero(~test))[test]
    for k in range(len(folds.withheld)):
        taught, scored = folds.rows(k)
        earlier[scored] = earlier_posts(posts, taught)[scored]
    return earlier


def nested_quantiles(
    prediction: np.ndarray, earlier: np.ndarray, target: np.ndarray, fold: np.ndarray, scaled: bool = True
) -> np.ndarray:
    """(n_posts, 2) low and high of each scored post, taught by the other folds (in time: by earlier ones); NaN where by none.

    Args:
        prediction: (n_posts,) out of fold, NaN where no fold scores a post.
        earlier, target, fold: (n_posts,).
        scaled: without, all posts get the quantiles of all residuals: what ranges are compared with.
    """
    out = np.full((len(prediction), len(QUANTILES)), np.nan)
    for k in range(int(fold.max()) + 1):
        taught, scored = fold_rows(fold, k)
        taught, scored = (rows[np.isfinite((target - prediction)[rows])] for rows in (taught, scored))
        if len(taught) and scaled:
            ranges = fit_ranges(prediction[taught], earlier[taught], target[taught])
            out[scored] = ranges(prediction[scored], earlier[scored])
        elif len(taught):
            out[scored] = prediction[scored, None] + np.quantile((target - prediction)[taught], QUANTILES)
    return out


def interval_table(
    posts: pd.DataFrame, folds: Folds, oof: np.ndarray, test: np.ndarray, limits: tuple[float, float]
) -> pd.DataFrame:
    """Pid, fold, earlier (posts of the author), low, prediction, high of all posts that are predicted.

    Ranges of train posts are nested; those of test posts are taught by all train posts that are scored.

    Args:
        folds: of the scheme that decides.
        oof: (n_posts,) nested predictions.
        test: (n_test,) as submitted.
        limits: lowest and highest label, to which ranges are clipped.
    """
    target, earlier, at_test = posts["label"].to_numpy(), earlier_in_folds(posts, folds), folds.fold == TEST
    prediction, quantiles = oof.copy(), nested_quantiles(oof, earlier, target, folds.fold)
    prediction[at_test] = test
    quantiles[at_test] = fit_ranges(oof, earlier, target)(prediction[at_test], earlier[at_test])
    low, high = np.clip(quantiles, *limits).T
    table = pd.DataFrame({"Pid": posts["Pid"], "fold": folds.fold, "earlier": earlier.astype(int),
                          "low": low, "prediction": prediction, "high": high})  # fmt: skip
    return table[np.isfinite(prediction)]


def coverage(posts: pd.DataFrame, folds: Folds, oof: np.ndarray) -> pd.DataFrame:
    """How many labels nested ranges hold, for authors with and without earlier posts.

    Args:
        folds: of any scheme.
        oof: (n_posts,) nested predictions by that scheme.

    Returns:
        authors (all, known, unknown), n, and for ranges of this module, and under `same_` for the quantiles of all residuals
        as they are: inside (share of the labels, should be 0.8), width (mean, label units), pinball (mean loss of both ends;
        less is better). No row where no post is scored by others' residuals.
    """
    target, earlier = posts["label"].to_numpy(), earlier_in_folds(posts, folds)
    own, same = (nested_quantiles(oof, earlier, target, folds.fold, scaled) for scaled in (True, False))
    scored = np.isfinite(own[:, 0]) & np.isfinite(target)
    groups = {"all": scored, "known": scored & (earlier > 0), "unknown": scored & (earlier == 0)}
    return pd.DataFrame([
        {"authors": name, "n": int(at.sum()), **_worth(target[at], own[at]),
         **{f"same_{key}": value for key, value in _worth(target[at], same[at]).items()}}
        for name, at in groups.items() if at.any()
    ], columns=["authors", "n", *_WORTH, *(f"same_{key}" for key in _WORTH)])  # fmt: skip


_WORTH = ("inside", "width", "pinball")


def _worth(target: np.ndarray, quantiles: np.ndarray) -> dict[str, float]:
    (low, high), over = quantiles.T, target[:, None] - quantiles
    loss = np.maximum(np.multiply(QUANTILES, over), np.multiply(np.subtract(QUANTILES, 1), over))
    inside = (low <= target) & (target <= high)
    return dict(zip(_WORTH, map(float, (inside.mean(), (high - low).mean(), loss.mean())), strict=True))


def _columns(prediction: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    return np.column_stack([prediction, earlier / (earlier + 1)])  # the first posts of an author tell most
