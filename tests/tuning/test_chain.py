"""The word tuned from notebook 04 to the submission: a row of Table 1, declared, explained, and not made for new posts."""

import numpy as np
import pandas as pd
import pytest
import torch

from kit.boosting.taught import TAUGHT
from kit.encoders.registry import ENCODERS
from kit.pipeline.command import main
from kit.predict import blocks
from kit.predict.__main__ import _blocks_of as blocks_of
from kit.run.directory import Run
from kit.viz.explore.explorer import Explorer
from tests.conftest import Release
from tests.tiny_networks import save_dual

ROW = "statistic+taught+tuned"
SMALL = ["01.n_folds=2", "04.svd_dim=3", "04.baselines=[]", "04.tuned=minilm", "04.tuned_schemes=user", "06.schemes=user",
         "06.models=lightgbm", "06.rounds=20", "06.lightgbm=min_data_in_leaf=5",
         f"06.sets=statistic,statistic+taught,{ROW}"]  # fmt: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Arguments and run directory after 01, 04, 06 and 07 on 120 posts."""
    pytest.importorskip("peft", reason="needs peft: pip install -e '.[tuned]'")
    root = tmp_path_factory.mktemp("tuned")
    (root / "weights").mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_dual(root / "weights", "minilm")
    data = Release(root / "data", n_train=90, n_test=30).write()
    settings = [f"--set={one}" for one in (*SMALL, f"04.weights_dir={root / 'weights'}")]
    arguments = ["--data", str(data), "--out", str(root / "run"), *settings]
    for number in ("01", "04", "06", "07"):
        assert main([*arguments, "--only", number]) == 0
    return arguments, root / "run"


def test_a_row_of_table_1_and_what_it_adds(chain):
    tables = chain[1] / "tables"
    assert pd.read_csv(tables / "table_1.csv").set_index("features").loc[ROW, "n"] == 90
    gains = pd.read_csv(tables / "table_1_gains.csv").set_index("features")
    assert gains.loc[ROW, "what"] == "added: tuned" and gains.loc[ROW, "against"] == "statistic+taught"
    assert pd.read_csv(tables / "tuned.csv")[["scheme", "encoder", "n"]].values.tolist() == [["user", "minilm", 90]]
    assert "tuned_minilm" in pd.read_csv(tables / "importance.csv")["column"].tolist()


def test_the_explorer_knows_the_column(chain):
    look = Explorer(chain[1])
    look.opened.__dict__["weights"] = {f"{ROW}/lightgbm": 1.0}  # whatever the fusion chose
    pid = look.opened.posts["Pid"].iloc[0]
    found = look.why(pid)
    assert found.columns.set_index("column").loc["tuned_minilm", "family"] == "tuned encoders"
    assert found.models["total"].item() == pytest.approx(found.models["prediction"].item(), abs=1e-5)
    changed = look.what_if(pid, title="dog")
    assert any("tuned" in line for line in changed.held) and np.isfinite(changed.models.to_numpy()).all()
    taught = [look.opened.taught(name, "final") for name in ("statistic+taught", ROW)]
    np.testing.assert_array_equal(taught[0], taught[1][:, :-1])
    assert taught[1].shape[1] == len(TAUGHT) + 1
    assert len([*(chain[1] / "gbdt" / "user" / "taught").iterdir()]) == 2 * 2 + 1  # two sides a fold, for both sets


def test_new_posts_do_without_it_and_are_told_why(chain):
    run = Run.open(chain[1])
    asked = blocks_of(run, f"{ROW}/lightgbm")
    assert asked == ("statistic", "tuned") and blocks_of(run, "statistic+taught/lightgbm") == ("statistic",)
    assert "tuned on its labels are not kept" in blocks.why_not(run, "tuned", ENCODERS)


def test_off_means_off(chain):
    arguments, run_dir = chain
    assert len([*(run_dir / "tuned").rglob("minilm.npz")]) == 3  # two folds, and all train posts
    assert main([*arguments, "--only", "04", "--set=04.tuned=[]"]) == 0
    assert not [*(run_dir / "tuned").rglob("minilm.npz"), *(run_dir / "tuned").glob("*.json")]
