"""Columns taught by labels: made from one training side, kept on disk for every model that is taught by the same side."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from kit.base.code import code_of
from kit.base.files import write_npz
from kit.boosting.history import LabelHistory
from kit.boosting.ridge import RidgeStack
from kit.boosting.store import hash_inputs
from kit.run.block import Block

TAUGHT = ("ridge", *LabelHistory.names)  # after the columns of the block


class TaughtColumns:
    """The columns TAUGHT for any training side; what makes them is prepared when a first side needs it.

    Args:
        block: features of all posts, for the ridge.
        target: (n_posts,) label; only those of a training side are read.
        posts: the posts table.
        post_hashes: (n_posts,) a hash of each row of the posts table.
        seed: of author-disjoint parts and hidden authors.
        folder: where columns are kept, one file per training side; None keeps nothing.
    """

    def __init__(
        self, block: Block, target: np.ndarray, posts: pd.DataFrame, post_hashes: np.ndarray, seed: int, folder: Path | None
    ):  # fmt: skip
        self._block, self._target, self._posts, self._hashes = block, target, posts, post_hashes
        self._seed, self._folder = seed, folder

    def columns(
        self, rows: np.ndarray, weight: np.ndarray, n_threads: int, judges: np.ndarray | None = None
    ) -> tuple[str, np.ndarray]:
        """Name of the file in the folder ("" without), and (n_posts, len(TAUGHT)) float32, taught by the labels of rows.

        Args:
            rows: row positions of the training side.
            weight: (n_posts,) > 0 on rows.
            n_threads: of linear algebra, whose rounding depends on it.
            judges: those of rows that choose how the ridge learns; by default all.
        """
        judges = rows if judges is None else judges
        if not self._folder:
            return "", self._made(rows, weight, n_threads, judges)["columns"]
        described = {"code": code_of("kit.boosting.taught"), "threads": n_threads, "seed": self._seed,
                     "columns": self._block.columns, "categorical": self._block.categorical,
                     "values": self._block.digest}  # fmt: skip
        taught_by = rows, weight[rows], self._target[rows], judges
        path = self._folder / f"{hash_inputs(described, self._hashes, *taught_by)}.npz"
        if not path.is_file():
            write_npz(path, **self._made(rows, weight, n_threads, judges))
        with np.load(path) as kept:
            return path.name, kept["columns"]

    def _made(self, rows: np.ndarray, weight: np.ndarray, n_threads: int, judges: np.ndarray) -> dict[str, Any]:
        """The columns, and the ridge's penalty and view, with which it can be fitted again."""
        ridge, history = self._teachers
        with threadpool_limits(n_threads, "blas"):
            column = ridge.column(self._target, rows, weight, judges)
            alpha, view = ridge.chosen
            columns = np.column_stack([column, history.columns(self._target, rows)])
        return {"columns": columns, "alpha": alpha, "view": view}

    @cached_property
    def _teachers(self) -> tuple[RidgeStack, LabelHistory]:
        folder = self._folder or Path(tempfile.gettempdir())
        return RidgeStack(self._block, self._posts, self._seed, folder), LabelHistory(self._posts, self._seed)
