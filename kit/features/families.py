"""Families of columns: what each is given, and how their frames become a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy import sparse

from kit.base.errors import InputError
from kit.features import words
from kit.run.block import Block

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

    @cached_property
    def long_tags(self) -> pd.DataFrame:
        return words.long_tags(self.posts["Alltags"], self.n_known)

    @cached_property
    def tag_matrix(self) -> sparse.csr_matrix:
        return words.tag_matrix(self.long_tags, len(self.posts), n_known=self.n_known)


C = TypeVar("C", bound=Context)


def block_of(
    name: str,
    known: Mapping[str, Callable[[C], pd.DataFrame]],
    families: Iterable[str] | None,
    context: C,
    extra: Sequence[pd.DataFrame] = (),
) -> Block:
    """Block of the families side by side, without columns that are constant or leave the train range.

    Args:
        name: of the block.
        known: all families of the block, by name.
        families: names from `known`; None for all.
        context: what the families read; its posts table has `split`.
        extra: further frames of the posts, taken as they are.

    Raises:
        InputError: a family is unknown, none is chosen, or no column varies.
    """
    families = list(known if families is None else families)
    if not families or (unknown := sorted(set(families) - set(known))):
        what = f"unknown feature families {unknown}" if families else "no feature family is chosen"
        raise InputError(f"block {name}: {what}; choose from {', '.join(known)}")
    split, dropped, frames = context.posts["split"], {}, []
    for family, frame in [
        *((family, known[family](context)) for family in families),
        *(("", frame) for frame in extra),
    ]:
        if context.n_known is not None:  # models have settled which columns there are
            frames.append(frame)
            continue
        learnt = as_learnt(frame, split, family in ("posting_time", ""))
        frames.append(varying(learnt))
        dropped |= dict.fromkeys(frame.columns.difference(learnt.columns, sort=False), OUTSIDE)
        dropped |= dict.fromkeys(learnt.columns.difference(frames[-1].columns, sort=False), CONSTANT)
    columns = [name for frame in frames for name in frame]
    if not columns:
        raise InputError(
            f"no column of the families {families} varies over the {len(split)} posts: nothing to learn from"
        )
    values = np.empty((len(split), len(columns)), dtype=np.float32)
    end = len(columns)
    while frames:  # the last first, each freed once copied
        frame = frames.pop()
        values[:, end - frame.shape[1] : end] = frame
        end -= frame.shape[1]
    categorical = [column for column in columns if column.endswith("_code")]
    return Block(name, values, columns, categorical, f"posts table: {', '.join(families)}", dropped=dropped)


def numbered(prefix: str, values: np.ndarray) -> pd.DataFrame:
    """The columns of values (n, d) as `prefix_0` to `prefix_<d-1>`."""
    return pd.DataFrame(values, columns=[f"{prefix}_{i}" for i in range(values.shape[1])])


def as_learnt(frame: pd.DataFrame, split: pd.Series, is_time: bool = False) -> pd.DataFrame:
    """The frame as float32, without columns that leave the train range for most test posts (unless they tell the time)."""
    frame = frame.astype(np.float32)
    train, test = (np.flatnonzero(split == part) for part in ("train", "test"))
    if is_time or not len(test):
        return frame

    def outside(values: np.ndarray) -> float:
        low, high = (reduce(values[train], initial=np.nan) for reduce in (np.fmin.reduce, np.fmax.reduce))
        return ((values[test] < low) | (values[test] > high)).mean()

    return frame[[name for name, column in frame.items() if outside(column.to_numpy()) <= OUTSIDE_SHARE]]


def varying(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the columns that hold one value, or nothing, in every row."""

    def varies(values: np.ndarray) -> bool:
        return len(values) > 0 and not ((values == values[0]) | (np.isnan(values) & np.isnan(values[0]))).all()

    return frame[[name for name, column in frame.items() if varies(column.to_numpy(np.float32))]]
