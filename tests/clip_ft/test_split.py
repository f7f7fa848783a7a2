"""kit.clip_ft.split, and notebooks 02 and 03 on what it hands on: the paper's protocol, and no way to disagree."""

import numpy as np
import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.clip_ft.split import SPLIT_FILE, fit_and_valid, make_split
from kit.pipeline.command import main
from kit.release.texts import post_texts
from kit.run.directory import Run
from tests.clip_ft.test_prototypes import make_posts
from tests.conftest import Release

SMALL = ["02.clip_model=smp-tiny", "02.tiny_effort=0.01", "02.components=3", "02.text_source=title", "03.epochs=1"]


def test_authors_are_held_out_whole():
    posts = make_posts()
    split = make_split(posts, "tags", 0.2, seed=3)
    fit_idx, valid_idx = fit_and_valid(split)
    train_idx = np.flatnonzero(posts["split"] == "train")
    assert sorted([*fit_idx, *valid_idx]) == list(train_idx) and len(valid_idx) >= 0.2 * len(train_idx)
    assert not set(posts["Uid"].iloc[fit_idx]) & set(posts["Uid"].iloc[valid_idx])
    assert split["text"].tolist() == post_texts(posts, "tags").tolist()
    assert (split["side"] == "test").sum() == 50
    assert not split.equals(make_split(posts, "tags", 0.2, seed=4))


def test_nobody_is_held_out_as_in_the_paper():
    posts = make_posts()
    fit_idx, valid_idx = fit_and_valid(make_split(posts, valid_share=0))
    assert list(fit_idx) == list(np.flatnonzero(posts["split"] == "train")) and len(valid_idx) == 0
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match="from 0 to below 1"):
            make_split(posts, valid_share=share)


@pytest.fixture(scope="module")
def run_steps(tmp_path_factory):
    """run_steps(settings...) -> the run directory after 01, 02 and 03 on 120 posts; later calls go on in it."""
    root = tmp_path_factory.mktemp("protocol")
    data = Release(root / "data", n_train=90, n_test=30, images=True).write()

    def run(*settings):
        arguments = ["--data", str(data), "--out", str(root / "run"), *(f"--set={one}" for one in (*SMALL, *settings))]
        for number in ("01", "02", "03"):
            assert main([*arguments, "--only", number]) == 0
        return root / "run"

    return run


def test_the_papers_protocol_can_be_run(run_steps):
    run_dir = run_steps("02.valid_share=0", "03.cross_folds=0", "03.full=true", "03.mask_sot=false")
    history = pd.read_csv(run_dir / "tables" / "clip_ft_history.csv")
    assert history["epoch"].tolist() == [0, 1] and not any(name.startswith("valid") for name in history)
    losses = pd.read_parquet(run_dir / "clip_ft" / "losses.parquet")
    assert (losses["out_of_fold"] == (losses["split"] == "test")).all()
    run = Run.open(run_dir)
    full, image = run.read_block("clip_ft_full"), run.read_block("clip_image").values.astype(np.float32)
    assert full.values.shape == (120, 7 * image.shape[1]) and np.isfinite(full.values).all()
    np.testing.assert_allclose(full.values[:, : image.shape[1]], image, atol=2e-3)
    assert not list(run_dir.rglob("full.npy"))


def test_03_reads_the_split_that_02_wrote(run_steps):
    """Another seed of 02 alone: 03 validates with the authors that 02 kept out of the prototypes."""
    run_dir = run_steps("02.seed=5", "03.cross_folds=2")
    split = pd.read_parquet(run_dir / SPLIT_FILE)
    posts = Run.open(run_dir).posts()
    fit_idx, valid_idx = fit_and_valid(split)
    assert split.equals(make_split(posts, "title", seed=5)) and len(valid_idx) > 0
    shots = pd.read_csv(run_dir / "prototypes" / "shots.csv")
    assert set(shots["row"]) <= set(fit_idx)
    losses = pd.read_parquet(run_dir / "clip_ft" / "losses.parquet")
    assert losses["out_of_fold"].all() and list(np.flatnonzero(losses["tower_seen"])) == list(fit_idx)
    assert not (run_dir / "blocks" / "clip_ft_full").exists() or "clip_ft_full" not in Run.open(run_dir).block_names()
