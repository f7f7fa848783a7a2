"""Columns taught by labels: against a slow re-writing, and never by a label they must not see."""

import numpy as np
import pandas as pd
import pytest

from kit.boosting import ridge
from kit.boosting.history import COMMON_SHARE, PRIOR_POSTS, LabelHistory
from kit.boosting.ridge import Design, RidgeStack
from kit.features.past import Past
from tests.tiny import tiny_block, tiny_posts

POSTS = tiny_posts(160, 40, n_authors=25)
POSTS["Postdate"] = POSTS["Postdate"].dt.floor("3D")  # many posts of one instant
TARGET = POSTS["label"].to_numpy()
BLOCK = tiny_block(POSTS)
TRAIN = np.flatnonzero((np.arange(200) < 160) & (np.arange(200) % 4 != 0))  # the training side of some fold
NAMES = LabelHistory.names


@pytest.fixture
def shown(monkeypatch):
    """No author's history is hidden."""
    monkeypatch.setattr(LabelHistory, "hide_authors", lambda self, train_idx: np.zeros(len(POSTS), dtype=bool))


def test_past_sums_and_latest_by_hand():
    rng = np.random.default_rng(0)
    key, time, values = rng.integers(4, size=60), rng.integers(9, size=60), rng.normal(size=60)
    values[rng.random(60) < 0.3] = np.nan
    past = Past(key, time)
    sums, latest = past.sums(np.nan_to_num(values)), past.latest(values)
    counts, recent, earliest = past.counts(), past.counts(within=2), past.earliest(time)
    for i in range(60):
        earlier = (key == key[i]) & (time < time[i])
        assert sums[i] == pytest.approx(np.nansum(values[earlier]), abs=1e-12)
        assert counts[i] == earlier.sum() and recent[i] == (earlier & (time >= time[i] - 2)).sum()
        assert earliest[i] == pytest.approx(time[earlier].min() if earlier.any() else np.nan, nan_ok=True)
        times = time[earlier & np.isfinite(values)]
        if len(times):
            assert latest[i] in values[earlier & (time == times.max())]
        else:
            assert np.isnan(latest[i])


def test_past_of_nothing():
    past = Past(np.empty(0, dtype=int), np.empty(0, dtype=int))
    assert not len(past.counts()) and not len(past.counts(within=3)) and not len(past.earliest(np.empty(0)))


def test_label_history_by_hand(shown):
    found = LabelHistory(POSTS).columns(TARGET, TRAIN)
    sets, date, gain = POSTS["Alltags"].str.split().map(set), POSTS["Postdate"], TARGET - TARGET[TRAIN].mean()
    taught = np.isin(np.arange(len(POSTS)), TRAIN)
    n_with = {tag: sum(tag in tags for tags in sets) for tags in sets for tag in tags}
    for i in range(0, len(POSTS), 3):
        earlier = taught & (date < date[i]).to_numpy()
        own = gain[earlier & (POSTS["Uid"] == POSTS["Uid"][i]).to_numpy()]
        author = own.sum() / (len(own) + PRIOR_POSTS) if len(own) else np.nan
        others = earlier & (POSTS["Uid"] != POSTS["Uid"][i]).to_numpy()
        by_tag = {tag: gain[others & sets.map(lambda tags, tag=tag: tag in tags).to_numpy()] for tag in sets[i]}
        means = {tag: g.sum() / (len(g) + PRIOR_POSTS) for tag, g in by_tag.items() if len(g)}
        rare = [m for tag, m in means.items() if n_with[tag] <= COMMON_SHARE * len(POSTS)]
        row = dict(zip(NAMES, found[i], strict=True))
        assert row["author_past_label"] == pytest.approx(author, rel=1e-4, abs=1e-5, nan_ok=True)
        assert row["author_past_n"] == pytest.approx(np.log1p(len(own)), rel=1e-5)
        assert row["rare_tag_past_n"] == len(rare)
        for how in ("mean", "max", "min"):
            expected = getattr(np, how)(list(means.values())) if means else np.nan
            assert row[f"tag_past_label_{how}"] == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True)


def test_only_labels_of_earlier_training_posts_are_read(shown):
    """Labels off the training side change nothing; one on it changes no post of its own time or before."""
    maker = LabelHistory(POSTS)
    before = maker.columns(TARGET, TRAIN)
    elsewhere = np.where(np.isin(np.arange(len(POSTS)), TRAIN), TARGET, 1e6)
    assert np.array_equal(before, maker.columns(elsewhere, TRAIN), equal_nan=True)
    i, j = TRAIN[60], TRAIN[10]
    swapped = TARGET.copy()
    swapped[[i, j]] += [50, -50]  # the mean of the training side stays
    changed = ~np.isclose(before, maker.columns(swapped, TRAIN), equal_nan=True, atol=1e-4).all(axis=1)
    first = min(POSTS["Postdate"][i], POSTS["Postdate"][j])
    assert changed.any() and (POSTS["Postdate"][changed] > first).all()


def test_posts_without_a_date_teach_nobody(shown):
    undated = POSTS.assign(Postdate=POSTS["Postdate"].mask(np.arange(len(POSTS)) == TRAIN[5]))
    moved = TARGET.copy()
    moved[TRAIN[5]] += 30
    moved[TRAIN] -= 30 / len(TRAIN)
    one, two = (LabelHistory(undated).columns(t, TRAIN) for t in (TARGET, moved))
    centred = TARGET.copy()
    centred[TRAIN] -= 30 / len(TRAIN)
    others = np.arange(len(POSTS)) != TRAIN[5]
    assert np.allclose(one[others], two[others], equal_nan=True, atol=0.5)  # a shared shift, not the 30 of one post


def test_authors_are_hidden_until_train_is_as_ignorant_as_test():
    posts = tiny_posts(2000, 400, n_authors=150)
    strangers = (posts["split"] == "test") & (np.arange(len(posts)) % 5 != 0)  # four of five test authors are new
    posts["Uid"] = np.where(strangers, "new" + posts["Pid"], posts["Uid"])
    maker, train_idx = LabelHistory(posts), np.arange(2000)
    found = maker.columns(posts["label"].to_numpy(), train_idx)
    known = ~np.isnan(found[:, 0])
    assert (found[~known, 2] == 0).all() and (found[known, 2] > 0).all()  # the hidden look like strangers
    is_test = (posts["split"] == "test").to_numpy()
    assert known[is_test].mean() == pytest.approx(0.2, abs=0.02)
    assert known[~is_test].mean() == pytest.approx(0.2, abs=0.08)
    hidden = posts["Uid"][maker.hide_authors(train_idx)]
    assert not set(hidden) & set(posts["Uid"][train_idx][known[train_idx]])  # whole authors
    assert not LabelHistory(posts[~is_test]).hide_authors(train_idx).any()  # nobody to be like


@pytest.mark.parametrize("view", ridge.VIEWS)
def test_ridge_equals_the_normal_equations(view):
    design = Design(BLOCK, POSTS)
    width = design.width(view)
    weight = np.where(np.isin(np.arange(len(POSTS)), TRAIN), np.random.default_rng(0).random(len(POSTS)) + 0.5, 0)
    x = np.column_stack([design._times(unit, view) for unit in np.eye(width)])
    fitted = design.fit(TARGET, weight, 3.0, view)
    assert fitted[1] == pytest.approx(np.average(TARGET[TRAIN], weights=weight[TRAIN]))
    gram = (x * weight[:, None]).T @ x + 3.0 * np.eye(x.shape[1])
    exact = np.linalg.solve(gram, (x * weight[:, None]).T @ np.where(weight > 0, TARGET - fitted[1], 0))
    assert design.predict(*fitted) == pytest.approx(x @ exact + fitted[1], abs=0.02)
    u, v = np.random.default_rng(1).normal(size=len(POSTS)), np.random.default_rng(2).normal(size=width)
    assert u @ design._times(v, view) == pytest.approx(v @ design._transposed_times(u, view), rel=1e-4)


def titled(kind: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Posts whose label a word of the title decides: one of many whose runs of letters are alike, or one without spaces."""
    rng, n = np.random.default_rng(0), 400
    if kind == "words":
        known = ["".join(rng.choice(list("ab"), 16)) for _ in range(40)]
        worth = rng.normal(0, 2, size=len(known))
        drawn = rng.integers(len(known), size=(n, 2))
        titles, gain = [" ".join(known[i] for i in row) for row in drawn], worth[drawn].sum(axis=1)
    else:
        filler = np.array(list("天地玄黃宇宙洪荒日月盈昃辰宿列張"))
        gain = 4.0 * rng.integers(2, size=n)
        titles = ["".join([*rng.choice(filler, 6), "猫" if g else "犬", *rng.choice(filler, 5)]) for g in gain]
    posts = tiny_posts(n, 0).assign(Title=titles, Alltags="", label=gain + rng.normal(0, 0.2, size=n))
    return posts, posts["label"].to_numpy()


@pytest.mark.parametrize("expected", ["words", "characters"])
def test_the_view_of_the_titles_is_the_one_that_foretells_other_authors_labels(expected):
    posts, target = titled(expected)
    stack = RidgeStack(tiny_block(posts), posts)
    taught = np.arange(len(posts)) < 300
    held_out = [taught & (pd.factorize(posts["Uid"])[0] % 3 == k) for k in range(3)]
    assert stack.choose(target, taught.astype(float), held_out)[1] == expected
    column = stack.column(target, np.flatnonzero(taught), np.ones(len(posts)))
    assert np.corrcoef(column[~taught], target[~taught])[0, 1] > 0.8


def test_a_ridge_that_has_not_converged_says_so(monkeypatch):
    monkeypatch.setattr(ridge, "MAX_STEPS", 2)
    with pytest.warns(UserWarning, match="not converged after 2 steps"):
        Design(BLOCK, POSTS).fit(TARGET, np.ones(len(POSTS)) * np.isfinite(TARGET), 0.5, "words")


def test_a_post_is_never_predicted_by_its_author(monkeypatch):
    monkeypatch.setattr(ridge, "ALPHAS", (2.0,))  # the choice of penalty and view may depend on everything
    monkeypatch.setattr(ridge, "VIEWS", {"both": ("word", "char")})
    stack, ones = RidgeStack(BLOCK, POSTS), np.ones(len(POSTS))
    before = stack.column(TARGET, TRAIN, ones)
    author = (POSTS["Uid"] == POSTS["Uid"][TRAIN[7]]).to_numpy()
    changed = stack.column(np.where(author, TARGET + 20, TARGET), TRAIN, ones)
    mine = author & np.isin(np.arange(len(POSTS)), TRAIN)
    assert np.array_equal(before[mine], changed[mine]) and mine.sum() > 1
    assert not np.allclose(before[~author], changed[~author])


def test_of_many_judges_some_authors_decide(monkeypatch):
    monkeypatch.setattr(ridge, "JUDGES", 50)
    seen, choose = [], RidgeStack.choose
    monkeypatch.setattr(RidgeStack, "choose", lambda self, *given: seen.append(given) or choose(self, *given))
    column = RidgeStack(BLOCK, POSTS).column(TARGET, TRAIN, np.ones(len(POSTS)))
    ((_, weight, held_out),) = seen
    judges = np.flatnonzero(weight)
    assert (
        50 <= len(judges) < 80
        and set(judges) < set(TRAIN)
        and all(set(np.flatnonzero(part)) < set(judges) for part in held_out)
    )
    assert not set(POSTS["Uid"].iloc[judges]) & set(POSTS["Uid"].iloc[np.setdiff1d(TRAIN, judges)]), "whole authors"
    assert np.corrcoef(column[TRAIN], TARGET[TRAIN])[0, 1] > 0.1


def test_ridge_reads_no_label_off_the_training_side_and_learns():
    stack, ones = RidgeStack(BLOCK, POSTS), np.ones(len(POSTS))
    column = stack.column(TARGET, TRAIN, ones)
    off = np.where(np.isin(np.arange(len(POSTS)), TRAIN), TARGET, 1e6)
    assert np.array_equal(column, stack.column(off, TRAIN, ones))
    rest = np.flatnonzero((np.arange(len(POSTS)) < 160) & (np.arange(len(POSTS)) % 4 == 0))
    assert np.corrcoef(column[rest], TARGET[rest])[0, 1] > 0.7


def test_no_tags_no_titles():
    bare = POSTS.assign(Alltags="", Title="")
    columns = LabelHistory(bare).columns(TARGET, TRAIN)
    assert np.isnan(columns[:, NAMES.index("tag_past_label_mean")]).all()
    assert np.isfinite(RidgeStack(BLOCK, bare).column(TARGET, TRAIN, np.ones(len(bare)))).all()
