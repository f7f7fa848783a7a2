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


class ColumnBuilder:
    """A column from its values, some at a time. Texts go to Arrow, which needs neither Python's memory nor its dicts."""

    def __init__(self) -> None:
        self._texts: list[pa.Array] = []
        self._any: _AnyBuilder | None = None  # from the first value on that is neither text nor None

    def add(self, values: list) -> None:
        if self._any is None:
            try:
                self._texts.append(pa.array(values, pa.large_string()))
                return
            except (pa.ArrowException, TypeError, ValueError, OverflowError):  # another type, or half a surrogate pair
                self._any = _AnyBuilder()
                for texts in self._texts:
                    self._any.add(texts.to_pylist())
                self._texts.clear()
        self._any.add(values)

    def build(self) -> Column:
        return self._any.build() if self._any else self._build_texts()

    def _build_texts(self) -> Column:
        texts = pa.chunked_array(self._texts, pa.large_string()).combine_chunks()
        self._texts.clear()
        head = texts.slice(0, SAMPLE)
        if len(head.unique()) > MOSTLY * len(head):
            return Column(np.arange(len(texts), dtype=np.int32), texts)
        coded = texts.dictionary_encode(null_encoding="encode")
        return Column(coded.indices.to_numpy(), coded.dictionary)


class _AnyBuilder:
    """The same for values of any type, lists and tables included."""

    def __init__(self) -> None:
        self._code_of: dict[Any, int] = defaultdict(count().__next__)
        self._values: dict[tuple, Any] = {}  # by what stands for them among the keys of _code_of
        self._codes: list[np.ndarray] = []

    def add(self, values: list) -> None:
        if not set(map(type, values)) <= AS_THEY_ARE:
            values = [value if type(value) in AS_THEY_ARE else self._key(value) for value in values]
        self._codes.append(np.fromiter(map(self._code_of.__getitem__, values), np.int32, len(values)))

    def _key(self, value: Any) -> tuple:
        key = (repr(value),)
        self._values.setdefault(key, value)
        return key

    def build(self) -> Column:
        values = [self._values[key] if type(key) is tuple else key for key in self._code_of]
        return Column(np.concatenate(self._codes), object_array(values))


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
