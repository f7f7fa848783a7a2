"""Every finding of --check: what is said, what to do about it, and whether it makes the check fail."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from kit.base import machine
from kit.base.locks import lock
from kit.base.paths import PROJECT_ROOT
from kit.pipeline import check
from kit.pipeline import plan as plan_module
from kit.pipeline.command import main
from kit.pipeline.plan import Cost
from kit.pipeline.steps import CALLED_FROM, Step, plan
from kit.release.smpd import read_release
from tests.conftest import Release


def _steps(**parameters):
    """Steps "02", "04" ... from keywords as n02={"clip_model": ...}."""
    return [Step(f"{name[1:]}_x", Path(), values) for name, values in sorted(parameters.items())]


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


def test_devices_are_those_the_driver_names(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(check, "gpu_names", lambda: ["H100 (80 GB)", "T4 (15 GB)"])
    monkeypatch.setattr(check, "package_versions", lambda: {"torch": "2.14.1"})
    found = list(check.machine())[1]
    assert found.text.startswith("GPU 0: H100 (80 GB), GPU 1: T4 (15 GB): used by 02, 03") and not found.todo
    monkeypatch.setattr(check, "package_versions", lambda: {"torch": "2.14.1+cpu"})
    assert "torch 2.14.1+cpu cannot use them" in list(check.machine())[1].todo
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides GPUs" in list(check.machine())[1].todo
    monkeypatch.setattr(check, "gpu_names", list)
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    assert list(check.machine())[1].text.startswith("CPU, ")
    monkeypatch.setattr(check.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    driver = list(check.machine())[1]
    assert "it knows no GPU" in driver.text and "nvidia-smi" in driver.todo


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


LEARNERS = ["lightgbm", "catboost", "author_ridge"]


def test_parameters_that_do_not_fit():
    good = {"n06": {"sets": ["statistic"], "schemes": ["user", "time"]}, "n07": {"scheme": "user"}}
    assert list(check.settings(_steps(**good), LEARNERS, set())) == []
    (wrong,) = check.settings(_steps(n06={"sets": ["statistic++clip"], "schemes": ["user"]}), LEARNERS, set())
    assert wrong.fatal and "06.sets: feature set 'statistic++clip'" in wrong.text
    (scheme,) = check.settings(_steps(**good | {"n07": {"scheme": "time"}}), LEARNERS, set())
    assert scheme.fatal and "--set 07.scheme=user" in scheme.todo
    assert list(check.settings(_steps(**good | {"n07": {"scheme": "auto"}}), LEARNERS, set())) == []


def test_misspelt_items_are_found_and_blanks_are_none(tmp_path):
    def found(*settings, own=frozenset()):
        return list(check.settings(plan(tmp_path, tmp_path, "full", list(settings)), LEARNERS, set(own)))

    assert found("06.sets= statistic , statistic + clip", "06.models=lightgbm, catboost", "06.schemes=user, time") == []
    assert found() == []
    (model,) = found("06.models=lightgbm, catbost")
    assert model.fatal and "06.models: no model 'catbost'; there are lightgbm, catboost, author_ridge" in model.text
    (scheme,) = found("06.schemes=user, tiem")
    assert scheme.fatal and "no scheme 'tiem'; there are auto, user, time, plain" in scheme.text
    (block,) = found("06.sets=statistic, statistic+clpi")
    assert "06.sets: no step makes a block 'clpi'" in block.text and not block.fatal
    assert found("06.sets=statistic, statistic+mine", own=["mine"]) == []
    (tuned,) = found("06.sets=statistic+taught+tuned")
    assert "06.sets: tuned asks for encoders" in tuned.text and "04.tuned=" in tuned.todo
    assert found("06.sets=statistic+taught+tuned", "04.tuned=minilm") == []
    (features,) = found("05.features=statistic+behavior")
    assert "05.features: no step makes a block 'behavior'" in features.text


def _missing(steps):
    children = check.start_children(steps)
    answers = {name: check._answer(child) for name, child in children.items()}
    assert {"lightgbm", "catboost"} <= set(answers.pop("learners"))
    return answers


def test_regressors_of_scikit_learn_are_asked_for_by_name():
    trees, misspelt = "sklearn.ensemble.ExtraTreesRegressor", "sklearn.ensemble.ExtraTrees"
    steps = _steps(n05={"model": "lightgbm"}, n06={"models": ["lightgbm", trees, misspelt], "sets": ["statistic"]})
    learners = check._answer(check.start_children(steps)["learners"])
    (wrong,) = check.settings(steps, learners, set())
    assert wrong.fatal and f"no model {misspelt!r}; there are lightgbm" in wrong.text and trees in wrong.text


def test_a_library_that_cannot_be_loaded_is_told_among_the_packages_alone():
    child = subprocess.Popen([sys.executable, "-c", "import none_such"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (nothing := check._answer(child)) == ""
    steps = _steps(n02={}, n06={"models": ["lightgbm"], "sets": ["statistic"]})
    assert list(check.settings(steps, nothing, set())) == [] == list(check.weights(steps, {"02_x": nothing}))


def test_weights_that_are_not_there(tmp_path):
    clip = {"clip_model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "weights_dir": str(tmp_path / "none")}
    encoders = {"baselines": ["nonsense"], "baseline_models": [], "weights_dir": str(tmp_path)}
    steps = _steps(n02=clip, n04=encoders, n05={"device": "auto"})
    missing = _missing(steps)
    assert set(missing) == {"02_x", "04_x"}
    gone, unknown = check.weights(steps, missing)
    assert "ViT-B-32" in gone.text and "left out" in gone.todo and not gone.fatal
    assert unknown.fatal and "'nonsense'" in unknown.text
    assert "downloaded" in next(check.weights(_steps(n02=clip | {"without_weights": "download"}), missing)).todo


def test_of_the_two_text_encoders_the_one_that_reads_the_titles_is_told(tmp_path):
    steps = _steps(n04={"baselines": ["sentences"], "baseline_models": [], "weights_dir": str(tmp_path)})
    missing = _missing(steps)
    (latin,), (other,) = (check.weights(steps, check._needed(steps, missing, share)) for share in (0.1, 0.9))
    assert "minilm needs" in latin.text and "e5" not in latin.text
    assert "e5 needs" in other.text and "minilm" not in other.text and not other.fatal
    named = _steps(n04={"baselines": ["minilm", "e5"], "baseline_models": [], "weights_dir": str(tmp_path)})
    assert check._needed(named, missing, 0.1) == missing


def test_data_without_test_part():
    (found,) = check.data(pd.DataFrame({"split": ["train"] * 3}), Path("x"))
    assert "3 train and 0 test" in found.text and "no submission" in found.todo


def test_folds_are_those_of_the_run(release):
    posts = read_release(release.write())
    (found,) = check.folds(posts, "auto")
    assert found.text.startswith("by user decide") and not found.fatal
    (found,) = check.folds(posts.assign(Uid="me"), "auto", 3)  # folds by author cannot be made
    assert found.text.startswith("by time decide") or found.text.startswith("by matched decide")
    (found,) = check.folds(posts.assign(Uid="me"), "user", 3)
    assert found.fatal and "found 1 authors" in found.text and found.todo


def test_values_that_many_posts_have_lost_are_said_beforehand():
    posts = pd.DataFrame({"split": ["train"] * 50, "faults": ["no date; too long", *["no date"] * 4, *[""] * 45]})
    _, found = check.data(posts, Path("x"))
    assert found.text == "5 of 50 posts: no date" and found.todo and not found.fatal


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


def test_images_do_not_matter_to_a_step_that_is_left_out():
    clip = {"max_bad_images": 0.2}
    lacks = {"02_x": ["clip needs its weights"]}
    assert check._allowed_bad(_steps(n02=clip | {"without_weights": "leave out"}), lacks) == 1.0
    assert check._allowed_bad(_steps(n02=clip | {"without_weights": "download"}), lacks) == 0.2
    assert check._allowed_bad(_steps(n02=clip | {"without_weights": "leave out"}), {"02_x": []}) == 0.2


def test_room_in_memory_and_on_disk():
    costs = {"02_a": Cost("demo", 1000, 2.0, 5.0, 3.0), "06_b": Cost("demo", 1000, 9.0, 5.0, 3.0)}
    assert list(check.room(costs, 1000, 16, 12, 5)) == [] and list(check.room({}, 1000, 1, 0, 0)) == []
    (tight,) = check.room(costs, 1000, 16, 8, 5)
    assert "06_b held 9.0 GB for 1,000 posts (demo)" in tight.text and "16.0, 8.0 available" in tight.text
    assert not tight.fatal
    (grown,) = check.room(costs, 2000, 16, 12, 9)  # perhaps: not all of it grows with the posts
    assert "2,000 may take up to 18.0 GB" in grown.text and not grown.fatal and "--list" in grown.todo
    memory, disk = check.room(costs, 1000, 8, 8, 2)
    assert memory.fatal and disk.fatal and "demo takes 3.0 GB for 1,000 posts" in disk.text
    assert list(check.room(costs, 500, 16, 12, 5)) == []  # fewer posts are not said to take less


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """checked(release folder) -> status and what --check printed."""
    monkeypatch.delenv(CALLED_FROM, raising=False)
    monkeypatch.setattr(plan_module, "resolve", lambda name: tmp_path / name)  # no other runs

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
    assert said.out.count("by a probe of this machine") == 8 and "not known before its first run" not in said.out
    for topic in ("python", "packages", "machine", "device", "output", "data", "images", "01_eda", "07_blend"):
        assert any(line.startswith(topic) for line in said.out.splitlines()), topic
    assert "40 train and 12 test posts, complete and aligned" in said.out and "will run: not run yet" in said.out
    assert not any((tmp_path / "run").iterdir())
    monkeypatch.setattr(check, "package_versions", lambda: {})
    status, said = checked(data)
    assert status == 1 and "FAILS: missing: numpy, " in said.out and "1 finding will make the run fail" in said.out


def test_a_check_loads_neither_torch_nor_a_booster(tmp_path):
    data = Release(tmp_path / "data", images=True).write()
    code = (
        "import sys; from kit.pipeline.command import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'torchvision', 'open_clip', 'timm', 'transformers', 'lightgbm', 'catboost'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    arguments = ["--data", str(data), "--out", str(tmp_path / "run"), "--check"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=PROJECT_ROOT)


def test_a_broken_release_is_a_finding(checked, tmp_path):
    release = Release(tmp_path / "data")
    root = release.write()
    release.path("test", "text").write_text("[{")
    status, said = checked(root)
    assert status == 1 and "FAILS: " in said.out and "test_text.json is not valid JSON" in said.out
    assert "Traceback" not in said.err
