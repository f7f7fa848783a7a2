"""What runs measured, side by side: a line in runs.csv for each that finishes, two runs compared, MLflow where it is wanted."""

from __future__ import annotations

import datetime
import importlib.util
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kit.base.errors import InputError
from kit.base.files import write_atomic
from kit.base.locks import exclusive
from kit.base.metrics import over_folds
from kit.base.paths import PROJECT_ROOT, shown
from kit.pipeline.steps import notebooks, read_parameters
from kit.run.marks import data_of, read_mark

RUNS = "runs.csv"  # beside the run directories
LAST_STEP = "07_blend"
FOLDERS = {"data_dir", "run_dir"}  # parameters that say where, not how
MLFLOW = "MLFLOW_TRACKING_URI"  # MLflow's own environment variable
TABLE_1_SHOWN = ["scheme", "features", "fusion_src", "fusion_mae"]


def note(run_dir: Path) -> None:
    """Append a line about a finished run to ``runs.csv`` in the folder above it, and tell MLflow where its variable is set.

    Nothing is noted of a run that did not get to its end.
    """
    if read_mark(run_dir, LAST_STEP) is None:
        return
    changed, scores = changed_parameters(run_dir), scores_of(run_dir)
    line = {
        "when": datetime.datetime.now().astimezone().isoformat(" ", "seconds"), "run": run_dir.name, "commit": commit(),
        "data": shown(data_of(run_dir)), "parameters": "; ".join(f"{name}={value}" for name, value in changed.items()),
        "scores": "; ".join(f"{scheme}: SRC {s['src']:.4f}, MAE {s['mae']:.4f}" for scheme, s in scores.items()),
        "minutes": round(_seconds(run_dir) / 60, 1),
    }  # fmt: skip
    path = run_dir.parent / RUNS
    with exclusive(path.with_name(f".{RUNS}.lock")):
        known = pd.read_csv(path, dtype=str) if path.is_file() else pd.DataFrame()
        write_atomic(path, pd.concat([known, pd.DataFrame([line])]).to_csv(index=False))
    if MLFLOW in os.environ:
        _tell_mlflow(run_dir, line, changed, scores)


def compare(first: Path, second: Path) -> int:
    """Print in what two runs differ: data, code, parameters, packages, scores of the fusion and of each row of Table 1.

    Raises:
        InputError: one of them is no finished run.
    """
    for run_dir in (first, second):
        if read_mark(run_dir, LAST_STEP) is None:
            raise InputError(f"--compare: {run_dir} holds no finished run; give two folders as outputs/demo")
    names = shown(first), shown(second)
    print("data: " + " -> ".join(dict.fromkeys(shown(data_of(run_dir)) for run_dir in (first, second))))
    for what, found in {
        "parameters": [_parameters(run_dir) for run_dir in (first, second)],
        "code": [_stamped(run_dir, "code") for run_dir in (first, second)],
        "packages": [_stamped(run_dir, "packages") for run_dir in (first, second)],
    }.items():
        lines = list(_differences(*found, values=what != "code"))
        print(f"{what}:{'' if lines else ' the same'}")
        print("\n".join(f"  {line}" for line in lines), end="\n" if lines else "")
    tables = [_score_table(run_dir) for run_dir in (first, second)]
    for metric in ("SRC", "MAE"):
        both = pd.concat([table[metric] for table in tables], axis=1, keys=[0, 1])
        both["difference"] = both[1] - both[0]
        print(
            f"\n{metric} of the fusion\n{both.set_axis([*names, 'difference'], axis=1).round(4).to_string(na_rep='-')}"
        )
    return 0


def changed_parameters(run_dir: Path) -> dict[str, Any]:
    """``NN.name`` -> value of the parameters that a run's finished steps had and that are not their notebook's own."""
    defaults = {
        f"{path.stem[:2]}.{name}": parameter.default
        for path in notebooks() for name, parameter in read_parameters(path).items()
    }  # fmt: skip
    return {name: value for name, value in _parameters(run_dir).items() if value != defaults.get(name)}


def scores_of(run_dir: Path) -> dict[str, dict[str, float]]:
    """Scheme -> src, src_sd, mae, mae_sd of the fused models, the deciding scheme first."""
    table = pd.read_csv(run_dir / "tables" / "blend_scores.csv")
    return {scheme: over_folds(part) for scheme, part in table.groupby("scheme", sort=False)}


def commit() -> str:
    """The commit of this checkout, with "-dirty" where files were changed since; "unknown" without git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        told = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return told.stdout.strip() or "unknown"


def _marks(run_dir: Path) -> dict[str, dict]:
    found = {path.stem: read_mark(run_dir, path.stem) for path in notebooks()}
    return {name: mark for name, mark in found.items() if mark}


def _parameters(run_dir: Path) -> dict[str, Any]:
    return {f"{step[:2]}.{name}": value for step, mark in _marks(run_dir).items()
            for name, value in mark["parameters"].items() if name not in FOLDERS}  # fmt: skip


def _stamped(run_dir: Path, what: str) -> dict[str, str]:
    """What the marks of all steps hold of code or packages; a value for each that some steps have another way than others."""
    found: dict[str, set] = {}
    for mark in _marks(run_dir).values():
        for name, value in mark[what].items():
            found.setdefault(name, set()).add(str(value))
    return {name: ", ".join(sorted(values)) for name, values in found.items()}


def _seconds(run_dir: Path) -> float:
    return sum(mark["seconds"] for mark in _marks(run_dir).values())


def _differences(first: Mapping, second: Mapping, values: bool) -> Iterator[str]:
    for name in {**first, **second}:
        old, new = (found.get(name, "(not there)") for found in (first, second))
        if old != new:
            one = "differs" if name in first and name in second else "is in one only"
            yield f"{name}: {old} -> {new}" if values else f"{name} {one}"


def _score_table(run_dir: Path) -> pd.DataFrame:
    """SRC and MAE of the fusion, by scheme and row of Table 1; the last row is that of all models."""
    rows = pd.read_csv(run_dir / "tables" / "table_1.csv")[TABLE_1_SHOWN].dropna()
    rows = rows.set_axis(["scheme", "features", "SRC", "MAE"], axis=1)
    fused = [(scheme, "all models fused", s["src"], s["mae"]) for scheme, s in scores_of(run_dir).items()]
    return pd.concat([rows, pd.DataFrame(fused, columns=rows.columns)]).set_index(["scheme", "features"])


def _tell_mlflow(run_dir: Path, line: Mapping, changed: Mapping, scores: Mapping) -> None:
    if importlib.util.find_spec("mlflow") is None:
        print(f"{MLFLOW} is set, but MLflow is not installed here: .venv/bin/pip install mlflow-skinny", flush=True)
        return
    import mlflow

    try:
        mlflow.set_experiment(run_dir.name)
        with mlflow.start_run():
            mlflow.set_tags({name: line[name] for name in ("commit", "data")})
            mlflow.log_params(changed)
            mlflow.log_metrics({f"{scheme}_{name}": value for scheme, s in scores.items() for name, value in s.items()})
            mlflow.log_metric("minutes", line["minutes"])
            mlflow.log_artifact(str(run_dir / "report.html"))
    except mlflow.MlflowException as error:  # the run is finished all the same
        print(f"MLflow at {os.environ[MLFLOW]} was not told: {str(error).splitlines()[0]}", flush=True)
