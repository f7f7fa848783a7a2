"""A step is fresh only while code, parameters, packages, inputs and artefacts are those it was made with."""

import json

import numpy as np
import pytest

from kit import stamps
from kit.run import Block, Run, done_path, pending_path
from kit.smpd import read_release


def _notebook(path, *cells, prose="# Title"):
    parts = [{"cell_type": "markdown", "metadata": {}, "source": [prose]}]
    parts += [{"cell_type": "code", "metadata": tags, "source": [source], "outputs": [], "execution_count": None}
              for tags, source in cells]  # fmt: skip
    path.write_text(json.dumps({"cells": parts, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def _hash(tmp_path, source, **options):
    path = _notebook(tmp_path / "09_test.ipynb", ({"tags": ["parameters"]}, "a: int = 1"), ({}, source), **options)
    return stamps.code_hashes(path)["09_test"]


def test_only_code_counts(tmp_path):
    plain = _hash(tmp_path, "x = 1\nprint(x)")
    assert _hash(tmp_path, "x = 1  # one\n\nprint( x )", prose="# Another title") == plain
    assert _hash(tmp_path, "x = 2\nprint(x)") != plain
    assert _hash(tmp_path, 'def f():\n    """Old."""\n    return 1') == _hash(
        tmp_path, 'def f():\n    """New."""\n    return 1'
    )


def test_imports_are_followed(tmp_path):
    path = _notebook(
        tmp_path / "09_test.ipynb", ({}, "from kit import metrics\nimport kit.predictions\nfrom kit.run import Run")
    )
    hashes = stamps.code_hashes(path)
    assert {"kit.metrics", "kit.predictions", "kit.gbdt", "kit.run", "kit.errors"} <= set(hashes)
    assert "kit.smpd" not in hashes
    assert "kit.smpd" in stamps.code_hashes(_notebook(path, ({}, "from kit import smpd")))


def test_a_data_file_counts_as_code_of_its_module(tmp_path, monkeypatch):
    (tmp_path / "m.py").write_text('NAMES = "names.csv"\n')
    (tmp_path / "names.csv").write_text("a\n")
    monkeypatch.setattr(stamps, "PACKAGE", tmp_path)
    before = stamps._module.__wrapped__(tmp_path / "m.py")
    (tmp_path / "names.csv").write_text("b\n")
    assert stamps._module.__wrapped__(tmp_path / "m.py") != before


@pytest.fixture
def finished(release, tmp_path):
    """A run whose step 04 read the posts and an outside file and wrote one block; returns (run, stamp)."""
    first = Run.open(tmp_path / "run", step="01_eda")
    first.write_posts(read_release(release.write()))
    run = Run.open(tmp_path / "run", step="04_features")
    run.posts()
    assert not run.has_block("clip")
    (tmp_path / "weights").write_text("w")
    run.use(tmp_path / "weights", tmp_path / "absent")
    run.write_table("t", run.posts()[["Pid"]])
    run.finish(columns=1)
    stamp = {"code": {"04_features": "a", "kit.x": "b"}, "parameters": {"n": 5}, "packages": {"numpy": "2"}}
    stamps.write_mark(run.dir, "04_features", stamp, seconds=2.5, peak_mb=9)
    return run, stamp


def _why(finished, **changes):
    run, stamp = finished
    return stamps.why_stale(run.dir, "04_features", {**stamp, **changes})


def test_fresh_when_nothing_changed(finished):
    assert _why(finished) is None
    mark = json.loads(done_path(finished[0].dir, "04_features").read_text())
    assert mark["seconds"] == 2.5 and mark["metrics"] == {"columns": 1}
    assert not pending_path(finished[0].dir, "04_features").exists()


def test_the_reason_is_named(finished, tmp_path):
    assert _why(finished, parameters={"n": 10}) == "parameter n 5 -> 10"
    assert _why(finished, parameters={"n": 5, "m": "x"}) == "parameter m (not set) -> 'x'"
    assert _why(finished, code={"04_features": "a", "kit.x": "c"}) == "code of kit.x changed"
    assert _why(finished, packages={"numpy": "3"}) == "package numpy '2' -> '3'"


def test_outside_files_are_watched(finished, tmp_path):
    (tmp_path / "weights").write_text("v")
    assert _why(finished).endswith("weights changed")
    (tmp_path / "weights").unlink()
    assert _why(finished).endswith("weights is gone")
    (tmp_path / "weights").write_text("w")
    assert _why(finished) is None
    (tmp_path / "absent").write_text("")
    assert _why(finished).endswith("absent is new")


def test_inputs_and_artefacts_are_watched(finished):
    run = finished[0]
    table = run.dir / "tables" / "t.csv"
    content = table.read_text()
    table.write_text(content + "9\n")
    assert _why(finished) == "artefact tables/t.csv changed"
    table.write_text(content)
    assert _why(finished) is None
    table.unlink()
    assert _why(finished) == "artefact tables/t.csv is gone"
    table.write_text(content)
    posts = run.posts()
    Run.open(run.dir, step="01_eda").write_posts(posts[::-1].reset_index(drop=True))
    assert _why(finished) == "input posts.parquet changed"


def test_a_new_block_is_a_reason_where_it_was_asked_for(finished):
    run = Run.open(finished[0].dir, step="02_prototypes")
    run.write_block(Block("other", np.zeros((52, 1), np.float32), ["x"]))
    assert _why(finished) is None
    run.write_block(Block("clip", np.zeros((52, 1), np.float32), ["x"]))
    assert _why(finished) == "input blocks/clip/meta.json is new"


def test_unfinished_steps_are_told_apart(finished):
    run, stamp = finished
    assert stamps.why_stale(run.dir, "06_gbdt_folds", stamp) == "not run yet"
    reopened = Run.open(run.dir, step="04_features")
    (run.dir / "logs").mkdir()
    (run.dir / "logs" / "04_features.log").write_text("")
    assert _why(finished) == "not finished last time"
    reopened.finish()
    assert "--accept 04" in _why(finished)


def test_no_mark_without_record_or_artefacts(finished):
    run, stamp = finished
    with pytest.raises(FileNotFoundError):
        stamps.write_mark(run.dir, "06_gbdt_folds", stamp)
    reopened = Run.open(run.dir, step="04_features")
    reopened.write_table("t", reopened.posts()[["Pid"]])
    reopened.finish()
    (run.dir / "tables" / "t.csv").unlink()
    with pytest.raises(RuntimeError, match="t.csv is gone after the step had closed"):
        stamps.write_mark(run.dir, "04_features", stamp)
