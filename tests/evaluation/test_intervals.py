"""Ranges: as wide as errors of posts like it, taught by other folds, around a prediction whose level is taken as right."""

import numpy as np
import pandas as pd
import pytest

from kit.evaluation.intervals import (
    QUANTILES,
    coverage,
    earlier_in_folds,
    earlier_posts,
    fit_ranges,
    interval_table,
    nested_quantiles,
)
from kit.run.folds import TEST, TRAIN_ONLY, Folds

N, N_TEST, K = 3000, 600, 4


def posts_of(rng, n_authors=5000):
    """Posts in the order of time, the last ones the test part; authors post as often as they like."""
    author = rng.integers(0, n_authors, N + N_TEST) ** 2 // n_authors
    dates = pd.Timestamp("2015-01-01", tz="UTC") + pd.to_timedelta(np.sort(rng.integers(0, 500, N + N_TEST)), "D")
    label = np.r_[rng.normal(8, 2, N), np.full(N_TEST, np.nan)]
    split = np.repeat(["train", "test"], [N, N_TEST])
    pids = np.arange(N + N_TEST).astype(str)
    return pd.DataFrame({"Pid": pids, "Uid": author.astype(str), "Postdate": dates, "label": label, "split": split})


def forward_folds(posts, rng):
    """Half teaches only, four folds run forward; some posts teach no fold."""
    fold = np.r_[np.full(N // 2, TRAIN_ONLY), np.arange(N // 2) * K // (N // 2), np.full(N_TEST, TEST)].astype(np.int8)
    withheld = (rng.random((K, len(posts))) < 0.2) & (fold != TEST)
    return Folds("matched", fold, withheld & (fold < np.arange(K)[:, None]))


def predicted(posts, folds, size, rng):
    """(n_posts,) predictions of scored posts that err by `size` on average of its own distribution, skewed."""
    scored = folds.fold >= 0
    error = size * (rng.gamma(2.0, 1.0, len(posts)) - 1.678)  # median 0
    return np.where(scored, posts["label"] - error, np.nan)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def posts(rng):
    return posts_of(rng)


@pytest.fixture
def folds(posts, rng):
    return forward_folds(posts, rng)


def test_ranges_follow_what_is_known_of_the_author(posts, folds, rng):
    earlier = earlier_in_folds(posts, folds)
    oof = predicted(posts, folds, np.where(earlier > 0, 0.5, 1.0), rng)
    found = coverage(posts, folds, oof).set_index("authors")
    assert found["n"]["known"] > 150 and found["n"]["unknown"] > 150
    assert found["n"]["all"] == found["n"]["known"] + found["n"]["unknown"] == (folds.fold >= 1).sum()
    off, off_for_all = (found[["inside", "same_inside"]].loc[["known", "unknown"]] - 0.8).abs().to_numpy().T
    assert (off < 0.5 * off_for_all).all() and found["inside"]["all"] == pytest.approx(0.8, abs=0.03)
    assert found["width"]["known"] < 0.75 * found["width"]["unknown"]
    assert found["same_width"]["known"] == pytest.approx(found["same_width"]["unknown"], rel=0.05)
    assert found["pinball"]["all"] < 0.95 * found["same_pinball"]["all"]


def test_ranges_follow_the_prediction(posts, folds, rng):
    oof = np.where(folds.fold >= 0, rng.normal(8, 2, len(posts)), np.nan)
    size = np.exp(0.2 * (oof - 8))
    posts["label"] = oof + size * rng.normal(0, 1, len(posts))
    low, high = nested_quantiles(oof, earlier_in_folds(posts, folds), posts["label"].to_numpy(), folds.fold).T
    at = folds.fold == K - 1
    assert np.corrcoef(np.log(high - low)[at], np.log(size)[at])[0, 1] > 0.98
    found = coverage(posts, folds, oof).set_index("authors").loc["all"]
    assert 0.76 < found["inside"] < 0.84 and found["pinball"] < 0.97 * found["same_pinball"]


def test_where_errors_are_alike_all_ranges_are(posts, folds, rng):
    oof = np.where(folds.fold >= 0, rng.normal(8, 2, len(posts)), np.nan)
    target = oof + rng.normal(0, 1, len(posts))
    low, high = nested_quantiles(oof, earlier_in_folds(posts, folds), target, folds.fold).T
    width = (high - low)[folds.fold == K - 1]
    assert width.std() < 0.05 * width.mean()


def test_a_fold_is_not_taught_by_its_own_labels_nor_by_later_ones(posts, folds, rng):
    oof, earlier = predicted(posts, folds, np.ones(len(posts)), rng), earlier_in_folds(posts, folds)
    target, user = posts["label"].to_numpy(), np.where(folds.fold == TRAIN_ONLY, 0, folds.fold)
    before = nested_quantiles(oof, earlier, target, folds.fold)
    assert np.isnan(before[folds.fold <= 0]).all() and np.isfinite(before[folds.fold > 0]).all()
    other = np.where(folds.fold >= 2, target + 9 * rng.random(len(target)), target)
    after = nested_quantiles(oof, earlier, other, folds.fold)
    assert np.array_equal(before[folds.fold <= 2], after[folds.fold <= 2], equal_nan=True)
    assert not np.isclose(before[folds.fold == 3], after[folds.fold == 3]).any()
    before = nested_quantiles(oof, earlier, target, user)
    after = nested_quantiles(oof, earlier, np.where(user == 1, -target, target), user)
    scored = np.isfinite(oof)
    assert np.array_equal(before[user == 1], after[user == 1], equal_nan=True)
    assert not np.isclose(before[scored & (user == 2)], after[scored & (user == 2)]).any()


def test_earlier_posts_are_those_that_taught(posts, folds):
    earlier = earlier_in_folds(posts, folds)
    uid, date = posts["Uid"].to_numpy(), posts["Postdate"].to_numpy()
    for row in (*range(N // 2, N, 97), *range(N, N + N_TEST, 61)):
        k = folds.fold[row]
        taught = np.flatnonzero(folds.fold != TEST) if k == TEST else folds.rows(k)[0]
        assert earlier[row] == ((uid[taught] == uid[row]) & (date[taught] < date[row])).sum()
    assert not earlier[folds.fold == TRAIN_ONLY].any() and earlier.max() > 3
    assert not earlier_posts(posts, np.empty(0, int)).any()


def test_measures_are_those_of_a_slow_count(posts, folds, rng):
    oof, target = predicted(posts, folds, np.ones(len(posts)), rng), posts["label"].to_numpy()
    ends = nested_quantiles(oof, earlier_in_folds(posts, folds), target, folds.fold)
    found, loss, inside = coverage(posts, folds, oof).iloc[0], [], []
    for row in np.flatnonzero(np.isfinite(ends[:, 0])):
        inside.append(ends[row, 0] <= target[row] <= ends[row, 1])
        for q, end in zip(QUANTILES, ends[row], strict=True):
            loss.append(q * (target[row] - end) if target[row] > end else (1 - q) * (end - target[row]))
    assert found["authors"] == "all" and found["n"] == len(inside)
    assert found["inside"] == pytest.approx(np.mean(inside)) and found["pinball"] == pytest.approx(np.mean(loss))
    residual = (target - oof)[folds.fold == 0]
    own = nested_quantiles(oof, earlier_in_folds(posts, folds), target, folds.fold, scaled=False)[folds.fold == 1]
    assert (own - oof[folds.fold == 1, None])[0] == pytest.approx(np.quantile(residual, QUANTILES))


def test_the_table_has_a_range_around_every_prediction(posts, folds, rng):
    oof = np.clip(predicted(posts, folds, np.ones(len(posts)), rng), 3, 12)
    sent = rng.normal(8, 2, N_TEST).clip(3, 12)
    table = interval_table(posts, folds, oof, sent, (3.0, 12.0))
    assert table["Pid"].tolist() == posts["Pid"][folds.fold != TRAIN_ONLY].tolist()
    assert table["prediction"][table["fold"] == TEST].tolist() == sent.tolist()
    ranged = table[table["fold"] != 0]
    assert ((ranged["low"] <= ranged["prediction"]) & (ranged["prediction"] <= ranged["high"])).all()
    assert ranged["low"].min() >= 3 and ranged["high"].max() <= 12 and table[table["fold"] == 0]["low"].isna().all()
    bare = posts[posts["split"] == "train"]
    alone = interval_table(
        bare, Folds("matched", folds.fold[:N], folds.withheld[:, :N]), oof[:N], np.empty(0), (3.0, 12.0)
    )
    pd.testing.assert_frame_equal(alone, table[table["fold"] != TEST])


def test_a_level_of_the_past_does_not_move_a_range(rng):
    prediction, error = rng.normal(8, 2, 500), rng.normal(0, 1, 500)
    error -= np.median(error)
    none = np.zeros(500)
    right, off = (
        fit_ranges(prediction, none, prediction + error + level)(np.array([8.0]), none[:1]) for level in (0, 3.0)
    )
    assert off == pytest.approx(right)
    low, middle, high = fit_ranges(prediction, none, prediction + error)(np.array([8.0]), none[:1], (0.05, 0.5, 0.95))[
        0
    ]
    assert low < middle < high and middle == pytest.approx(8.0)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("error", [0.0, 1.0])
def test_few_posts_and_perfect_predictions_still_have_ranges(n, error):
    prediction, earlier = np.arange(n, dtype=float), np.zeros(n)
    ends = fit_ranges(prediction, earlier, prediction + error * (-1.0) ** np.arange(n))(
        np.array([-1e6, 0.5, 1e6]), np.full(3, 99.0)
    )
    assert np.isfinite(ends).all() and (ends[:, 0] <= ends[:, 1]).all()
    if not error:
        assert ends == pytest.approx(np.array([[-1e6] * 2, [0.5] * 2, [1e6] * 2]))
