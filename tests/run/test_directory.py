"""A run directory never shows a half-written file, and knows what a step read and wrote."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kit.base.errors import InputError, StepLeftOut
from kit.base.files import atomic_path, fingerprint, matches, read_json
from kit.base.paths import PROJECT_ROOT, resolve
from kit.base.process import HEADLESS, PARAMETERS, WRITE
from kit.base.progress import progress
from kit.release.smpd import read_release
from kit.run import directory
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.marks import done_path, pending_path
from kit.viz.figures import blend_weights


@pytest.fixture
def run(release, tmp_path):
    opened = Run.open(tmp_path / "run", step="01_eda")
    opened.write_posts(read_release(release.write()))
    return opened


def test_posts_come_back_as_they_went(run, release):
    pd.testing.assert_frame_equal(Run.open(run.dir).posts(), read_release(release.root))


def test_blocks_carry_their_rows(run):
    values = np.arange(104, dtype=np.float16).reshape(52, 2)
    run.write_block(Block("b", values, ["x", "y"], ["y"], "a test", "weights of others"))
    block = Run.open(run.dir).read_block("b")
    np.testing.assert_array_equal(block.values, values)
    assert (block.columns, block.categorical, block.source, block.external) == (
        ["x", "y"],
        ["y"],
        "a test",
        "weights of others",
    )
    assert isinstance(block.values, np.memmap) and not block.values.flags.writeable
    with pytest.raises(ValueError, match="3 rows, the posts table 52"):
        run.write_block(Block("c", values[:3], ["x", "y"]))
    with pytest.raises(ValueError, match="float64"):
        run.write_block(Block("c", values.astype(float), ["x", "y"]))
    with pytest.raises(InputError, match="no block 'c' .*this run has: b"):
        run.read_block("c")


def test_a_block_is_filled_on_disk(run):
    with run.fill_block("big", ["x", "y"], "a test", "weights of others") as values:
        assert values.dtype == np.float16 and not values.any()
        values[:] = np.arange(104).reshape(52, 2)
    block = run.read_block("big")
    np.testing.assert_array_equal(block.values, np.arange(104).reshape(52, 2))
    assert (block.columns, block.source, block.external) == (["x", "y"], "a test", "weights of others")
    with pytest.raises(KeyboardInterrupt), run.fill_block("big", ["x"]) as values:
        raise KeyboardInterrupt
    assert run.block_names() == [] and not list(run.dir.rglob("*.tmp*")), "neither a part nor the old block is left"


def test_a_block_of_other_posts_is_refused(run):
    run.write_block(Block("b", np.zeros((52, 1), np.float32), ["x"]))
    posts = run.posts()
    posts.loc[[0, 1], "Pid"] = posts.loc[[1, 0], "Pid"].to_numpy()
    run.write_posts(posts)
    with pytest.raises(InputError, match="block 'b' was made for other posts"):
        run.read_block("b")


def test_block_checks_itself():
    with pytest.raises(ValueError, match="do not fit 2 columns"):
        Block("b", np.zeros((3, 1), np.float32), ["x", "y"])
    with pytest.raises(ValueError, match=r"appear twice: \['x'\]"):
        Block("b", np.zeros((3, 2), np.float32), ["x", "x"])
    with pytest.raises(ValueError, match=r"not among its columns: \['z'\]"):
        Block("b", np.zeros((3, 1), np.float32), ["x"], ["z"])


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_opening_for_a_step_withdraws_its_mark(run):
    done_path(run.dir, "01_eda").parent.mkdir(exist_ok=True)
    done_path(run.dir, "01_eda").write_text("{}")
    Run.open(run.dir)
    assert done_path(run.dir, "01_eda").exists()
    Run.open(run.dir, step="01_eda")
    assert not done_path(run.dir, "01_eda").exists()


@pytest.fixture
def by_hand(run, monkeypatch):
    """A run whose step is finished, as a notebook run by hand finds it."""
    run.write_table("t", pd.DataFrame({"a": [1]}))
    run.write_block(Block("b", np.zeros((52, 1), np.float32), ["x"]))
    run.finish()
    pending_path(run.dir, "01_eda").rename(done_path(run.dir, "01_eda"))
    for name in (WRITE, HEADLESS):
        monkeypatch.delenv(name, raising=False)
    return run


def _content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_looking_changes_nothing(by_hand, capsys):
    before = _content(by_hand.dir)
    run = Run.open(by_hand.dir, step="01_eda")
    assert "read only" in capsys.readouterr().out
    assert len(run.posts()) == 52 and run.read_block("b").columns == ["x"]
    run.write_table("t", pd.DataFrame({"a": [2]}))
    assert run.write_figure("f", blend_weights({"a": 1.0})).data.startswith(b"\x89PNG")
    for write in (
        lambda: run.write_posts(run.posts()), lambda: run.write_block(Block("b", np.ones((52, 1), np.float32), ["x"])),
        lambda: run.drop_block("b"), lambda: run.folder("gbdt"), lambda: run.output("x.json"), lambda: run.finish(n=1),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"opened to read.*Run.open\(run_dir, step='01_eda', write=True\)"):
            write()
    with pytest.raises(StepLeftOut, match="no weights"):
        run.leave_out("no weights", blocks=["b"])
    assert _content(by_hand.dir) == before


def test_writing_by_hand_is_allowed_by_name(by_hand, monkeypatch):
    with pytest.raises(StepLeftOut):
        Run.open(by_hand.dir, step="01_eda", write=True).leave_out("no weights", blocks=["b"])
    assert by_hand.has_block("b") and (by_hand.dir / "tables" / "t.csv").is_file()  # by hand nothing is deleted
    assert not done_path(by_hand.dir, "01_eda").exists()
    monkeypatch.setenv(WRITE, "1")
    Run.open(by_hand.dir, step="01_eda").write_table("t", pd.DataFrame({"a": [3]}))
    assert by_hand.read_table("t")["a"].tolist() == [3]


def test_a_run_to_read_must_be_there(tmp_path, monkeypatch):
    monkeypatch.delenv(WRITE)
    with pytest.raises(InputError, match="no run at .*write=True"):
        Run.open(tmp_path / "none", step="01_eda")
    assert not (tmp_path / "none").exists()


def test_finish_records_reads_and_writes(run, capsys, monkeypatch):
    monkeypatch.delenv(HEADLESS, raising=False)
    run.finish()
    later = Run.open(run.dir, step="04_features")
    later.write_block(Block("b", np.zeros((52, 1), np.float32), ["x"]))
    later.use(run.dir / "not_there.csv")
    monkeypatch.setenv(HEADLESS, "1")
    monkeypatch.setenv(PARAMETERS, '{"n": 5}')
    later.finish(src=0.5)
    record = read_json(pending_path(run.dir, "04_features"))
    assert set(record["reads"]) == {"posts.parquet"}
    assert set(record["writes"]) == {"blocks/b/values.npy", "blocks/b/meta.json"}
    assert record["inputs"] == {str(run.dir / "not_there.csv"): None}
    assert record["metrics"] == {"src": 0.5} and record["by_hand"] is False and record["peak_mb"] > 10
    assert record["made_with"]["parameters"] == {"n": 5} and record["made_with"]["packages"]["numpy"] == np.__version__
    assert read_json(pending_path(run.dir, "01_eda"))["made_with"]["parameters"] is None  # nobody knows
    assert "--accept 01" in capsys.readouterr().out


def test_finish_refuses_what_was_not_written(run):
    run.output("tables/promised.csv")
    with pytest.raises(RuntimeError, match="tables/promised.csv"):
        run.finish()


def test_fingerprints_follow_content_not_time(tmp_path):
    path = tmp_path / "a"
    assert fingerprint(path) is None and matches(path, None)
    path.write_text("one")
    known = fingerprint(path)
    assert matches(path, known) and not matches(path, None)
    path.write_text("one")
    assert matches(path, known)
    path.write_text("two")
    assert not matches(path, known)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to the output folder .*--out"):
        Run.open(tmp_path / "file", step="01_eda")
    with pytest.raises(InputError, match="no run at"):
        Run.open(tmp_path / "nothing")


def test_relative_paths_start_at_the_project_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("outputs/demo") == PROJECT_ROOT / "outputs" / "demo"
    assert resolve(tmp_path / "x") == tmp_path / "x"


def test_progress_says_little(capsys, monkeypatch):
    clock = iter(float(i) for i in range(1000))
    monkeypatch.setattr(directory.time, "perf_counter", lambda: next(clock))
    assert list(progress(range(35), label="encode", unit="img")) == list(range(35))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "encode: 10 of 35 img, 1.0 img/s, 25 s left"


def test_what_a_step_no_longer_writes_is_removed(tmp_path, monkeypatch):
    """Also after a run in between that never finished; and files of other steps stay."""
    table = pd.DataFrame({"a": [1]})
    first = Run.open(tmp_path, step="05_x")
    for name in ("kept", "dropped"):
        first.write_table(name, table)
    first.finish()
    other = Run.open(tmp_path, step="06_y")
    other.write_table("other", table)
    other.finish()
    Run.open(tmp_path, step="05_x")  # cut off
    assert (tmp_path / "tables" / "dropped.csv").is_file()
    second = Run.open(tmp_path, step="05_x")
    second.write_table("kept", table)
    second.finish()
    assert sorted(path.stem for path in (tmp_path / "tables").iterdir()) == ["kept", "other"]
    monkeypatch.setenv(HEADLESS, str(os.getpid()))
    with pytest.raises(StepLeftOut, match="no weights"):
        Run.open(tmp_path, step="05_x").leave_out("no weights", blocks=["clip"])
    assert [path.stem for path in (tmp_path / "tables").iterdir()] == ["other"]


def test_a_block_that_could_not_be_made_says_why(run):
    assert "no step of this run makes a block 'blip'; it has none" in run.why_no_block("blip")
    run.drop_block("blip", "needs its weights")
    assert run.why_no_block("blip") == "needs its weights" and not run.has_block("blip") and run.block_names() == []
    run.write_block(Block("blip", np.zeros((52, 1), np.float32), ["x"]))
    assert run.has_block("blip") and "needs" not in run.why_no_block("blip")


def test_asking_for_a_file_is_noted(run):
    assert not run.has_file("clip_ft/losses.parquet") and run.has_file("posts.parquet")
    run.finish()
    reads = read_json(pending_path(run.dir, "01_eda"))["reads"]
    assert reads["clip_ft/losses.parquet"] is None and reads["posts.parquet"] is not None


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(arrays(st.sampled_from([np.float16, np.float32]), st.tuples(st.just(52), st.integers(0, 4)),
              elements=st.floats(width=16)))  # fmt: skip
def test_any_block_comes_back_bit_by_bit(run, values):
    """Infinities, NaN, negative zeros, no columns at all."""
    run.write_block(Block("any", values, [f"c{i}" for i in range(values.shape[1])]))
    back = run.read_block("any").values
    assert back.dtype == values.dtype and back.shape == values.shape and back.tobytes() == values.tobytes()
