"""The table in a JSON file: a list of rows, or ``{column: {row: value}}`` as pandas writes it; every fault is named."""

from __future__ import annotations

import json
from collections.abc import Set
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from kit.base.errors import InputError
from kit.release.columns import Column, column_of, free_memory, missing_column


def read_json_table(path: Path, wanted: Set[str]) -> dict[str, Column]:
    """The columns of a JSON file by name, in order of first appearance, values as they stand there.

    Args:
        path: the file.
        wanted: names of columns; any other stands in the result as one without values.
    Raises:
        InputError: the file is no JSON, no table, or without rows.
    """
    try:
        content = _parse_json(path)
        if not content:
            raise InputError(f"{path} holds no posts: this release is empty")
        if isinstance(content, dict):
            return _columns_of_table(content, wanted, path)
        return _columns_of_rows(content, wanted, path)
    except RecursionError as error:
        raise _not_flat(path, error) from error
    finally:
        free_memory()


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check its permissions") from error


def _columns_of_rows(rows: Any, wanted: Set[str], path: Path) -> dict[str, Column]:
    """A row without a name has None there."""
    if not isinstance(rows, list):
        raise InputError(f"{path} holds a JSON {type(rows).__name__}; expected a list of posts or a table by columns")
    if set(map(type, rows)) != {dict}:
        i = next(i for i, row in enumerate(rows) if not isinstance(row, dict))
        raise InputError(f"{path}, row {i}: expected one post as {{name: value}}, found {str(rows[i])[:60]!r}")
    names = dict.fromkeys(chain.from_iterable(rows))
    missing = missing_column(len(rows))
    return {name: column_of([row.get(name) for row in rows]) if name in wanted else missing for name in names}


def _columns_of_table(table: dict, wanted: Set[str], path: Path) -> dict[str, Column]:
    """Rows named 0 to n-1 are put in that order, whatever order they are written in."""
    first: list[str] | None = None
    columns = {}
    for name, values in table.items():
        if not isinstance(values, (dict, list)):
            raise InputError(f"{path}: column {name!r} is a {type(values).__name__}; expected its values by row")
        rows = list(values) if isinstance(values, dict) else list(map(str, range(len(values))))
        first = rows if first is None else first
        if rows != first:
            raise InputError(f"{path}: column {name!r} has other rows ({len(rows):,}) than the first ({len(first):,})")
        given = list(values.values()) if isinstance(values, dict) else values
        columns[name] = column_of(given) if name in wanted else missing_column(len(rows))
    numbers = list(map(str, range(len(first or ()))))
    if numbers == first or set(numbers) != set(first or ()):
        return columns
    order = np.argsort(np.array(first, dtype=np.int64))
    return {name: Column(column.codes[order], column.kept) for name, column in columns.items()}


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
