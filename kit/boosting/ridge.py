"""Ridge regression on every word, tag and category beside the scaled columns: the straight-line view of a post.

Trees split on a few hundred columns and stay inside the range they have seen; a ridge weighs every tag a little and goes on
along a trend. Taught inside each fold, its prediction is the strongest single column that trees can get.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, lsmr

from kit.features.words import LONGEST_RUN, long_tags, tag_matrix, tfidf, title_terms
from kit.run.block import Block
from kit.run.folds import inner_holdout, make_folds
from kit.run.matrix import Scratch, pieces

# Scale of each part of the design: one penalty for all, so a smaller scale is a stronger penalty.
COLUMN_SCALE, CODE_SCALE, TEXT_SCALE = 0.1, 0.5, 0.5
ALPHAS = (0.5, 1.0, 2.0, 5.0, 20.0)  # penalties tried
VIEWS = {"words": ("word",), "characters": ("char",), "both": ("word", "char")}  # of the titles
N_PARTS = 5  # author-disjoint parts of a training side
CLIP = 4.0  # standard deviations beyond which a column says no more
JUDGED_ON = 20_000  # posts up to which two parts, not the first alone, decide on view and penalty
JUDGES = 50_000  # posts at most that decide on them, as whole authors: both are the same for more
COPIED_MB = 1024  # at most, of the numbers of the posts that teach, so that each step of the solver reads no others
MB_PER_VALUE = 4 / (1 << 20)
MAX_STEPS = 100  # of the solver; the penalty makes it converge long before
NOT_CONVERGED = 7  # lsmr's word for it
INTERCEPT = 10.0  # value of the constant column: large, so that the penalty hardly touches it


class Design:
    """Posts as one linear map, dense columns beside sparse ones, never joined into one matrix.

    Args:
        block: features of all posts; numbers are standardised over all posts, missing ones become the mean.
        posts: the posts table; `Title` and `Alltags` are read.
        folder: where the standardised numbers are kept, in a file that goes with this object.

    Attributes:
        views: names from VIEWS that these titles have; each is a design of its own.
    """

    def __init__(self, block: Block, posts: pd.DataFrame, folder: Path | None = None):
        coded = np.isin(block.columns, block.categorical)
        self._dense, codes = _standardised(block.values, coded, folder)
        tags = tfidf(tag_matrix(long_tags(posts["Alltags"]), len(posts))) * TEXT_SCALE
        constant = sparse.csr_matrix(np.full((len(posts), 1), INTERCEPT, dtype=np.float32))
        parts = [*(_one_hot(column) * CODE_SCALE for column in codes.T), tags, constant]
        self._sparse = {"": sparse.hstack(parts, "csr", np.float32)}
        for unit, longest in {"word": 1, "char": LONGEST_RUN}.items():
            terms = tfidf(title_terms(posts["Title"], longest, unit))
            if terms.nnz:
                terms.data *= np.float32(TEXT_SCALE)  # in place: the largest thing in memory
                self._sparse[unit] = terms
        self.views = [view for view, units in VIEWS.items() if set(units) <= set(self._sparse)] or ["words"]

    def fit(self, target: np.ndarray, weight: np.ndarray, alpha: float, view: str) -> tuple[np.ndarray, float, str]:
        """Coefficients (d,), mean and view that minimise sum(weight * error^2) + alpha * |coefficients|^2.

        Args:
            target: (n_posts,) label; rows of weight 0 are not read.
            weight: (n_posts,) >= 0.
            alpha: penalty.
            view: one of `views`.
        """
        taught = np.flatnonzero(weight > 0)
        design = self
        if len(taught) * self._dense.shape[1] * MB_PER_VALUE <= COPIED_MB:
            design = self.taken(taught)
        else:
            taught = slice(None)
        root = np.sqrt(weight[taught])
        mean = float(np.average(np.where(weight > 0, target, 0), weights=weight))
        centred = np.where(weight > 0, target - mean, 0)[taught]
        operator = LinearOperator(
            (len(root), self.width(view)),
            dtype=np.float64,
            matvec=lambda v: root * design._times(v.ravel(), view),
            rmatvec=lambda u: design._transposed_times(root * u.ravel(), view),
        )
        found = lsmr(operator, root * centred, damp=np.sqrt(alpha), maxiter=MAX_STEPS, atol=1e-4, btol=1e-4)
        if found[1] == NOT_CONVERGED:
            warnings.warn(f"the ridge had not converged after {MAX_STEPS} steps (penalty {alpha})", stacklevel=2)
        return found[0], mean, view

    def predict(self, coefficients: np.ndarray, mean: float, view: str) -> np.ndarray:
        """(n_posts,) float64 predictions for every post, from what `fit` returns."""
        return self._times(coefficients, view) + mean

    def taken(self, rows: np.ndarray) -> Design:
        """The same columns of some posts (row positions)."""
        part = copy.copy(self)
        part._dense, part._sparse = self._dense[rows], {unit: one[rows] for unit, one in self._sparse.items()}
        return part

    def width(self, view: str) -> int:
        """Columns of the design."""
        return self._dense.shape[1] + sum(part.shape[1] for part in self._parts(view))

    def _parts(self, view: str) -> list[sparse.csr_matrix]:
        return [part for unit, part in self._sparse.items() if unit in ("", *VIEWS[view])]

    def _times(self, v: np.ndarray, view: str) -> np.ndarray:
        v, end = v.astype(np.float32), self._dense.shape[1]
        out = self._dense @ v[:end]
        for part in self._parts(view):
            start, end = end, end + part.shape[1]
            out += part @ v[start:end]
        return out.astype(np.float64)

    def _transposed_times(self, u: np.ndarray, view: str) -> np.ndarray:
        u = u.astype(np.float32)
        return np.concatenate([u @ self._dense, *(part.T @ u for part in self._parts(view))], dtype=np.float64)


class RidgeStack:
    """Ridge predictions as a column for trees: for taught posts from models that have not seen their authors.

    Args:
        block, posts, folder: as for `Design`.
        seed: of the author-disjoint parts.

    Attributes:
        chosen: penalty and view of the last column.
    """

    chosen: tuple[float, str]

    def __init__(self, block: Block, posts: pd.DataFrame, seed: int = 0, folder: Path | None = None):
        self._design, self._posts, self._seed = Design(block, posts, folder), posts[["Uid", "Postdate"]], seed
        self._chosen_for: tuple | None = None

    def column(
        self, target: np.ndarray, train_idx: np.ndarray, weight: np.ndarray, judges: np.ndarray | None = None
    ) -> np.ndarray:
        """(n_posts,) float32 predictions in the units of the label, taught by the labels of train_idx alone.

        Posts of train_idx are predicted by models fitted on other authors of train_idx, all others by one fitted on all
        of it. View of the titles and penalty are those with the least squared error on held-out authors of the judges;
        they are kept for the next call with the same judges.

        Args:
            target: (n_posts,) label; only rows of train_idx are read.
            train_idx: row positions of the training side.
            weight: (n_posts,) > 0 on train_idx.
            judges: row positions among train_idx; by default all of it.
        """
        judges = train_idx if judges is None else judges
        if self._chosen_for != (key := (judges.tobytes(), target[judges].tobytes(), weight[judges].tobytes())):
            if len(judges) > JUDGES:
                judges = inner_holdout(self._posts, judges, JUDGES / len(judges), self._seed)[1]
            held_out = self._parts(judges)[: 2 if len(judges) <= JUDGED_ON else 1]
            self.chosen, self._chosen_for = self.choose(target, _only(weight, judges), held_out), key
        weight = _only(weight, train_idx)
        out = self._predicted(target, weight, *self.chosen)
        for held in self._parts(train_idx):
            out[held] = self._predicted(target, np.where(held, 0, weight), *self.chosen)[held]
        return out.astype(np.float32)

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """(n_posts,) bool each: parts of some posts, author-disjoint where they have two authors."""
        split = self._posts.assign(split=np.where(np.isin(np.arange(len(self._posts)), rows), "train", "test"))
        n_authors = split["Uid"].iloc[rows].nunique()
        scheme, most = ("user", n_authors) if n_authors > 1 else ("plain", len(rows))
        parts = make_folds(split, min(N_PARTS, most), scheme, self._seed)
        return [parts == k for k in range(parts.max() + 1)]

    def choose(self, target: np.ndarray, weight: np.ndarray, held_out: list[np.ndarray]) -> tuple[float, str]:
        """Penalty of the first view and, under it, the view with the least squared error on the posts held out.

        Args:
            target, weight: as for `Design.fit`.
            held_out: (n_posts,) bool each; every part is predicted by a model fitted without it.
        """

        @functools.cache
        def error(alpha: float, view: str) -> float:
            found = ((held, self._predicted(target, np.where(held, 0, weight), alpha, view)) for held in held_out)
            return sum(np.square(predicted[held] - target[held]).sum() for held, predicted in found)

        alpha = min(ALPHAS, key=lambda alpha: error(alpha, self._design.views[0]))
        return alpha, min(self._design.views, key=lambda view: error(alpha, view))

    def _predicted(self, target: np.ndarray, weight: np.ndarray, alpha: float, view: str) -> np.ndarray:
        return self._design.predict(*self._design.fit(target, weight, alpha, view))


def _only(weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n_posts,) the weights of some posts, 0 elsewhere."""
    out = np.zeros(len(weight))
    out[rows] = weight[rows]
    return out


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
