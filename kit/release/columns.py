"""Columns of anything, each different value kept once: a release repeats most of its values, some thousands of times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

SAMPLE, MOSTLY = 10_000, 0.9  # of so many texts so many differ: then texts that return are not worth looking for
AS_THEY_ARE = {str, int, type(None)}  # equal values of these types are the same value; 1.0 and True equal 1 and are not


@dataclass(frozen=True)
class Column:
    """The values of a column, `distinct[codes]`.

    Attributes:
        codes: (n,) int32, for each row the place of its value among the different ones.
        kept: (m,) the different values, of any type (object) or texts (Arrow). A value may stand there twice, or be that of
            no row.
    """

    codes: np.ndarray
    kept: np.ndarray | pa.Array

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def distinct(self) -> np.ndarray:
        """(m,) object; made anew at each call, because texts take less room as they are kept."""
        return self.kept if isinstance(self.kept, np.ndarray) else self.kept.to_numpy(zero_copy_only=False)

    def is_text_of(self, other: Column) -> bool:
        """Whether both columns hold the same texts in the same form; False proves nothing."""
        return (
            isinstance(self.kept, pa.Array)
            and isinstance(other.kept, pa.Array)
            and np.array_equal(self.codes, other.codes)
            and self.kept.equals(other.kept)
        )

    def completed_by(self, other: Column) -> Column:
        """The column with missing values (None, NaN) taken from the other."""
        known = self.distinct
        missing = np.array([value is None or value != value for value in known], dtype=bool)
        codes = np.where(missing[self.codes], other.codes + np.int32(len(known)), self.codes)
        return Column(codes, np.concatenate([known, other.distinct]))


def column_of(values: list) -> Column:
    """A column from its values. Texts go to Arrow, which needs neither Python's memory nor its dicts."""
    try:
        texts = pa.array(values, pa.large_string())
    except (pa.ArrowException, TypeError, ValueError, OverflowError):  # another type, or half a surrogate pair
        return _column_of_any(values)
    head = texts.slice(0, SAMPLE)
    if len(head.unique()) > MOSTLY * len(head):
        return Column(np.arange(len(texts), dtype=np.int32), texts)
    coded = texts.dictionary_encode(null_encoding="encode")
    return Column(coded.indices.to_numpy(), coded.dictionary)


def _column_of_any(values: list) -> Column:
    """The same for values of any type, lists and tables included."""
    code_of: dict[Any, int] = defaultdict(count().__next__)
    others: dict[tuple, Any] = {}  # what cannot stand among the keys of code_of as it is, by its text
    keys = []
    for value in values:
        key = value if type(value) in AS_THEY_ARE else (repr(value),)
        if key is not value:
            others.setdefault(key, value)
        keys.append(key)
    codes = np.fromiter(map(code_of.__getitem__, keys), np.int32, len(keys))
    return Column(codes, object_array([others[key] if type(key) is tuple else key for key in code_of]))


def free_memory() -> None:
    """What Arrow no longer uses goes back to the system; otherwise it waits for more texts that do not come."""
    pa.default_memory_pool().release_unused()


def missing_column(n_rows: int) -> Column:
    return Column(np.zeros(n_rows, dtype=np.int32), object_array([None]))


def join_columns(columns: Sequence[Column]) -> Column:
    """The rows of several columns, one after the other."""
    starts = np.cumsum([0, *(len(column.kept) for column in columns[:-1])], dtype=np.int32)
    codes = np.concatenate([column.codes + start for column, start in zip(columns, starts, strict=True)])
    if all(isinstance(column.kept, pa.Array) for column in columns):
        return Column(codes, pa.concat_arrays([column.kept for column in columns]))
    return Column(codes, np.concatenate([column.distinct for column in columns]))


def object_array(values: list) -> np.ndarray:
    """The values as they are; only whole numbers beyond 64 bits become text, because pandas stumbles over them."""
    if int in set(map(type, values)):
        values = [str(value) if isinstance(value, int) and abs(value) >= 2**63 else value for value in values]
    return np.fromiter(values, dtype=object, count=len(values))
