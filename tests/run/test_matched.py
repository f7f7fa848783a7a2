"""Matched folds are like the test part, and the scheme that decides is chosen for a reason."""

import numpy as np
import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.run.directory import Run
from kit.run.folds import TEST, TRAIN_ONLY, own_folds
from kit.run.matched import LEAST_KEPT, all_folds, choose_scheme, cut, likeness
from kit.run.predictions import read_folds, which_schemes, write_folds

N_TRAIN, N_TEST, DAYS = 1500, 500, 100


def released(unseen: float, strangers: float, seed: int = 0) -> pd.DataFrame:
    """Posts in time, train then test.

    Args:
        unseen: share of test posts by authors without a train post.
        strangers: chance that a train post is by a new author, else by one who posted before.
    """
    rng = np.random.default_rng(seed)
    author: list[int] = []
    for _ in range(N_TRAIN):
        new = not author or rng.random() < strangers
        author.append(max(author, default=-1) + 1 if new else author[rng.integers(len(author))])
    n_new = round(unseen * N_TEST)
    later = [*rng.choice(author, N_TEST - n_new), *(max(author) + 1 + rng.integers(n_new, size=n_new))]
    seconds = np.r_[
        np.sort(rng.integers(0, DAYS * 64_800, N_TRAIN)), DAYS * 64_800 + rng.integers(0, DAYS * 21_600, N_TEST)
    ]
    uid = np.array([*author, *rng.permutation(later)])
    return pd.DataFrame({
        "Uid": [f"u{a}" for a in uid], "Pid": [f"p{i}" for i in range(len(uid))],
        "split": np.where(np.arange(len(uid)) < N_TRAIN, "train", "test"),
        "Postdate": pd.to_datetime(1_430_000_000 + seconds, unit="s", utc=True),
        "label": np.r_[rng.normal(size=N_TRAIN), np.full(N_TEST, np.nan)],
    })  # fmt: skip


def sides(posts, folds):
    return [folds.rows(k) for k in range(len(folds.withheld))]


@pytest.mark.parametrize("unseen", [0.18, 0.6, 0.82])
@pytest.mark.parametrize("strangers", [0.15, 0.5])
def test_matched_folds_are_like_the_test_part(unseen, strangers):
    posts = released(unseen, strangers)
    train, test = (np.flatnonzero(posts["split"] == part) for part in ("train", "test"))
    like = likeness(posts, train, test)
    assert like.known == pytest.approx(1 - unseen, abs=0.01)
    folds = cut(posts, "matched", 4, seed=1)
    found = [likeness(posts, *side) for side in sides(posts, folds)]
    n_scored = [(folds.fold == k).sum() for k in range(4)]
    n_time = np.bincount(cut(posts, "time", 4).fold[train] + 2, minlength=6)[2:]
    for one, n, before in zip(found, n_scored, n_time, strict=True):
        assert one.known == pytest.approx(like.known, abs=0.03) or n == pytest.approx(LEAST_KEPT * before, rel=0.05)
        assert one.lag_days == pytest.approx(like.lag_days, abs=2)
    plain = [likeness(posts, *side) for side in sides(posts, cut(posts, "time", 4))]
    assert (
        np.abs([one.known - like.known for one in found]).mean() <= np.abs([o.known - like.known for o in plain]).mean()
    )
    assert any(one.lag_days < like.lag_days - 2 for one in plain)  # which folds in time alone do not reach


@pytest.mark.parametrize("few", [True, False])
def test_known_authors_have_as_many_earlier_posts_as_those_of_the_test_part(few):
    posts = released(0.6, 0.4)
    n_posts = posts["Uid"][:N_TRAIN].value_counts()
    liked = n_posts.index[n_posts <= 2] if few else n_posts.index[n_posts >= 40]
    known = posts["Uid"].isin(n_posts.index) & (posts["split"] == "test")
    posts.loc[known, "Uid"] = np.random.default_rng(0).choice(liked, known.sum())
    found, plain = (
        [np.median(likeness(posts, *side).earlier) for side in sides(posts, cut(posts, scheme, 3))]
        for scheme in ("matched", "time")
    )
    assert (np.less if few else np.greater)(found, plain).all()
    assert few or min(likeness(posts, *side).earlier.min() for side in sides(posts, cut(posts, "matched", 3))) > 1


def test_hidden_authors_and_withheld_posts_teach_nothing():
    posts = released(0.6, 0.15)
    folds, date = cut(posts, "matched", 4), posts["Postdate"]
    for k, (train_idx, valid_idx) in enumerate(sides(posts, folds)):
        assert (posts["split"].iloc[train_idx] == "train").all() and (folds.fold[valid_idx] == k).all()
        assert date[train_idx].max() < date[valid_idx].min()  # forward
        scored, taught = set(posts["Uid"][valid_idx]), set(posts["Uid"][train_idx])
        hidden = set(posts["Uid"][folds.withheld[k] & (date < date[train_idx].max())]) & scored
        assert hidden and not hidden & taught  # whole authors, or not at all
        copies = folds.copies(True)
        assert set(np.flatnonzero(copies[k])) >= set(train_idx) and not copies[k][folds.withheld[k]].any()
    assert copies.shape == (5, len(posts)) and copies[4].all() and len(folds.copies(False)) == 4
    assert (cut(posts, "matched", 4).fold == folds.fold).all()  # seeded
    assert (cut(posts, "matched", 4, seed=1).withheld != folds.withheld).any()


def test_posts_left_unscored_teach_only_later_folds():
    posts = released(0.18, 0.5)
    folds, date = cut(posts, "matched", 4), posts["Postdate"]
    late = (folds.fold == TRAIN_ONLY) & (date > date[folds.fold == 0].min()).to_numpy()
    assert late.sum() > 20
    for k, (train_idx, valid_idx) in enumerate(sides(posts, folds)):
        assert date[train_idx].max() < date[valid_idx].min(), k
    assert np.isin(np.flatnonzero(late), sides(posts, folds)[3][0]).any()


@pytest.mark.parametrize("scheme", ["time", "matched"])
def test_purge_days_keep_the_last_days_from_teaching(scheme):
    posts = released(0.6, 0.15)
    for train_idx, valid_idx in sides(posts, cut(posts, scheme, 3, purge_days=4.0)):
        gap = posts["Postdate"][valid_idx].min() - posts["Postdate"][train_idx].max()
        assert gap >= pd.Timedelta(days=4)
    with pytest.raises(InputError, match="purge_days=5000"):
        cut(posts, scheme, 3, purge_days=5000)


def test_the_scheme_that_decides():
    posts = released(0.18, 0.5)
    assert choose_scheme(posts)[0] == "matched" and "82% of the test posts" in choose_scheme(posts)[1]
    few = released(0.82, 0.5)
    assert choose_scheme(few)[0] == "user"
    drifting = few.assign(label=few["label"] + np.where(np.arange(len(few)) > 0.8 * N_TRAIN, 1.0, 0.0))
    assert choose_scheme(drifting)[0] == "matched" and "sd off the rest" in choose_scheme(drifting)[1]
    assert choose_scheme(posts[:N_TRAIN])[0] == "user"  # no test part
    at_random = posts.assign(Postdate=np.random.default_rng(0).permutation(posts["Postdate"]))
    assert choose_scheme(at_random)[0] == "plain"
    assert choose_scheme(few.assign(Postdate=at_random["Postdate"]))[0] == "user"
    scheme, why = choose_scheme(few.assign(Postdate=pd.NaT))
    assert scheme == "user" and why.endswith("and there are no dates to compare")
    for scheme in ("user", "matched"):  # labels of the test part, were they there, say nothing
        frame = few if scheme == "user" else drifting
        assert choose_scheme(frame.assign(label=frame["label"].fillna(99.0))) == choose_scheme(frame)


def test_every_scheme_that_can_be_cut_is_cut_and_one_decides():
    posts = released(0.6, 0.15)
    cuts, table = all_folds(posts, 3)
    assert list(cuts) == ["user", "time", "plain", "matched"]
    assert table["scheme"].tolist() == ["test part", "user", "time", "plain", "matched"]
    assert table[table["decides"]]["scheme"].tolist() == ["matched"] and "40%" in table["why"][4]
    assert table["n"].tolist()[:2] == [N_TEST, N_TRAIN] and table["known"][1] == 0
    cuts, table = all_folds(posts.assign(Postdate=posts["Postdate"].iloc[0]), 3)
    assert set(cuts) == {"user", "plain"} and "distinct dates" in table.set_index("scheme")["why"]["time"]
    cuts, table = all_folds(posts[:N_TRAIN], 3, wanted="time")
    assert table.set_index("scheme")["why"]["time"] == "set by hand" and "test part to match" in table["why"].iloc[-1]
    with pytest.raises(InputError, match="choose auto, file:PATH or user"):
        all_folds(posts, 3, wanted="weather")
    assert all_folds(posts)[0]["user"].fold.max() == 4, "five, as nobody asks for another number"
    alone = posts.assign(Uid="one")
    assert all_folds(alone, 3)[1].query("decides")["scheme"].iloc[0] in ("time", "plain", "matched")
    with pytest.raises(InputError, match="authors with train posts"):
        all_folds(alone, 3, wanted="user")


def test_folds_are_read_as_they_were_written(tmp_path):
    posts = released(0.6, 0.15)
    run = Run.open(tmp_path / "run", step="01_eda")
    cuts, table = all_folds(posts, 3)
    run.write_table("schemes", table)
    write_folds(run.output("folds.csv"), posts, cuts)
    run = Run.open(tmp_path / "run")
    for scheme, folds in cuts.items():
        found = read_folds(run, posts, scheme)
        assert np.array_equal(found.fold, folds.fold) and np.array_equal(found.withheld, folds.withheld)
    with pytest.raises(InputError, match="no folds by 'weather'.*user, time, plain, matched"):
        read_folds(run, posts, "weather")
    with pytest.raises(InputError, match="this run's posts"):
        read_folds(run, posts[1:], "user")
    assert which_schemes(run, ["auto"]) == ["matched", "user"]
    assert which_schemes(run, ["plain", "auto", "user"]) == ["plain", "matched", "user"]
    run = Run.open(tmp_path / "run", step="01_eda")
    run.write_table("schemes", table.assign(decides=table["scheme"] == "user"))
    assert which_schemes(run, ["auto"]) == ["user", "matched"]
    run.write_table("schemes", table[table["scheme"] != "matched"].assign(decides=table["scheme"] == "user"))
    assert which_schemes(run, ["auto"]) == ["user", "time"]


def test_folds_of_your_own(tmp_path):
    posts, path = released(0.6, 0.15)[N_TRAIN - 100 : N_TRAIN + 10].reset_index(drop=True), tmp_path / "folds.csv"
    table = pd.DataFrame({"pid": posts["Pid"][:100], "fold": np.arange(100) % 4})
    table.sample(frac=1, random_state=0).to_csv(path, index=False)
    folds = own_folds(path, posts)
    assert folds.fold[:100].tolist() == table["fold"].tolist() and (folds.fold[100:] == TEST).all()
    cuts, schemes = all_folds(posts, 3, wanted=f"file:{path}")
    assert schemes.query("decides")["scheme"].tolist() == ["file"] and np.array_equal(cuts["file"].fold, folds.fold)
    table.assign(fold=table["fold"] - 2).replace({"fold": {-1: TRAIN_ONLY}}).to_csv(path, index=False)
    assert [len(train) for train, _ in sides(posts, own_folds(path, posts))] == [50, 75]  # forward
    for wrong, message in [
        (table[1:], "1 posts are missing"), (pd.concat([table, table[:1]]), "pids repeat"), (table.assign(fold=5), "number them"),
        (table.rename(columns={"fold": "part"}), "columns pid and fold"), (table.assign(fold=0), "0 training"),
    ]:  # fmt: skip
        wrong.to_csv(path, index=False)
        with pytest.raises(InputError, match=message):
            own_folds(path, posts)
    with pytest.raises(InputError, match="missing.csv"):
        own_folds(tmp_path / "missing.csv", posts)
