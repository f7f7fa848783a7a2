"""Many independent tasks, in worker processes of this machine or on a cluster; one whose process is lost is done again."""

from __future__ import annotations

import os
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Any

from kit.base.cluster import cluster_shape, map_on_cluster
from kit.base.errors import InputError
from kit.base.machine import gpu_names, peak_memory_mb, usable_cores
from kit.base.process import ENGINE, end_with, task_environment
from kit.base.progress import progress

ENGINES = ("local", "ray")
TRIES = 2  # of a task whose worker dies on this machine: most often its memory is too small for it
_begun: Any = None  # in a worker: place of a task -> id of the process that began it last, shared with the parent
_common: Any = None  # in a worker: what the tasks have in common, pickled until the first one needs it


def map_tasks(
    fn: Callable, items: Sequence, *, common: Any = None, cpus: int = 1, gpus: int = 0, cores: int = 0, label: str = "",
    unit: str = "task", worked: Callable[[Any], float] | None = None,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """(position, fn(item)) in order of completion; with room for one task at a time, a plain loop in this process.

    Args:
        fn: a function of a module. It may run twice for an item: files are written whole, and what is there is kept.
        items: names, numbers, dataclasses of paths: they are sent to the workers.
        common: where given, fn(common, item) is called; sent once to each process that does tasks.
        cpus: threads of one task; 0: all cores of a machine, or their share for its GPUs.
        gpus: of one task; CUDA_VISIBLE_DEVICES names them before a library is loaded.
        cores: of this machine for all tasks together; 0: all.
        label, unit: for the progress, which counts finished tasks.
        worked: of a task's result; see `progress`.

    Raises:
        InputError: the process of one task was lost again and again.
        Exception: what fn raised; the other tasks are ended.
    """
    if on_cluster():
        done = map_on_cluster(fn, items, common, cpus, gpus, label or unit) if items else iter(())
    else:
        devices, cores = _devices()[: None if gpus else 0], cores or usable_cores()
        cpus = cpus or max(1, cores // max(1, len(devices)))
        n_workers = min(len(items), len(devices) // gpus if gpus else cores // cpus)
        if n_workers > 1:
            done = _in_workers(fn, items, common, n_workers, cpus, devices, label or unit)
        else:
            done = ((place, _apply(fn, common, item)) for place, item in enumerate(items))
    yield from progress(done, len(items), label, unit, worked and (lambda placed: worked(placed[1])))


def on_cluster() -> bool:
    """Whether tasks are done by the machines of a cluster: ``--engine ray``."""
    return os.environ.get(ENGINE) == "ray"


def machine_shape() -> tuple[int, int]:
    """Cores and GPUs of a machine that does tasks: of this one, or of the smallest of the cluster."""
    return cluster_shape() if on_cluster() else (usable_cores(), len(_devices()))


def _devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(len(gpu_names()))]
    return [name for name in visible.split(",") if name not in ("", "-1")]


def _in_workers(
    fn: Callable, items: Sequence, common: Any, n_workers: int, cpus: int, devices: list[str], label: str
) -> Iterator:
    """Pools of workers until nothing is left: a dead worker ends its pool, and the next one goes on with what is missing."""
    left, deaths, context = dict(enumerate(items)), Counter(), get_context("spawn")
    # loaded by a worker once it knows its threads and devices
    common = None if common is None else pickle.dumps(common)
    while left:
        begun, free, others = context.RawArray("q", len(items)), context.SimpleQueue(), set(active_children())
        for device in devices:
            free.put(device)
        start = (os.getpid(), cpus, begun, common, free if devices else None)
        pool = ProcessPoolExecutor(n_workers, context, _start, start)
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


def _start(parent: int, cpus: int, begun: Any, common: bytes | None, free: Any) -> None:
    """In a new worker, before any library is loaded."""
    global _begun, _common
    _begun, _common = begun, common
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, too, and ends its workers
    os.environ.update(task_environment(cpus))
    if free is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = free.get()


def _run(fn: Callable, place: int, item: Any) -> Any:
    global _common
    _begun[place] = os.getpid()
    _common = pickle.loads(_common) if isinstance(_common, bytes) else _common
    return _apply(fn, _common, item)


def _apply(fn: Callable, common: Any, item: Any) -> Any:
    return fn(item) if common is None else fn(common, item)
