"""A step is fresh only while code, parameters, packages, inputs and artefacts are those it was made with."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from kit.base import code
from kit.base.paths import PROJECT_ROOT
from kit.boosting.fit import Training, fit_folds
from kit.encoders.bulk import encode_texts
from kit.pipeline import stamps
from kit.pipeline.steps import notebooks
from kit.release.smpd import read_release
from kit.run import repair
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.folds import make_folds
from kit.run.marks import done_path, pending_path, read_mark


def _notebook(path, *cells, prose="# Title"):
    parts = [{"cell_type": "markdown", "metadata": {}, "source": [prose]}]
    parts += [{"cell_type": "code", "metadata": tags, "source": [source], "outputs": [], "execution_count": None}
              for tags, source in cells]  # fmt: skip
    path.write_text(json.dumps({"cells": parts, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def _hash(tmp_path, source, **options):
    path = _notebook(tmp_path / "09_test.ipynb", ({"tags": ["parameters"]}, "a: int = 1"), ({}, source), **options)
    return stamps.code_hashes(path)["code"]["09_test"]


def test_only_code_counts(tmp_path):
    plain = _hash(tmp_path, "x = 1\nprint(x)")
    assert _hash(tmp_path, "x = 1  # one\n\nprint( x )", prose="# Another title") == plain
    assert _hash(tmp_path, "x = 2\nprint(x)") != plain
    assert _hash(tmp_path, 'def f():\n    """Old."""\n    return 1') == _hash(
        tmp_path, 'def f():\n    """New."""\n    return 1'
    )


def test_imports_are_followed(tmp_path):
    path = tmp_path / "09_test.ipynb"
    source = "from kit.base import metrics\nimport kit.run.predictions\nfrom kit.boosting.fit import fit_folds"
    hashes = set(stamps.code_hashes(_notebook(path, ({}, source)))["code"])
    assert {"kit.base.metrics", "kit.run.predictions", "kit.boosting.fit", "kit.run.folds", "kit.base.files"} <= hashes
    assert "kit.release.smpd" not in hashes and "kit.run" not in hashes and "kit.base.errors" not in hashes
    assert "kit.release.smpd" in stamps.code_hashes(_notebook(path, ({}, "from kit.release import smpd")))["code"]


@pytest.fixture
def edited_kit(tmp_path, monkeypatch):
    """edited_kit(file, old, new): from now on code is read from a copy of the kit with that one edit."""

    def edit(name, old, new):
        folder = tmp_path / name.replace("/", "_") / "kit"
        shutil.copytree(PROJECT_ROOT / "kit", folder, ignore=shutil.ignore_patterns("__pycache__"))
        source = (folder / name).read_text()
        assert old in source
        (folder / name).write_text(source.replace(old, new, 1))
        monkeypatch.setattr(code, "PACKAGE", folder)

    return edit


def _stale_parts(before):
    """Notebook number -> the parts of its hashes that are others than before."""
    now = {path.stem[:2]: stamps.code_hashes(path) for path in notebooks()}
    return {number: {part for part in now[number] if now[number][part] != before[number][part]} for number in now}


def test_a_colour_makes_no_computing_stale(edited_kit):
    before = {path.stem[:2]: stamps.code_hashes(path) for path in notebooks()}
    assert set().union(*_stale_parts(before).values()) == set()
    edited_kit("viz/figures.py", "COLOURS = {", 'COLOURS = {"new": "#123456", ')
    stale = _stale_parts(before)
    assert set().union(*stale.values()) == {"figures"} and stale["01"] == stale["06"] == {"figures"}


def test_the_loss_of_clip_ft_does_not_make_the_prototypes_stale(edited_kit):
    before = {path.stem[:2]: stamps.code_hashes(path) for path in notebooks()}
    edited_kit("clip_ft/train.py", "from __future__", "ONE = 1\nfrom __future__")
    assert [number for number, parts in _stale_parts(before).items() if "code" in parts] == ["03"]


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
    stamp = {"code": {"04_features": "a", "kit.x": "b"}, "figures": {"kit.viz.x": "c"},
             "parameters": {"n": 5}, "packages": {"numpy": "2"}}  # fmt: skip
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


def test_code_that_draws_is_told_apart(finished):
    drawn = {"figures": {"kit.viz.x": "d"}}
    assert _why(finished, **drawn) == "redrawing figures: code of kit.viz.x changed"
    assert _why(finished, **drawn, parameters={"n": 10}) == "parameter n 5 -> 10"  # computed anew, so drawn anew


def test_more_than_one_reason_is_counted(finished):
    assert _why(finished, parameters={"n": 10}, packages={"numpy": "3"}) == "parameter n 5 -> 10 (and 1 more change)"
    assert _why(finished, parameters={"n": 1}, packages={}, code={}).endswith("(and 3 more changes)")


@pytest.mark.parametrize("content", ["", '{"code": {"04_fea', "[]", "{}", "\x00\x00", '{"code": 1}'])
def test_a_damaged_mark_means_run_again(finished, content):
    done_path(finished[0].dir, "04_features").write_text(content)
    assert _why(finished) == "its done-mark done/04_features.json is damaged"
    assert read_mark(finished[0].dir, "04_features") is None
    Run.open(finished[0].dir, step="04_features").finish()
    assert stamps.write_mark(finished[0].dir, "04_features", finished[1])["metrics"] == {}


def test_outside_files_are_watched(finished, tmp_path):
    (tmp_path / "weights").write_text("v")
    assert "weights changed: content " in _why(finished)
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
    n_bytes = len(content.encode())
    assert _why(finished).startswith(f"artefact tables/t.csv changed: {n_bytes} -> {n_bytes + 2} bytes, written 20")
    table.write_text(content)
    assert _why(finished) is None
    table.unlink()
    assert _why(finished) == "artefact tables/t.csv is gone"
    table.write_text(content)
    posts = run.posts()
    Run.open(run.dir, step="01_eda").write_posts(posts[::-1].reset_index(drop=True))
    assert _why(finished).startswith("input posts.parquet changed: ") and _why(finished).count(" -> ") == 2


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


def test_damaged_files_are_found_and_whole_ones_kept(tmp_path):
    values = np.arange(3000.0)
    files = {tmp_path / "a" / name for name in ("fold_0.npz", "meta.json", "checkpoint.pt", "model.safetensors")}
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "fold_0.npz", values=values)
    (tmp_path / "a" / "meta.json").write_text('{"columns": ["x"]}')
    torch.save({"values": torch.arange(3000)}, tmp_path / "a" / "checkpoint.pt")
    save_file({"values": values}, tmp_path / "a" / "model.safetensors")
    assert repair.set_aside_damaged(tmp_path) == []
    for path in files:
        content = path.read_bytes()
        for broken in (content[: len(content) // 2], content[:5], b""):
            path.write_bytes(broken)
            assert repair.set_aside_damaged(tmp_path) == [f"a/{path.name}"]
            path.write_bytes(content)
    flipped = bytearray((tmp_path / "a" / "fold_0.npz").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "a" / "fold_0.npz").write_bytes(flipped)
    assert repair.set_aside_damaged(tmp_path) == ["a/fold_0.npz"]


def test_temporary_files_of_the_dead_are_removed(tmp_path):
    """Those of a living process stay: a notebook run by hand may be writing."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "notebooks").mkdir()
    for name in (f".a.{ended.pid}.tmp.npy", f".a.{os.getpid()}.tmp.npy", "a.npy", "notebooks/01_x.running.ipynb"):
        (tmp_path / name).write_text("")
    repair.remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [f".a.{os.getpid()}.tmp.npy", "a.npy"]


class _Letters:
    """A text encoder that counts letters, and how many texts it was given."""

    name, fingerprint, made_by, n_seen = "letters", "1", "kit.encoders.encoders", 0
    module = torch.nn.Linear(1, 1)

    def tokenize(self, texts):
        self.n_seen += len(texts)
        return torch.tensor([[len(text), text.count("a")] for text in texts])

    def lengths(self, ids):
        return torch.full((len(ids),), ids.shape[1])

    def encode_batch(self, module, ids):
        return ids.float()


def test_a_damaged_shard_is_found_and_made_again(tmp_path):
    texts, encoder = ["a" * n for n in range(1, 13)], _Letters()
    first = encode_texts(texts, encoder, tmp_path / "shards", shard_size=4, device="cpu")
    shard = tmp_path / "shards" / "00001.npz"
    others = [path.stat().st_mtime_ns for path in sorted(shard.parent.glob("*.npz")) if path != shard]
    shard.write_bytes(shard.read_bytes()[:-9])
    assert repair.set_aside_damaged(tmp_path) == ["shards/00001.npz"]
    encoder.n_seen = 0
    np.testing.assert_array_equal(encode_texts(texts, encoder, tmp_path / "shards", shard_size=4, device="cpu"), first)
    assert encoder.n_seen == 4
    assert [path.stat().st_mtime_ns for path in sorted(shard.parent.glob("*.npz")) if path != shard] == others


def test_a_damaged_fold_is_found_and_made_again(tmp_path, release):
    posts = read_release(release.write())
    block = Block("b", np.random.default_rng(0).random((len(posts), 3), dtype=np.float32), ["x", "y", "z"])
    cut = make_folds(posts, 2, "user")

    def fit():
        return fit_folds(
            block, posts["label"].to_numpy(), cut, posts, Training(rounds=5, taught=False), out_dir=tmp_path / "gbdt"
        )

    first, paths = fit(), [tmp_path / "gbdt" / name for name in ("fold_0.npz", "fold_1.npz", "final.npz")]
    before = [path.stat().st_mtime_ns for path in paths]
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    assert repair.set_aside_damaged(tmp_path) == ["gbdt/fold_0.npz"]
    np.testing.assert_array_equal(fit().oof, first.oof)
    assert [path.stat().st_mtime_ns == old for path, old in zip(paths, before, strict=True)] == [False, True, True]


def test_a_damaged_block_is_a_reason(finished):
    run = Run.open(finished[0].dir, step="05_x")
    run.write_block(Block("clip", np.zeros((52, 1), np.float32), ["x"]))
    run.finish()
    stamp = {"code": {}, "parameters": {}, "packages": {}, "figures": {}}
    stamps.write_mark(run.dir, "05_x", stamp)
    path = run.dir / "blocks" / "clip" / "meta.json"
    path.write_bytes(path.read_bytes()[:20])
    assert stamps.why_stale(run.dir, "05_x", stamp).startswith("artefact blocks/clip/meta.json changed: ")
    assert repair.set_aside_damaged(run.dir) == ["blocks/clip/meta.json"]
    assert stamps.why_stale(run.dir, "05_x", stamp) == "artefact blocks/clip/meta.json is gone"
