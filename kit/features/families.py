"""Families of columns: what each is given, and how their frames become a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy import sparse

from kit.base.errors import InputError
from kit.features import words
from kit.run.block import Block
from kit.run.matrix import Scratch, SideBySide, pieces

SECONDS_PER_DAY = 86_400
CONSTANT, OUTSIDE = "one value in every post", "most test posts lie outside its range in the train part"
OUTSIDE_SHARE = 0.5  # of the test posts may lie outside a column's train range before the column is dropped


@dataclass(frozen=True)
class Context:
    """The posts table with the settings of the families; what several families need is computed once.

    The first `n_known` posts (None: all) give codes, vocabularies and decompositions, so that columns of further posts mean
    what they meant to the models; then no column is left out. Counts are of all posts.
    """

    posts: pd.DataFrame
    svd_dim: int
    n_top_tags: int
    seed: int
    n_known: int | None = None
    given_tags: pd.DataFrame | None = None  # `long_tags` of posts with the same tags

    @cached_property
    def long_tags(self) -> pd.DataFrame:
        return words.long_tags(self.posts["Alltags"], self.n_known) if self.given_tags is None else self.given_tags

    @cached_property
    def tag_matrix(self) -> sparse.csr_matrix:
        return words.tag_matrix(self.long_tags, len(self.posts), n_known=self.n_known)


C = TypeVar("C", bound=Context)


def block_of(
    name: str,
    known: Mapping[str, Callable[[C], pd.DataFrame]],
    families: Iterable[str] | None,
    context: C,
    extra: Mapping[str, Callable[[C], pd.DataFrame]] | None = None,
    folder: Path | None = None,
) -> Block:
    """Block of the families side by side, without columns that are constant or leave the train range.

    One family's columns at a time are in memory; those that stay wait on the disk, where the block's values lie, too.

    Args:
        name: of the block.
        known: all families of the block, by name.
        families: names from `known`; None for all.
        context: what the families read; its posts table has `split`.
        extra: further families of this block alone, whose columns may leave the train range.
        folder: where the values lie, in a file that goes with the block; the system's temporary folder by default.

    Raises:
        InputError: a family is unknown, none is chosen, or no column varies; the disk is full.
    """
    families = list(known if families is None else families)
    if not families or (unknown := sorted(set(families) - set(known))):
        what = f"unknown feature families {unknown}" if families else "no feature family is chosen"
        raise InputError(f"block {name}: {what}; choose from {', '.join(known)}")
    split, n_posts, extra = context.posts["split"], len(context.posts), extra or {}
    columns, dropped, parts = [], {}, []
    for family in (*families, *extra):
        frame = (known | extra)[family](context)
        if context.n_known is None:  # otherwise models have settled which columns there are
            dropped |= why_left_out(frame, split, family == "posting_time" or family in extra)
        kept = [column for column in frame if column not in dropped]
        shape, columns = (n_posts, len(kept)), columns + kept
        parts.append(_on_disk((frame.iloc[rows][kept].astype(np.float32) for rows in pieces(*shape)), shape, folder))
        del frame  # before the next one is made
    if not columns:
        raise InputError(f"no column of the families {families} varies over the {n_posts} posts: nothing to learn from")
    joined = SideBySide(parts)
    values = _on_disk((joined[rows] for rows in pieces(*joined.shape)), joined.shape, folder)
    categorical = [column for column in columns if column.endswith("_code")]
    return Block(name, values, columns, categorical, f"posts table: {', '.join(families)}", dropped=dropped)


def _on_disk(rows: Iterable[np.ndarray | pd.DataFrame], shape: tuple[int, int], folder: Path | None) -> np.ndarray:
    """The rows, given in pieces, as one matrix in a file."""
    scratch = Scratch(shape, folder)
    for piece in rows:
        scratch.append(np.asarray(piece, dtype=np.float32))
    return scratch.array()


def numbered(prefix: str, values: np.ndarray) -> pd.DataFrame:
    """The columns of values (n, d) as `prefix_0` to `prefix_<d-1>`."""
    return pd.DataFrame(values, columns=[f"{prefix}_{i}" for i in range(values.shape[1])])


def why_left_out(frame: pd.DataFrame, split: pd.Series, is_time: bool = False) -> dict[str, str]:
    """Column -> why it teaches nothing: most test posts lie outside its train range (time itself excepted), or it is constant."""
    train, test = (np.flatnonzero(split == part) for part in ("train", "test"))

    def why(values: np.ndarray) -> str:
        low, high = (reduce(values[train], initial=np.nan) for reduce in (np.fmin.reduce, np.fmax.reduce))
        if not is_time and len(test) and ((values[test] < low) | (values[test] > high)).mean() > OUTSIDE_SHARE:
            return OUTSIDE
        return "" if varies(values) else CONSTANT

    found = {name: why(column.astype(np.float32).to_numpy()) for name, column in frame.items()}
    return {name: reason for name, reason in found.items() if reason}


def varies(values: np.ndarray) -> bool:
    """Whether a column (n,) float32 holds more than one value, a missing one among them."""
    return len(values) > 0 and not ((values == values[0]) | (np.isnan(values) & np.isnan(values[0]))).all()
