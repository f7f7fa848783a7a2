"""The chain: walk the notebooks in order, skip what is fresh, run the rest headlessly, end with a submission and a report.

    python -m kit.pipeline                       the demo (made if missing) into outputs/demo
    python -m kit.pipeline --data inputs/smpd    a release of your own, profile "full"

Everything a step hands on lies in the run directory (``kit.run``); whether a step must run again is decided by comparing stamps
(``kit.pipeline.stamps``); a notebook runs in a kernel of its own (``kit.pipeline.notebook``).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from kit.base.errors import InputError
from kit.base.files import check_writable, write_trouble
from kit.base.locks import exclusive, lock
from kit.base.paths import PROJECT_ROOT, resolve, shown
from kit.base.process import ENGINE
from kit.base.tasks import ENGINES, on_cluster
from kit.demo.make import DEMO_POSTS, make_release
from kit.pipeline import check, track
from kit.pipeline.machines import cluster
from kit.pipeline.steps import (
    CALLED_FROM,
    DEMO,
    NOTEBOOKS,
    PROFILES,
    choose,
    command_line,
    plan,
    plan_first,
    step_number,
)
from kit.pipeline.walk import list_steps, walk
from kit.release.marker import is_demo
from kit.run.directory import Run
from kit.run.exchange import export_blocks, import_blocks
from kit.run.marks import data_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 a step failed, 2 a mistake of the user, 138 a kernel died)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("SIGTERM", "SIGHUP"):  # SIGHUP: the terminal was closed; Windows has none, and nohup ignores it
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, name), _stop)
    try:
        options = _parse(arguments)
        os.environ[ENGINE] = options.engine
        if not NOTEBOOKS.is_dir():
            raise InputError(
                f"there are no notebooks in {NOTEBOOKS}: a wheel holds the package alone. The chain runs from a checkout: "
                "clone the project and call ./run_all.sh there"
            )
        if options.test is not None:
            return subprocess.call([sys.executable, "-m", "pytest", *options.test], cwd=PROJECT_ROOT)
        if options.lab:
            return _lab(options)
        if options.compare:
            return track.compare(*(_from_here(name) for name in options.compare))
        status = _run(options, arguments)
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read what is printed has gone, as in ./run_all.sh --list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if not (trouble := write_trouble(error, Path(error.filename or "outputs"))):
            raise
        print(f"\nerror: {trouble}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; finished steps are kept. Go on with: {command_line(arguments)}", file=sys.stderr)
        return 130


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    data_dir, run_dir = _folders(options)
    if options.export_blocks or options.import_blocks:
        return _exchange(options, run_dir, command_line(arguments))
    profile = options.profile or ("full" if options.data else "demo")
    steps = plan(data_dir, run_dir, profile, options.set)
    chosen = choose(steps, options)
    first = [] if options.start or options.only else plan_first(data_dir, run_dir, profile, options.set)
    if options.list:
        return list_steps(steps, run_dir)
    if data_dir == DEMO:
        ensure_demo(DEMO)
    if options.check:
        return check.check(steps, data_dir, run_dir, cluster(run_dir, data_dir) if on_cluster() else ())
    check_writable(run_dir)
    with lock(run_dir, command_line(arguments)):
        if on_cluster():
            _compare_machines(run_dir, data_dir)
        return walk([*first, *chosen], run_dir, options, arguments)


def _compare_machines(run_dir: Path, data_dir: Path) -> None:
    found = list(cluster(run_dir, data_dir))
    print("\n".join(map(str, found)), flush=True)
    if any(one.fatal for one in found):
        raise InputError("--engine ray: not all machines can take part: see above. Nothing has been run")


def ensure_demo(folder: Path, n_posts: int = DEMO_POSTS) -> None:
    """Make the synthetic release where there is none; of two calls at once one makes it and the other waits."""
    if is_demo(folder):
        return
    with exclusive(folder.with_name(f".{folder.name}.lock")):
        if not is_demo(folder):
            print(f"making the synthetic demo release in {shown(folder)} ({n_posts:,} posts)", flush=True)
            make_release(folder, n_posts=n_posts)


def _exchange(options: argparse.Namespace, run_dir: Path, command: str) -> int:
    file, *names = options.export_blocks or options.import_blocks
    if options.export_blocks:
        done = export_blocks(Run.open(run_dir), _from_here(file), names)
        print(f"{len(done)} blocks exported to {file}: {', '.join(done)}")
        return 0
    Run.open(run_dir).posts()  # a run to import into is there
    with lock(run_dir, command):
        done = import_blocks(Run.open(run_dir, write=True), _from_here(file))
    print(f"{len(done)} blocks imported from {file}: {', '.join(done)}; name them in 06.sets")
    return 0


def _lab(options: argparse.Namespace) -> int:
    from kit.pipeline import lab  # papermill takes a second to load

    data_dir, run_dir = _folders(options)
    if not options.data:
        data_dir = data_of(run_dir) or data_dir
    if data_dir == DEMO:
        ensure_demo(DEMO)
    profile = options.profile or ("demo" if is_demo(data_dir) else "full")
    lab.open_lab(run_dir, plan(data_dir, run_dir, profile, options.set), options.jupyter)
    return 0


# --- command line -----------------------------------------------------------------------------------------------------


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run_all.sh", description="From an SMPD release to a validated submission and a report.",
        epilog="Without options: the synthetic demo. See README.md.", allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--data", metavar="DIR", help="folder of an SMPD release (default: the demo, made if missing)")
    add("--out", metavar="DIR", help="run directory (default: outputs/<name of the data folder>)")
    add("--profile", choices=sorted(PROFILES), help="parameter set (default: demo for the demo, full with --data)")
    add("--set", metavar="NN.NAME=VALUE", action="append", default=[], help="set a notebook parameter; see --list")
    add("--from", metavar="NN", dest="start", type=step_number, help="leave the steps before NN as they are")
    add("--only", metavar="NN", type=step_number, help="look at one step only")
    steps: dict[str, Any] = {"metavar": "NN", "action": "append", "default": [], "type": step_number}
    add("--force", **steps, help="run NN anew: nothing it has kept is read")
    add("--accept", **steps, help="keep the results of NN as they are")
    add("--without", **steps, help="leave NN out of this call")
    add("--list", action="store_true", help="show steps, their state and parameters; run nothing")
    engine = "who does encoding, folds and fits: this machine, or a Ray cluster"
    add("--engine", choices=ENGINES, default=ENGINES[0], help=engine)
    add("--check", action="store_true", help="check machine, packages, data and parameters; run nothing")
    lab = "JupyterLab on working copies of a run's notebooks; what follows -- goes to Jupyter"
    add("--lab", action="store_true", help=lab)
    add("--compare", metavar="RUN", nargs=2, help="print in what two finished runs differ")
    export = "write blocks of the run (default: all) into a file"
    add("--export-blocks", metavar=("FILE", "NAME"), nargs="+", help=export)
    add("--import-blocks", metavar="FILE", nargs=1, help="read the blocks of such a file into the run")
    add("--test", nargs=argparse.REMAINDER, help="run the test suite; what follows goes to pytest")
    own = arguments[: arguments.index("--")] if "--lab" in arguments and "--" in arguments else arguments
    options = parser.parse_args(own)
    options.jupyter = arguments[len(own) + 1 :]
    return options


def _folders(options: argparse.Namespace) -> tuple[Path, Path]:
    """Absolute folders of the data and the run; relative ones start where the command was called."""
    data_dir = _from_here(options.data) if options.data else DEMO
    if options.data and not data_dir.is_dir():
        raise InputError(f"--data: no folder {data_dir}; unpack the SMPD release there or give its folder")
    run_dir = _from_here(options.out) if options.out else resolve(f"outputs/{data_dir.name}")
    for path in (PROJECT_ROOT, run_dir):
        if "{" in str(path) or "}" in str(path):
            raise InputError(f"{path}: braces in a folder name confuse the notebook runner; choose another folder")
    return data_dir, run_dir


def _from_here(name: str) -> Path:
    """The absolute path of what is named on the command line, from the folder where the command was called."""
    return (Path(os.environ.get(CALLED_FROM) or os.getcwd()) / Path(name).expanduser()).resolve()
