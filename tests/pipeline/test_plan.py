"""The time plan: what earlier runs tell, what a probe of this machine tells, and how it is said."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.base.files import write_json
from kit.base.paths import PROJECT_ROOT
from kit.encoders.registry import ENCODERS
from kit.pipeline import plan, probe, probe_networks
from kit.pipeline.notebook import _Heartbeat
from kit.pipeline.plan import START_S, size
from kit.pipeline.probe_networks import LEARNT_S, Networks
from kit.pipeline.steps import Step
from kit.release.smpd import read_release
from kit.run.directory import Run
from kit.run.marks import RECORD_KEYS, STAMP_KEYS, done_path
from tests.conftest import Release
from tests.tiny_networks import save_dual

SETS = {"sets": ["statistic", "statistic+behaviour"], "schemes": ["auto"], "models": ["lightgbm"], "learning_rate": 0.1,
        "rounds": 50, "patience": 10}  # fmt: skip


def _done(run_dir, step, peak_mb=100, n_posts=1000, parameters=None, seconds=7.0):
    keys = dict.fromkeys(RECORD_KEYS | STAMP_KEYS, {})
    metrics = {"n_train": n_posts - 10, "n_test": 10}
    told = {"peak_mb": peak_mb, "seconds": seconds, "metrics": metrics, "parameters": parameters or {}}
    for name in ("01_eda", step):
        write_json(done_path(run_dir, name), keys | told)


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """The folder of other runs."""
    monkeypatch.setattr(plan, "resolve", lambda name: tmp_path / name)
    return tmp_path / "outputs"


def test_costs_are_those_of_this_run_or_else_of_the_largest_other(outputs, tmp_path):
    run_dir = tmp_path / "elsewhere" / "mine"
    assert plan.last_cost("06_b", run_dir) is None
    _done(outputs / "small", "06_b", 900, 100)
    _done(outputs / "large", "06_b", 5000, 4000)
    cost = plan.last_cost("06_b", run_dir)
    assert (cost.run, cost.n_posts, cost.seconds) == ("large", 4000, 7.0)
    assert cost.memory_gb == pytest.approx(5.24, abs=0.01) and 0 < cost.disk_gb < 1e-4
    assert cost.grown(8000) == 2 and cost.grown(10) == 1
    _done(run_dir, "06_b", 300, 50)
    assert plan.last_cost("06_b", run_dir).run == "mine"


def test_an_earlier_run_tells_in_proportion_to_posts_and_work(tmp_path, outputs, monkeypatch):
    monkeypatch.setattr(plan, "_asked", lambda steps, run_dir: {"posts": 2000})
    _done(outputs / "other", "06_gbdt_folds", n_posts=1000, parameters=SETS, seconds=START_S + 50)
    twice = Step("06_gbdt_folds", Path(), SETS | {"sets": ["statistic", "behaviour", "clip", "statistic+clip"]})
    cost = plan.last_cost("06_gbdt_folds", tmp_path / "run")
    _done(tmp_path / "run", "01_eda", n_posts=2000)
    (found,) = plan.forecast([twice], tmp_path / "run", {twice.name: cost})
    assert found.seconds == pytest.approx(START_S + 4 * 50) and "54 s for 1,000 posts" in found.measure
    assert "06.sets" in str(found) and "3 min" in str(found)
    other = Step(twice.name, Path(), twice.parameters | {"learning_rate": 0.01})  # many more trees: no word on this one
    (found,) = plan.forecast([other], tmp_path / "run", {twice.name: cost})
    assert math.isnan(found.seconds) and "not known" in found.measure and "?" in str(found)


@pytest.mark.parametrize(
    ("n_posts", "says"), [(1500, "54 s for 1,000 posts"), (2500, "by a probe"), (400, "by a probe")]
)
def test_a_probe_tells_more_than_a_run_of_far_more_or_fewer_posts(tmp_path, outputs, monkeypatch, n_posts, says):
    monkeypatch.setattr(plan, "_asked", lambda steps, run_dir: {"posts": n_posts, "0": 33.0})
    _done(outputs / "other", "06_gbdt_folds", n_posts=1000, parameters=SETS, seconds=START_S + 50)
    step = Step("06_gbdt_folds", Path(), SETS)
    (found,) = plan.forecast([step], tmp_path / "run", {step.name: plan.last_cost(step.name, tmp_path / "run")})
    assert says in found.measure


def test_posts_of_a_new_run_are_counted_where_all_its_steps_are_known_from_another(tmp_path, outputs, monkeypatch):
    monkeypatch.setattr(plan, "_asked", lambda steps, run_dir: {"posts": 1000})
    _done(outputs / "other", "07_blend", n_posts=1000, seconds=9.0)
    _done(outputs / "other", "04_features", n_posts=1000, seconds=9.0)
    steps = [Step(name, Path(), {}) for name in ("04_features", "07_blend")]
    found = plan.forecast(steps, tmp_path / "run", {s.name: plan.last_cost(s.name, tmp_path / "run") for s in steps})
    assert [one.seconds for one in found] == [9.0, 9.0]


def test_networks_are_probed_only_for_steps_that_will_run(tmp_path, outputs, monkeypatch):
    asked = []
    monkeypatch.setattr(
        plan, "_asked", lambda steps, run_dir: asked.append([name for name, _ in steps]) or {"posts": 9}
    )
    steps = [Step(name, Path(), {}) for name in ("02_prototypes", "03_clip_ft", "06_gbdt_folds")]
    plan.forecast(steps, tmp_path / "run", {"06_gbdt_folds": None})
    plan.forecast(steps, tmp_path / "run", {"03_clip_ft": None, "06_gbdt_folds": None})
    assert asked == [["", "", "06_gbdt_folds"], ["02_prototypes", "03_clip_ft", "06_gbdt_folds"]]


def test_studies_and_clip_ft_count_what_they_train():
    clip_ft = {"epochs": 4, "cross_folds": 5}
    assert size("03", clip_ft) == 2 * size("03", clip_ft | {"cross_folds": 2})
    study = {"factors": [2], "tail_seeds": [0], "ratios": [1.0], "selection_seeds": [0]}
    assert size("05", study | {"selection_seeds": [0, 1]}) > size("05", study)
    assert size("06", SETS | {"sets": ["paper", "all"]}) == 12


def test_a_probe_tells_of_posts_that_no_run_has_seen(tmp_path):
    data = Release(tmp_path / "data").write()

    def asked(tuned=(), **more):
        features = {"baselines": ["blip"], "weights_dir": "x", "without_weights": "leave out", "tuned": tuned}
        steps = [["01_eda", {"data_dir": str(data), "n_folds": 3}], ["09_mine", {}],
                 ["04_features", features], ["06_gbdt_folds", SETS | more]]  # fmt: skip
        command = [sys.executable, "-m", "kit.pipeline.probe", json.dumps(steps), str(tmp_path / "run")]
        done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    told, more = asked(), asked(["minilm"], sets=["all"], rounds=50_000, patience=50_000)
    assert told["posts"] == 52 and set(told) == {"posts", "0", "2", "3"}, "nothing tells of a notebook of one's own"
    assert all(START_S < told[place] < 60 for place in "023") and more["3"] > 3 * told["3"]
    assert "2" not in more, "nothing tells of encoders to be tuned"
    rows = ["statistic", "statistic+external", "statistic+blip", "statistic+minilm", "statistic+clip"]
    sets, _, _ = probe._asked_fits(SETS | {"sets": rows}, Run(tmp_path / "run"), {"external", "blip", "minilm"})
    assert [one.name for one in sets] == ["statistic", "statistic+clip"], "a row that cannot be run takes no time"


CLIP = {
    "clip_model": "smp-tiny",
    "pretrained": "laion2b_s34b_b79k",
    "weights_dir": "none",
    "without_weights": "leave out",
    "tiny_effort": 1.0,
}


def test_a_probe_tells_of_networks_before_their_first_run(tmp_path):
    posts = read_release(Release(tmp_path / "data", images=True).write())
    networks = Networks(posts)
    asked = {"epochs": 2, "cross_folds": 3, "batch_size": 16}
    assert networks.clip_ft_s(asked) == 0.0, "03 is left out without 02"
    assert networks.clip_s(CLIP | {"clip_model": "auto"}) == 0.0, "there are no weights"
    assert networks.clip_s(CLIP | {"clip_model": "auto", "without_weights": "download"}) is None
    assert networks.clip_ft_s(asked) is None, "it comes from the network"
    short, long = (networks.clip_s(CLIP | {"tiny_effort": effort}) for effort in (0.01, 1.0))
    assert 0 < short < long
    few, many = (networks.clip_ft_s(asked | {"epochs": epochs}) - LEARNT_S for epochs in (2, 200))
    assert 0 < few < many
    features = {"baselines": ["blip", "minilm"], "weights_dir": "none", "without_weights": "leave out"}
    assert networks.lacking(features) == set(ENCODERS)
    assert networks.lacking(features | {"without_weights": "download"}) == set(ENCODERS) - {"blip", "minilm"}


def test_what_02_has_encoded_costs_04_nothing(tmp_path):
    save_dual(tmp_path / "weights")
    posts = read_release(Release(tmp_path / "data", images=True).write())
    networks, alone = Networks(posts), Networks(posts)
    asked = {"baselines": ["efficientnet", "minilm"], "weights_dir": str(tmp_path / "weights")}
    assert networks.clip_s(CLIP | asked | {"clip_model": "auto"}) > 0
    assert networks.encoders_s(asked) == 0.0 < alone.encoders_s(asked)
    assert networks.clip_ft_s({"epochs": 1, "cross_folds": 0, "batch_size": 16}) > LEARNT_S


def test_steps_of_clip_ft_are_timed_in_the_precision_that_02_will_find(tmp_path, monkeypatch):
    save_dual(tmp_path / "weights")
    networks = Networks(read_release(Release(tmp_path / "data", images=True).write()))
    asked = []
    monkeypatch.setattr("kit.encoders.precision.MIN_PROBE_ITEMS", len(networks.posts))
    monkeypatch.setattr("kit.encoders.precision.probe_precision", lambda job: asked.append(job) or ("bfloat16", ""))
    networks.clip_s(CLIP | {"clip_model": "auto", "weights_dir": str(tmp_path / "weights")})
    networks.clip_ft_s({"epochs": 1, "cross_folds": 0, "batch_size": 16})
    assert networks._clip.text.token_embedding.weight.dtype == torch.bfloat16 and len(asked) == 1


def test_a_machine_with_a_gpu_is_not_judged_by_its_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(probe_networks, "machine_shape", lambda: (2, 1))
    networks = Networks(read_release(Release(tmp_path / "data", images=True).write()))
    assert networks.clip_s(CLIP) is None and networks.clip_ft_s({}) is None
    assert networks.encoders_s({"baselines": ["minilm"]}) == 0.0


def test_the_plan_sums_what_is_known():
    lines = list(plan.lines([plan.Forecast("04_a", 50.0, "x"), plan.Forecast("03_b", math.nan, "y")]))
    assert lines[1].split()[:3] == ["04_a", "50", "s"] and lines[-1].split()[:3] == ["all", "50", "s"]
    assert "not known yet" in lines[-1] and not list(plan.lines([plan.Forecast("03_b", math.nan, "y")]))
    assert [plan.clock(seconds) for seconds in (8.4, 600, 36_000)] == ["8 s", "10 min", "10.0 h"]


def test_progress_says_what_is_left_of_the_run():
    left = _Heartbeat("06", Path(), 0, [100.0, np.nan, 30.0])._left
    assert left(40) == " | run: 90 s left" and left(500) == " | run: 30 s left"
    assert left(95, "fits: 1 of 6 fit, 10.3 s/fit, 1,052 s left") == " | run: 18 min left"
    assert left(40, "fits: 5 of 6 fit, 10.3 s/fit, 10 s left") == " | run: 90 s left"
    nothing = _Heartbeat("06", Path(), 0, [])._left
    assert nothing(3) == "" and nothing(3, "fits: 1 of 6 fit, 1.0 s/fit, 5 s left") == " | run: 5 s left"
