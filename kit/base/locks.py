"""One process at a time: one pipeline per run directory, one maker of the demo."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from kit.base.errors import InputError
from kit.base.files import read_json, write_json
from kit.base.paths import shown

LOCK, HOLDER = ".lock", ".lock.json"  # in a run directory: what is locked, and who holds it
SHORT_S = 1  # a look at the lock holds it for a moment
KERNEL_ENDS_S = 15  # how long to wait for the kernel of a pipeline that was killed
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def exclusive(path: Path, timeout_s: float = -1) -> Iterator[None]:
    """Hold the lock file ``path``, which ends with the process at the latest; a file system without locks gives every one.

    Args:
        timeout_s: how long to wait for it; below 0: for ever.
    Raises:
        filelock.Timeout: another process holds it.
    """
    held = FileLock(path, timeout=timeout_s)
    try:
        held.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"note: no locks in {shown(path.parent)} ({error.strerror}); let only one process work there", flush=True)
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def lock(run_dir: Path, command: str) -> Iterator[None]:
    """Keep a second pipeline out of the run directory while this one works in it; a dead process holds nothing.

    Args:
        command: how this pipeline was called, for whoever finds the folder taken.
    Raises:
        InputError: another pipeline works there, or a kernel that outlived its pipeline.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(run_dir / LOCK, SHORT_S))
        except Timeout:
            raise InputError(
                f"{_holder(run_dir)} is already working in {shown(run_dir)}: wait for it, or choose another folder with --out"
            ) from None
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        write_json(
            run_dir / HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": command}
        )
        _await_kernel(run_dir)
        yield


def lock_holder(run_dir: Path) -> str | None:
    """Who works in the run directory, in words; None if nobody does."""
    try:
        if (run_dir / LOCK).is_file():
            FileLock(run_dir / LOCK, timeout=0).acquire().lock.release()
    except Timeout:
        return _holder(run_dir)
    except OSError:
        pass  # a file system without locks, or a folder that may only be read
    return None


def _holder(run_dir: Path) -> str:
    try:
        by = read_json(run_dir / HOLDER)
        return f"process {by['pid']} on {by['host']}, since {by['since']} ({by['command']}),"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _await_kernel(run_dir: Path) -> None:
    """Wait until no kernel of an earlier pipeline, killed alone, works in the run directory (``end_with_runner``)."""
    try:
        import fcntl
    except ImportError:  # Windows: a kernel looks twice a second whether its pipeline lives
        return
    descriptor = os.open(run_dir, os.O_RDONLY)
    deadline = time.monotonic() + KERNEL_ENDS_S
    try:
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"a notebook of an earlier run still works in {shown(run_dir)}: end its process "
                        "(python -m ipykernel_launcher), or wait for it"
                    ) from None
                time.sleep(0.1)
            except OSError:
                return  # a file system without locks
    finally:
        os.close(descriptor)
