"""The chain as a user sees it: what runs, what is skipped, and what is said when something is wrong."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from kit.base import code
from kit.base.errors import InputError
from kit.base.files import read_json, write_json
from kit.base.locks import lock, lock_holder
from kit.base.paths import PROJECT_ROOT
from kit.base.process import is_alive
from kit.pipeline import notebook, steps, track
from kit.pipeline.command import main
from kit.pipeline.notebook import StepFailed
from kit.pipeline.steps import CALLED_FROM, PROFILES, parse_value, plan, plan_first, read_parameters
from kit.run.directory import ABSENT, Run
from kit.run.marks import done_path
from kit.viz import report

PARAMETERS = 'data_dir: str = "x"  # data\nrun_dir: str = "y"  # run\nn: int = 1  # how many\n'


def _notebook(folder, name, *cells, parameters=PARAMETERS):
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(f'from kit.run.directory import Run\nrun = Run.open(run_dir, step="{name}")'),
        *(nbformat.v4.new_markdown_cell(c) if c.startswith("#") else nbformat.v4.new_code_cell(c) for c in cells),
    ]
    nbformat.write(notebook, folder / f"{name}.ipynb")


WRITE = 'from kit.run.directory import write_json\nwrite_json(run.output("number.json"), n)\nprint("wrote", n)'
READ = 'from kit.run.directory import read_json\nn = read_json(run.input("number.json"))'


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """Two small notebooks, the second reading what the first writes; returns run(*arguments) -> status."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    _notebook(folder, "01_first", WRITE, "run.finish(n=n)")
    _notebook(folder, "02_second", READ, "run.finish(n=n)")
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(steps, "NOTEBOOKS", folder)
    monkeypatch.delenv(CALLED_FROM, raising=False)  # set where run_all.sh runs these tests
    monkeypatch.setattr(report, "write_report", lambda run_dir: (run_dir / "report.html").write_text("report"))

    def run(*arguments):
        return main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *arguments])

    run.folder, run.dir = folder, tmp_path / "run"
    return run


def _states(text):
    """step name -> the first thing said about it."""
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in reversed(text.splitlines()) if line[:1] == "0"}


def test_run_skip_and_rerun(chain, capsys):
    assert chain() == 0
    assert _states(capsys.readouterr().out) == {"01_first": "running: not run yet", "02_second": "running: not run yet"}
    assert (chain.dir / "notebooks" / "01_first.ipynb").is_file()
    assert "wrote 1" in (chain.dir / "logs" / "01_first.log").read_text()
    assert read_json(chain.dir / "done" / "01_first.json")["metrics"] == {"n": 1}

    assert chain() == 0
    assert all("up to date" in said for said in _states(capsys.readouterr().out).values())

    assert chain("--set", "01.n=2") == 0
    said = _states(capsys.readouterr().out)
    assert said["01_first"] == "running: parameter n 1 -> 2"
    assert said["02_second"].startswith("running: input number.json changed: content ")

    assert chain("--set", "01.n=2", "--force", "01") == 0  # same result: the second step need not follow
    said = _states(capsys.readouterr().out)
    assert said["01_first"] == "running: asked for with --force" and "up to date" in said["02_second"]


def test_force_computes_again_what_the_step_had_kept(chain):
    """As long as a first run; any other reason to run lets the step read what it has, and other steps keep theirs."""
    fit = 'made = not (run.folder("studies/a") / "fit").exists()\n(run.folder("studies/a") / "fit").touch()'
    (chain.folder / "02_second.ipynb").unlink()
    _notebook(chain.folder, "05_third", fit, "run.finish(made=int(made))")
    other = chain.dir / "gbdt" / "fit"
    other.parent.mkdir(parents=True)
    other.touch()

    def made(*arguments):
        assert chain(*arguments) == 0
        return read_json(chain.dir / "done" / "05_third.json")["metrics"]["made"]

    assert made() == 1
    assert made("--set", "05.n=2") == 0
    assert made("--set", "05.n=2", "--force", "05") == 1
    assert other.exists()


def test_a_forced_step_that_fails_goes_on_without_force(chain, capsys):
    """The command that goes on must not throw away what was kept since."""
    assert chain() == 0
    _notebook(chain.folder, "02_second", READ, "n / 0", "run.finish()")
    assert chain("--force", "01", "--force=2", "--set", "01.n=3") == 1
    command = capsys.readouterr().err.splitlines()[-1]
    assert command.startswith("  go on ") and "--force" not in command and command.endswith("--set 01.n=3")


def test_figures_are_redrawn_and_nothing_is_fitted(chain, capsys, tmp_path, monkeypatch):
    fit = 'made = not (run.folder("studies") / "fit").exists()\n(run.folder("studies") / "fit").touch()'
    _notebook(chain.folder, "05_third", "from kit.viz import tables", fit, "run.finish(made=int(made))")
    assert chain() == 0
    shutil.copytree(PROJECT_ROOT / "kit", tmp_path / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "kit" / "viz" / "tables.py", "a") as handle:
        handle.write("NEW = 1\n")
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "kit")
    capsys.readouterr()
    assert chain() == 0
    said = _states(capsys.readouterr().out)
    assert said["05_third"] == "redrawing figures: code of kit.viz.tables changed"
    assert "up to date" in said["01_first"] and "up to date" in said["02_second"]
    assert read_json(chain.dir / "done" / "05_third.json")["metrics"] == {"made": 0}
    assert chain() == 0 and "up to date" in _states(capsys.readouterr().out)["05_third"]


def test_only_and_from_leave_the_rest(chain, capsys):
    assert chain("--only", "1") == 0
    assert set(_states(capsys.readouterr().out)) == {"01_first"}
    assert chain("--from", "02", "--set", "01.n=9") == 0
    assert set(_states(capsys.readouterr().out)) == {"02_second"}


def test_accept_keeps_results_and_says_what_they_were_made_with(chain, capsys):
    assert chain() == 0
    capsys.readouterr()
    assert chain("--accept", "01", "--set", "01.n=5") == 0
    said = capsys.readouterr().out
    assert "01_first  accepted, made with n = 1" in said and _states(said)["02_second"].startswith("up to date")
    assert chain("--set", "01.n=5") == 0
    assert "up to date (skipped" in (first := _states(capsys.readouterr().out)["01_first"])
    assert first.endswith("; accepted, made with n = 1)")
    mark = read_json(chain.dir / "done" / "01_first.json")
    assert mark["parameters"]["n"] == 5 and mark["made_with"]["parameters"]["n"] == 1
    (chain.dir / "number.json").write_text("7")
    assert chain("--accept", "01") == 2
    assert "number.json changed" in capsys.readouterr().err


def test_accepted_work_by_hand_says_so(chain, capsys):
    assert chain() == 0
    run = Run.open(chain.dir, step="01_first", write=True)
    write_json(run.output("number.json"), 3)
    run.finish(n=3)
    capsys.readouterr()
    assert chain("--list") == 0 and "run by hand or cut off" in capsys.readouterr().out
    assert chain("--accept", "01") == 0
    said = capsys.readouterr().out
    assert "01_first  accepted, made by hand, with parameters that are not known" in said
    assert read_json(chain.dir / "number.json") == 3


def test_a_failing_cell_is_shown_where_it_is(chain, capsys):
    _notebook(chain.folder, "02_second", "## 3 Divide", "n / 0", "run.finish()")
    assert chain() == 1
    error = capsys.readouterr().err
    assert 'failed in section "3 Divide", cell' in error
    assert "ZeroDivisionError: division by zero" in error
    assert "02_second.log" in error and "02_second.failed.ipynb" in error
    assert "go on     python -m kit.pipeline --data" in error
    assert not (chain.dir / "done" / "02_second.json").exists()

    _notebook(chain.folder, "02_second", READ, "run.finish(n=n)")
    assert chain() == 0
    said = _states(capsys.readouterr().out)
    assert "up to date" in said["01_first"] and said["02_second"] == "running: not finished last time"
    assert not (chain.dir / "notebooks" / "02_second.failed.ipynb").exists()


def test_a_mistake_of_the_user_is_told_without_a_trace(chain, capsys):
    _notebook(
        chain.folder,
        "01_first",
        'from kit.base.errors import InputError\nraise InputError("labels.txt, line 3: no number")',
    )
    assert chain() == 2
    error = capsys.readouterr().err
    assert "labels.txt, line 3: no number" in error and "Traceback" not in error and "InputError" not in error


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "its kernel was killed (SIGKILL), by hand or by the system. It held up to "),
        (signal.SIGSEGV, "its kernel crashed in native code (SIGSEGV): a fault of a library"),
        (signal.SIGUSR1, "its kernel ended (SIGUSR1). It held"),
    ],
)
def test_a_kernel_that_dies_is_told_by_its_signal(chain, capsys, number, said):
    """And where it was, and how much it held; of memory only where it held much of it."""
    _notebook(chain.folder, "01_first", "## 2 Fit", f"import os\nos.kill(os.getpid(), {int(number)})", "run.finish()")
    assert chain() == 138
    error = capsys.readouterr().err
    assert 'failed in section "2 Fit"' in error and said in error and "out of memory" not in error
    assert re.search(r"held up to [\d,]+ MB of this machine's [\d,]+ MB", error)
    assert not (chain.dir / "done" / "01_first.json").exists()
    assert chain("--list") == 0
    assert "01_first  (not finished last time)" in capsys.readouterr().out


def test_a_kernel_killed_while_it_held_much_points_at_memory(chain, capsys, monkeypatch):
    monkeypatch.setattr(notebook, "memory_gb", lambda: (1e-3, 1e-3))
    sleeps = "import os, time\ntime.sleep(2)\nos.kill(os.getpid(), 9)"
    _notebook(chain.folder, "01_first", sleeps, "run.finish()")
    assert chain() == 138
    assert "killed (SIGKILL), most likely because the system ran out of memory" in capsys.readouterr().err


def test_a_kernel_whose_python_is_gone(chain, capsys, tmp_path, monkeypatch):
    """As after a virtual environment was moved: the notebook is not said to have been left early."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/gone/python", "-f", "{connection_file}"], "display_name": "x", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert chain() == 1
    error = capsys.readouterr().err
    assert "the notebook could not be run" in error and "/gone/python" in error and "remove .venv" in error
    assert "left early" not in error


def test_a_failure_can_be_kept_like_any_exception():
    failure = StepFailed("it failed", cell=3)
    assert {failure: 1}[failure] == 1 and str(failure) == "it failed" and failure.status == 1


def test_leaving_early_is_no_success(chain, capsys):
    _notebook(chain.folder, "01_first", "import sys\nsys.exit(0)", "run.finish()")
    assert chain() == 1
    assert "01_first failed" in capsys.readouterr().err
    assert not (chain.dir / "done" / "01_first.json").exists()


def test_a_step_left_out_is_named_and_tried_again(chain, capsys):
    _notebook(
        chain.folder,
        "01_first",
        "run.leave_out('no weights in inputs/weights', blocks=['clip'])",
        WRITE,
        "run.finish()",
    )
    _notebook(chain.folder, "02_second", "run.finish()")
    (chain.dir / "blocks" / "clip").mkdir(parents=True)
    assert chain() == 0
    assert "01_first   LEFT OUT: no weights in inputs/weights" in capsys.readouterr().out
    assert [path.name for path in (chain.dir / "blocks" / "clip").iterdir()] == [ABSENT]
    assert chain() == 0
    said = _states(capsys.readouterr().out)
    assert said["01_first"] == "running: left out last time" and "up to date" in said["02_second"]
    _notebook(chain.folder, "01_first", WRITE, "run.finish()")
    assert chain() == 0 and not list((chain.dir / "done").glob("*left_out*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "09.n=1"), "no notebook 09; the chain is 01_first, 02_second"),
        (("--set", "01.m=1"), "01_first has no parameter 'm' to set; its parameters are n: int"),
        (("--set", "01.n=many"), "--set 01.n=many: expected a value of type int"),
        (("--set", "01.n"), "expected NN.name=value"),
        (("--set", "01.run_dir=x"), "(use --out)"),
        (("--only", "7"), "no notebook 07"),
        (("--force", "x"), "no notebook 0x"),
        (("--accept", "01"), "01_first has left no results"),
        (("--data", "nowhere"), "--data: no folder"),
        (("--out", "a{b}"), "braces"),
    ],
)
def test_wrong_arguments_change_nothing(chain, capsys, arguments, message):
    assert chain(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (chain.dir / "done").exists()


def test_an_unknown_option_exits(chain):
    with pytest.raises(SystemExit) as stop:
        chain("--fold", "3")
    assert stop.value.code == 2


def test_a_reader_that_goes_away_ends_it_quietly(chain):
    command = [sys.executable, "-m", "kit.pipeline", "--list"]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.communicate()[1] == "" and process.returncode == 141


def test_output_that_cannot_be_written(chain, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert chain("--out", str(tmp_path / "file")) == 2
    assert "cannot write to the output folder" in capsys.readouterr().err


def test_one_pipeline_per_run(chain, capsys):
    chain.dir.mkdir()
    with lock(chain.dir, "run_all.sh --data x"):
        assert chain() == 2
    error = capsys.readouterr().err
    assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in error
    assert "(run_all.sh --data x), is already working in" in error and "--out" in error
    assert chain() == 0


def test_a_lock_file_without_a_holder_holds_nobody(chain):
    chain.dir.mkdir()
    (chain.dir / ".lock").write_text("4711")
    assert lock_holder(chain.dir) is None and chain() == 0


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("7", "int", 7), ("1e-3", "float", 0.001), ("true", "bool", True), ("False", "bool", False), ("a b", "str", "a b"),
        ("a, b ,", "list[str]", ["a", "b"]), ("['a ', 'b']", "list[str]", ["a", "b"]), ("1, 2", "list[int]", [1, 2]),
        ("", "list[str]", []), ("[0.5, 1]", "list[float]", [0.5, 1.0]),
    ],
)  # fmt: skip
def test_values_get_the_declared_type(text, kind, value):
    parsed = parse_value(text, kind, "01.x")
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1.5", "int"),
        ("nan", "float"),
        ("inf", "float"),
        ("maybe", "bool"),
        ("a,2", "list[int]"),
        ("[1, 2", "list[int]"),
    ],
)
def test_values_of_the_wrong_type_are_refused(text, kind):
    with pytest.raises(InputError, match="01.x"):
        parse_value(text, kind, "01.x")


def test_parameters_are_read_as_they_stand(tmp_path):
    cell = """
n: int = 1  # how many, e.g. n=2 # or more
names: list[str] = [
    "größe", "b=c",
]  # names as a=b
plain: str = "#"
"""
    _notebook(tmp_path, "01_first", parameters=cell)
    found = {name: (p.default, p.type_name, p.help) for name, p in read_parameters(tmp_path / "01_first.ipynb").items()}
    assert found == {
        "n": (1, "int", "how many, e.g. n=2 # or more"), "names": (["größe", "b=c"], "list[str]", "names as a=b"),
        "plain": ("#", "str", ""),
    }  # fmt: skip
    _notebook(tmp_path, "01_first", parameters="n = 1")
    with pytest.raises(ValueError, match="n = 1 is no parameter; write name: type = value"):
        read_parameters(tmp_path / "01_first.ipynb")
    (tmp_path / "01_first.ipynb").write_text("{")
    with pytest.raises(InputError, match="cannot be read as a notebook"):
        read_parameters(tmp_path / "01_first.ipynb")


def test_a_quick_run_has_neither_networks_nor_studies(tmp_path):
    steps = {step.number: step.parameters for step in plan(tmp_path, tmp_path / "r", "quick", [])}
    assert list(steps) == ["01", "04", "06", "07", "08"]
    assert steps["06"]["sets"] == ["all"] and steps["04"]["baselines"] == []
    with pytest.raises(InputError, match="no notebook 05; the chain is 01_eda, 04_features"):
        plan(tmp_path, tmp_path / "r", "quick", ["05.seed=1"])


def test_full_begins_with_what_quick_makes(tmp_path):
    """Once, until a submission stands; with the user's settings, but for those that make it quick."""
    asked = (
        tmp_path,
        tmp_path / "run",
        "full",
        ["06.sets=paper", "06.rounds=77", "02.shots=5", "5.rounds=3", "04.tuned=e5"],
    )
    first = plan_first(*asked)
    assert [step.number for step in first] == ["01", "04", "06", "07"]
    by_number = {step.number: step.parameters for step in first}
    assert by_number["06"]["sets"] == ["all"] and by_number["06"]["rounds"] == 77
    assert by_number["04"]["tuned"] == []
    assert (
        plan_first(tmp_path, tmp_path / "run", "quick", []) == plan_first(tmp_path, tmp_path / "run", "paper", []) == []
    )
    write_json(done_path(tmp_path / "run", "07_blend"), {})
    assert plan_first(*asked) == []


def test_studies_run_after_the_submission(tmp_path):
    order = [step.number for step in plan(tmp_path, tmp_path, "full", [])]
    assert order.index("05") == order.index("07") + 1 and sorted(order) == [path.stem[:2] for path in steps.notebooks()]


def test_a_first_submission_is_made_and_reported_before_the_rest(chain, capsys, monkeypatch):
    """01, 07 with the quick profile's parameters, then 01, 02, 07 with those of the full one, each run once only."""
    _notebook(chain.folder, "07_blend", READ, 'open(f"{run_dir}/submission.csv", "w").close()', "run.finish(n=n)")
    monkeypatch.setattr(steps, "PROFILES", {"full": {"01": {"n": 5}}, "quick": {"01": {"n": 3}}})
    monkeypatch.setattr(track, "note", lambda run_dir: None)  # these notebooks leave no tables
    told = []
    monkeypatch.setattr(
        report, "write_report", lambda run_dir: told.append(read_json(done_path(run_dir, "07_blend"))["metrics"])
    )
    assert chain() == 0
    said = [
        line for line in capsys.readouterr().out.splitlines() if " done in " in line or " a submission stands" in line
    ]
    assert [line.split()[0] for line in said] == [
        "01_first",
        "07_blend",
        "07_blend",
        "01_first",
        "02_second",
        "07_blend",
    ]
    assert "a submission stands" in said[2] and [one["n"] for one in told] == [3, 5]
    assert chain() == 0 and "nothing new to run" in capsys.readouterr().out


def test_settings_win_over_the_profile(tmp_path):
    steps = {step.number: step for step in plan(tmp_path, tmp_path / "r", "demo", ["01.n_folds=7"])}
    assert steps["01"].parameters["n_folds"] == 7
    assert steps["06"].parameters["rounds"] == PROFILES["demo"]["06"]["rounds"]


@pytest.fixture
def background(chain):
    """start(wait_for) -> the chain in a process of its own, once the file it was to wait for is there."""
    started = []

    def start(wait_for):
        code = (
            "import sys, pathlib, signal; from kit.pipeline import command, steps; "
            "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a test run in the background has both ignored
            "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
            f"steps.NOTEBOOKS = pathlib.Path({str(chain.folder)!r}); sys.exit(command.main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", code, "--data", str(chain.dir.parent / "data"), "--out", str(chain.dir)]
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        deadline = time.time() + 60
        while not (chain.dir / wait_for).exists() and time.time() < deadline:
            time.sleep(0.05)
        return process, psutil.Process(process.pid).children(recursive=True)

    yield start
    for process in started:
        process.kill()
        process.communicate()


SLEEP = "import time\n(run.dir / 'started').touch()\ntime.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_run_says_how_to_go_on(chain, background, number):
    """A signal in the middle of a cell: no done-mark, no kernel left behind, no lock, and the same command goes on."""
    _notebook(chain.folder, "01_first", SLEEP, "run.finish()")
    process, kernels = background("started")
    assert kernels and lock_holder(chain.dir).startswith(f"process {process.pid} on ")
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; finished steps are kept. Go on with: python -m kit.pipeline --data" in error
    assert not psutil.wait_procs(kernels, timeout=5)[1]
    assert lock_holder(chain.dir) is None
    assert not (chain.dir / "done" / "01_first.json").exists()


def test_a_kernel_ends_before_the_next_pipeline_begins(chain, background):
    """The runner alone is killed; its kernel, which never looks up, must be gone once the lock is had again."""
    writes = "import time\nwhile True:\n    (run.dir / 'started').write_text(str(time.time()))\n    time.sleep(0.01)"
    _notebook(chain.folder, "01_first", writes, "run.finish()")
    process, kernels = background("started")
    process.kill()
    process.wait()
    assert lock_holder(chain.dir) is None
    with lock(chain.dir, ""):
        assert kernels and not any(is_alive(kernel.pid) for kernel in kernels)


def test_a_report_older_than_a_mark_is_written_again(chain):
    """As after a run that was cut off between its last step and the report."""
    assert chain() == 0
    report_path = chain.dir / "report.html"
    report_path.write_text("old")
    os.utime(report_path, (0, 0))
    assert chain() == 0 and report_path.read_text() == "report"


def test_damage_is_found_and_made_good(chain, capsys):
    assert chain() == 0
    for name in ("done/01_first.json", "number.json", "kept.npz"):
        (chain.dir / name).write_text("{")
    capsys.readouterr()
    assert chain("--list") == 0 and chain("--accept", "01") == 2
    assert "--accept 01: its record is damaged; run the step again" in capsys.readouterr().err
    (chain.dir / "done" / "01_first.json").write_text("{")
    assert chain() == 0
    said = capsys.readouterr().out
    assert "01_first   running: its done-mark done/01_first.json is damaged" in said
    removed = next(line for line in said.splitlines() if line.startswith("damaged, set aside and made again: "))
    assert all(name in removed for name in ("done/01_first.json", "number.json", "kept.npz"))
    assert read_json(chain.dir / "number.json") == 1 and not (chain.dir / "kept.npz").exists()
