"""Behaviour block: every family against an obvious re-writing; no label in; and the causal families know no future."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.base.errors import InputError
from kit.features import words
from kit.features.behaviour import CAUSAL, FAMILIES, AuthorContext, behaviour_block
from kit.features.statistic import statistic_block
from tests.tiny import DAY, tiny_posts

HOUR = 3600
START = pd.Timestamp("2015-06-01", tz="UTC")  # a Monday
POSTS = tiny_posts(150, 40, n_authors=12)
TIED = POSTS.assign(Postdate=POSTS["Postdate"].dt.floor("3D"))  # many posts of one instant
SETS = POSTS["Alltags"].str.split().map(set)


def made(name: str, posts: pd.DataFrame) -> pd.DataFrame:
    return FAMILIES[name](AuthorContext(posts, svd_dim=4, n_top_tags=10, seed=0))


def table(*rows: tuple) -> pd.DataFrame:
    """Posts (author, hours after START or None, title, tags)."""
    author, hours, title, tags = (list(column) for column in zip(*rows, strict=True))
    date = pd.Series(
        [pd.NaT if h is None else START + pd.Timedelta(hours=h) for h in hours], dtype="datetime64[s, UTC]"
    )
    return tiny_posts(len(rows), 0).assign(Uid=author, Postdate=date, Title=title, Alltags=tags)


def earlier_of(posts: pd.DataFrame, i: int) -> pd.DataFrame:
    return posts[(posts["Uid"] == posts["Uid"][i]) & (posts["Postdate"] < posts["Postdate"][i])]


def assert_same(one: pd.DataFrame, two: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one.reset_index(drop=True), two.reset_index(drop=True), rtol=1e-6, check_dtype=False)


# --- the block --------------------------------------------------------------------------------------------------------


def test_labels_and_pids_change_nothing():
    block, rng = behaviour_block(POSTS), np.random.default_rng(0)
    permuted = POSTS.assign(label=rng.permutation(POSTS["label"]), Pid=rng.permutation(POSTS["Pid"]))
    for other in (permuted, POSTS.assign(label=np.nan), POSTS.drop(columns=["label", "Pid"])):
        again = behaviour_block(other)
        assert block.columns == again.columns and np.array_equal(block.values, again.values, equal_nan=True)


def test_the_block_is_float32_and_has_no_constant_column():
    block = behaviour_block(POSTS, dim=4)
    assert block.name == "behaviour" and block.values.dtype == np.float32 and len(block.values) == len(POSTS)
    assert all(len(np.unique(column, equal_nan=True)) > 1 for column in block.values.T)
    assert not {"author_n_Mediatype", "author_has_geo_mean"} & set(block.columns) and not np.isinf(block.values).any()
    assert set(block.categorical) == {f"tag_{i}_code" for i in range(1, 6)}


def test_families_are_chosen_by_name():
    assert "log_album_size" in behaviour_block(POSTS, ["albums"]).columns
    assert behaviour_block(POSTS, ["albums"]).source == "posts table: albums"
    with pytest.raises(InputError, match=r"behaviour: unknown .*\['weather'\].*tag_sequence, .*author_profile"):
        behaviour_block(POSTS, ["albums", "weather"])
    with pytest.raises(InputError, match="no feature family is chosen"):
        behaviour_block(POSTS, [])
    with pytest.raises(InputError, match="nothing to learn from"):
        behaviour_block(POSTS.assign(Alltags=""), ["vocabulary"])
    assert all(family.__doc__ for family in FAMILIES.values()) and set(FAMILIES) >= CAUSAL


def test_no_column_is_in_two_families():
    names = Counter(column for family in FAMILIES for column in made(family, POSTS))
    assert max(names.values()) == 1


def test_statistic_block_and_this_one_share_few_columns():
    assert not set(statistic_block(POSTS).columns) & set(behaviour_block(POSTS).columns)


# --- rows and time ----------------------------------------------------------------------------------------------------


def kept_before(name: str, posts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The family's values for the posts up to a date: made from all posts, and made from these alone."""
    keep = (posts["Postdate"] <= posts["Postdate"].quantile(0.6)) | posts["Postdate"].isna()
    return made(name, posts)[keep.to_numpy()], made(name, posts[keep].reset_index(drop=True))


@pytest.mark.parametrize("posts", [POSTS, TIED], ids=["hours", "ties"])
@pytest.mark.parametrize("name", sorted(CAUSAL))
def test_causal_families_do_not_change_when_later_posts_go(name, posts):
    posts = posts.assign(Postdate=posts["Postdate"].mask(np.arange(len(posts)) % 11 == 3))
    assert_same(*kept_before(name, posts))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - CAUSAL))
def test_the_other_families_do_change_when_later_posts_go(name):
    with pytest.raises(AssertionError):
        assert_same(*kept_before(name, POSTS))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"tag_sequence"}))
def test_the_order_of_the_rows_is_no_feature(name):
    order = np.random.default_rng(1).permutation(len(TIED))
    assert_same(made(name, TIED).iloc[order], made(name, TIED.iloc[order].reset_index(drop=True)))
    assert_same(made(name, TIED), made(name, TIED.set_axis(TIED.index + 7)))


ROW = st.tuples(
    st.sampled_from("ab"),
    st.sampled_from([None, 0, 0.5, 1, 30, 1000, -400_000]),
    st.sampled_from(["", " ", "dog", "cat"]),
    st.sampled_from(["", "a", "a b a", "b c d e f g"]),
)


@settings(max_examples=25)
@given(st.lists(ROW, min_size=1, max_size=15), st.booleans())
def test_odd_tables(rows, alone):
    posts = table(*(("a", *row[1:]) if alone else row for row in rows))
    for name in FAMILIES:
        frame = made(name, posts)
        assert len(frame) == len(posts) and not np.isinf(frame.to_numpy(np.float64)).any()
        if name in CAUSAL:
            assert frame[posts["Postdate"].isna()].isna().all(axis=None)
            assert_same(*kept_before(name, posts))


# --- tags -------------------------------------------------------------------------------------------------------------


def test_first_tags_are_codes_and_the_last_is_repeated():
    frame = made(
        "tag_sequence", table(("a", 0, "", "x y"), ("a", 1, "", "z x x q"), ("b", 2, "", ""), ("b", 3, "", "y"))
    )
    codes = frame[[f"tag_{i}_code" for i in range(1, 6)]].to_numpy().tolist()  # x 0, y 1, q 2, z 3
    assert codes == [[0, 1, 1, 1, 1], [3, 0, 2, 2, 2], [-1] * 5, [1] * 5]
    rare = FAMILIES["tag_sequence"](AuthorContext(table(("a", 0, "", "x y z"), ("a", 0, "", "x")), 2, 1, 0))
    assert rare.loc[0, ["tag_1_code", "tag_2_code"]].tolist() == [0, -1]


def test_authors_whose_tags_keep_the_same_company_are_close():
    one, two = ("a b", "c d"), ("p q", "r s")
    rows = [(author, hour, "", side[hour % 2]) for author, side in zip("uvwx", (one, one, two, two), strict=True)
            for hour in range(8)]  # fmt: skip
    frame = made("tag_sequence", table(*rows, ("y", 0, "", "")))
    vectors = frame[[c for c in frame if c.startswith("tag_sequence")]].to_numpy()
    u, v, w = vectors[0], vectors[8], vectors[16]
    assert np.allclose(u, v, atol=1e-5) and np.linalg.norm(u - w) > 0.5
    assert np.isnan(vectors[-1]).all()


def test_company_is_counted_within_the_window_of_one_author():
    sequence, tag = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 4, 0])
    near = words.sequence_vectors(sequence, tag, 4, 0, window=1)
    company = np.zeros((5, 5))
    for a, b in [(0, 1), (1, 2), (2, 3), (4, 0)]:  # neighbours; 3 and 4 belong to different authors
        company[a, b] = company[b, a] = 1
    n = company.sum(0)
    expected = np.maximum(np.log(np.maximum(company, 1e-9) * n.sum() / np.outer(n, n)), 0)
    assert near @ near.T == pytest.approx(expected @ expected.T, abs=1e-3)


def test_tag_frequency_by_hand():
    frame = made("tag_frequency", POSTS)
    n_with = Counter(tag for tags in SETS for tag in tags)
    users = {tag: POSTS["Uid"][[tag in tags for tags in SETS]].nunique() for tag in n_with}
    for i in range(0, len(POSTS), 7):
        posts, authors = [np.log1p(n_with[t]) for t in SETS[i]], [np.log1p(users[t]) for t in SETS[i]]
        if posts:
            assert frame["tag_posts_mean"][i] == pytest.approx(np.mean(posts), rel=1e-5)
            assert frame["tag_authors_max"][i] == pytest.approx(max(authors), rel=1e-5)
        else:
            assert np.isnan(frame["tag_posts_mean"][i])


@pytest.mark.parametrize("name", ["week", "month"])
def test_tag_trend_by_hand(name):
    iso = POSTS["Postdate"].dt.isocalendar()
    month = POSTS["Postdate"].dt.year * 12 + POSTS["Postdate"].dt.month
    weeks = (POSTS["Postdate"] - pd.to_timedelta(iso["day"].astype(int) - 1, unit="D")).dt.floor("D")
    period = month if name == "month" else (weeks - weeks.min()).dt.days // 7
    frame = made("tag_frequency", POSTS)
    tags_in = {p: Counter(t for tags in SETS[period == p] for t in tags) for p in period.unique()}
    for i in range(0, len(POSTS), 3):
        here, before = tags_in[period[i]], tags_in.get(period[i] - 1)
        n, n_before = (period == period[i]).sum(), (period == period[i] - 1).sum()
        share = {t: np.log((here[t] + 1) / (n + 1)) for t in SETS[i]}
        if not share:
            assert frame.filter(like=f"tag_{name}").loc[i].isna().all()
            continue
        rank = {t: np.log(1 + sum(other > here[t] for other in here.values())) for t in SETS[i]}
        assert frame[f"tag_{name}_share_mean"][i] == pytest.approx(np.mean(list(share.values())), rel=1e-5)
        assert frame[f"tag_{name}_rank_max"][i] == pytest.approx(max(rank.values()), rel=1e-5)
        trend = [share[t] - np.log((before[t] + 1) / (n_before + 1)) for t in SETS[i]] if before else [np.nan]
        assert frame[f"tag_{name}_trend_max"][i] == pytest.approx(max(trend), rel=1e-4, abs=1e-6, nan_ok=True)


def test_top_tags_of_a_period():
    long = words.long_tags(pd.Series(["a b", "a", "b c", "d", "c"]))
    trend = words.tag_trend(long, np.array([0.0, 0, 0, 1, np.nan]), "week", n_top=2)
    assert trend["tag_week_top"].tolist() == pytest.approx([1, 1, 0.5, 1, np.nan], nan_ok=True)


def test_tag_history_by_hand():
    frame = made("tag_history", TIED)
    date = TIED["Postdate"]
    for i in range(0, len(TIED), 5):
        before = date < date[i]
        shares, days = [], []
        for tag in SETS[i]:
            uses = date[before & SETS.map(lambda tags, tag=tag: tag in tags)]
            shares.append(np.log((len(uses) + 1) / (before.sum() + 1)))
            days += [np.log1p((date[i] - uses.max()).total_seconds() / DAY)] if len(uses) else []
        if shares:
            assert frame["tag_past_share_mean"][i] == pytest.approx(np.mean(shares), rel=1e-4)
            assert frame["tag_past_share_min"][i] == pytest.approx(min(shares), rel=1e-4)
            assert frame["tag_past_days_max"][i] == pytest.approx(max(days) if days else np.nan, rel=1e-4, nan_ok=True)


def test_vocabulary_by_hand():
    frame = made("vocabulary", table(("a", 0, "", "x x y"), ("a", 1, "", "x z"), ("b", 2, "", "z"), ("c", 3, "", "")))
    a = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))  # x twice, y and z once
    assert frame["author_tag_entropy"].tolist() == pytest.approx([a, a, 0, 0])
    assert np.expm1(frame["author_log_tags"]).tolist() == pytest.approx([3, 3, 1, 0])
    assert frame["author_tags_per_post"].tolist() == [2, 2, 1, 0]
    assert frame["author_private_tags"].tolist() == pytest.approx([2 / 3, 2 / 3, 0, np.nan], nan_ok=True)
    assert frame["post_private_tags"].tolist() == pytest.approx([1, 0.5, 0, np.nan], nan_ok=True)


def test_vocabulary_so_far_by_hand():
    frame = made("vocabulary_so_far", TIED)
    for i in range(len(TIED)):
        past = earlier_of(TIED, i)
        known = set().union(*SETS[past.index])
        assert np.expm1(frame["author_log_tags_so_far"][i]) == pytest.approx(len(known))
        share = len(SETS[i] & known) / len(SETS[i]) if SETS[i] else np.nan
        assert frame["known_tags"][i] == pytest.approx(share, nan_ok=True)
        last = set().union(*SETS[past.index[past["Postdate"] == past["Postdate"].max()]])
        both = SETS[i] | last
        overlap = len(SETS[i] & last) / len(both) if len(past) and both else np.nan
        assert frame["tag_overlap"][i] == pytest.approx(overlap, nan_ok=True)


# --- time -------------------------------------------------------------------------------------------------------------


def test_author_history_by_hand():
    frame = made("author_history", TIED)
    for i in range(len(TIED)):
        past = earlier_of(TIED, i)["Postdate"]
        days = ((TIED["Postdate"][i] - past).dt.total_seconds() / DAY).to_numpy()
        assert np.expm1(frame["log_author_earlier_posts"][i]) == pytest.approx(len(past))
        assert frame["log_author_days_since_last"][i] == pytest.approx(np.log1p(min(days, default=np.nan)), nan_ok=True)
        assert frame["log_author_days_since_first"][i] == pytest.approx(
            np.log1p(max(days, default=np.nan)), nan_ok=True
        )
        for window in (1, 7, 30):
            recent = np.expm1(frame[f"log_author_posts_in_{window}_days"][i])
            assert recent == pytest.approx((days <= window).sum())


def test_posting_rhythm_by_hand():
    hours = [0, 0.5, 1.5, 1.5, 48, None]  # two bursts: four posts on Monday, one on Wednesday
    rows = [("a", h, "", "") for h in hours] + [("b", 24 * 31, "", "")]
    frame = made("posting_rhythm", table(*rows))
    gaps = pd.Series(np.log1p([0.5, 1, 0, 46.5]))
    for statistic in ("mean", "std", "min", "max", "skew"):
        value = getattr(gaps, statistic)()
        assert frame[f"author_log_gap_{statistic}"].tolist() == pytest.approx([value] * 6 + [np.nan], nan_ok=True)
    assert frame.loc[5, ["author_posts_per_day", "author_posts_per_week", "author_posts_per_month"]].tolist() == [
        2.5,
        5,
        5,
    ]
    assert np.expm1(frame["author_log_days"]).tolist() == pytest.approx([2] * 6 + [0])
    assert np.exp(frame["log_burst_size"]).tolist() == pytest.approx([4, 4, 4, 4, 1, np.nan, 1], nan_ok=True)
    assert np.exp(frame["log_burst_place"]).tolist() == pytest.approx([1, 2, 3, 3, 1, np.nan, 1], nan_ok=True)
    angle = 2 * np.pi * np.array([0, 0.5, 1.5, 1.5, 0]) / 24
    assert frame["author_hour_focus"].tolist() == pytest.approx([abs(np.exp(1j * angle).mean())] * 6 + [1])


# --- albums -----------------------------------------------------------------------------------------------------------


def test_albums_by_hand():
    rows = [
        ("a", 0, "sea"),
        ("a", 30, "sea"),
        ("a", 5, "dog"),
        ("b", 1, "sea"),
        ("a", 40, " "),
        ("c", 0, ""),
        ("a", 30, "sea"),
    ]
    posts = table(*((*row, "") for row in rows))
    frame = made("albums", posts)
    assert np.exp(frame["log_album_size"]).tolist() == pytest.approx([3, 3, 1, 1, np.nan, np.nan, 3], nan_ok=True)
    assert np.expm1(frame["author_log_albums"]).tolist() == pytest.approx([2, 2, 2, 1, 2, 0, 2])
    assert frame["author_posts_per_album"].tolist() == pytest.approx([2.5, 2.5, 2.5, 1, 2.5, np.nan, 2.5], nan_ok=True)
    past = made("album_so_far", posts)
    earlier = np.expm1(past["log_album_earlier_posts"]).tolist()
    assert earlier == pytest.approx([0, 1, 0, 0, np.nan, np.nan, 1], nan_ok=True)
    since = np.expm1(past["log_album_days_since_last"]) * 24
    assert since.tolist() == pytest.approx([np.nan, 30, np.nan, np.nan, np.nan, np.nan, 30], nan_ok=True)
    assert np.expm1(past["author_log_albums_so_far"]).tolist() == pytest.approx([0, 2, 1, 0, 2, 0, 2])


# --- the author's posts as numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("posts", [POSTS, TIED], ids=["hours", "ties"])
def test_windows_by_hand(posts):
    frame = made("windows", posts)
    n_tags = posts["Alltags"].str.split().str.len()
    for i in range(len(posts)):
        past = earlier_of(posts, i)
        instants = sorted(past["Postdate"].unique())
        for name, n_before in {"3": 2, "5": 4, "all": len(instants)}.items():
            values = n_tags[past.index[past["Postdate"].isin(instants[len(instants) - min(n_before, len(instants)) :])]]
            assert frame[f"n_tags_last_{name}_mean"][i] == pytest.approx(np.mean([*values, n_tags[i]]), rel=1e-5)
            off = n_tags[i] - values.mean() if len(values) else np.nan
            assert frame[f"n_tags_last_{name}_off"][i] == pytest.approx(off, rel=1e-5, abs=1e-6, nan_ok=True)


def test_windows_hold_the_posts_own_numbers():
    posts = table(("a", 25.5, "Two words", "x yy"), ("b", None, "late", "")).assign(Geoaccuracy=[5.0, np.nan])
    first = made("windows", posts).iloc[0]
    expected = {
        "title_chars": 9,
        "title_words": 2,
        "tag_chars": 4,
        "n_tags": 2,
        "minute": 90,
        "weekday": 1,
        "has_geo": 1,
    }
    assert {name: first[f"{name}_last_3_mean"] for name in expected} == expected


def test_author_profile_by_hand():
    frame = made("author_profile", POSTS)
    chars, hour = POSTS["Title"].str.len(), POSTS["Postdate"].dt.hour
    for author, rows in POSTS.groupby("Uid").groups.items():
        for statistic in ("mean", "std", "min", "max", "skew"):
            value = getattr(chars[rows].astype(float), statistic)()
            found = frame[f"author_title_chars_{statistic}"][rows].to_numpy()
            assert found == pytest.approx(np.full(len(rows), value), rel=1e-4, abs=1e-5, nan_ok=True), author
        for name, values in {"Concept": POSTS["Concept"], "hour": hour}.items():
            n = values[rows].astype(object).value_counts()
            assert (frame[f"author_n_{name}"][rows] == len(n)).all()
            assert frame[f"author_main_{name}"][rows].to_numpy() == pytest.approx(n.max() / len(rows))
