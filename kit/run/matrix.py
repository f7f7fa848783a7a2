"""Blocks side by side, read by rows: what learners take their columns from without ever holding them all in memory.

Blocks lie on disk and are memory-mapped. Pages that were read count as this process's memory until they are given back, so
every read here gives them back: at half a million posts and thousands of columns the difference is all there is.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.files import write_trouble
from kit.run.block import Block

PIECE_MB = 16  # of float32 at a time
TOGETHER = 32  # columns read at a time
SCATTERED = 512  # rows read between two give_backs: each may bring 64 KB of its neighbours along


class SideBySide:
    """Matrices of the same rows as one (n, d) float32 matrix; an array for all who ask for rows, and never a copy.

    Args:
        parts: (n, d_i) arrays, memory-mapped or not, of any float type.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = tuple(parts)
        self.shape = len(self.parts[0]), sum(part.shape[1] for part in self.parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """(k, d) float32 copy of some rows, given by a slice or by their positions."""
        k = len(range(*rows.indices(len(self)))) if isinstance(rows, slice) else len(rows)
        out = np.empty((k, self.shape[1]), dtype=np.float32)
        column = 0
        for part in self.parts:
            own = out[:, column : column + part.shape[1]]
            column += part.shape[1]
            if isinstance(rows, slice):
                own[:] = part[rows]
                give_back(part)
                continue
            for start in range(0, k, SCATTERED):
                own[start : start + SCATTERED] = part[rows[start : start + SCATTERED]]
                give_back(part)
        return out

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


def join_blocks(blocks: Sequence[Block], name: str = "joined") -> Block:
    """One block with the columns of all, read where they lie; a name that clashes gets its block's in front.

    Raises:
        InputError: no block, or blocks of other numbers of rows.
    """
    if not blocks:
        raise InputError("no block to join; name at least one")
    if len({len(b.values) for b in blocks}) > 1:
        raise InputError(
            f"blocks differ in rows: { {b.name: len(b.values) for b in blocks} }; rebuild them from one run"
        )
    seen = pd.Series([c for b in blocks for c in b.columns]).value_counts()
    new = [{c: c if seen[c] == 1 else f"{b.name}:{c}" for c in b.columns} for b in blocks]
    columns = [names[c] for b, names in zip(blocks, new, strict=True) for c in b.columns]
    categorical = [names[c] for b, names in zip(blocks, new, strict=True) for c in b.categorical]
    values = SideBySide([b.values for b in blocks])
    return Block(name, values, columns, categorical, " + ".join(b.name for b in blocks))


def pieces(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices that cover n_rows rows, each of at most PIECE_MB in float32."""
    step = piece_rows(n_columns)
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def piece_rows(n_columns: int) -> int:
    """Rows of a piece."""
    return max(1, int(PIECE_MB * (1 << 20)) // (4 * max(1, n_columns)))


def columns_of(block: Block) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values (n,) float32 of each column; TOGETHER at a time, because each reading goes through the whole file."""
    for start in range(0, len(block.columns), TOGETHER):
        names = block.columns[start : start + TOGETHER]
        part = np.empty((len(block.values), len(names)), dtype=np.float32, order="F")
        for rows in pieces(*block.values.shape):
            part[rows] = block.values[rows, start : start + TOGETHER]
            give_back(block.values)
        yield from zip(names, part.T, strict=True)


def save_values(path: Path, values: np.ndarray) -> None:
    """The .npy file that `np.save` writes, by pieces."""
    with open(path, "wb") as file:
        header = {"descr": values.dtype.str, "fortran_order": False, "shape": values.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for rows in pieces(*values.shape):
            file.write(np.ascontiguousarray(values[rows]).data)
            give_back(values)


def give_back(values: np.ndarray) -> None:
    """Let the system take back the pages of a memory-mapped array that were read; the file still has them."""
    mapped = values
    while isinstance(mapped, np.ndarray):
        mapped = mapped.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and not values.flags.writeable:
        mapped.madvise(mmap.MADV_DONTNEED)


class Scratch:
    """A (n, d) float32 matrix in a file without a name, written once by pieces, then read as an array in place of memory.

    Args:
        shape: (n, d).
        folder: where there is room for it; the system's temporary folder by default.

    Raises:
        InputError: the disk is full, or the system refuses to write there.
    """

    def __init__(self, shape: tuple[int, int], folder: Path | None = None):
        self._shape = shape
        self._place = Path(folder or tempfile.gettempdir()) / "scratch file"
        with self._told():
            self._place.parent.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows."""
        with self._told():
            self._file.write(np.ascontiguousarray(rows, dtype=np.float32).data)

    def array(self) -> np.ndarray:
        """(n, d) float32, memory-mapped, read-only; nothing can be appended afterwards."""
        with self._told(), self._file as file:  # a map outlives its file
            file.flush()
            mapped = np.memmap(file, np.float32, "r", shape=self._shape) if all(self._shape) else np.empty(self._shape)
        return np.asarray(mapped, dtype=np.float32)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What the system refuses, in words."""
        try:
            yield
        except OSError as error:
            raise write_trouble(error, self._place) or error from error
