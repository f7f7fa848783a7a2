"""What learners see, and who teaches a fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kit.base.errors import InputError
from kit.features.past import Past
from kit.run.matrix import SideBySide

ROWS_PER_THREAD = 10_000  # fewer, and LightGBM's threads mostly wait: 8 times slower beside any other busy process
WIDE = 256  # columns from which coarser bins pay: 2.6 times faster, no loss


@dataclass(frozen=True)
class Data:
    """What learners see.

    Attributes:
        values: (n_posts, d) float32, read by rows.
        coded: (d,) bool, which columns are codes; -1 is a missing one.
        target: (n_posts,) label; rows that are never fitted may be NaN.
        author: (n_posts,) code of each post's author; None where nothing is fitted any more.
        author_past: the earlier posts of each post's author; None as well.
    """

    values: np.ndarray | SideBySide
    coded: np.ndarray
    target: np.ndarray
    author: np.ndarray | None = None
    author_past: Past | None = None

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        """(k, d) float32 of some rows, missing codes as NaN."""
        out = np.array(self.values[rows], dtype=np.float32)
        codes = out[:, self.coded]
        out[:, self.coded] = np.where(codes < 0, np.nan, codes)
        return out


@dataclass(frozen=True)
class TrainingSide:
    """Who teaches one fit: rows (ascending positions), and for every post its weight and number of copies (n_posts,).

    ``tuned`` are columns (n_posts, m) that the same rows have taught elsewhere; they stand behind the taught ones.
    """

    rows: np.ndarray
    weight: np.ndarray
    copies: np.ndarray
    tuned: np.ndarray | None = None

    def kept(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that teach at all."""
        return rows[(self.copies[rows] > 0) & (self.weight[rows] > 0)]

    def copied(self, rows: np.ndarray) -> np.ndarray:
        """`rows` with each repeated as often as it has copies."""
        return np.repeat(rows, self.copies[rows].astype(np.int64))


def some_rows(rows: np.ndarray) -> np.ndarray:
    if not len(rows):
        raise InputError("weights or copies leave no post to learn from, or none to decide when to stop")
    return rows
