"""The chain: walk the notebooks in order, skip what is fresh, run the rest headlessly, end with a submission and a report.

    python -m kit.pipeline                       the demo (made if missing) into outputs/demo
    python -m kit.pipeline --data inputs/smpd    a release of your own, profile "full"

Everything a step hands on lies in the run directory (``kit.run``); whether a step must run again is decided by comparing
stamps (``kit.stamps``); a notebook runs in a kernel of its own (``kit.execute``).
"""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import check, demo, devices, report, stamps
from kit.errors import InputError, StepLeftOut
from kit.execute import StepFailed, execute, lock, read_parameters
from kit.run import PROJECT_ROOT, check_writable, done_path, pending_path, resolve, shown, write_trouble

NOTEBOOKS = PROJECT_ROOT / "notebooks"
DEMO = PROJECT_ROOT / "inputs" / "demo"
DEMO_POSTS = 5500
QUICK = {"n_folds": 3, "rounds": 300, "patience": 30, "learning_rate": 0.1}  # boosting of the demo
PROFILES: dict[str, dict[str, dict[str, Any]]] = {  # notebook number -> parameter -> value; nothing else
    "full": {},
    "demo": {
        "02": {"clip_model": "smp-tiny", "shots": 24},
        "05": QUICK | {"factors": [2, 5], "tail_seeds": [0], "ratios": [1.0, 0.77, 0.5], "selection_seeds": [0, 1]},
        "06": QUICK
        | {
            "sets": [
                "statistic",
                "statistic+behaviour",
                "statistic+clip",
                "statistic+clip_ft",
                "statistic+behaviour+clip_ft",
                "statistic+behaviour+clip+clip_ft+taught",
            ]
        },
    },
}
CALLED_FROM = "KIT_CALLED_FROM"  # environment variable: the folder run_all.sh was called in


@dataclass(frozen=True)
class Step:
    """One notebook of the chain with the parameters it runs with."""

    name: str
    notebook: Path
    parameters: dict[str, Any]

    @property
    def number(self) -> str:
        return self.name.split("_")[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 a step failed, 2 a mistake of the user, 138 memory)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for name in ("SIGTERM", "SIGHUP"):  # SIGHUP: the terminal was closed; Windows has none, and nohup ignores it
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, name), _stop)
    try:
        options = _parse(arguments)
        if options.test is not None:
            return subprocess.call([sys.executable, "-m", "pytest", *options.test], cwd=PROJECT_ROOT)
        if options.lab:
            return _lab()
        return _run(options, arguments)
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not (trouble := write_trouble(error, Path(error.filename or "outputs"))):
            raise
        print(f"\nerror: {trouble}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; finished steps are kept. Go on with: {_command(arguments)}", file=sys.stderr)
        return 130


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    data_dir, run_dir = _folders(options)
    steps = plan(data_dir, run_dir, options.profile or ("full" if options.data else "demo"), options.set)
    chosen = _choose(steps, options)
    if options.list:
        return _list(steps, run_dir)
    if data_dir == DEMO and not demo.is_demo(DEMO):
        print(f"making the synthetic demo release in {shown(DEMO)} ({DEMO_POSTS:,} posts)", flush=True)
        demo.make_release(DEMO, n_posts=DEMO_POSTS)
    if options.check:
        return check.check(steps, data_dir, run_dir)
    check_writable(run_dir)
    with lock(run_dir, _command(arguments)):
        return _walk(chosen, run_dir, options, arguments)


# --- what to run ------------------------------------------------------------------------------------------------------


def plan(data_dir: Path, run_dir: Path, profile: str, settings: list[str]) -> list[Step]:
    """Every step of the chain, parameters resolved: notebook default, then profile, then ``--set``.

    Args:
        settings: ``NN.name=value`` as given on the command line.
    Raises:
        InputError: unknown notebook or parameter, or a value of the wrong type; the message lists the right ones.
    """
    overrides = {number: dict(values) for number, values in PROFILES[profile].items()}
    for setting in settings:
        target, equals, value = setting.partition("=")
        number, dot, name = target.partition(".")
        if not (equals and dot and number and name):
            raise InputError(f"--set {setting}: expected NN.name=value, e.g. --set 06.n_folds=10")
        overrides.setdefault(_number(number), {})[name] = value
    folders = {"data_dir": shown(data_dir), "run_dir": shown(run_dir)}
    steps = [_plan_step(path, overrides.pop(path.stem[:2], {}), folders) for path in notebooks()]
    for number in overrides:
        _unknown_step(number)
    return steps


def notebooks() -> list[Path]:
    """The notebooks of the chain in the order of their numbers."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def _plan_step(path: Path, overrides: dict[str, Any], folders: dict[str, str]) -> Step:
    known = read_parameters(path)
    values = {name: parameter.default for name, parameter in known.items()}
    values.update({name: value for name, value in folders.items() if name in known})
    for name, value in overrides.items():
        if name not in known or name in folders:
            names = ", ".join(f"{n}: {p.type_name}" for n, p in known.items() if n not in folders)
            hint = f" (use --{'data' if name == 'data_dir' else 'out'})" if name in folders else ""
            raise InputError(f"{path.stem} has no parameter {name!r} to set{hint}; its parameters are {names}")
        values[name] = parse_value(value, known[name].type_name, f"{path.stem[:2]}.{name}")
    return Step(path.stem, path, values)


def parse_value(value: Any, type_name: str, target: str) -> Any:
    """``value`` as the type that the parameters cell declares: int, float, bool, str, list[int|float|str].

    Raises:
        InputError: the text is no such value.
    """
    if not isinstance(value, str) or type_name == "str":
        return value
    try:
        if type_name.startswith("list["):
            text = value.strip()
            items = (
                ast.literal_eval(text) if text.startswith(("[", "(")) else [item for item in text.split(",") if item]
            )
            return [parse_value(str(item), type_name[5:-1], target) for item in items]
        if type_name == "bool":
            return {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}[value.lower()]
        if type_name == "int":
            return int(value)
        if type_name == "float" and abs(number := float(value)) < float("inf"):
            return number
    except (ValueError, KeyError, SyntaxError, TypeError):
        pass
    raise InputError(f"--set {target}={value}: expected a value of type {type_name}")


def _choose(steps: list[Step], options: argparse.Namespace) -> list[Step]:
    for number in (*options.force, *options.accept, *filter(None, (options.start, options.only))):
        if number not in {step.number for step in steps}:
            _unknown_step(number)
    if options.only:
        return [step for step in steps if step.number == options.only]
    return [step for step in steps if not options.start or step.number >= options.start]


def _unknown_step(number: str) -> None:
    raise InputError(f"no notebook {number}; the chain is {', '.join(path.stem for path in notebooks())}")


# --- walking the chain ------------------------------------------------------------------------------------------------


def _walk(steps: list[Step], run_dir: Path, options: argparse.Namespace, arguments: list[str]) -> int:
    started, n_tried, n_run = time.perf_counter(), 0, 0
    width = max(len(step.name) for step in steps)
    print(f"run {shown(run_dir)}: {len(steps)} steps", flush=True)
    stamps.remove_temporary(run_dir)
    for step in steps:
        stamp = stamps.current_stamp(step.notebook, step.parameters)
        if step.number in options.accept:
            _accept(step, run_dir, stamp)
        reason = (
            "asked for with --force" if step.number in options.force else stamps.why_stale(run_dir, step.name, stamp)
        )
        if reason is None:
            saved_s = stamps.read_mark(run_dir, step.name)["seconds"]
            print(f"{step.name:{width}}  up to date (skipped, saves {saved_s:.0f} s)", flush=True)
            continue
        print(f"{step.name:{width}}  running: {reason}", flush=True)
        if not n_tried:
            print(f"machine: {devices.describe()}", flush=True)
        if not n_tried and (damaged := stamps.set_aside_damaged(run_dir)):
            print(f"damaged, set aside and made again: {', '.join(damaged)}", flush=True)
        n_tried += 1
        try:
            seconds, peak_mb = execute(step.notebook, run_dir, step.parameters, width)
            mark = stamps.write_mark(run_dir, step.name, stamp, seconds, peak_mb)
        except StepLeftOut as reason:
            print(f"{step.name:{width}}  LEFT OUT: {reason}", flush=True)
            continue
        except StepFailed as failure:
            return _say_failed(failure, step, run_dir, arguments)
        except FileNotFoundError:
            early = StepFailed("the notebook ended without its last cell, run.finish(...): was it left early?")
            return _say_failed(early, step, run_dir, arguments)
        except RuntimeError as error:
            return _say_failed(StepFailed(str(error)), step, run_dir, arguments)
        n_run += 1
        print(f"{step.name:{width}}  done in {seconds:.0f} s, peak {mark['peak_mb']:,} MB{_metrics(mark)}", flush=True)
    if n_tried or _report_is_old(run_dir):
        report.write_report(run_dir)
    _summary(run_dir, time.perf_counter() - started, n_run)
    return 0


def _report_is_old(run_dir: Path) -> bool:
    """Whether the report is missing, or older than a step's mark: the run that finished that step was cut off."""
    path = run_dir / "report.html"
    marks = [mark.stat().st_mtime_ns for mark in (run_dir / "done").glob("*.json")]
    return not path.is_file() or path.stat().st_mtime_ns < max(marks, default=0)


def _accept(step: Step, run_dir: Path, stamp: dict) -> None:
    """Take the results at hand as they are: those of a notebook run by hand, or of a step whose code changed harmlessly."""
    pending, done = pending_path(run_dir, step.name), done_path(run_dir, step.name)
    if not pending.is_file() and not done.is_file():
        raise InputError(f"--accept {step.number}: {step.name} has left no results in {shown(run_dir)}; run it first")
    seconds = (stamps.read_mark(run_dir, step.name) or {}).get("seconds")
    if done.is_file():
        done.replace(pending)
    try:
        stamps.write_mark(run_dir, step.name, stamp, seconds)
    except RuntimeError as error:
        raise InputError(f"--accept {step.number}: {error}; run the step again") from error


def _metrics(mark: dict) -> str:
    shown = [
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in mark["metrics"].items()
    ]
    return "".join(f", {text}" for text in shown)


def _say_failed(failure: StepFailed, step: Step, run_dir: Path, arguments: list[str]) -> int:
    print(f"\n{step.name} failed" + (f" in section \"{failure.section}\"" if failure.section else "")
          + (f", cell {failure.cell}" if failure.cell else ""), file=sys.stderr)  # fmt: skip
    print(f"  {failure.message}", file=sys.stderr)
    if failure.trace:
        print("\n".join(f"    {line}" for line in failure.trace), file=sys.stderr)
    print(f"  log       {shown(run_dir / 'logs' / f'{step.name}.log')}", file=sys.stderr)
    if failure.notebook:
        print(f"  notebook  {shown(failure.notebook)}", file=sys.stderr)
    if (run_dir / "submission.csv").is_file():
        print("  note      submission.csv in this folder is from an earlier run", file=sys.stderr)
    print(f"  go on     {_command(arguments)}", file=sys.stderr)
    return failure.status


def _summary(run_dir: Path, seconds: float, n_run: int) -> None:
    what = f"{n_run} step{'s' * (n_run != 1)} run" if n_run else "nothing new to run"
    print(f"{what}, {seconds:.0f} s")
    submission = run_dir / "submission.csv"
    if submission.is_file():
        print(f"submission  {shown(submission)} and .json")
    elif (run_dir / "posts.parquet").is_file() and done_path(run_dir, "07_blend").is_file():
        print("submission  none: this release has no test part")
    print(f"report      {shown(run_dir / 'report.html')}", flush=True)


# --- other commands ---------------------------------------------------------------------------------------------------


def _list(steps: list[Step], run_dir: Path) -> int:
    for step in steps:
        reason = stamps.why_stale(run_dir, step.name, stamps.current_stamp(step.notebook, step.parameters))
        print(f"{step.name}  ({'up to date' if reason is None else reason})")
        for name, parameter in read_parameters(step.notebook).items():
            value = step.parameters[name]
            print(
                f"    {name}: {parameter.type_name} = {value!r}" + (f"  # {parameter.help}" if parameter.help else "")
            )
    return 0


def _lab() -> int:
    if not demo.is_demo(DEMO):
        print(f"making the synthetic demo release in {shown(DEMO)}", flush=True)
        demo.make_release(DEMO, n_posts=DEMO_POSTS)
    return subprocess.call([sys.executable, "-m", "jupyterlab"], cwd=NOTEBOOKS)


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
    add("--from", metavar="NN", dest="start", type=_number, help="leave the steps before NN as they are")
    add("--only", metavar="NN", type=_number, help="look at one step only")
    add("--force", metavar="NN", action="append", default=[], type=_number, help="run NN even if it is up to date")
    add("--accept", metavar="NN", action="append", default=[], type=_number, help="keep the results of NN as they are")
    add("--list", action="store_true", help="show steps, their state and parameters; run nothing")
    add("--check", action="store_true", help="check machine, packages, data and parameters; run nothing")
    add("--lab", action="store_true", help="open JupyterLab in notebooks/")
    add("--test", nargs=argparse.REMAINDER, help="run the test suite; what follows goes to pytest")
    return parser.parse_args(arguments)


def _number(text: str) -> str:
    """ "6", "06" or "06_gbdt_folds" -> "06"."""
    return text.split("_")[0].zfill(2)


def _folders(options: argparse.Namespace) -> tuple[Path, Path]:
    """Absolute folders of the data and the run; relative ones start where the command was called."""
    here = Path(os.environ.get(CALLED_FROM) or os.getcwd())
    data_dir = (here / Path(options.data).expanduser()).resolve() if options.data else DEMO
    if options.data and not data_dir.is_dir():
        raise InputError(f"--data: no folder {data_dir}; unpack the SMPD release there or give its folder")
    run_dir = (here / Path(options.out).expanduser()).resolve() if options.out else resolve(f"outputs/{data_dir.name}")
    for path in (PROJECT_ROOT, run_dir):
        if "{" in str(path) or "}" in str(path):
            raise InputError(f"{path}: braces in a folder name confuse the notebook runner; choose another folder")
    return data_dir, run_dir


def _command(arguments: list[str]) -> str:
    start = "./run_all.sh" if CALLED_FROM in os.environ else "python -m kit.pipeline"
    return shlex.join([*shlex.split(start), *arguments])


if __name__ == "__main__":
    sys.exit(main())
