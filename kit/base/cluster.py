"""Tasks on the machines of a Ray cluster that is there already; those of a lost machine are done again elsewhere."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from kit.base.errors import InputError
from kit.base.paths import PROJECT_ROOT
from kit.base.process import ENGINE, HEADLESS, PARAMETERS, task_environment

RETRIES = 3  # of a task whose process or machine is lost
AHEAD = 3  # tasks handed to Ray for each that can run: it holds the arguments of those in memory
ANSWER_S = 10  # until a cluster's port must answer
WAIT_S, WAITS = 10, 6  # how long to wait for a task, and how often while no machine is left that could do it
# variables beginning so; Ray's workers inherit none
HANDED_OVER = ("OMP_", "PYTHON", "TOKENIZERS_", "HF_", "TORCH_", "KIT_")
GO_ON = "the same command goes on from what is finished"
NO_RAY = "--engine ray: Ray is not installed: .venv/bin/python -m pip install -e '.[ray]'"
NO_CLUSTER = (
    "--engine ray: no cluster answers ({address}: {error}). Start one, `ray start --head` here and `ray start "
    "--address=HEAD:6379` on the other machines, or under Slurm `srun ray symmetric-run ...`; RAY_ADDRESS names another head "
    "(README, \"More machines\")"
)  # fmt: skip


@contextlib.contextmanager
def connected(stay: bool = False) -> Iterator[Any]:
    """The module ``ray``, connected to RAY_ADDRESS or the cluster of this machine; its workers end with the block.

    Args:
        stay: they do not, unless the block fails: tasks of a later one find them with their libraries loaded. They end with
            this process at the latest.
    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(NO_RAY) from error
    address = os.environ.get("RAY_ADDRESS") or _last_started()
    try:
        _knock(address)
        if not ray.is_initialized():
            ray.init(address=address, logging_level="ERROR", configure_logging=True)
            atexit.register(ray.shutdown)  # before Ray's own, which waits for messages
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise InputError(NO_CLUSTER.format(address=address, error=type(error).__name__)) from error
    try:
        yield ray
    except BaseException:
        ray.shutdown()
        raise
    if not stay:
        ray.shutdown()


def _last_started() -> str:
    """Address of the cluster that was started last on this machine, as Ray writes it down; "auto" where nothing is."""
    written = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    return written.read_text().strip() if written.is_file() else "auto"


def _knock(address: str) -> None:
    """Refuse at once what nobody listens at, such as a cluster of yesterday; Ray would wait for it for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()


def machines(ray: Any) -> list[tuple[str, str, int, int]]:
    """Node id, address, cores and GPUs of each machine that takes tasks, as Ray was told when it was started there."""
    found = [
        (node["NodeID"], node["NodeManagerAddress"], *(int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU")))
        for node in ray.nodes() if node["Alive"]
    ]  # fmt: skip
    return [machine for machine in found if machine[2]]


@functools.cache
def cluster_shape() -> tuple[int, int]:
    """Cores and GPUs of the smallest machine; where some have GPUs, of those. Asked once, so that all tasks are cut alike."""
    with connected(stay=True) as ray:
        return _smallest(machines(ray))


def map_on_cluster(fn: Callable, items: Sequence, common: Any, cpus: int, gpus: int, label: str) -> Iterator:
    """``kit.base.tasks.map_tasks`` on the machines of a cluster."""
    cpus = _cpus(cpus, gpus)
    with connected(stay=common is None and not gpus) as ray:  # else their memory is not free for what comes next
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES, "max_calls": 0}  # 0: a process stays
        call = ray.remote(runtime_env=_surroundings(cpus), **options)(_call)
        # in a list it arrives as a reference, followed once a process
        shared = [] if common is None else [ray.put(common)]
        rooms = [min(cores // cpus, has // gpus if gpus else cores) for *_, cores, has in machines(ray)]
        waiting, running, n_waits = iter(enumerate(items)), {}, 0
        ahead = 1  # until a first task is done: Ray starts workers for those that wait, too
        while True:
            for place, item in islice(waiting, max(1, ahead * sum(rooms)) - len(running)):
                running[call.remote(fn, os.getcwd(), shared, item)] = place
            if not running:
                return
            done, _ = ray.wait(list(running), timeout=WAIT_S)
            n_waits = 0 if done or any(one[2] >= cpus and one[3] >= gpus for one in machines(ray)) else n_waits + 1
            if n_waits == WAITS:
                raise InputError(
                    f"{label}: no machine of the cluster is left with {cpus} cores and {gpus} GPUs; {GO_ON}"
                )
            for reference in done:
                place, ahead = running.pop(reference), AHEAD
                yield place, _result(ray, reference, f"{label} {place + 1} ({str(items[place])[:200]})")


def ask_each_machine(fn: Callable, item: Any) -> Iterator[tuple[str, Any]]:
    """Each machine that takes tasks, in words, and fn(item) there; the exception where there is none."""
    with connected() as ray:
        on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        call = ray.remote(runtime_env=_surroundings(1), max_retries=0)(_call)
        asked = {
            f"{address} ({cores} cores, {gpus} GPUs)":
            call.options(scheduling_strategy=on(node, soft=False)).remote(fn, os.getcwd(), [], item)
            for node, address, cores, gpus in machines(ray)
        }  # fmt: skip
        for machine, reference in asked.items():
            try:
                yield machine, ray.get(reference)
            except ray.exceptions.RayError as error:
                yield machine, getattr(error, "cause", None) or error


def _result(ray: Any, reference: Any, task: str) -> Any:
    """What a task returned; its own exception as it was raised there, where that can be."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayError as error:
        raise InputError(
            f"{task}: its process or machine was lost {RETRIES + 1} times, last by {type(error).__name__}; most often the "
            f"memory was too small: see the logs of Ray on that machine. {GO_ON.capitalize()}"
        ) from error


def _smallest(found: list[tuple[str, str, int, int]]) -> tuple[int, int]:
    if not found:
        raise InputError("--engine ray: no machine of the cluster takes tasks: all were started with --num-cpus=0")
    found = [one for one in found if one[3]] or found
    return min(one[2] for one in found), min(one[3] for one in found)


def _cpus(cpus: int, gpus: int) -> int:
    """Cores of one task; 0: all of a machine, or the share of its GPUs. Never more than the smallest machine has."""
    cores, has = cluster_shape()
    if gpus > has:
        raise InputError(f"--engine ray: tasks need {gpus} GPUs on one machine; those of the cluster have {has}")
    return min(cpus or max(1, cores * gpus // has if gpus else cores), cores)


def _surroundings(cpus: int) -> dict[str, dict[str, str]]:
    """The variables of a worker, whose libraries get so many threads; from the cluster it inherits none of them."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(HANDED_OVER)}
    for name in (HEADLESS, PARAMETERS, ENGINE):  # of this process alone
        variables.pop(name, None)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT_ROOT), variables.get("PYTHONPATH"))))
    return {"env_vars": variables | task_environment(cpus)}


def _call(fn: Callable, folder: str, shared: list, item: Any) -> Any:
    """In a worker."""
    os.chdir(folder)  # relative paths mean the same as where the tasks come from
    return fn(*map(_fetched, shared), item)


@functools.cache
def _fetched(reference: Any) -> Any:
    import ray

    return ray.get(reference)
