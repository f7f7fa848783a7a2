"""Walk the chain: skip what is fresh, run the rest, say what happened."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from kit.base import machine
from kit.base.errors import InputError, StepLeftOut
from kit.base.paths import shown
from kit.pipeline import stamps, track
from kit.pipeline.notebook import StepFailed, execute
from kit.pipeline.plan import forecast, last_cost, lines
from kit.pipeline.steps import SUBMISSION, Step, clear_kept, command_line, forget_force, read_parameters
from kit.run import repair
from kit.run.marks import done_path, made_otherwise, pending_path, read_mark
from kit.viz import report


def walk(steps: list[Step], run_dir: Path, options: argparse.Namespace, arguments: list[str]) -> int:
    started, n_tried, n_run = time.perf_counter(), 0, 0
    width = max(len(step.name) for step in steps)
    print(f"run {shown(run_dir)}: {len(steps)} steps", flush=True)
    repair.remove_temporary(run_dir)
    ahead = _say_plan(steps, run_dir, options)
    for place, step in enumerate(steps):
        stamp = stamps.current_stamp(step.notebook, step.parameters)
        if step.number in options.accept:
            _accept(step, run_dir, stamp)
        reason = (
            "asked for with --force" if step.number in options.force else stamps.why_stale(run_dir, step.name, stamp)
        )
        if reason is None:
            mark = read_mark(run_dir, step.name)
            made = f"; accepted, {otherwise}" if (otherwise := made_otherwise(mark)) else ""
            print(f"{step.name:{width}}  up to date (skipped, saves {mark['seconds']:.0f} s{made})", flush=True)
            continue
        print(f"{step.name:{width}}  {'' if reason.startswith(stamps.REDRAW) else 'running: '}{reason}", flush=True)
        if not n_tried:
            print(f"machine: {machine.describe()}", flush=True)
        if not n_tried and (damaged := repair.set_aside_damaged(run_dir)):
            print(f"damaged, set aside and made again: {', '.join(damaged)}", flush=True)
        n_tried += 1
        if step.number in options.force:
            clear_kept(run_dir, step.number)
            forget_force(arguments, step.number)
            options.force.remove(step.number)
        try:
            mark = _run(step, run_dir, stamp, width, ahead[place:])
        except StepLeftOut as why:
            print(f"{step.name:{width}}  LEFT OUT: {why}", flush=True)
            continue
        except StepFailed as failure:
            if submits := any(other.name == SUBMISSION for other in steps[:place]):  # what comes after holds nothing up
                report.write_report(run_dir)
                _summary(run_dir, time.perf_counter() - started, n_run)
            return _say_failed(failure, step, run_dir, arguments, submits)
        n_run += 1
        print(
            f"{step.name:{width}}  done in {mark['seconds']:.0f} s, peak {mark['peak_mb']:,} MB{_metrics(mark)}",
            flush=True,
        )
        if step.name == SUBMISSION and place + 1 < len(steps):  # studies, or more than a first submission, are to come
            report.write_report(run_dir)
            if (submission := run_dir / "submission.csv").is_file():  # none without a test part
                print(f"{step.name:{width}}  a submission stands: {shown(submission)}", flush=True)
    if n_tried or _report_is_old(run_dir):
        report.write_report(run_dir)
    if n_run:
        track.note(run_dir)
    _summary(run_dir, time.perf_counter() - started, n_run)
    return 0


def _say_plan(steps: list[Step], run_dir: Path, options: argparse.Namespace) -> list[float]:
    """Print how long the steps that must run will take; seconds for each step, 0 for one that is fresh, NaN if unknown."""
    stale = [
        step for step in steps
        if step.number in options.force
        or stamps.why_stale(run_dir, step.name, stamps.current_stamp(step.notebook, step.parameters))
    ]  # fmt: skip
    forecasts = forecast(steps, run_dir, {step.name: last_cost(step.name, run_dir) for step in stale})
    for line in lines(forecasts):
        print(line, flush=True)
    seconds = iter(forecasts)
    names = {step.name for step in stale}
    return [next(seconds).seconds if step.name in names else 0.0 for step in steps]


def _run(step: Step, run_dir: Path, stamp: dict, width: int, ahead: list[float]) -> dict:
    """Run a step; its done-mark."""
    seconds, peak_mb = execute(step.notebook, run_dir, step.parameters, width, ahead)
    try:
        return stamps.write_mark(run_dir, step.name, stamp, seconds, peak_mb)
    except FileNotFoundError:
        raise StepFailed("the notebook ended without its last cell, run.finish(...): was it left early?") from None
    except RuntimeError as error:
        raise StepFailed(str(error)) from error


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
    seconds = (read_mark(run_dir, step.name) or {}).get("seconds")
    if done.is_file():
        done.replace(pending)
    try:
        mark = stamps.write_mark(run_dir, step.name, stamp, seconds)
    except RuntimeError as error:
        raise InputError(f"--accept {step.number}: {error}; run the step again") from error
    print(f"{step.name}  accepted, {made_otherwise(mark) or 'made with the parameters of now'}", flush=True)


def _metrics(mark: dict) -> str:
    shown = [
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in mark["metrics"].items()
    ]
    return "".join(f", {text}" for text in shown)


def _say_failed(failure: StepFailed, step: Step, run_dir: Path, arguments: list[str], submits: bool) -> int:
    print(f"\n{step.name} failed" + (f" in section \"{failure.section}\"" if failure.section else "")
          + (f", cell {failure.cell}" if failure.cell else ""), file=sys.stderr)  # fmt: skip
    print(f"  {failure.message}", file=sys.stderr)
    if failure.trace:
        print("\n".join(f"    {line}" for line in failure.trace), file=sys.stderr)
    print(f"  log       {shown(run_dir / 'logs' / f'{step.name}.log')}", file=sys.stderr)
    if failure.notebook:
        print(f"  notebook  {shown(failure.notebook)}", file=sys.stderr)
    if not submits and (run_dir / "submission.csv").is_file():
        print("  note      submission.csv in this folder is from an earlier run", file=sys.stderr)
    print(f"  go on     {command_line(arguments)}", file=sys.stderr)
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


def list_steps(steps: list[Step], run_dir: Path) -> int:
    for step in steps:
        reason = stamps.why_stale(run_dir, step.name, stamps.current_stamp(step.notebook, step.parameters))
        print(f"{step.name}  ({'up to date' if reason is None else reason})")
        for name, parameter in read_parameters(step.notebook).items():
            value = step.parameters[name]
            print(
                f"    {name}: {parameter.type_name} = {value!r}" + (f"  # {parameter.help}" if parameter.help else "")
            )
    return 0
