"""Where the marks of a step lie: its record, its done-mark, and why it was left out."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import kit
from kit.base.files import read_json, write_json
from kit.base.machine import package_versions, peak_memory_mb
from kit.base.paths import resolve
from kit.base.process import HEADLESS, PARAMETERS

FIRST_STEP = "01_eda"


def withdraw_marks(run_dir: Path, step: str) -> set[str]:
    """Withdraw a step's marks; returns the files its last finished run wrote, remembered until it finishes again."""
    former = run_dir / "done" / f"{step}.former"
    left_out_path(run_dir, step).unlink(missing_ok=True)
    for path in (pending_path(run_dir, step), done_path(run_dir, step)):
        if path.is_file():
            os.replace(path, former)
    try:
        return set(read_json(former)["writes"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def write_record(run_dir: Path, step: str, **told: Any) -> dict:
    """Write and return the record a notebook leaves: what it tells of itself, and what it was made with and by whom.

    Args:
        told: reads, inputs, writes (name -> fingerprint), metrics, kernel_s.
    """
    made_with = {
        "parameters": json.loads(os.environ.get(PARAMETERS, "null")), "packages": package_versions(),
        "kit": kit.__version__, "python": platform.python_version(), "system": platform.platform(),
    }  # fmt: skip
    record = {"step": step, **told, "peak_mb": peak_memory_mb(), "by_hand": HEADLESS not in os.environ}
    record["made_with"] = made_with
    write_json(pending_path(run_dir, step), record)
    return record


def data_of(run_dir: Path) -> Path | None:
    """The folder of the release that a run was made from; None if its first step has not finished."""
    mark = read_mark(run_dir, FIRST_STEP)
    return resolve(mark["parameters"]["data_dir"]) if mark else None


def done_path(run_dir: Path, step: str) -> Path:
    """Where the done-mark of a step lies."""
    return run_dir / "done" / f"{step}.json"


def pending_path(run_dir: Path, step: str) -> Path:
    """Where a notebook leaves its own record before the pipeline turns it into a done-mark."""
    return run_dir / "done" / f"{step}.pending.json"


def left_out_path(run_dir: Path, step: str) -> Path:
    """Where a step says why it was left out."""
    return run_dir / "done" / f"{step}.left_out.json"


RECORD_KEYS = {"step", "inputs", "reads", "writes", "metrics", "kernel_s", "peak_mb"}  # what a notebook leaves
STAMP_KEYS = {"code", "parameters", "packages", "seconds", "finished"}  # what the pipeline adds


def read_mark(run_dir: Path, step: str) -> dict | None:
    """The done-mark of a step; None where there is none, or one that cannot be read."""
    path = done_path(run_dir, step)
    return read_record(path, RECORD_KEYS | STAMP_KEYS) if path.is_file() else None


def read_record(path: Path, keys: set[str]) -> dict | None:
    """The content of a JSON file; None if it is damaged or lacks a key."""
    try:
        record = read_json(path)
    except ValueError:
        return None
    return record if isinstance(record, dict) and keys <= set(record) else None


def made_otherwise(mark: dict) -> str:
    """How the results behind an accepted done-mark were really made, in words; "" if as the mark says."""
    if mark.get("by_hand"):
        return "made by hand, with parameters that are not known"
    made = mark.get("made_with", {}).get("parameters") or mark["parameters"]
    others = [f"{name} = {value!r}" for name, value in made.items() if value != mark["parameters"].get(name)]
    return f"made with {', '.join(others)}" if others else ""
