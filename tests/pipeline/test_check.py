"""Every finding of --check: what is said, what to do about it, and whether it makes the check fail."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from kit.base import machine
from kit.base.locks import lock
from kit.pipeline import check
from kit.pipeline.check import Need, need
from kit.pipeline.command import main
from kit.pipeline.steps import CALLED_FROM, Step, plan
from tests.conftest import Release


def _steps(**parameters):
    """Steps "02", "04" ... from keywords as n02={"clip_model": ...}."""
    return [Step(f"{name[1:]}_x", Path(), values) for name, values in sorted(parameters.items())]


@pytest.fixture(scope="module")
def full():
    """The chain with its default parameters."""
    return plan(Path("x"), Path("y"), "full", [])


def test_packages_that_are_missing_or_others(tmp_path):
    pins = tmp_path / "requirements.txt"
    pins.write_text("# pins\nnumpy==2.2.6   # arrays\ntorch==2.14.1\n")
    (_, fine) = check.packages(pins, {"numpy": "2.2.6", "torch": "2.14.1+cpu"})
    assert "in the pinned versions" in fine.text and not fine.fatal and not fine.todo
    (_, other) = check.packages(pins, {"numpy": "2.1.0", "torch": "2.14.1"})
    assert (
        other.text == "other versions: numpy 2.1.0 (pinned: 2.2.6)"
        and "pip install -r" in other.todo
        and not other.fatal
    )
    (_, absent) = check.packages(pins, {"numpy": "missing", "torch": "2.14.1"})
    assert absent.text == "missing: numpy" and absent.fatal and "FAILS: missing" in str(absent)


def test_devices_are_named(monkeypatch):
    found = SimpleNamespace(name="H100", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    assert "cuda:0 H100 (80 GB), cuda:1 H100 (80 GB): used by 02, 03" in list(check.machine())[1].text
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    assert list(check.machine())[1].text.startswith("CPU, ")
    monkeypatch.setattr(check.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    driver = list(check.machine())[1]
    assert "finds no CUDA device" in driver.text and "CUDA_VISIBLE_DEVICES" in driver.todo


def test_a_containers_memory_limit_counts(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("1000000000\n")
    monkeypatch.setattr(machine, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert machine.memory_gb() == (1.0, min(1.0, machine.memory_gb()[1]))


def test_output_that_is_no_folder_or_taken(tmp_path):
    (free,) = check.output(tmp_path / "run")
    assert "GB free" in free.text and not free.fatal
    with lock(tmp_path / "run", "the command"):
        _, taken = check.output(tmp_path / "run")
    assert taken.fatal and "(the command), is working there" in taken.text and "--out" in taken.todo
    (tmp_path / "file").write_text("")
    (refused,) = check.output(tmp_path / "file")
    assert refused.fatal and "cannot write to the output folder" in refused.text


def test_parameters_that_do_not_fit():
    good = {"n06": {"sets": ["statistic"], "schemes": ["user", "time"]}, "n07": {"scheme": "user"}}
    assert list(check.settings(_steps(**good))) == []
    (wrong,) = check.settings(_steps(n06={"sets": ["statistic++clip"], "schemes": ["user"]}))
    assert wrong.fatal and "06.sets: feature set 'statistic++clip'" in wrong.text
    (scheme,) = check.settings(_steps(**good | {"n07": {"scheme": "time"}}))
    assert scheme.fatal and "--set 07.scheme=user" in scheme.todo


def test_weights_that_are_not_there(tmp_path):
    clip = {"clip_model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "weights_dir": str(tmp_path / "none")}
    (gone,) = check.weights(_steps(n02=clip | {"without_weights": "leave out"}))
    assert "ViT-B-32" in gone.text and "left out" in gone.todo and not gone.fatal
    (load,) = check.weights(_steps(n02=clip | {"without_weights": "download"}))
    assert "downloaded" in load.todo
    assert list(check.weights(_steps(n02=clip | {"clip_model": "smp-tiny"}))) == []
    encoders = {"baselines": ["nonsense"], "baseline_models": [], "weights_dir": str(tmp_path)}
    (unknown,) = check.weights(_steps(n04=encoders))
    assert unknown.fatal and "'nonsense'" in unknown.text


def test_data_without_test_part():
    (found,) = check.data(pd.DataFrame({"split": ["train"] * 3}), Path("x"))
    assert "3 train and 0 test" in found.text and "no submission" in found.todo


def test_images_missing_and_broken(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{i}.png") for i in range(10)]
    none = next(check.images(pd.Series(paths), 0.2))
    assert "none of 10 posts has an image" in none.text and "left out" in none.todo and not none.fatal
    for path in paths:
        Image.new("RGB", (8, 8), "red").save(path)
    assert next(check.images(pd.Series(paths), 0.2)).todo == ""
    Path(paths[0]).write_text("no picture")
    one = next(check.images(pd.Series(paths), 0.2))
    assert "of 10 opened 1 cannot be read" in one.text and paths[0] in one.text and "grey" in one.todo and not one.fatal
    for path in paths[:3]:
        Path(path).unlink(missing_ok=True)
    many = next(check.images(pd.Series(paths), 0.2))
    assert many.fatal and "30% bad, 20% allowed" in many.text and "02.max_bad_images=0.35" in many.todo
    monkeypatch.setattr(check, "SAMPLE_FILES", 5)
    assert "of 5 sampled posts" in next(check.images(pd.Series(paths), 1.0)).text


def test_images_do_not_matter_to_a_step_that_is_left_out(tmp_path):
    clip = {
        "clip_model": "ViT-B-32",
        "pretrained": "laion2b_s34b_b79k",
        "weights_dir": str(tmp_path),
        "max_bad_images": 0.2,
    }
    assert check._allowed_bad(_steps(n02=clip | {"without_weights": "leave out"})) == 1.0
    assert check._allowed_bad(_steps(n02=clip | {"without_weights": "download"})) == 0.2
    assert check._allowed_bad(_steps(n02=clip | {"clip_model": "smp-tiny"})) == 0.2


def test_room_in_memory_and_on_disk():
    needs = {"02_a": Need(2, 3), "06_b": Need(9, 1)}
    assert list(check.room(needs, 16, 12, 5)) == [] and list(check.room({}, 1, 1, 0)) == []
    (tight,) = check.room(needs, 16, 8, 5)
    assert "06_b needs about 9.0 GB, 8.0 GB are available now" in tight.text and not tight.fatal
    memory, disk = check.room(needs, 8, 8, 3)
    assert memory.fatal and "this machine has 8.0" in memory.text and "--list" in memory.todo
    assert disk.fatal and "the run needs about 4.0 GB, 3.0 GB are free" in disk.text


def test_estimates_meet_what_was_measured(full):
    n = 486_194
    assert need(full, "01", n).memory == pytest.approx(1.0, rel=0.1)
    assert need(full, "04", n).memory == pytest.approx(3.1, rel=0.1)
    model = {"lightgbm": 1.5, "catboost": 2.3}  # statistic and behaviour, 568 columns, nothing taught
    for name, gb in model.items():
        only = [Step(s.name, s.notebook, s.parameters | {"models": [name], "sets": ["statistic"]}) for s in full]
        assert need(only, "06", n, 568).memory == pytest.approx(gb, rel=0.3)
    small = need(full, "04", 5_500)
    assert small.memory == pytest.approx(0.95, rel=0.1) and small.disk < 0.1
    for number in ("01", "02", "03", "04", "05", "06", "07"):
        assert need(full, number, n).memory > need(full, number, n // 2).memory, number
        assert 0 < need(full, number, n).disk < 60, number


def test_the_plan_names_every_step_and_grows_with_the_columns(full):
    head, *rows = check.plan(full)
    assert "486,194 posts" in head and "600" in head and "3,700" in head
    assert [row.split()[0] for row in rows] == [step.name for step in full]
    for row in rows:
        _, narrow, wide = row.split()
        assert float(wide) > float(narrow) + 4 if row.startswith(("05", "06")) else wide == narrow


def test_estimates_follow_the_parameters(full):
    def changed(number, **values):
        return [Step(s.name, s.notebook, s.parameters | (values if s.number == number else {})) for s in full]

    n = 100_000
    assert need(changed("04", n_top_tags=2000), "04", n).memory > need(full, "04", n).memory + 1.0
    assert need(changed("06", sets=["nonsense++"]), "06", n).memory < need(changed("06", sets=["clip"]), "06", n).memory
    assert need(changed("06", sets=["statistic"]), "06", n).memory < need(full, "06", n).memory
    assert need(changed("03", full=True), "03", n).disk > need(full, "03", n).disk + 0.7
    assert need(changed("02", clip_model="ViT-L-14"), "02", n).memory > need(full, "02", n).memory + 1.5
    assert check.clip_size("ViT-B-32") == (512, pytest.approx(0.605, rel=0.05))
    assert check.clip_size("local-dir:nowhere") == (check.DEFAULT_DIM, check.DEFAULT_WEIGHTS_GB)


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """checked(release folder) -> status and what --check printed."""
    monkeypatch.delenv(CALLED_FROM, raising=False)

    def run(data):
        status = main(
            ["--data", str(data), "--out", str(tmp_path / "run"), "--check", "--set", "02.clip_model=smp-tiny"]
        )
        return status, capsys.readouterr()

    return run


def test_a_whole_check_runs_nothing(checked, tmp_path, monkeypatch):
    data = Release(tmp_path / "data", images=True).write()
    status, said = checked(data)
    assert status == 0 and "nothing here will make it fail" in said.out
    for topic in ("python", "packages", "machine", "device", "output", "data", "images", "01_eda", "07_blend"):
        assert any(line.startswith(topic) for line in said.out.splitlines()), topic
    assert "40 train and 12 test posts, complete and aligned" in said.out and "will run: not run yet" in said.out
    assert not any((tmp_path / "run").iterdir())
    monkeypatch.setattr(check, "package_versions", lambda: {})
    status, said = checked(data)
    assert status == 1 and "FAILS: missing: numpy, " in said.out and "1 finding will make the run fail" in said.out


def test_a_broken_release_is_a_finding(checked, tmp_path):
    release = Release(tmp_path / "data")
    root = release.write()
    release.path("test", "text").write_text("[{")
    status, said = checked(root)
    assert status == 1 and "FAILS: " in said.out and "test_text.json is not valid JSON" in said.out
    assert "Traceback" not in said.err
