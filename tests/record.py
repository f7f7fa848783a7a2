"""The results that README quotes: recorded from finished runs, each in a small file, and written into README from there.

    python -m tests.record outputs/demo      rewrites tests/recorded/demo.json and the results in README
    python -m tests.record                   only the latter

A run whose steps are not up to date is refused: what stands in README was made by the code beside it.
"""

from __future__ import annotations

import argparse
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd

from kit.base import machine
from kit.base.errors import InputError
from kit.base.files import read_json, write_atomic, write_json
from kit.base.metrics import over_folds
from kit.base.paths import PROJECT_ROOT, resolve
from kit.pipeline import stamps
from kit.pipeline.steps import DEMO, Step, plan
from kit.run.marks import left_out_path, read_mark
from kit.viz.tables import spread

RECORDED = PROJECT_ROOT / "tests" / "recorded"
README = PROJECT_ROOT / "README.md"
BEGIN, END = "<!-- results: written by python -m tests.record -->", "<!-- end of results -->"
ALL = "all models fused"
DEMO_DATA = "the synthetic demo"
DIGITS = 3  # in README
TOLERANCE = {"src": 0.02, "mae": 0.05}  # another machine or thread count trains another tiny CLIP


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 the run cannot be recorded)."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.record", description="Record the results that README quotes."
    )
    parser.add_argument("run", metavar="RUN", nargs="?", help="a finished run, e.g. outputs/demo")
    parser.add_argument("--data", metavar="TEXT", help="what the data are, where they are not the demo")
    options = parser.parse_args(arguments)
    try:
        if options.run:
            run_dir = resolve(options.run)
            path = RECORDED / f"{run_dir.name}.json"
            known = read_json(path)["data"] if path.is_file() else None
            write_json(path, record(run_dir, options.data or known))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomic(README, with_results(README.read_text(encoding="utf-8")))
    return 0


def record(run_dir: Path, data: str | None = None) -> dict:
    """What a finished run measured, on what, and how it was called.

    Raises:
        InputError: a step is missing or stale, or nobody has said what the data are.
    """
    command, steps = _called(run_dir)
    for step in steps:
        if reason := why_old(run_dir, step):
            raise InputError(f"{run_dir.name}: {step.name} is not up to date ({reason}); run {command} first")
    marks = [read_mark(run_dir, step.name) for step in steps if not left_out_path(run_dir, step.name).is_file()]
    if "synthetic" in (facts := read_json(run_dir / "release.json")) and facts["synthetic"]:
        data = DEMO_DATA
    elif not data:
        raise InputError("say what the data are: --data TEXT")
    return {
        "data": data, "command": command, "commit": _commit(), "machine": _machine(),
        "threads": max(step.parameters.get("threads", 0) for step in steps) or machine.usable_cores(),
        "minutes": round(sum(mark["seconds"] for mark in marks) / 60, 1), "peak_mb": max(mark["peak_mb"] for mark in marks),
        "tolerance": TOLERANCE, "scores": scores(run_dir), "readings": readings(run_dir),
    }  # fmt: skip


def scores(run_dir: Path) -> list[dict]:
    """scheme, features, n, folds, src, src_sd, mae, mae_sd: the fusion of each set of Table 1 that was run, and of all models."""
    table = pd.read_csv(run_dir / "tables" / "table_1.csv")
    table = table[table["fusion_src"].notna()].rename(columns=lambda name: name.removeprefix("fusion_"))
    rows = table[["scheme", "features", "n", "folds", "src", "src_sd", "mae", "mae_sd"]].to_dict("records")
    blends = pd.read_csv(run_dir / "tables" / "blend_scores.csv")
    for scheme, part in blends.groupby("scheme", sort=False):
        rows.append({"scheme": scheme, "features": ALL, "n": part["n"].sum(), "folds": len(part), **over_folds(part)})
    whole = {"n", "folds"}
    return [
        {k: int(v) if k in whole else round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        for row in rows
    ]


def readings(run_dir: Path) -> list[str]:
    """What the two studies of notebook 05 found, in its own words."""
    path = run_dir / "tables" / "readings.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame({"study": [], "reading": []})
    return table["reading"][table["study"] != "selection"].tolist()  # two seeds do not settle that study's sign


def why_old(run_dir: Path, step: Step) -> str | None:
    """Why the results of a step are not those of the code here; None where they are, or where the step was left out."""
    if left_out_path(run_dir, step.name).is_file():
        return None
    return stamps.why_stale(run_dir, step.name, stamps.current_stamp(step.notebook, step.parameters))


def with_results(text: str) -> str:
    """README with the part between its two marks made anew from the recorded files."""
    before, rest = text.split(BEGIN)
    parts = [
        _section(read_json(path)) for path in sorted(RECORDED.glob("*.json"), key=lambda path: path.stem != "demo")
    ]
    return before + "\n\n".join([BEGIN, *parts, END]) + rest.split(END)[1]


def _section(found: dict) -> str:
    table = pd.DataFrame(found["scores"])
    heads, cells = ["feature set"], {}
    for scheme, part in table.groupby("scheme", sort=False):
        folds = f"{part['folds'].iloc[0]} folds by {scheme}, n = {part['n'].iloc[0]:,}"
        heads += [f"SRC, {folds}", f"MAE, {folds}"]
        for row in part.itertuples():
            cells.setdefault(row.features, []).extend(
                [spread(row.src, row.src_sd, DIGITS), spread(row.mae, row.mae_sd, DIGITS)]
            )
    rows = [[name if name == ALL else f"`{name}`", *numbers] for name, numbers in cells.items()]
    lines = [f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]]
    again = "" if found["data"] == DEMO_DATA else ", not reproducible without the data"
    head = (
        f"**{found['data'][0].upper()}{found['data'][1:]}**, `{found['command']}`{again} (commit {found['commit']}; "
        f"{found['machine']}, {found['threads']} threads; {found['minutes']:.0f} minutes, at most {found['peak_mb']:,} MB):"
    )
    return "\n".join([head, "", *lines, "", *(f"- {text}" for text in found["readings"])])


def _called(run_dir: Path) -> tuple[str, list[Step]]:
    """The command whose parameters are those that the run's marks hold, and its steps."""
    facts_path = run_dir / "release.json"
    if not facts_path.is_file():
        raise InputError(f"{run_dir} holds no run")
    data_dir = Path(read_json(facts_path)["data_dir"])
    is_demo = data_dir == DEMO
    profile, words = (
        ("demo", ["./run_all.sh"]) if is_demo else ("full", ["./run_all.sh", "--data", f"inputs/{data_dir.name}"])
    )
    settings = []
    for step in plan(data_dir, run_dir, profile, []):
        mark = read_mark(run_dir, step.name)
        for name, value in (mark or {"parameters": {}})["parameters"].items():
            if value != step.parameters.get(name):
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                settings.append(f"{step.number}.{name}={text}")
    return shlex.join([*words, *(f"--set={setting}" for setting in settings)]), plan(
        data_dir, run_dir, profile, settings
    )


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=PROJECT_ROOT, capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


def _machine() -> str:
    """Processor, cores and GPUs in words, e.g. "AMD EPYC, 2 cores, no GPU"."""
    path = Path("/proc/cpuinfo")
    told = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.is_file() else None
    return f"{told[1].strip() if told else platform.machine()}, {machine.describe()}"


if __name__ == "__main__":
    sys.exit(main())
