"""Columns of tuned encoders: no label of a post's own authors, of the validation side or of the test part is in them."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kit.base import tasks
from kit.base.errors import InputError
from kit.base.metrics import src
from kit.boosting.fit import Machine, Training, kept_teaching, load_fold
from kit.boosting.tasks import FitTask, fit_task
from kit.evaluation import table_one
from kit.run.directory import Run
from kit.run.folds import Folds, make_folds
from kit.run.tuned import read_fit, tuned_columns, tuned_files
from kit.tuning import columns
from tests.tiny import tiny_block, tiny_posts
from tests.tiny_networks import save_dual

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="needs peft: pip install -e '.[tuned]'"
)
N_TRAIN, N_FOLDS = 150, 2
WORDS = ("cat", "dog", "sea", "red", "old", "big", "day", "sun")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_dual(root, "minilm")
    return root


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Tasks are done in this process."""
    monkeypatch.setattr(tasks, "usable_cores", lambda: 1)


def told_posts():
    """The words of a title say its label, as far as they go."""
    posts, rng = tiny_posts(N_TRAIN, 30), np.random.default_rng(1)
    found = rng.random((len(posts), len(WORDS))) < 0.4
    posts["Title"] = [" ".join(word for word, there in zip(WORDS, row, strict=True) if there) for row in found]
    label = found @ np.array([3.0, -2, 1, 0, 0, 0, -1, 2]) + rng.normal(0, 0.5, len(posts)) + 8
    posts["label"] = np.where(np.arange(len(posts)) < N_TRAIN, label, np.nan)
    return posts


def cut(posts):
    fold = make_folds(posts, N_FOLDS, "user")
    return {"user": Folds("user", fold, np.zeros((N_FOLDS, len(posts)), dtype=bool))}


def tune(folder, posts, weights, names=("minilm",)):
    run = Run(folder, write=True)
    run.write_posts(posts)
    table = columns.tune_encoders(run, names, posts["Title"].tolist(), cut(posts), run.folder("tuned"), None, weights)
    return run, table


def column(run, fit="user/fold_0", name="minilm"):
    with np.load(run.dir / "tuned" / fit / f"{name}.npz") as kept:
        return kept["column"]


def changed_column(folder, posts, weights, rows):
    """Of the first fold, made anew with other labels of some rows."""
    label = posts["label"].to_numpy(copy=True)
    label[rows] = np.random.default_rng(2).normal(8, 4, len(rows))
    return column(tune(folder, posts.assign(label=label), weights)[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory, weights):
    """A run whose columns have been made; to be read."""
    pytest.importorskip("peft", reason="needs peft: pip install -e '.[tuned]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "usable_cores", lambda: 1)
        posts = told_posts()
        return posts, *tune(tmp_path_factory.mktemp("made"), posts, weights)


def test_columns_find_what_texts_tell(made):
    posts, run, table = made
    assert table["n"].tolist() == [N_TRAIN] and table["src"].item() > 0.5 and table["src_frozen"].item() > 0.4
    assert np.isfinite(column(run)).all() and column(run).dtype == np.float32
    final = column(run, "final")
    assert src(posts["label"][:N_TRAIN], final[:N_TRAIN]) > 0.5
    assert table["epochs"].item() > 0  # the network was tuned, not only read
    with np.load(run.dir / "tuned" / "final" / "minilm.npz") as kept:
        assert np.abs(kept["column"] - kept["frozen"]).max() > 0.01


@needs_peft
def test_a_column_knows_no_label_it_must_not_know(made, weights, tmp_path):
    posts, run, _ = made
    before, (side, valid) = column(run), cut(posts)["user"].rows(0)
    own = side[make_folds(posts.iloc[side], columns.PARTS, "user", 0) == 1]
    changed = changed_column(tmp_path / "valid", posts, weights, np.r_[valid, np.arange(N_TRAIN, len(posts))])
    assert np.array_equal(changed, before)  # neither the validation side nor the test part
    changed = changed_column(tmp_path / "own", posts, weights, own)
    assert np.array_equal(changed[own], before[own])  # a part by author is predicted by what the two others have taught
    rest = np.setdiff1d(np.arange(len(posts)), own)
    assert (changed[rest] != before[rest]).mean() > 0.9  # those whom it has taught have noticed


@needs_peft
def test_shuffled_labels_leave_nothing_to_find(made, weights, tmp_path):
    posts, _, _ = made
    mixed = posts.copy()
    mixed.loc[: N_TRAIN - 1, "label"] = np.random.default_rng(3).permutation(posts["label"][:N_TRAIN])
    run, table = tune(tmp_path, mixed, weights)
    assert abs(table["src"].item()) < 0.25
    side = cut(mixed)["user"].rows(0)[0]
    assert abs(src(mixed["label"][side], column(run)[side])) < 0.3


@needs_peft
def test_what_is_there_is_kept_and_only_that(made, weights, tmp_path, monkeypatch):
    posts, _, _ = made
    run, table = tune(tmp_path, posts, weights)
    missing = run.dir / "tuned" / "user" / "fold_1" / "minilm.npz"
    content, calls, real = missing.read_bytes(), [], columns.tune_fit
    missing.unlink()
    monkeypatch.setattr(columns, "tune_fit", lambda task: calls.append(task.path) or real(task))
    again = tune(tmp_path, posts, weights)[1]
    assert calls == [missing] and missing.read_bytes() == content and again.equals(table)
    _, valid = cut(posts)["user"].rows(0)
    posts = posts.assign(label=posts["label"].where(~posts.index.isin(valid[:1]), 3.0))
    calls.clear()
    tune(tmp_path, posts, weights)
    assert [path.parent.name for path in calls] == ["fold_1", "final"]  # fold 0 is not taught by that post


@needs_peft
def test_images_are_tuned_and_a_missing_one_has_no_prediction(weights, tmp_path):
    posts, rng = told_posts(), np.random.default_rng(0)
    bright = rng.integers(0, 255, len(posts))
    paths = [tmp_path / f"{i}.png" for i in range(len(posts))]
    for path, value in zip(paths[1:], bright[1:], strict=True):
        Image.new("RGB", (40, 40), (int(value), 60, 60)).save(path)
    posts["image_path"] = [str(path) for path in paths]
    posts["label"] = np.where(posts["label"].notna(), bright / 50.0, np.nan)
    run, table = tune(tmp_path / "run", posts, weights, ["efficientnet"])
    found = column(run, name="efficientnet")
    assert np.isnan(found[0]) and np.isfinite(found[1:]).all()
    assert table["n"].item() == N_TRAIN - 1 and table["src"].item() > 0.5
    assert "EfficientNet" in table_one.tuned_external(run)[0]


def test_boosters_learn_from_the_column(made, tmp_path):
    posts, made_run, _ = made
    run = Run(made_run.dir, write=True)
    run.write_block(tiny_block(posts))
    folds = cut(posts)["user"]
    training = Training(
        "lightgbm", {"learning_rate": 0.05, "min_child_samples": 5}, rounds=150, patience=20, final=True
    )
    places = {"out_dir": tmp_path / "without", "taught_dir": tmp_path / "taught"}
    task = FitTask(run.dir, ("tiny",), folds.fold, training, Machine(1), **places)
    files = tuned_files(run, "user", N_FOLDS, final=True)
    assert [*files] == tuned_columns(run) == ["tuned_minilm"] and len(files["tuned_minilm"]) == N_FOLDS + 1
    without, taught_by = fit_task(task), sorted((tmp_path / "taught").iterdir())
    result = fit_task(replace(task, tuned=files, out_dir=tmp_path / "with"))
    assert taught_by == sorted((tmp_path / "taught").iterdir())  # the same ridge, solved once
    assert result.scores["mae"].mean() < 0.95 * without.scores["mae"].mean()
    gain = result.importance.set_index("column")["gain"]
    assert gain["tuned_minilm"] > 0 and len(gain) == len(without.importance) + 1
    valid_idx, teaching = folds.rows(1)[1], kept_teaching(tmp_path / "with", "fold_1", tmp_path / "taught")
    columns_of_fold = np.hstack([teaching["columns"], read_fit(run, "user", "fold_1")])
    kept = load_fold(tiny_block(posts), tmp_path / "with", "fold_1", columns_of_fold)
    np.testing.assert_array_equal(kept.predict(valid_idx), result.oof[valid_idx])
    assert not np.array_equal(read_fit(run, "user", "fold_0"), read_fit(run, "user", "final"), equal_nan=True)


def test_table_1_takes_the_word(made, tmp_path):
    _, run, _ = made
    one = table_one.parse_sets(["statistic+taught+tuned"])[0]
    assert one.blocks == ("statistic",) and one.taught and one.tuned
    sets = table_one.parse_sets(["tiny", "tiny+taught+tuned"])
    run = Run(run.dir, write=True)
    run.write_block(tiny_block(run.posts()))
    assert table_one.not_run(run, sets, ["user"]) == {}
    assert "04.tuned_schemes" in table_one.not_run(run, sets, ["user", "time"])["tiny+taught+tuned"]
    assert "MiniLM" in table_one.external_sources(run, {"tiny+taught+tuned/lightgbm": 0.5})[0]
    bare = Run(tmp_path, write=True)
    bare.write_posts(run.posts())
    bare.write_block(tiny_block(run.posts()))
    assert "--set 04.tuned" in table_one.not_run(bare, sets, ["user"])["tiny+taught+tuned"]
    with pytest.raises(InputError, match="none of the feature sets.*04.tuned"):
        table_one.not_run(bare, sets[1:], ["user"])
    with pytest.raises(InputError, match="beside taught"):
        table_one.parse_sets(["statistic+tuned"])


def test_what_cannot_be_tuned_is_refused(weights, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="04.tuned=resnet.*minilm, e5, efficientnet"):
        columns.check_encoders(["resnet"], None, weights)
    with pytest.raises(InputError, match="04.tuned=e5: needs .*kit.encoders.packaged e5"):
        columns.check_encoders(["e5"], None, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="peft is not installed.*tuned"):
        columns.check_encoders(["minilm"], None, weights)
    columns.check_encoders([], None, weights)
