"""Whole files or none: atomic writes, hashes, and what to say when a disk is full or refuses."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kit.base.errors import InputError
from kit.base.paths import shown

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
FULL_WORDS = re.compile(  # libraries that report a failed write in their own words, without a number
    r"No space left|File too large|quota exceeded|\d+ requested and \d+ written|wrote \d+ of \d+|failed writing|unexpected pos",
    re.I,
)


def check_writable(folder: Path) -> None:
    """Make ``folder`` and make sure that files can be written to it.

    Raises:
        InputError: it is a file, or the system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the output folder {folder} ({error.strerror or error}): "
            "give a folder you may write to with --out"
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name only if the block ends without an error.

    Raises:
        InputError: the disk is full, or the system refuses to write there.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "r+b") as handle:  # Windows flushes only what may be written
            os.fsync(handle.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner may read
        os.replace(temporary, path)
    except Exception as error:
        if trouble := write_trouble(error, path):
            raise trouble from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@functools.cache
def _umask() -> int:
    """The file mode bits this process takes away; the system tells them only by setting others."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_trouble(error: BaseException, path: Path) -> InputError | None:
    """What to tell people if ``error`` means that ``path`` could not be written; None if it means something else."""
    number = error.errno if isinstance(error, OSError) else None
    full = number in FULL or bool(FULL_WORDS.search(str(error)))
    if isinstance(error, InputError) or not (full or number in REFUSED):
        return None
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    why = getattr(error, "strerror", None) or error
    if full:
        free = f"{shutil.disk_usage(folder).free / 1e9:,.1f} GB are free there"
        what = f"cannot write {shown(path)} ({why}); {free}: make room, or raise the quota or file size limit,"
    else:
        what = f"no access to {shown(path)} ({why}): make the file and its folder readable and writable,"
    return InputError(
        f"{what} or choose another folder with --out. What was finished is kept; the same command goes on from there"
    )


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file at once: a reader sees the old content or the new, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_npy(path: Path, values: np.ndarray) -> None:
    """Write an array as .npy, atomically."""
    with atomic_path(path) as temporary:
        np.save(temporary, values)


def write_npz(path: Path, **arrays: Any) -> None:
    """Write named arrays as .npz, atomically."""
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)


def read_npz(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays that ``write_npz`` wrote, if ``key`` was one of them and the same; None without such a file."""
    if path.is_file():
        with np.load(path) as kept:
            if str(kept["key"]) == key:
                return dict(kept)
    return None


def write_table(path: Path, table: Any, index: bool = False) -> None:
    """Write a DataFrame as .csv or .parquet, as the path ends, atomically."""
    with atomic_path(path) as temporary:
        (table.to_csv if path.suffix == ".csv" else table.to_parquet)(temporary, index=index)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n")


def write_first(path: Path, value: Any) -> None:
    """Write ``value`` as JSON unless the file is there: of several processes the first one's stays, whole."""
    own = path.with_name(f".{path.stem}.{os.getpid()}.first{path.suffix}")
    write_json(own, value)
    try:
        os.link(own, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links: the last one's stays
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file this kit wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def digest(value: Any) -> str:
    """A short content hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """A short content hash of a file."""
    hasher = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 22):
            hasher.update(chunk)
    return hasher.hexdigest()[:16]


def hash_array(values: np.ndarray) -> str:
    """A short content hash of an array, memory-mapped or not; read by pieces, because it may be larger than memory."""
    hasher = hashlib.blake2b(f"{values.shape}{values.dtype}".encode(), digest_size=16)
    for start in range(0, len(values), 4096):
        hasher.update(np.ascontiguousarray(values[start : start + 4096]).data)
    return hasher.hexdigest()


def fingerprint(path: Path) -> dict | None:
    """Size, time of change and content hash of a file; None where there is no file."""
    if not path.is_file():
        return None
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "hash": hash_file(path)}


def matches(path: Path, known: dict | None) -> bool:
    """Whether the file still has the content of a fingerprint; only a file with another time of change is read."""
    if known is None or not path.is_file():
        return known is None and not path.is_file()
    stat = path.stat()
    if stat.st_size != known["size"]:
        return False
    return stat.st_mtime_ns == known["mtime_ns"] or hash_file(path) == known["hash"]


def _plain(value: Any) -> Any:
    """numpy scalars and paths as JSON knows them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
