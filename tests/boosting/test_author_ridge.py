"""The author's effect: against a slow re-writing, and never by a label that it must not see."""

import numpy as np
import pytest

from kit.base.metrics import mae, src
from kit.boosting import author_ridge
from kit.boosting.author_ridge import AuthorRidge, prior_posts
from kit.boosting.data import Data
from kit.boosting.fit import Machine, Training, fit_folds
from kit.features.past import Past, post_times
from kit.run.folds import make_folds
from tests.tiny import tiny_block, tiny_posts

POSTS = tiny_posts(160, 40, n_authors=25)
POSTS["Postdate"] = POSTS["Postdate"].dt.floor("3D")  # many posts of one instant
TARGET = POSTS["label"].to_numpy()
AUTHOR = POSTS["Uid"].factorize()[0]
RIDGE = np.random.default_rng(0).normal(7, 1, size=(len(POSTS), 1)).astype(np.float32)
WEIGHT = np.random.default_rng(1).uniform(0.5, 2, size=len(POSTS))
TRAIN = np.flatnonzero((np.arange(200) < 160) & (np.arange(200) % 4 != 0))  # the training side of some fold
ALL = np.arange(len(POSTS))


def fitted(target=TARGET, rows=TRAIN, weight=WEIGHT):
    data = Data(
        np.zeros((len(POSTS), 1), np.float32), np.zeros(1, bool), target, AUTHOR, Past(AUTHOR, post_times(POSTS))
    )
    model = AuthorRidge(data, RIDGE, weight, 1)
    model.fit(rows, 1)
    return model


def test_the_effect_by_hand():
    rows = np.sort(np.r_[TRAIN, TRAIN[::3]])  # a third of them twice
    found = fitted(rows=rows).predict(ALL)
    residual, date = TARGET - RIDGE[:, 0], POSTS["Postdate"]
    prior = prior_posts(residual[TRAIN], AUTHOR[TRAIN])
    assert 0 < prior < np.inf
    for i in range(len(POSTS)):
        earlier = [j for j in rows if AUTHOR[j] == AUTHOR[i] and date[j] < date[i]]
        total = sum(WEIGHT[j] * residual[j] for j in earlier)
        assert found[i] == pytest.approx(RIDGE[i, 0] + total / (WEIGHT[earlier].sum() + prior), abs=1e-6)
    assert not np.allclose(found, RIDGE[:, 0])


def test_only_labels_of_earlier_training_posts_are_read(monkeypatch):
    before = fitted().predict(ALL)
    off = np.where(np.isin(ALL, TRAIN), TARGET, 1e6)
    assert np.array_equal(before, fitted(off).predict(ALL))
    monkeypatch.setattr(author_ridge, "prior_posts", lambda residual, author: 2.0)  # one number, which all labels teach
    before = fitted().predict(ALL)
    for i in TRAIN[::7]:
        after = fitted(np.where(ALL == i, TARGET + 9, TARGET)).predict(ALL)
        later = (AUTHOR == AUTHOR[i]) & (POSTS["Postdate"] > POSTS["Postdate"][i]).to_numpy()
        assert np.array_equal(np.abs(after - before) > 1e-9, later)  # sums are rounded


@pytest.mark.parametrize(("within", "between"), [(1.0, 0.5), (0.6, 1.2)])
def test_the_prior_is_the_ratio_of_the_variances(within, between):
    rng = np.random.default_rng(0)
    author = np.repeat(np.arange(4000), rng.integers(1, 6, size=4000))
    residual = rng.normal(0, between, size=4000)[author] + rng.normal(0, within, size=len(author))
    assert prior_posts(residual, author) == pytest.approx(within**2 / between**2, rel=0.1)


def test_where_authors_cannot_be_told_apart_there_is_no_effect():
    assert prior_posts(np.arange(5.0), np.arange(5)) == np.inf  # one post each
    assert prior_posts(np.tile([-1.0, 1.0], 10), np.repeat(np.arange(10), 2)) == np.inf  # alike
    assert prior_posts(np.repeat([-1.0, 1.0], 10), np.repeat([0, 1], 10)) == 0  # the label is the author
    assert prior_posts(np.array([0.1, 0.2, 0.3, 0.5]), np.zeros(4, int)) == np.inf  # a single author


def test_where_the_label_is_the_author_strangers_get_the_ridge():
    own = np.random.default_rng(2).normal(size=AUTHOR.max() + 1)[AUTHOR]
    model = fitted(target=RIDGE[:, 0].astype(float) + own)
    known = Past(AUTHOR, post_times(POSTS)).sums(np.isin(ALL, TRAIN).astype(float)) > 0
    np.testing.assert_allclose(model.predict(ALL), RIDGE[:, 0] + np.where(known, own, 0), atol=1e-6)


def test_it_beats_the_ridge_on_authors_that_are_known():
    posts = tiny_posts(600, 60, n_authors=60)
    talent = np.random.default_rng(3).normal(0, 2, size=60)[posts["Uid"].factorize()[0]]
    target, folds = posts["label"].to_numpy() + talent, make_folds(posts, 3, "time")
    training, scored = Training("author_ridge", final=False), folds >= 0
    block = tiny_block(posts)
    found = fit_folds(block, target, folds, posts, training, Machine(threads=1)).oof[scored]
    trees = fit_folds(block, target, folds, posts, Training(rounds=60, taught=False, final=False), Machine(threads=1))
    assert mae(target[scored], found) < 0.7 * mae(target[scored], trees.oof[scored])


@pytest.mark.parametrize("scheme", ["user", "time", "plain"])
def test_shuffled_labels_cannot_be_predicted(scheme):
    posts, rng = tiny_posts(900, 60, n_authors=150), np.random.default_rng(5)
    target, folds = posts["label"].to_numpy().copy(), make_folds(posts, 3, scheme)
    train = np.isfinite(target)
    target[train] = rng.permutation(target[train])
    found = fit_folds(
        tiny_block(posts), target, folds, posts, Training("author_ridge", final=False), Machine(threads=1)
    ).oof
    assert abs(src(target[folds >= 0], found[folds >= 0])) < 0.12
