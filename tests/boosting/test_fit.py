"""Boosting over folds: no leak, nothing stale, and the numbers in their places."""

import json
import os
import shutil
import subprocess
import sys

import lightgbm
import numpy as np
import pytest

from kit.base.errors import InputError
from kit.base.metrics import mae, src
from kit.base.paths import PROJECT_ROOT
from kit.boosting import learners
from kit.boosting import lightgbm as lightgbm_learner
from kit.boosting.data import Data
from kit.boosting.fit import COUNTED, Machine, Training, _Fitter, fit_folds, kept_teaching, load_fold
from kit.boosting.learners import LEARNERS
from kit.boosting.taught import TAUGHT, TaughtColumns
from kit.run import matrix
from kit.run.block import Block
from kit.run.folds import TEST, TRAIN_ONLY, fold_rows, make_folds
from tests.tiny import tiny_block, tiny_posts

POSTS = tiny_posts(400, 60)
TARGET = POSTS["label"].to_numpy()
BLOCK = tiny_block(POSTS)
FOLDS = make_folds(POSTS, 3, "user")
SCORED = FOLDS >= 0
MODELS = ("lightgbm", "catboost")
LEARN = tuple(LEARNERS)  # with taught columns
ONE = Machine(threads=1)
LEAN = {"rounds": 40, "patience": 10}
FEW_BINS = {"lightgbm": {"max_bin": 15}}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
FAST = {"lightgbm": {"learning_rate": 0.15}, "catboost": {"learning_rate": 0.15, "depth": 4}}


def fit(model="lightgbm", target=TARGET, folds=FOLDS, block=BLOCK, posts=POSTS, params=None, machine=ONE, **options):
    """`fit_folds`, whose options are those of Training or its own."""
    params = FAST.get(model, {}) | (params or {})
    own = {name: options.pop(name) for name in ("weight", "copies", "out_dir", "taught_dir") if name in options}
    return fit_folds(block, target, folds, posts, Training(model, params, **LEAN | options), machine, **own)


def spied_fits(monkeypatch):
    """The rows and stop_rows of every fit of LightGBM from now on, as a list that grows."""
    calls = []

    class Spy(LEARNERS["lightgbm"]):
        def fit(self, rows, rounds, stop_rows=None, *more):
            calls.append((rows, stop_rows))
            return super().fit(rows, rounds, stop_rows, *more)

    monkeypatch.setitem(LEARNERS, "lightgbm", Spy)
    return calls


@pytest.mark.parametrize("model", MODELS)
def test_it_learns_and_scores_what_it_says(model):
    result = fit(model)
    assert (np.isfinite(result.oof) == SCORED).all() and np.isfinite(result.test).all()
    assert result.test.shape == ((FOLDS == TEST).sum(),)
    assert src(TARGET[SCORED], result.oof[SCORED]) > 0.7
    for row in result.scores.itertuples():
        _, valid_idx = fold_rows(FOLDS, row.fold)
        assert row.n == len(valid_idx)
        assert row.src == src(TARGET[valid_idx], result.oof[valid_idx])
        assert row.mae == mae(TARGET[valid_idx], result.oof[valid_idx])
        assert 1 <= row.rounds <= LEAN["rounds"] and row.seconds > 0
    assert result.importance["gain"].sum() == pytest.approx(1) and result.importance["gain"].is_monotonic_decreasing
    assert set(result.importance["column"]) == {*BLOCK.columns, *TAUGHT}
    gain = result.importance.set_index("column")["gain"]
    assert gain["constant"] == 0 and gain["known_tags"] > gain["noise_0"]
    summary = result.summary()
    assert summary["src"] == result.scores["src"].mean() and summary["n"] == SCORED.sum() and summary["folds"] == 3


@pytest.mark.parametrize("model", LEARN)
def test_the_same_seed_gives_the_same_numbers(model):
    one, two = fit(model), fit(model)
    assert np.array_equal(one.oof, two.oof, equal_nan=True) and np.array_equal(one.test, two.test)
    assert not np.array_equal(one.test, fit(model, seed=1).test)


@pytest.mark.parametrize("model", LEARN)
@pytest.mark.parametrize("scheme", ["user", "time"])
def test_labels_of_the_scored_fold_change_nothing_in_it(model, scheme):
    """The test for every leak at once: taught columns, early stopping, refit."""
    folds = make_folds(POSTS, 2, scheme)
    _, valid_idx = fold_rows(folds, 1)
    scrambled = TARGET.copy()
    scrambled[valid_idx] = np.random.default_rng(0).permutation(TARGET[valid_idx]) * 3
    before, after = fit(model, folds=folds), fit(model, target=scrambled, folds=folds)
    assert np.array_equal(before.oof[valid_idx], after.oof[valid_idx])
    assert not np.array_equal(before.test, after.test)


def test_bins_of_many_posts_are_found_on_some_and_filled_by_pieces(monkeypatch):
    """With as many sampled posts as there are, and with few, the same things are learnt."""
    whole = fit(taught=True)
    monkeypatch.setattr(lightgbm_learner, "BIN_ROWS", (150, 150))
    monkeypatch.setattr(matrix, "PIECE_MB", 1e-3)
    part = fit(taught=True)
    assert not np.array_equal(whole.oof, part.oof, equal_nan=True)
    assert np.corrcoef(whole.oof[SCORED], part.oof[SCORED])[0, 1] > 0.97
    assert abs(whole.summary()["src"] - part.summary()["src"]) < 0.03


@pytest.mark.parametrize(("model", "asked", "n_gpus", "n_posts", "expected"), [
    ("catboost", "auto", 1, 200_000, "gpu"), ("catboost", "auto", 1, 5_000, "cpu"), ("catboost", "auto", 0, 200_000, "cpu"),
    ("catboost", "gpu", 2, 10, "gpu"), ("catboost", "cpu", 1, 200_000, "cpu"), ("lightgbm", "gpu", 1, 200_000, "cpu"),
])  # fmt: skip
def test_where_a_model_is_fitted(monkeypatch, model, asked, n_gpus, n_posts, expected):
    monkeypatch.setattr(learners, "machine_shape", lambda: (8, 1))
    monkeypatch.setattr(learners, "get_gpu_device_count", lambda: n_gpus)
    assert learners.device_for(model, asked, n_posts) == expected


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(learners, "machine_shape", lambda: (8, 0))
    with pytest.raises(InputError, match="CatBoost finds none"):
        fit("catboost", machine=Machine(device="gpu"))
    with pytest.raises(InputError, match="expected one of auto, cpu, gpu"):
        fit(machine=Machine(device="cuda"))


def test_shuffled_labels_cannot_be_predicted():
    shuffled = TARGET.copy()
    shuffled[SCORED] = np.random.default_rng(0).permutation(TARGET[SCORED])
    result = fit(target=shuffled)
    assert abs(src(shuffled[SCORED], result.oof[SCORED])) < 0.15


def test_rows_that_stop_are_neither_fitted_nor_scored_and_of_other_authors(monkeypatch):
    calls = spied_fits(monkeypatch)
    fit()
    assert len(calls) == 2 * 3 + 1
    uid = POSTS["Uid"].to_numpy()
    for k in range(3):
        (fit_idx, stop_idx), (all_idx, none) = calls[2 * k : 2 * k + 2]
        train_idx, valid_idx = fold_rows(FOLDS, k)
        assert none is None and np.array_equal(all_idx, train_idx)
        assert sorted([*fit_idx, *stop_idx]) == train_idx.tolist()
        assert not set(uid[fit_idx]) & set(uid[stop_idx]) and not set(uid[train_idx]) & set(uid[valid_idx])
    assert np.array_equal(calls[-1][0], np.flatnonzero(FOLDS != TEST))  # the last fit is taught by all train posts


@pytest.mark.parametrize("model", MODELS)
def test_of_many_posts_the_model_that_was_stopped_is_the_fold_s(model, tmp_path, monkeypatch):
    """As few stop posts for all: in most folds under a tenth of the side, in the model on all train posts none."""
    monkeypatch.setattr("kit.boosting.fit.STOP_POSTS", 20)
    fits, kind = [], LEARNERS[model]

    class Spy(kind):
        def fit(self, rows, rounds, stop_rows=None, *more):
            fits.append((rows, stop_rows, super().fit(rows, rounds, stop_rows, *more)))
            return fits[-1][2]

    monkeypatch.setitem(LEARNERS, model, Spy)
    fast = {"learning_rate": 0.5}
    result = fit(model, out_dir=tmp_path, params=fast)
    assert len(fits) == 3 + 1 and fits[-1][1] is None
    for k, (rows, stop_rows, n_trees) in enumerate(fits[:3]):
        train_idx, valid_idx = fold_rows(FOLDS, k)
        assert sorted([*rows, *stop_rows]) == train_idx.tolist() and 20 <= len(stop_rows) < 40
        assert not set(POSTS["Uid"].iloc[rows]) & set(POSTS["Uid"].iloc[stop_rows])
        assert result.scores["rounds"][k] == n_trees < LEAN["rounds"]
        kept = load_fold(BLOCK, tmp_path, f"fold_{k}", kept_teaching(tmp_path, f"fold_{k}")["columns"])
        assert np.allclose(kept.predict(valid_idx), result.oof[valid_idx])
        shifted = np.where(
            np.isin(np.arange(len(TARGET)), [*valid_idx, *np.flatnonzero(FOLDS == TEST)]), 9 * TARGET, TARGET
        )
        assert np.array_equal(fit(model, shifted, final=False, params=fast).oof[valid_idx], result.oof[valid_idx])


@pytest.mark.parametrize("model", MODELS)
def test_trees_are_counted_at_a_higher_rate_and_fitted_at_the_own_one(model, monkeypatch):
    """What counts takes half of the trees and of the patience; what is fitted has more trees as it has more posts."""
    calls, kind = [], LEARNERS[model]

    class Spy(kind):
        def fit(self, rows, rounds, stop_rows=None, patience=0, times=1):
            calls.append((rows, super().fit(rows, rounds, stop_rows, patience, times), rounds, patience, times))
            return calls[-1][1]

    monkeypatch.setitem(LEARNERS, model, Spy)
    scores = fit(model, final=False, rounds=400, patience=10).scores
    assert [call[2:] for call in calls[::2]] == 3 * [(200, 5, COUNTED)]
    pairs = zip(calls[::2], calls[1::2], strict=True)
    expected = [round(COUNTED * one[1] * len(two[0]) / len(one[0])) for one, two in pairs]
    assert [call[2:] for call in calls[1::2]] == [(n, 0, 1) for n in expected] and max(expected) < 400
    assert expected == scores["rounds"].tolist() and fit(model, final=False, rounds=9).scores["rounds"].max() == 9


@pytest.mark.parametrize("model", MODELS)
def test_so_many_times_the_rate_is_a_rate_of_so_many_times(model):
    taught, seen = [], fold_rows(FOLDS, 0)[0]
    for rate, times in ((0.1, 3), (0.3, 1), (0.1, 1)):
        learner, params = LEARNERS[model], {"learning_rate": rate}
        data = Data(BLOCK.values, np.isin(BLOCK.columns, BLOCK.categorical), TARGET)
        prepared = learner.prepare(data, learner.settings(params, len(BLOCK.columns)), 1, 0, "cpu")
        one = learner(prepared, None, np.ones(len(TARGET)), 1)
        one.fit(seen, 5, times=times)
        taught.append(one.predict(seen))
    assert np.allclose(taught[0], taught[1]) and not np.allclose(taught[0], taught[2])


def test_time_folds_leave_the_oldest_posts_unscored():
    folds = make_folds(POSTS, 2, "time")
    result = fit(folds=folds)
    assert np.isnan(result.oof[folds == TRAIN_ONLY]).all() and np.isfinite(result.oof[folds >= 0]).all()


def test_without_taught_columns_and_with_a_fixed_number_of_trees():
    result = fit(taught=False, stop_share=0, rounds=7)
    assert set(result.scores["rounds"]) == {7} and set(result.importance["column"]) == set(BLOCK.columns)


@pytest.mark.parametrize("model", LEARN)
def test_weight_zero_leaves_a_post_out_of_training(model):
    weight = np.where(np.arange(len(POSTS)) % 3 == 0, 0.0, 2.0)
    nonsense = np.where(weight == 0, 1e4, TARGET)
    one = fit(model, weight=weight)
    two = fit(model, weight=weight, target=nonsense)
    assert np.array_equal(one.oof, two.oof, equal_nan=True) and np.array_equal(one.test, two.test)
    assert one.scores["n"].sum() == SCORED.sum()  # but it is scored


@pytest.mark.parametrize("model", LEARN)
def test_finished_folds_are_read_back_and_stale_ones_are_not(model, tmp_path, monkeypatch):
    first = fit(model, out_dir=tmp_path)
    fitted = []
    original = _Fitter.fit
    monkeypatch.setattr(_Fitter, "fit", lambda self, *a: fitted.append(len(a[1])) or original(self, *a))

    again = fit(model, out_dir=tmp_path)
    assert (
        not fitted and np.array_equal(first.oof, again.oof, equal_nan=True) and np.array_equal(first.test, again.test)
    )
    assert first.scores.equals(again.scores) and first.importance.equals(again.importance)

    (tmp_path / "fold_1.npz").unlink()  # as after a kill
    again = fit(model, out_dir=tmp_path)
    assert fitted == [(FOLDS == 1).sum()] and np.array_equal(first.oof, again.oof, equal_nan=True)

    fitted.clear()
    fit(model, out_dir=tmp_path, weight=np.where(np.arange(len(POSTS)) == 3, 2.0, 1.0))
    assert len(fitted) == 4
    fitted.clear()
    fit(model, out_dir=tmp_path, block=tiny_block(POSTS, n_noise=4))
    assert len(fitted) == 4


def test_results_are_on_disk(tmp_path):
    tmp_path = tmp_path / "new"
    result = fit(out_dir=tmp_path)
    assert np.array_equal(np.load(tmp_path / "oof.npy"), result.oof, equal_nan=True)
    assert np.array_equal(np.load(tmp_path / "test.npy"), result.test)
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["src"] == result.summary()["src"] and len(stored["per_fold"]) == stored["folds"] == 3
    assert {p.name for p in tmp_path.glob("*.txt")} == {"fold_0.txt", "fold_1.txt", "fold_2.txt", "final.txt"}


def test_a_release_without_test_posts():
    posts = POSTS[SCORED].reset_index(drop=True)
    result = fit(target=TARGET[SCORED], folds=make_folds(posts, 2, "user"), block=tiny_block(posts), posts=posts)
    assert result.test.shape == (0,) and np.isfinite(result.oof).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"model": "xgboost"}, "choose one of lightgbm, catboost"),
    ({"target": TARGET[:-1]}, "rows differ"),
    ({"target": np.where(np.arange(len(POSTS)) == 7, np.nan, TARGET)}, r"1 train posts have no label, the first in row 7"),
    ({"weight": -np.ones(len(POSTS))}, "weight must be"),
    ({"weight": np.ones(3)}, "weight must be"),
])  # fmt: skip
def test_mistakes_are_named(change, message):
    with pytest.raises(InputError, match=message):
        fit(**change)


@pytest.mark.parametrize("model", MODELS)
def test_a_missing_code_is_a_category_of_its_own(model, capfd):
    """Posts without a category are three points better: both libraries must see it, and neither may complain."""
    values = BLOCK.values[:, [2, 4]].copy()
    values[::4, 0] = -1
    target = np.where(FOLDS == TEST, np.nan, 5.0 + 3 * (values[:, 0] == -1))
    block = Block("codes", values, ["category_code", "noise"], ["category_code"])
    result = fit(model, target, block=block, taught=False, stop_share=0, rounds=60)
    assert mae(target[SCORED], result.oof[SCORED]) < 0.4  # 0.75 for those who do not see it
    assert "Warning" not in "".join(capfd.readouterr())


def test_boosters_are_silent():
    """LightGBM warns of columns with more codes than bins, most of all in a process's first fit."""
    code = """
from tests.boosting.test_fit import *
values = BLOCK.values.copy()
values[:, 2] = np.arange(len(values)) % 40
for model in MODELS:
    fit(model, block=Block("codes", values, BLOCK.columns, BLOCK.categorical), params=FEW_BINS.get(model))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("model", MODELS)
def test_copies_are_rows_and_zero_copies_leave_out(model):
    """Two copies of every post are not two posts of one weight for leaf sizes, but none is the same as weight 0."""
    third = np.arange(len(POSTS)) % 3 == 0
    one, two = fit(model, copies=np.where(third, 0, 1)), fit(model, weight=np.where(third, 0.0, 1.0))
    assert np.array_equal(one.oof, two.oof, equal_nan=True)
    more = fit(model, copies=np.where(third, 4, 1))
    assert not np.array_equal(more.oof, fit(model).oof, equal_nan=True)
    error = np.abs(more.oof - TARGET)
    assert np.isfinite(error[SCORED]).all()


def test_copies_pull_predictions_as_weights_do():
    """Without sampling, leaf sizes and penalty, k copies and weight k are the same training up to rounding of counts."""
    plain = {"extra_trees": False, "bagging_fraction": 1.0, "feature_fraction": 1.0, "min_child_samples": 1, "lambda_l2": 0.0,
             "min_sum_hessian_in_leaf": 1e-9}  # fmt: skip
    heavy = np.where(TARGET > np.nanquantile(TARGET, 0.9), 3, 1)
    block = Block("numbers", BLOCK.values, BLOCK.columns)
    training = Training(params=plain, taught=False, stop_share=0, rounds=20)
    one, two, base = (
        fit_folds(block, TARGET, FOLDS, POSTS, training, ONE, **which)
        for which in ({"copies": heavy}, {"weight": heavy.astype(float)}, {})
    )
    apart = [np.abs(one.oof - other.oof)[SCORED].mean() for other in (two, base)]
    assert apart[0] < 0.25 * apart[1]
    assert one.oof[SCORED].mean() > base.oof[SCORED].mean() + 0.05


def test_each_fit_has_its_own_copies():
    copies = np.ones((4, len(POSTS)))
    changed = copies.copy()
    changed[1, fold_rows(FOLDS, 1)[0][::2]] = 0
    before, after = (fit(copies=each, stop_share=0) for each in (copies, changed))  # as many trees in the final fit
    assert np.array_equal(before.oof[FOLDS == 0], after.oof[FOLDS == 0]) and np.array_equal(before.test, after.test)
    assert not np.array_equal(before.oof[FOLDS == 1], after.oof[FOLDS == 1])


def test_early_stopping_is_not_weighted(monkeypatch):
    seen = spied_fits(monkeypatch)
    fit(copies=np.full(len(POSTS), 3), final=False)
    for rows, stop_rows in seen[::2]:
        assert len(np.unique(stop_rows)) == len(stop_rows) and len(rows) == 3 * len(np.unique(rows))


@pytest.mark.parametrize("model", MODELS)
def test_early_stopping_sees_every_held_out_post_once_whatever_the_weights(model):
    """LightGBM gives a dataset made after one with weights weights of zero, and stops at once."""
    weight = np.where(np.arange(len(POSTS)) % 5, 1.0, 1.001)
    plain, weighted = fit(model, final=False), fit(model, final=False, weight=weight)
    assert weighted.scores["rounds"].min() > 5 and abs(weighted.summary()["mae"] - plain.summary()["mae"]) < 0.05


def test_the_final_model_has_more_trees_as_it_has_more_posts(monkeypatch, tmp_path):
    calls = spied_fits(monkeypatch)
    grown = []
    real = LEARNERS["lightgbm"].fit
    monkeypatch.setattr(
        LEARNERS["lightgbm"],
        "fit",
        lambda self, rows, rounds, *stop: grown.append(rounds) or real(self, rows, rounds, *stop),
    )
    folds = make_folds(POSTS, 3, "time")
    copies = np.ones((4, len(POSTS)))
    copies[0, np.flatnonzero(folds == TRAIN_ONLY)[::2]] = 0  # withheld from the first fold
    result = fit(folds=folds, copies=copies)
    n_taught = [copies[k, fold_rows(folds, k)[0]].sum() for k in range(3)]
    expected = np.mean(result.scores["rounds"] * (folds != TEST).sum() / n_taught)
    assert grown[-1] == round(expected) > result.scores["rounds"].mean() and len(calls) == 7
    fit(folds=folds, stop_share=0)
    assert grown[-1] == LEAN["rounds"]


def test_without_the_final_model_the_test_part_is_not_predicted():
    full, lean = fit(), fit(final=False)
    assert np.array_equal(full.oof, lean.oof, equal_nan=True) and np.isnan(lean.test).all()
    assert lean.test.shape == full.test.shape


def test_a_training_side_with_nobody_left_is_named():
    with pytest.raises(InputError, match="leave no post"):
        fit(copies=np.zeros(len(POSTS)))


def test_rows_with_more_values_than_the_whole_lets_expect():
    """Of LightGBM 4.7.0 `Dataset.subset` ends the process here: 80,000 values where the bins of all posts promise 46,000."""
    rng = np.random.default_rng(0)
    values = np.zeros((16_000, 20), dtype=np.float32)
    values[:8_000] = rng.integers(1, 9, (8_000, 20)) * (rng.random((8_000, 20)) < 0.5)
    values[8_000:, 0] = rng.integers(2, size=8_000)
    target = values[:, 0] + rng.standard_normal(len(values))
    folds = np.r_[np.full(8_000, TRAIN_ONLY), np.arange(8_000) // 1_600]
    posts = tiny_posts(len(values), 0)
    training = Training(taught=False, final=False, stop_share=0, rounds=20)
    result = fit_folds(Block("sparse", values, [f"x{i}" for i in range(20)]), target, folds, posts, training)
    learner = LEARNERS["lightgbm"]
    _, params = learner.prepare(Data(values, np.zeros(20, bool), target), learner.settings({}, 20), 1, 0, "cpu")
    for k in range(5):
        train_idx, valid_idx = fold_rows(folds, k)
        own = lightgbm.Dataset(values[train_idx], target[train_idx], params=params)
        booster = lightgbm.train(params | {"num_threads": 1}, own, 20)
        assert np.array_equal(booster.predict(values[valid_idx]), result.oof[valid_idx])


def test_columns_that_mostly_hold_one_value_are_not_bundled():
    """Each of two columns is mostly 2; the label needs both. LightGBM 4.7.0 would bundle them and lose values."""
    two = np.random.default_rng(0).random((2_000, 2)) < 0.15
    block = Block("two", (2 + two * [1, -1]).astype(np.float32), ["up", "down"])
    target, posts = two[:, 0] + 2.0 * two[:, 1], tiny_posts(2_000, 0)
    params = {"extra_trees": False, "feature_fraction": 1, "bagging_fraction": 1, "lambda_l2": 0, "learning_rate": 0.5}
    training = Training(params=params, taught=False, final=False, stop_share=0, rounds=60)
    result = fit_folds(block, target, make_folds(posts, 2, "user"), posts, training, ONE)
    assert np.abs(result.oof - target).max() < 1e-3


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("taught", [True, False])
def test_a_kept_model_predicts_what_it_predicted(model, taught, tmp_path):
    result = fit(model, out_dir=tmp_path / model, taught_dir=tmp_path / "taught", taught=taught)
    valid_idx = np.flatnonzero(FOLDS == 1)
    for name, rows, predicted in (("final", FOLDS == TEST, result.test), ("fold_1", FOLDS == 1, result.oof[valid_idx])):
        teaching = kept_teaching(tmp_path / model, name, tmp_path / "taught")
        assert (teaching is not None) == taught
        again = load_fold(BLOCK, tmp_path / model, name, teaching and teaching["columns"])
        assert np.array_equal(again.predict(np.flatnonzero(rows)), predicted)
    if taught:
        shutil.rmtree(tmp_path / "taught")
        with pytest.raises(InputError, match="--force 06"):
            kept_teaching(tmp_path / model, "final", tmp_path / "taught")


def test_taught_columns_are_made_once_for_all_models(tmp_path, monkeypatch):
    made = []
    make = TaughtColumns._made
    monkeypatch.setattr(TaughtColumns, "_made", lambda self, *a: made.append(a[0]) or make(self, *a))
    plain = fit("catboost")
    assert len(made) == 7  # without a folder: to count trees and to fit in each of 3 folds, and for the last model
    made.clear()
    for model in MODELS:
        kept = fit(model, out_dir=tmp_path / model, taught_dir=tmp_path / "taught")
    assert len(made) == 7 == len(list((tmp_path / "taught").iterdir()))
    assert np.array_equal(plain.oof, kept.oof, equal_nan=True) and np.array_equal(plain.test, kept.test)
    fit("catboost", target=TARGET + 1, out_dir=tmp_path / "catboost", taught_dir=tmp_path / "taught")
    assert len(made) == 14  # other labels, other columns


def test_who_decides_when_to_stop_has_taught_nothing(monkeypatch):
    """Labels of the authors held out for early stopping change none of the columns that the trees are counted with."""
    seen = []
    make = TaughtColumns._made
    monkeypatch.setattr(TaughtColumns, "_made", lambda self, *a: seen.append((a[0], make(self, *a))) or seen[-1][1])
    fit(final=False)
    (fit_idx, before), (train_idx, _) = seen[:2]
    assert set(fit_idx) < set(train_idx) == set(fold_rows(FOLDS, 0)[0])
    held_out = np.setdiff1d(train_idx, fit_idx)
    seen.clear()
    fit(final=False, target=np.where(np.isin(np.arange(len(TARGET)), held_out), TARGET + 5, TARGET))
    assert np.array_equal(seen[0][1]["columns"], before["columns"], equal_nan=True)


def test_scores_tell_the_device():
    assert set(fit().scores["device"]) == {"cpu"}


def test_edited_code_fits_again(tmp_path):
    """Kept fits of one folder, read back by the same code and made anew by other code."""
    shutil.copytree(PROJECT_ROOT / "kit", tmp_path / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT_ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT_ROOT / "requirements.txt", tmp_path)
    code = "import sys; from pathlib import Path; from tests.boosting.test_fit import *\nfit(rounds=5, out_dir=Path('out'))"

    def oof():
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
        )
        return np.load(tmp_path / "out/oof.npy"), (tmp_path / "out/fold_0.npz").stat().st_mtime_ns

    first, again = oof(), oof()
    assert np.array_equal(first[0], again[0], equal_nan=True) and first[1] == again[1]
    history = tmp_path / "kit/boosting/history.py"
    history.write_text(history.read_text().replace("PRIOR_POSTS = 2.0", "PRIOR_POSTS = 50.0"))
    edited = oof()
    assert not np.array_equal(first[0], edited[0], equal_nan=True) and edited[1] > again[1]
