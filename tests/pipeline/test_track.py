"""runs.csv, the comparison of two runs, and MLflow where it is installed."""

import json
import shutil

import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.pipeline import track
from kit.pipeline.command import main


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / "run", symlinks=True)


def change_mark(run_dir, step, change):
    path = run_dir / "done" / f"{step}.json"
    mark = json.loads(path.read_text())
    change(mark)
    path.write_text(json.dumps(mark))


def test_a_finished_run_has_left_its_line(finished):
    arguments, run_dir = finished
    line = pd.read_csv(run_dir.parent / "runs.csv").iloc[-1]
    scores = pd.read_csv(run_dir / "tables" / "blend_scores.csv").query("scheme == 'user'")
    assert line["run"] == run_dir.name and line["data"] == arguments[1] and line["minutes"] > 0
    assert f"user: SRC {scores['src'].mean():.4f}, MAE {scores['mae'].mean():.4f}" in line["scores"]
    assert "02.clip_model=smp-tiny" in line["parameters"] and "01.n_folds=2" in line["parameters"]
    assert "data_dir" not in line["parameters"] and "06.seed" not in line["parameters"]


def test_lines_are_added_and_an_unfinished_run_adds_none(run_dir):
    track.note(run_dir)
    track.note(run_dir)
    (run_dir / "done" / "07_blend.json").unlink()
    track.note(run_dir)
    assert len(pd.read_csv(run_dir.parent / "runs.csv")) == 2


def test_compare_says_what_differs(finished, run_dir, capsys):
    def change(mark):
        mark["parameters"]["rounds"] = 31
        mark["packages"]["numpy"] = "0.1"
        mark["code"]["kit.run.folds"] = "other"

    change_mark(run_dir, "06_gbdt_folds", change)
    table = pd.read_csv(run_dir / "tables" / "blend_scores.csv")
    table.assign(mae=table["mae"] + 0.25).to_csv(run_dir / "tables" / "blend_scores.csv", index=False)
    assert main(["--compare", str(finished[1]), str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert "06.rounds: 30 -> 31" in said and "-> 0.1, " in said and "kit.run.folds differs" in said
    rows = [line.split() for line in said.splitlines() if "all models fused" in line]
    assert [row[-1] for row in rows] == ["0.0"] * 3 + ["0.25"] * 3 and "05.rounds" not in said
    capsys.readouterr()
    assert main(["--compare", str(finished[1]), str(finished[1])]) == 0
    assert capsys.readouterr().out.count("the same") == 3


def test_compare_wants_two_finished_runs(run_dir, tmp_path):
    with pytest.raises(InputError, match="holds no finished run"):
        track.compare(run_dir, tmp_path)


def test_mlflow_where_its_variable_is_set(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(track.MLFLOW, f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow-skinny")
    track.note(run_dir)
    told = mlflow.search_runs(experiment_names=[run_dir.name]).iloc[0]
    scores = track.scores_of(run_dir)["user"]
    assert told["metrics.user_mae"] == pytest.approx(scores["mae"]) and told["params.01.n_folds"] == "2"
    monkeypatch.setenv(track.MLFLOW, "nonsense://here")
    track.note(run_dir)
    assert "was not told: " in capsys.readouterr().out


def test_mlflow_that_is_not_installed_is_said(run_dir, monkeypatch, capsys):
    monkeypatch.setenv(track.MLFLOW, "http://127.0.0.1:1")
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    track.note(run_dir)
    assert "is not installed here" in capsys.readouterr().out
