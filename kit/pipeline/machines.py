"""Do the machines of a cluster hold and see what this one does? Asked before anything runs there."""

from __future__ import annotations

import os
import platform
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.base.cluster import ask_each_machine
from kit.base.code import PACKAGE
from kit.base.files import digest, hash_file
from kit.base.machine import gpu_names, package_versions
from kit.pipeline.check import Finding

SHARED = "put project, environment, data and run on a folder that all machines see under the same path"
MUST = {"code", "data", "probe"}  # what no run survives; other packages make other results at worst


def cluster(run_dir: Path, data_dir: Path) -> Iterator[Finding]:
    """One line for each machine, with all in which it differs from this one.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    with tempfile.NamedTemporaryFile(dir=run_dir, prefix=".probe.", suffix=".tmp") as probe:
        probe.write(os.urandom(8).hex().encode())
        probe.flush()
        asked = (run_dir, data_dir, Path(probe.name))
        here, n_machines = look(asked), 0
        for machine, there in ask_each_machine(look, asked):
            n_machines += 1
            yield _compare(machine, there, here)
            if not isinstance(there, Exception):
                there["wrote"].unlink(missing_ok=True)
        here["wrote"].unlink(missing_ok=True)
    if not n_machines:
        yield Finding("cluster", "no machine takes tasks: all were started with --num-cpus=0", "start others", True)


def look(asked: tuple[Path, Path, Path]) -> dict[str, Any]:
    """What a machine holds and sees: the task of each."""
    run_dir, data_dir, probe = asked
    wrote = run_dir / f".probe.{socket.gethostname()}.{os.getpid()}.tmp"
    wrote.write_text(seen := probe.read_text())
    return {
        "wrote": wrote, "GPUs": gpu_names(), "probe": seen, "python": platform.python_version(), **package_versions(),
        "code": digest([hash_file(path) for path in sorted(PACKAGE.rglob("*.py"))]),
        "data": digest(sorted((path.name, path.stat().st_size) for path in data_dir.iterdir() if path.is_file())),
    }  # fmt: skip


def _compare(machine: str, there: dict[str, Any] | Exception, here: dict[str, Any]) -> Finding:
    if isinstance(there, Exception):
        why = (str(there).strip().splitlines() or [""])[-1]
        return Finding("cluster", f"{machine}: {type(there).__name__}: {why}", SHARED, True)
    if not there["wrote"].is_file():
        return Finding(
            "cluster", f"{machine}: what it writes into {there['wrote'].parent} is not seen here", SHARED, True
        )
    names = [name for name in here if name != "wrote" and there.get(name, "missing") != here[name]]
    text = ", ".join(f"{name} {there.get(name, 'missing')} (here {here[name]})" for name in names)
    fatal = bool(MUST & {*names})
    todo = SHARED if fatal else "results may differ" if names else ""
    return Finding("cluster", f"{machine}: {text or 'packages, code, data and run as here'}", todo, fatal)
