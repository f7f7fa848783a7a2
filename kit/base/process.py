"""Processes that end with the pipeline that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

HEADLESS = "KIT_PIPELINE"  # environment variable: process id of the pipeline that started the notebook; unset by hand
PARAMETERS = "KIT_PARAMETERS"  # environment variable: the parameters that the pipeline gave the notebook, as JSON
WRITE = "KIT_WRITE"  # environment variable: set where notebooks run by hand may replace results without write=True
ENGINE = "KIT_ENGINE"  # environment variable: "ray" where tasks are done by a cluster; a task itself never sees it
TASK = "KIT_TASK"  # environment variable: set in processes that do tasks
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT")  # the last: usable_cores
PR_SET_PDEATHSIG = 1  # of Linux' prctl
_working_in: dict[Path, int] = {}  # run directory -> descriptor that holds it as long as this process lives


def task_environment(cpus: int) -> dict[str, str]:
    """For a process that does tasks: set before a library is loaded, so that it knows its cores."""
    return dict.fromkeys(THREADS, str(cpus)) | {"OMP_WAIT_POLICY": "passive", TASK: "1"}


def end_with_runner(run_dir: Path) -> None:
    """End this process as soon as the pipeline that started it is gone, so that it never writes beside the next one.

    The run directory is held with a shared lock until this process has ended; the next pipeline waits for that. In a
    notebook run by hand nothing happens.
    """
    if HEADLESS not in os.environ or run_dir in _working_in:
        return
    with contextlib.suppress(ImportError, OSError):  # Windows, and file systems without locks
        import fcntl

        _working_in[run_dir] = os.open(run_dir, os.O_RDONLY)
        fcntl.flock(_working_in[run_dir], fcntl.LOCK_SH)
    end_with(int(os.environ[HEADLESS]))


def end_with(pid: int) -> None:
    """End this process as soon as that one is gone."""
    if sys.platform == "linux" and os.getppid() == pid:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not is_alive(pid):
        os._exit(1)
    threading.Thread(target=_watch, args=(pid,), daemon=True).start()


def _watch(pid: int) -> None:
    while is_alive(pid):
        time.sleep(0.5)
    os._exit(1)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine still runs; one that only waits to be collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
