"""Folds keep authors and the future apart, and say so when they cannot."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.base.errors import InputError
from kit.run.folds import SCHEMES, TEST, TRAIN_ONLY, fold_rows, inner_holdout, make_folds, usual_folds
from tests.tiny import tiny_posts

POSTS = tiny_posts(300, 50)
IS_TRAIN = (POSTS["split"] == "train").to_numpy()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_train_post_has_its_place_and_no_test_post_has_one(scheme):
    folds = make_folds(POSTS, 4, scheme)
    assert folds.dtype == np.int8
    assert (folds[~IS_TRAIN] == TEST).all() and (folds[IS_TRAIN] != TEST).all()
    assert set(folds[folds >= 0]) == {0, 1, 2, 3}
    assert (folds == TRAIN_ONLY).any() == (scheme == "time")
    for k in range(4):
        train_idx, valid_idx = fold_rows(folds, k)
        assert not set(train_idx) & set(valid_idx)
        assert IS_TRAIN[train_idx].all() and (folds[valid_idx] == k).all()
        if scheme != "time":
            assert len(train_idx) + len(valid_idx) == IS_TRAIN.sum()


@pytest.mark.parametrize("seed", range(3))
def test_user_folds_never_split_an_author_and_are_of_equal_size(seed):
    folds = make_folds(POSTS, 5, "user", seed)
    for k in range(5):
        train_idx, valid_idx = fold_rows(folds, k)
        assert not set(POSTS["Uid"][train_idx]) & set(POSTS["Uid"][valid_idx])
    sizes = np.bincount(folds[IS_TRAIN])
    assert sizes.max() - sizes.min() <= POSTS["Uid"][IS_TRAIN].value_counts().max()
    assert (folds == make_folds(POSTS, 5, "user", seed)).all()
    assert (folds != make_folds(POSTS, 5, "user", seed + 1)).any()


def test_one_author_with_most_posts_fills_one_fold_alone():
    posts = POSTS.assign(Uid=np.where(np.arange(len(POSTS)) % 2, "giant", POSTS["Uid"]))
    folds = make_folds(posts, 3, "user")
    giant = folds[IS_TRAIN & (posts["Uid"] == "giant").to_numpy()]
    assert len(set(giant)) == 1 and (folds == giant[0]).sum() == len(giant)


def test_time_folds_learn_from_strictly_earlier_posts():
    folds = make_folds(POSTS, 4, "time")
    date = POSTS["Postdate"]
    for k in range(4):
        train_idx, valid_idx = fold_rows(folds, k)
        assert date[train_idx].max() < date[valid_idx].min()
        assert len(train_idx) == (date[IS_TRAIN] < date[valid_idx].min()).sum()  # all of the past teaches
    assert 0.4 < (folds == TRAIN_ONLY).sum() / IS_TRAIN.sum() < 0.6


def test_time_folds_ignore_the_order_of_rows_and_posts_without_a_date_only_teach():
    shuffled = POSTS.sample(frac=1, random_state=0)
    folds = pd.Series(make_folds(shuffled, 3, "time"), index=shuffled.index).sort_index()
    assert (folds.to_numpy() == make_folds(POSTS, 3, "time")).all()
    undated = POSTS.assign(Postdate=POSTS["Postdate"].mask(np.arange(len(POSTS)) == 290))
    assert make_folds(undated, 3, "time")[290] == TRAIN_ONLY


def test_posts_of_one_instant_share_a_fold():
    posts = POSTS.assign(Postdate=POSTS["Postdate"].dt.floor("30D"))
    folds = make_folds(posts, 3, "time")
    assert (posts[IS_TRAIN].groupby(posts["Postdate"])["Uid"].agg(lambda g: len(set(folds[g.index]))) == 1).all()


def test_plain_folds_are_seeded_and_equal():
    folds = make_folds(POSTS, 7, "plain", 3)
    assert np.ptp(np.bincount(folds[IS_TRAIN])) <= 1
    assert (folds != make_folds(POSTS, 7, "plain", 4)).any()


@pytest.mark.parametrize(("n_folds", "scheme", "message"), [
    (5, "users", "choose one of user, time, plain"),
    (1, "user", "n_folds=1"),
    (41, "user", "authors with train posts"),
    (101, "plain", "n_folds=101"),
])  # fmt: skip
def test_impossible_folds_are_refused(n_folds, scheme, message):
    with pytest.raises(InputError, match=message):
        make_folds(POSTS, n_folds, scheme)


def test_too_few_dates_are_refused():
    with pytest.raises(InputError, match="found 1 distinct dates"):
        make_folds(POSTS.assign(Postdate=POSTS["Postdate"].iloc[0]), 3, "time")
    two = POSTS.assign(Postdate=POSTS["Postdate"].where(np.arange(len(POSTS)) == 0, POSTS["Postdate"].iloc[-1]))
    with pytest.raises(InputError):
        make_folds(two, 2, "time")


@pytest.mark.parametrize("k", [-2, -1, 5])
def test_a_fold_that_is_not_there_is_refused(k):
    with pytest.raises(InputError, match="0 to 4"):
        fold_rows(make_folds(POSTS, 5, "user"), k)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_inner_holdout_splits_the_rows_by_author(share):
    rows = np.flatnonzero(IS_TRAIN)[::2]
    fit_idx, stop_idx = inner_holdout(POSTS, rows, share, seed=1)
    assert sorted([*fit_idx, *stop_idx]) == rows.tolist()
    assert not set(POSTS["Uid"][fit_idx]) & set(POSTS["Uid"][stop_idx])
    largest = POSTS["Uid"][rows].value_counts().max()
    assert share * len(rows) <= len(stop_idx) <= share * len(rows) + largest
    assert set(stop_idx) != set(inner_holdout(POSTS, rows, share, seed=2)[1])


def test_inner_holdout_needs_two_posts_and_a_share():
    rows = np.flatnonzero(POSTS["Uid"] == POSTS["Uid"].value_counts().index[0])
    fit_idx, stop_idx = inner_holdout(POSTS, rows)
    assert sorted([*fit_idx, *stop_idx]) == rows.tolist() and 0.2 * len(rows) <= len(stop_idx) <= 0.2 * len(rows) + 1
    with pytest.raises(InputError, match="found 1 posts"):
        inner_holdout(POSTS, rows[:1])
    with pytest.raises(InputError, match="between 0 and 1"):
        inner_holdout(POSTS, np.arange(50), 1.0)
    two = POSTS.assign(Uid=np.where(np.arange(len(POSTS)) < 2, "a", "b"))
    fit_idx, stop_idx = inner_holdout(two, np.arange(100), 0.99)
    assert len(fit_idx) and len(stop_idx)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 40))), min_size=1, max_size=60),
    st.integers(0, 5), st.sampled_from(["user", "time", "plain"]), st.integers(0, 3),
)  # fmt: skip
def test_any_posts_are_cut_rightly_or_refused(posts, n_test, scheme, seed):
    """Authors that repeat, dates that tie or are missing, more folds than posts: whole folds or a clear refusal."""
    frame = pd.DataFrame({
        "Uid": [f"u{author}" for author, _ in posts], "split": "train",
        "Postdate": pd.to_datetime([None if day is None else day * 86_400 for _, day in posts], unit="s", utc=True),
    })  # fmt: skip
    frame = pd.concat([frame, frame[:n_test].assign(split="test")], ignore_index=True)
    try:
        folds = make_folds(frame, 3, scheme, seed)
    except InputError:
        return
    train = (frame["split"] == "train").to_numpy()
    assert (folds[~train] == TEST).all() and (folds[train] != TEST).all() and set(range(3)) <= set(folds.tolist())
    for k in range(3):
        train_idx, valid_idx = fold_rows(folds, k)
        assert not set(train_idx) & set(valid_idx) and train[train_idx].all() and train[valid_idx].all()
        if scheme == "user":
            assert not set(frame["Uid"][train_idx]) & set(frame["Uid"][valid_idx])
        if scheme == "time":
            taught, scored = frame["Postdate"][train_idx].dropna(), frame["Postdate"][valid_idx]
            assert scored.notna().all() and (not len(taught) or taught.max() < scored.min())
    assert np.array_equal(folds, make_folds(frame, 3, scheme, seed))


def test_many_posts_are_cut_into_fewer_folds():
    assert [usual_folds(n) for n in (500, 99_999, 100_000, 306_302)] == [5, 5, 3, 3]
