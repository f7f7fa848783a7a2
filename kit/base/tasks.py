"""Many independent tasks in worker processes, each with its share of the cores; one that dies is told and repeated once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Any

from kit.base.errors import InputError
from kit.base.machine import gpu_names, peak_memory_mb, usable_cores
from kit.base.process import end_with
from kit.base.progress import progress

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read when a library is loaded
TRIES = 2  # of a task whose worker dies
_begun: Any = None  # in a worker: place of a task -> id of the process that began it last, shared with the parent


def map_tasks(
    fn: Callable[[Any], Any], items: Sequence, *, cpus: int = 1, gpus: int = 0, cores: int = 0, label: str = "",
    unit: str = "task",
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """(position, fn(item)) in order of completion; with room for one task at a time, a plain loop in this process.

    Args:
        fn: a function of a module. It may run twice for an item: files are written whole, and what is there is kept.
        items: names, numbers, dataclasses of paths: they are sent to the workers.
        cpus: threads of one task.
        gpus: of one task, 0 or 1; CUDA_VISIBLE_DEVICES names it before a library is loaded.
        cores: for all tasks together; 0: all of this machine.
        label, unit: for the progress, which counts finished tasks.

    Raises:
        InputError: the worker of one task died twice.
        Exception: what fn raised; the other tasks are ended.
    """
    devices = _devices() if gpus else []
    n_workers = min(len(items), len(devices) if gpus else (cores or usable_cores()) // cpus)
    if n_workers > 1:
        done = _in_workers(fn, items, n_workers, cpus, devices, label or unit)
    else:
        done = ((place, fn(item)) for place, item in enumerate(items))
    yield from progress(done, len(items), label, unit)


def _devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(len(gpu_names()))] if visible is None else visible.split(",")


def _in_workers(fn: Callable, items: Sequence, n_workers: int, cpus: int, devices: list[str], label: str) -> Iterator:
    """Pools of workers until nothing is left: a dead worker ends its pool, and the next one goes on with what is missing."""
    left, deaths, context = dict(enumerate(items)), Counter(), get_context("spawn")
    while left:
        begun, free, others = context.RawArray("q", len(items)), context.SimpleQueue(), set(active_children())
        for device in devices:
            free.put(device)
        pool = ProcessPoolExecutor(n_workers, context, _start, (os.getpid(), cpus, begun, free if devices else None))
        workers: set = set()
        try:
            futures = {pool.submit(_run, fn, place, item): place for place, item in left.items()}
            workers = set(active_children()) - others
            for future in as_completed(futures):
                if not isinstance(future.exception(), BrokenProcessPool):
                    yield futures[future], future.result()
                    del left[futures[future]]
        except BrokenProcessPool:  # before all were submitted
            workers = workers or set(active_children()) - others
        except BaseException:
            for worker in workers or set(active_children()) - others:
                worker.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if left:
            _blame(left, deaths, {worker.pid: worker.exitcode for worker in workers}, begun, label)


def _blame(left: dict[int, Any], deaths: Counter, ended: dict[int, int], begun: Sequence[int], label: str) -> None:
    """Count and tell the death of a worker for the task it was at; the others were ended by their pool, with SIGTERM."""
    dead = {pid: code for pid, code in ended.items() if code not in (0, -signal.SIGTERM)} or ended
    tasks = {place: dead[begun[place]] for place in left if begun[place] in dead}
    peak = peak_memory_mb(children=True)
    held = f"; the largest worker so far held {peak:,} MB" if peak else ""
    for place, code in (tasks or {-1: next(iter(dead.values()))}).items():
        deaths[place] += 1
        which = f"{label} {place + 1} ({str(left[place])[:200]})" if tasks else f"{label}: a worker without a task yet"
        if deaths[place] == TRIES:
            raise InputError(
                f"{which}: its process died {TRIES} times, last by {_in_words(code)}{held}. With fewer cores fewer tasks "
                "share the memory; the same command goes on from what is finished"
            )
        print(f"{which}: its process died by {_in_words(code)}{held}; it is repeated", flush=True)


def _in_words(code: int) -> str:
    words = {
        signal.SIGSEGV: " (segmentation fault)",
        signal.SIGKILL: " (killed: most often the system has run out of memory)",
    }
    return f"exit with status {code}" if code >= 0 else f"{signal.Signals(-code).name}{words.get(-code, '')}"


def _start(parent: int, cpus: int, begun: Any, free: Any) -> None:
    """In a new worker, before any library is loaded."""
    global _begun
    _begun = begun
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, too, and ends its workers
    os.environ.update(dict.fromkeys(THREADS, str(cpus)), OMP_WAIT_POLICY="passive")
    if free is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = free.get()


def _run(fn: Callable, place: int, item: Any) -> Any:
    _begun[place] = os.getpid()
    return fn(item)
