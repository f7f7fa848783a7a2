"""One pipeline per run directory."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kit.base.errors import InputError
from kit.base.paths import shown

KERNEL_ENDS_S = 15  # how long to wait for the kernel of a pipeline that was killed


@contextlib.contextmanager
def lock(run_dir: Path, command: str) -> Iterator[None]:
    """Keep a second pipeline out of the run directory while this one works in it; a dead process holds nothing.

    Args:
        command: how this pipeline was called, for whoever finds the folder taken.
    Raises:
        InputError: another pipeline works there, or a kernel that outlived its pipeline.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks of this kind
        yield
        return
    with open(run_dir / ".lock", "a+", encoding="utf-8") as handle:
        if not _try_lock(handle.fileno(), fcntl.LOCK_EX):
            raise InputError(
                f"{_holder(handle)} is already working in {shown(run_dir)}: wait for it, or choose another folder with --out"
            )
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        handle.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": command}, handle)
        handle.flush()
        _await_kernel(run_dir)
        yield


def lock_holder(run_dir: Path) -> str | None:
    """Who works in the run directory, in words; None if nobody does."""
    path = run_dir / ".lock"
    try:
        import fcntl
    except ImportError:
        return None
    if not path.is_file():
        return None
    with open(path, encoding="utf-8") as handle:
        return None if _try_lock(handle.fileno(), fcntl.LOCK_SH) else _holder(handle)


def _try_lock(descriptor: int, kind: int) -> bool:
    """Whether the lock could be had; a file system without locks gives every one."""
    import fcntl

    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(
            f"note: this file system has no locks ({error.strerror}); let only one pipeline work in a run", flush=True
        )
    return True


def _holder(handle: IO[str]) -> str:
    handle.seek(0)
    try:
        by = json.load(handle)
        return f"process {by['pid']} on {by['host']}, since {by['since']} ({by['command']}),"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _await_kernel(run_dir: Path) -> None:
    """Wait until no kernel of an earlier pipeline, killed alone, works in the run directory."""
    import fcntl

    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        deadline = time.monotonic() + KERNEL_ENDS_S
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise InputError(
                    f"a notebook of an earlier run still works in {shown(run_dir)}: end its process "
                    "(python -m ipykernel_launcher), or wait for it"
                )
            time.sleep(0.1)
    finally:
        os.close(descriptor)
