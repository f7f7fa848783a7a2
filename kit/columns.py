"""Columns of anything, each different value kept once: a release repeats most of its values, some thousands of times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

ENOUGH, MOSTLY = 1000, 0.9  # after so many rows, with such a share of different values, no more are looked for
AS_THEY_ARE = {str, int, type(None)}  # equal values of these types are the same value; 1.0 and True equal 1 and are not


@dataclass(frozen=True)
class Column:
    """The values of a column, `distinct[codes]`.

    Attributes:
        codes: (n,) int32, for each row the place of its value in `distinct`.
        distinct: (m,) object. A value may stand there twice, or be that of no row.
    """

    codes: np.ndarray
    distinct: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    def completed_by(self, other: Column) -> Column:
        """The column with missing values (None, NaN) taken from the other."""
        missing = np.array([value is None or value != value for value in self.distinct], dtype=bool)
        codes = np.where(missing[self.codes], other.codes + np.int32(len(self.distinct)), self.codes)
        return Column(codes, np.concatenate([self.distinct, other.distinct]))


class Coder:
    """A code for each different value, in order of first appearance; values may be lists and tables."""

    def __init__(self) -> None:
        self._code_of: dict[Any, int] = defaultdict(count().__next__)
        self._values: dict[tuple, Any] = {}  # by what stands for them among the keys of _code_of
        self._rest: list = []  # of a column of nearly nothing but different values
        self._n_rows = 0

    def encode(self, values: list) -> np.ndarray:
        """(n,) int32 codes."""
        if self._n_rows > ENOUGH and len(self._code_of) > MOSTLY * self._n_rows:
            start = len(self._code_of) + len(self._rest)
            self._rest.extend(values)
            return np.arange(start, start + len(values), dtype=np.int32)
        self._n_rows += len(values)
        if not set(map(type, values)) <= AS_THEY_ARE:
            values = [value if type(value) in AS_THEY_ARE else self._key(value) for value in values]
        return np.fromiter(map(self._code_of.__getitem__, values), np.int32, len(values))

    def _key(self, value: Any) -> tuple:
        key = (repr(value),)
        self._values.setdefault(key, value)
        return key

    def distinct(self) -> np.ndarray:
        """(m,) object: the value of each code."""
        values = list(self._code_of)
        if self._values:
            values = [self._values[key] if type(key) is tuple else key for key in values]
        return object_array(values + self._rest)


class Follower:
    """A coder for values that are probably those of a known column, which is cheaper to see than to code them anew."""

    def __init__(self, known: Column) -> None:
        self._known, self._n_rows = known, 0

    def encode(self, values: list) -> np.ndarray:
        """(n,) int32 codes of the known column; ValueError if it goes on in another way."""
        codes = self._known.codes[self._n_rows : self._n_rows + len(values)]
        self._n_rows += len(values)
        if set(map(type, values)) != {str} or values != self._known.distinct[codes].tolist():
            raise ValueError("another column")
        return codes

    def distinct(self) -> np.ndarray:
        return self._known.distinct


def missing_column(n_rows: int) -> Column:
    return Column(np.zeros(n_rows, dtype=np.int32), object_array([None]))


def join_columns(columns: Sequence[Column]) -> Column:
    """The rows of several columns, one after the other."""
    starts = np.cumsum([0, *(len(column.distinct) for column in columns[:-1])], dtype=np.int32)
    codes = [column.codes + start for column, start in zip(columns, starts, strict=True)]
    return Column(np.concatenate(codes), np.concatenate([column.distinct for column in columns]))


def object_array(values: list) -> np.ndarray:
    """The values as they are; only whole numbers beyond 64 bits become text, because pandas stumbles over them."""
    if int in set(map(type, values)):
        values = [str(value) if isinstance(value, int) and abs(value) >= 2**63 else value for value in values]
    return np.fromiter(values, dtype=object, count=len(values))
