"""The table in a JSON file: a list of rows, or ``{column: {row: value}}`` as pandas writes it.

A file is parsed in pieces of some hundred rows: so it never stands in memory as half a million Python tables, and a piece
stays in the processor's cache. Where a piece ends is guessed and then proven: a piece that was cut inside a
text or inside a value is no JSON. Whatever cannot be read so, or has another form, is read as a whole, slower, and that is
where every fault is named.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from kit.base.errors import InputError
from kit.base.machine import usable_cores
from kit.release.columns import Column, ColumnBuilder, free_memory, missing_column

PIECE = 100_000  # bytes
BLANK = rb"[ \t\r\n]*"  # what JSON takes for white space
ROW_END = re.compile(rb"\}" + BLANK + b"(," + BLANK + rb")(?=\{)")
VALUE_END = re.compile(b"(," + BLANK + rb')(?="\d+"' + BLANK + b":)")
COLUMN_START = re.compile(BLANK + rb'("[^"\\]*")' + BLANK + b":" + BLANK + rb"\{")
COLUMN_END = re.compile(rb"\}" + BLANK + b"(?:,(?=" + COLUMN_START.pattern + rb")|(?=\}\Z))")
Parser = Callable[[bytes], Any]


@contextmanager
def _without_collector() -> Iterator[None]:
    """Parsed rows hold no cycles, so Python's garbage collector would search millions of them for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_without_collector()
def read_json_table(path: Path, wanted: Set[str]) -> dict[str, Column]:
    """The columns of a JSON file by name, values as they stand there.

    Args:
        path: the file.
        wanted: names of columns; any other stands in the result as one without values.
    Raises:
        InputError: the file is no JSON, no table, or without rows.
    """
    for parse in (orjson.loads, json.loads):  # NaN and unpaired surrogates are no JSON for orjson
        try:
            return _read_pieces(path, parse, wanted)
        except (ValueError, RecursionError):
            pass
        finally:
            free_memory()
    try:
        return _read_whole(path, wanted)
    except RecursionError as error:
        raise _not_flat(path, error) from error


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check its permissions") from error


# --- in pieces --------------------------------------------------------------------------------------------------------


def _read_pieces(path: Path, parse: Parser, wanted: Set[str]) -> dict[str, Column]:
    """Raises ValueError for what cannot be read in pieces."""
    raw = read_bytes(path).strip(b" \t\r\n")
    if raw[:1] == b"[" and raw[-1:] == b"]":
        return _columns_of_rows(_pieces(raw, 1, len(raw) - 1, ROW_END, parse, b"[]"), wanted)
    if raw[:1] == b"{":
        return _columns_of_table(_column_pieces(raw, parse), wanted)
    raise ValueError("neither rows nor columns")


def _pieces(raw: bytes, start: int, stop: int, end: re.Pattern, parse: Parser, brackets: bytes) -> Iterator[Any]:
    """Some items at a time of the list or table around raw[start:stop].

    That a piece can be parsed proves that it ends between two items, and so that the next one starts there.
    """
    view = memoryview(raw)
    while True:
        cut = end.search(raw, min(start + PIECE, stop), stop)
        yield parse(b"".join((brackets[:1], view[start : cut.start(1) if cut else stop], brackets[1:])))
        if not cut:
            return
        start = cut.end(1)


def _column_pieces(raw: bytes, parse: Parser) -> Iterator[tuple[str, dict]]:
    place = 1
    while start := COLUMN_START.match(raw, place):
        end = COLUMN_END.search(raw, start.end())
        if not end:
            break
        for piece in _pieces(raw, start.end(), end.start(), VALUE_END, parse, b"{}"):
            yield parse(start[1]), piece
        place = end.end()
    if place == 1 or raw[place:] != b"}":
        raise ValueError("not only columns by row")


def _columns_of_rows(pieces: Iterable[list], wanted: Set[str]) -> dict[str, Column]:
    """Columns in order of first appearance; a row without a name has None there."""
    names: dict[str, None] = {}
    builders: dict[str, ColumnBuilder] = {}
    n_rows = 0
    for rows in pieces:
        if set(map(type, rows)) != {dict}:
            raise ValueError("not only rows")
        columns = _transpose(rows)
        names.update(dict.fromkeys(columns))
        for name in names.keys() & wanted - builders.keys():
            builders[name] = ColumnBuilder()
            builders[name].add([None] * n_rows)
        for name, builder in builders.items():
            builder.add(columns.get(name) or [None] * len(rows))
        n_rows += len(rows)
    with ThreadPoolExecutor(usable_cores()) as pool:  # Arrow counts texts outside Python's lock
        built = dict(zip(builders, pool.map(ColumnBuilder.build, builders.values()), strict=True))
    return {name: built[name] if name in built else missing_column(n_rows) for name in names}


def _transpose(rows: list[dict]) -> dict[str, list]:
    names = list(rows[0])
    if list(chain.from_iterable(rows)) == names * len(rows):  # all rows have these names in this order
        values = list(chain.from_iterable(map(dict.values, rows)))
        return {name: values[place :: len(names)] for place, name in enumerate(names)}
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    return {name: [row.get(name) for row in rows] for name in names}


def _columns_of_table(pieces: Iterable[tuple[str, dict]], wanted: Set[str]) -> dict[str, Column]:
    keys: list[str] = []  # of the rows, as in the first column
    columns: dict[str, Column] = {}
    for name, group in groupby(pieces, key=itemgetter(0)):
        n_rows, builder = 0, ColumnBuilder()
        for _, piece in group:
            if not columns:
                keys.extend(piece)
            if name in columns or list(piece) != keys[n_rows : n_rows + len(piece)]:
                raise ValueError("a column that appears twice, or has other rows than the first")
            if name in wanted:
                builder.add(list(piece.values()))
            n_rows += len(piece)
        if n_rows != len(keys):
            raise ValueError("fewer rows than in the first column")
        columns[name] = builder.build() if name in wanted else missing_column(n_rows)
    if len(set(keys)) < len(keys):
        raise ValueError("a row that appears twice")
    return _in_row_order(columns, keys)


def _in_row_order(columns: dict[str, Column], keys: list[str]) -> dict[str, Column]:
    """The columns with rows named 0 to n-1 in that order, whatever order they are written in."""
    numbers = list(map(str, range(len(keys))))
    if numbers == keys or set(numbers) != set(keys):
        return columns
    order = np.argsort(np.array(keys, dtype=np.int64))
    return {name: Column(column.codes[order], column.kept) for name, column in columns.items()}


# --- as a whole -------------------------------------------------------------------------------------------------------


def _read_whole(path: Path, wanted: Set[str]) -> dict[str, Column]:
    content = _parse_json(path)
    if not content:
        raise InputError(f"{path} holds no posts: this release is empty")
    if isinstance(content, dict):
        return _columns_of_table(_whole_columns(content, path), wanted)
    if not isinstance(content, list):
        raise InputError(
            f"{path} holds a JSON {type(content).__name__}; expected a list of posts or a table by columns"
        )
    for i, row in enumerate(content):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {i}: expected one post as {{name: value}}, found {str(row)[:60]!r}")
    return _columns_of_rows([content], wanted)


def _parse_json(path: Path) -> Any:
    raw = read_bytes(path)
    if not raw.strip():
        raise InputError(f"{path} is empty: copy it from the release again")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(raw)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start:,}): copy it from the release again") from error
    except json.JSONDecodeError as error:
        ended = error.doc.rstrip().endswith(("]", "}")) and error.pos < len(error.doc.rstrip()) - 1
        cut = "" if ended else "; it ends too early, so the copy is probably incomplete"
        raise InputError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno} "
            f"(character {error.pos:,} of {len(error.doc):,}){cut}. Copy it from the release again"
        ) from error
    except (RecursionError, ValueError) as error:  # lists in lists in lists ..., or a number of thousands of digits
        raise _not_flat(path, error) from error


def _not_flat(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read as JSON ({str(error)[:100]}); expected one flat row of values per post. Copy it from the "
        "release again"
    )


def _whole_columns(content: dict, path: Path) -> Iterator[tuple[str, dict]]:
    """Name and values by row of each column; all have the same rows."""
    first_keys = None
    for name, values in content.items():
        if not isinstance(values, (dict, list)):
            raise InputError(f"{path}: column {name!r} is a {type(values).__name__}; expected its values by row")
        rows = values if isinstance(values, dict) else {str(row): value for row, value in enumerate(values)}
        first_keys = list(rows) if first_keys is None else first_keys
        if list(rows) != first_keys:
            raise InputError(
                f"{path}: column {name!r} has other rows ({len(rows):,}) than the first ({len(first_keys):,})"
            )
        yield name, rows
