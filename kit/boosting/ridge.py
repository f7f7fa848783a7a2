"""Ridge regression on every word, tag and category beside the scaled columns: the straight-line view of a post.

Trees split on a few hundred columns and stay inside the range they have seen; a ridge weighs every tag a little and goes on
along a trend. Taught inside each fold, its prediction is the strongest single column that trees can get.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, lsmr
from sklearn.feature_extraction.text import TfidfTransformer

from kit.features.words import long_tags, tag_matrix, title_terms
from kit.run.block import Block
from kit.run.folds import make_folds
from kit.run.matrix import Scratch, pieces

# Scale of each part of the design: one penalty for all, so a smaller scale is a stronger penalty.
COLUMN_SCALE, CODE_SCALE, TEXT_SCALE = 0.1, 0.5, 0.5
ALPHAS = (0.5, 1.0, 2.0, 5.0, 20.0)  # penalties tried
N_PARTS = 5  # author-disjoint parts of a training side
CLIP = 4.0  # standard deviations beyond which a column says no more
MAX_STEPS = 100  # of the solver; the penalty makes it converge long before
INTERCEPT = 10.0  # value of the constant column: large, so that the penalty hardly touches it


class Design:
    """Posts as one linear map, dense columns beside sparse ones, never joined into one matrix.

    Args:
        block: features of all posts; numbers are standardised over all posts, missing ones become the mean.
        posts: the posts table; `Title` and `Alltags` are read.
        folder: where the standardised numbers are kept, in a file that goes with this object.
    """

    def __init__(self, block: Block, posts: pd.DataFrame, folder: Path | None = None):
        coded = np.isin(block.columns, block.categorical)
        self._dense, codes = _standardised(block.values, coded, folder)
        tags = tag_matrix(long_tags(posts["Alltags"]), len(posts))
        parts = [_one_hot(column) * CODE_SCALE for column in codes.T]
        parts += [
            TfidfTransformer().fit_transform(part) * TEXT_SCALE
            for part in (tags, title_terms(posts["Title"]))
            if part.nnz
        ]
        parts.append(np.full((len(posts), 1), INTERCEPT, dtype=np.float32))
        self._sparse = sparse.hstack([sparse.csr_matrix(part) for part in parts]).tocsr().astype(np.float32)
        self._transposed = self._sparse.T.tocsr()
        self.shape = len(posts), self._dense.shape[1] + self._sparse.shape[1]

    def fit(self, target: np.ndarray, weight: np.ndarray, alpha: float) -> tuple[np.ndarray, float]:
        """Coefficients (d,) and mean that minimise sum(weight * error^2) + alpha * |coefficients|^2.

        Args:
            target: (n_posts,) label; rows of weight 0 are not read.
            weight: (n_posts,) >= 0.
            alpha: penalty.
        """
        root = np.sqrt(weight)
        mean = float(np.average(np.where(weight > 0, target, 0), weights=weight))
        centred = np.where(weight > 0, target - mean, 0)
        operator = LinearOperator(
            self.shape,
            dtype=np.float64,
            matvec=lambda v: root * self._times(v.ravel()),
            rmatvec=lambda u: self._transposed_times(root * u.ravel()),
        )
        found = lsmr(operator, root * centred, damp=np.sqrt(alpha), maxiter=MAX_STEPS, atol=1e-4, btol=1e-4)
        return found[0], mean

    def predict(self, coefficients: np.ndarray, mean: float) -> np.ndarray:
        """(n_posts,) float64 predictions for every post."""
        return self._times(coefficients) + mean

    def _times(self, v: np.ndarray) -> np.ndarray:
        v, d = v.astype(np.float32), self._dense.shape[1]
        return (self._dense @ v[:d] + self._sparse @ v[d:]).astype(np.float64)

    def _transposed_times(self, u: np.ndarray) -> np.ndarray:
        u = u.astype(np.float32)
        return np.r_[u @ self._dense, self._transposed @ u].astype(np.float64)


class RidgeStack:
    """Ridge predictions as a column for trees: for taught posts from models that have not seen their authors.

    Args:
        block, posts, folder: as for `Design`.
        seed: of the author-disjoint parts.
    """

    def __init__(self, block: Block, posts: pd.DataFrame, seed: int = 0, folder: Path | None = None):
        self._design, self._posts, self._seed = Design(block, posts, folder), posts[["Uid", "Postdate"]], seed

    def column(self, target: np.ndarray, train_idx: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """(n_posts,) float32 predictions in the units of the label, taught by the labels of train_idx alone.

        Posts of train_idx are predicted by models fitted on other authors of train_idx, all others by one fitted on all
        of it. The penalty is the one with the least squared error on the first part of the authors.

        Args:
            target: (n_posts,) label; only rows of train_idx are read.
            train_idx: row positions of the training side.
            weight: (n_posts,) > 0 on train_idx.
        """
        side = np.zeros(len(target), dtype=bool)
        side[train_idx] = True
        split = self._posts.assign(split=np.where(side, "train", "test"))
        n_parts = min(N_PARTS, split["Uid"][side].nunique())
        parts = make_folds(split, n_parts, "user", self._seed)
        alpha = self._best_alpha(target, np.where(side & (parts != 0), weight, 0), np.flatnonzero(parts == 0))
        out = self._predicted(target, np.where(side, weight, 0), alpha)
        for k in range(n_parts):
            held = parts == k
            out[held] = self._predicted(target, np.where(side & ~held, weight, 0), alpha)[held]
        return out.astype(np.float32)

    def _best_alpha(self, target: np.ndarray, weight: np.ndarray, held: np.ndarray) -> float:
        errors = {a: np.square(self._predicted(target, weight, a)[held] - target[held]).mean() for a in ALPHAS}
        return min(errors, key=errors.get)

    def _predicted(self, target: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
        return self._design.predict(*self._design.fit(target, weight, alpha))


def _standardised(values: np.ndarray, coded: np.ndarray, folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (n, d) float32 of mean 0 and deviation COLUMN_SCALE, clipped, missing 0; and the coded columns (n, c)."""
    n, d = values.shape

    def numbers() -> Iterator[np.ndarray]:
        for piece in pieces(n, d):
            taken = np.array(values[piece][:, ~coded], dtype=np.float32)
            taken[~np.isfinite(taken)] = np.nan
            yield taken

    n_given, total, square = np.zeros((3, d - coded.sum()))
    for taken in numbers():
        n_given += (~np.isnan(taken)).sum(axis=0)
        total += np.nansum(taken, axis=0, dtype=np.float64)
    n_given = np.maximum(n_given, 1)
    mean = (total / n_given).astype(np.float32)
    for taken in numbers():
        square += np.nansum((taken - mean) ** 2, axis=0, dtype=np.float64)
    spread = np.sqrt(square / n_given)
    scale = np.where(spread > 0, spread, 1).astype(np.float32)
    scratch = Scratch((n, len(mean)), folder)
    for taken in numbers():
        taken = np.clip((taken - mean) / scale, -CLIP, CLIP)
        scratch.append(np.nan_to_num(taken, copy=False) * np.float32(COLUMN_SCALE))
    return scratch.array(), np.concatenate([values[piece][:, coded] for piece in pieces(n, d)])


def _one_hot(codes: np.ndarray) -> sparse.csr_matrix:
    """(n, n_codes) one column per code; a missing code (-1) gets none."""
    codes = codes.astype(np.int64)
    rows = np.flatnonzero(codes >= 0)
    shape = len(codes), int(codes.max(initial=0)) + 1
    return sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, codes[rows])), shape=shape)
