"""JupyterLab on working copies: as this user, with a token; Run All goes to the end and leaves the run as it was."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import nbformat
import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.base.paths import PROJECT_ROOT
from kit.base.process import WRITE
from kit.pipeline import lab
from kit.pipeline.steps import notebooks, plan
from kit.run.directory import Run
from kit.run.marks import data_of, read_mark
from kit.run.scratch import make_scratch
from tests import browser

START_S, RUN_S = 180, 600
CLICK_RUN_ALL = """(async () => {{
    const app = window.jupyterapp; await app.restored;
    const panel = await app.commands.execute('docmanager:open', {{path: '{path}', factory: 'Notebook'}});
    await panel.revealed; await panel.sessionContext.ready;
    window.panel = panel; window.over = null;
    app.commands.execute('notebook:run-all-cells').then(() => panel.context.save()).then(() => {{ window.over = 'done'; }});
    return true;
}})()"""


@pytest.fixture
def run_dir(finished, tmp_path, monkeypatch):
    """A copy of the finished run, and nothing in the environment that lets notebooks write."""
    monkeypatch.delenv(WRITE)
    return shutil.copytree(finished[1], tmp_path / "run", symlinks=True)


@contextlib.contextmanager
def running_lab(run_dir, *options):
    """A running `./run_all.sh --lab`; yields its address, its token and what it has said so far, line by line."""
    command = [
        sys.executable,
        "-m",
        "kit.pipeline",
        "--lab",
        "--out",
        str(run_dir),
        "--",
        "--no-browser",
        "--port=0",
        *options,
    ]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said, found = [], threading.Event()

    def listen():
        for line in process.stdout:
            said.append(line)
            if re.search(r"http://\S+token=", line):
                found.set()
        found.set()  # it has ended

    threading.Thread(target=listen, daemon=True).start()
    try:
        found.wait(START_S)
        told = re.search(r"http://[^/]*:(\d+)/\S*token=(\w+)", "".join(said))
        assert told, "".join(said)
        port, token = told.groups()
        wait_until_it_answers(f"http://127.0.0.1:{port}/api", time.monotonic() + START_S)
        yield f"http://127.0.0.1:{port}", token, said
    finally:
        process.terminate()
        process.wait(30)


def wait_until_it_answers(address, end):
    """The server tells its address a moment before it listens there."""
    while True:
        try:
            return urllib.request.urlopen(address, timeout=60).close()
        except urllib.error.URLError:
            assert time.monotonic() < end
            time.sleep(0.2)


def contents(folder, leave_out="lab"):
    """Path -> hash of every file, those of the Lab left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != leave_out]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def steps_of(run_dir):
    return plan(data_of(run_dir), run_dir, "full", [])


def test_lab_asks_for_its_token_and_says_that_it_is_root(run_dir):
    with running_lab(run_dir) as (address, token, said):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/api/contents", timeout=60)
        with urllib.request.urlopen(f"{address}/api/contents/lab?token={token}", timeout=60) as answer:
            names = {entry["name"] for entry in json.load(answer)["content"]}
    assert names == {"scratch", *(path.name for path in notebooks())}
    assert (lab.ROOT in "".join(said)) == (os.geteuid() == 0)


def test_lab_opens_the_project_and_leaves_the_user_the_last_word(monkeypatch):
    inside = PROJECT_ROOT / "outputs" / "demo"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    given = lab.jupyter_options(inside, ["--port=1"])
    assert given[0] == f"--ServerApp.root_dir={PROJECT_ROOT}" and given[1].endswith("/lab/tree/outputs/demo/lab")
    assert given[2:] == ["--allow-root", "--no-browser"]
    assert lab.jupyter_options(inside, ["--ServerApp.root_dir=/", "--allow-root"])[0] == given[1]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("DISPLAY", ":0")
    assert len(lab.jupyter_options(inside, [])) == 2


@pytest.mark.skipif(not browser.CHROMIUM, reason=browser.WHY_NOT)
def test_run_all_of_a_working_copy_in_a_browser_changes_nothing_of_the_run(run_dir, tmp_path):
    """02 trains and encodes nothing again, ends well, and neither the run nor the committed notebook is another."""
    committed = contents(PROJECT_ROOT / "notebooks")
    lab.prepare(run_dir, steps_of(run_dir))
    before, name = contents(run_dir), "02_prototypes.ipynb"
    with (
        running_lab(run_dir, "--LabApp.expose_app_in_browser=True") as (
            address,
            token,
            _,
        ),
        browser.chromium(tmp_path / "profile") as page,
    ):
        page.open(f"{address}/lab?token={token}")
        page.wait_for(
            "typeof window.jupyterapp == 'object' && !!document.querySelector('#jp-main-dock-panel')", START_S
        )
        page.run(CLICK_RUN_ALL.format(path=f"lab/{name}"))
        page.wait_for("window.over", RUN_S)
    cells = [cell for cell in nbformat.read(run_dir / "lab" / name, 4).cells if cell.cell_type == "code"]
    said = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert all(cell.execution_count for cell in cells) and "02_prototypes wrote" in said and "scratch copy" in said
    assert contents(run_dir) == before and contents(PROJECT_ROOT / "notebooks") == committed
    again = (run_dir / "lab" / "scratch" / "blocks" / "clip" / "values.npy").read_bytes()
    assert again == (run_dir / "blocks" / "clip" / "values.npy").read_bytes()


@pytest.mark.parametrize("number", ["05", "06", "07"])
def test_run_all_by_hand_reads_back_what_the_run_has_kept(run_dir, number):
    """As with every kernel: VS Code, Colab, or a notebook executed from the command line."""
    import nbclient

    path = next(path for path in lab.prepare(run_dir, steps_of(run_dir)) if path.name.startswith(number))
    before, fits = contents(run_dir), {file: file.stat().st_mtime_ns for file in run_dir.rglob("*.npz")}
    notebook, started = nbformat.read(path, 4), time.time_ns()
    nbclient.NotebookClient(notebook, timeout=RUN_S, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert contents(run_dir) == before
    written = [file for file in (run_dir / "lab" / "scratch").rglob("*.npz") if file.stat().st_mtime_ns > started]
    assert not written and fits, f"fitted again: {written[:3]}"
    made = {"05": "tables/oversampling.csv", "06": "tables/table_1.csv", "07": "submission.csv"}[number]
    assert not (run_dir / "lab" / "scratch" / made).is_symlink()
    pd.testing.assert_frame_equal(pd.read_csv(run_dir / "lab" / "scratch" / made), pd.read_csv(run_dir / made))


def test_working_copies_carry_the_parameters_of_the_run(run_dir):
    for path in lab.prepare(run_dir, steps_of(run_dir)):
        injected = [
            cell.source
            for cell in nbformat.read(path, 4).cells
            if "injected-parameters" in cell.metadata.get("tags", [])
        ]
        values = {}
        exec(injected[0], values)
        mark = read_mark(run_dir, path.stem)["parameters"]
        assert {name: values[name] for name in mark if name != "run_dir"} == {
            n: v for n, v in mark.items() if n != "run_dir"
        }
        assert values["run_dir"] == str(run_dir / "lab" / "scratch")


def test_a_copy_that_was_edited_is_kept_and_an_old_one_is_not(run_dir, capsys):
    steps = steps_of(run_dir)
    first, second, *_ = lab.prepare(run_dir, steps)
    edited, old = nbformat.read(first, 4), nbformat.read(second, 4)
    edited.cells[3].source += "\nprint('mine')"
    nbformat.write(edited, first)
    old.cells[-1].source += "\n# an earlier version of the kit"
    old.metadata["kit"] = lab._cells(old)
    nbformat.write(old, second)
    lab.prepare(run_dir, steps)
    assert "print('mine')" in first.read_text() and f"{first} was edited and is kept" in capsys.readouterr().out
    assert "an earlier version" not in second.read_text()


def test_a_scratch_copy_follows_its_run_and_keeps_what_was_written_into_it(run_dir):
    scratch = make_scratch(run_dir)
    Run.open(scratch).write_table("mine", pd.DataFrame({"a": [1]}))
    Run.open(scratch).write_table("scores", pd.DataFrame({"a": [2]}))
    (run_dir / "tables" / "fusion.csv").unlink()
    (run_dir / "tables" / "late.csv").write_text("a\n3\n")
    assert make_scratch(run_dir) == scratch
    names = {path.name for path in (scratch / "tables").iterdir()}
    assert {"mine.csv", "late.csv"} <= names and "fusion.csv" not in names
    assert Run.open(scratch).read_table("scores")["a"].tolist() == [2] and "features" in Run.open(run_dir).read_table(
        "scores"
    )


def test_a_run_opened_by_hand_is_still_read_only(run_dir):
    with pytest.raises(InputError, match="write=True"):
        Run.open(run_dir, step="05_oversampling").folder("studies")


def test_every_notebook_gets_a_copy_where_nothing_has_run(release, tmp_path):
    steps = plan(release.write(), tmp_path / "new", "full", [])
    assert {path.name for path in lab.prepare(tmp_path / "new", steps)} == {path.name for path in notebooks()}
