"""Statistic and external blocks: no label in, no Pid in, and every family against an obvious re-writing."""

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from kit.base.errors import InputError
from kit.features import statistic, words
from kit.features.behaviour import behaviour_block
from kit.features.external import external_block
from kit.features.families import Context
from kit.features.statistic import FAMILIES, statistic_block
from kit.release import external
from kit.run.block import Block
from kit.run.matrix import join_blocks
from tests.tiny import tiny_block, tiny_posts

POSTS = tiny_posts(150, 40)
CONTEXT = Context(POSTS, svd_dim=4, n_top_tags=10, seed=0)


def small_block(posts: pd.DataFrame, **options) -> Block:
    return statistic_block(posts, svd_dim=4, n_top_tags=10, **options)


def same(one: Block, two: Block) -> bool:
    return one.columns == two.columns and np.array_equal(one.values, two.values, equal_nan=True)


def test_labels_and_pids_change_nothing():
    rng = np.random.default_rng(0)
    other = POSTS.assign(label=rng.permutation(POSTS["label"]), Pid=rng.permutation(POSTS["Pid"]))
    assert same(small_block(POSTS), small_block(other))
    assert same(small_block(POSTS), small_block(POSTS.drop(columns=["label", "Pid"])))


def test_it_is_deterministic_float32_and_without_constant_columns():
    block = small_block(POSTS, seed=3)
    assert same(block, small_block(POSTS, seed=3))
    assert block.name == "statistic" and block.values.dtype == np.float32 and len(block.values) == len(POSTS)
    assert all(len(np.unique(column[~np.isnan(column)])) > 1 or np.isnan(column).any() for column in block.values.T)
    assert not {"ispro", "timezone_offset", "has_geo", "Mediatype_code"} & set(block.columns)
    assert not np.isinf(block.values).any()


def test_codes_are_integers_and_listed_as_categorical():
    zones = POSTS["timezone_id"].where(np.arange(len(POSTS)) > 3)
    block = small_block(POSTS.assign(timezone_id=zones))
    assert {"Category_code", "Concept_code", "timezone_id_code"} <= set(block.categorical)
    codes = block.values[:, [block.columns.index(c) for c in block.categorical]]
    assert (codes == codes.astype(int)).all() and codes.min() == -1


def test_a_number_in_place_of_a_description_is_a_column():
    given = np.random.default_rng(0).normal(12, 2, size=len(POSTS)).astype(np.float32)
    texts = pd.Series(map(str, given)).where(np.arange(len(POSTS)) % 5 > 0, "none of your business")
    block = small_block(POSTS.assign(user_description=texts.astype("category")), families=["profile"])
    found = block.values[:, block.columns.index("user_description_number")]
    assert np.isnan(found[::5]).all() and (np.delete(found, np.s_[::5]) == np.delete(given, np.s_[::5])).all()
    assert "user_description_number" not in small_block(POSTS, families=["profile"]).columns


def test_families_are_chosen_by_name():
    block = small_block(POSTS, families=["posting_time", "text_shape"])
    assert "hour" in block.columns and "Title_chars" in block.columns and not block.categorical
    with pytest.raises(InputError, match=r"\['weather'\].*posting_time"):
        small_block(POSTS, families=["weather"])
    with pytest.raises(InputError, match="nothing to learn from"):
        small_block(POSTS, families=["geo"])
    assert all(family.__doc__ for family in FAMILIES.values())


def test_pid_comes_only_on_request():
    assert "pid" not in small_block(POSTS).columns
    block = small_block(POSTS, use_pid=True)
    assert (block.values[:, block.columns.index("pid")] == POSTS["Pid"].astype(float)).all()


def test_a_column_that_means_something_else_in_test_is_dropped():
    is_test = (POSTS["split"] == "test").to_numpy()
    assert "log_photo_count" in small_block(POSTS).columns
    moved = small_block(POSTS.assign(photo_count=POSTS["photo_count"] + 100 * is_test))
    assert "log_photo_count" not in moved.columns
    assert "year" in moved.columns  # later posts have later times: that is no reason
    assert "lie outside" in moved.dropped["log_photo_count"] and moved.dropped["ispro"].startswith("one value")
    assert not set(moved.dropped) & set(moved.columns) and "log_photo_count" not in small_block(POSTS).dropped


def test_time_in_utc_and_local():
    frame = statistic.posting_time(CONTEXT)
    for i in (0, 77):
        when = POSTS["Postdate"][i].to_pydatetime()
        assert frame["hour"][i] == when.hour and frame["weekday"][i] == when.weekday()
        assert (
            frame["local_hour"][i] == (when.hour + 1) % 24 and frame["week_hour"][i] == when.weekday() * 24 + when.hour
        )
        assert frame["week"][i] == when.isocalendar()[1]
        assert frame["month_sin"][i] == pytest.approx(np.sin(2 * np.pi * when.month / 12))


def test_geo_counts_only_where_a_place_is_given():
    posts = POSTS.assign(Latitude=10.0, Longitude=20.0, Geoaccuracy=np.where(np.arange(len(POSTS)) < 5, 12.0, 0.0))
    frame = statistic.geo(Context(posts, 4, 10, 0))
    assert frame["has_geo"].sum() == 5 and frame["Latitude"].notna().sum() == 5


def test_text_shape_by_hand():
    posts = POSTS.copy()
    posts.loc[0, ["Title", "Alltags"]] = ["Big DOG 42!", "ab cdef"]
    row = statistic.text_shape(Context(posts, 4, 10, 0)).iloc[0]
    assert (row["Title_chars"], row["Title_words"], row["Alltags_word_chars"]) == (11, 3, 3)
    assert (row["Title_digits"], row["Title_capitals"], row["Title_marks"]) == (2 / 11, 4 / 11, 1 / 11)


def test_scripts_emoji_and_questions_by_hand():
    titles = ["Cat 猫だ?", "สวัสดี", "Привет é？", "", "🐈 ok"]
    frame = FAMILIES["text_shape"](Context(POSTS[:5].assign(Title=titles), 4, 10, 0))
    shares = {"latin": [3, 0, 1, 0, 2], "han": [1, 0, 0, 0, 0], "kana": [1, 0, 0, 0, 0], "thai": [0, 6, 0, 0, 0],
              "cyrillic": [0, 0, 6, 0, 0], "emoji": [0, 0, 0, 0, 1], "questions": [1, 0, 1, 0, 0]}  # fmt: skip
    for kind, found in shares.items():
        expected = [n / max(1, len(title)) for n, title in zip(found, titles, strict=True)]
        assert frame[f"Title_{kind}"].tolist() == pytest.approx(expected), kind


def test_titles_without_spaces_have_more_than_one_term():
    titles = pd.Series(["今天天气好", "今天天气坏", "明天天气好", "明天下雨"] * 3 + ["unique"])
    assert (
        words.title_terms(titles).shape[1] == 0 or words.title_terms(titles)[0].nnz <= 1
    )  # the whole title, if at all
    characters = words.title_terms(pd.Series([f"{t}{i}" for i, t in enumerate(titles)]), 3, "char")
    assert characters[0].nnz >= 5 and words.unspaced_share(titles) > 0.8
    for share, prefixes in {
        "今天": {"title_char_svd"},
        "sunny": {"title_svd"},
        "sun 今": {"title_svd", "title_char_svd"},
    }.items():
        posts = POSTS.assign(
            Title=[f"{share} {'好坏雨' if '今' in share else 'abc'}"[: 6 + i % 4] for i in range(len(POSTS))]
        )
        frame = FAMILIES["title_svd"](Context(posts, 4, 10, 0))
        assert {name.rsplit("_", 1)[0] for name in frame} == prefixes


def test_counts_by_hand():
    frame = statistic.counts(CONTEXT)
    uid = Counter(POSTS["Uid"])
    pair = Counter(zip(POSTS["Uid"], POSTS["Subcategory"], strict=True))
    for i in range(0, len(POSTS), 17):
        assert np.exp(frame["log_n_author"][i]) == pytest.approx(uid[POSTS["Uid"][i]])
        key = POSTS["Uid"][i], POSTS["Subcategory"][i]
        assert np.exp(frame["log_n_author_subcategory"][i]) == pytest.approx(pair[key])
        distinct = POSTS.loc[POSTS["Uid"] == POSTS["Uid"][i], "Concept"].nunique()
        assert frame["author_distinct_Concept"][i] == distinct


def test_long_tags_are_distinct_and_keep_their_order():
    long = words.long_tags(pd.Series(["b a b", "", "A", "a  c"]))
    assert long.to_dict("list") == {"row": [0, 0, 2, 3, 3], "tag": [1, 0, 0, 0, 2]}
    assert len(words.long_tags(pd.Series(["", ""]))) == 0


def test_top_tags_are_the_most_frequent_ones():
    frame = statistic.top_tags(CONTEXT)
    sets = POSTS["Alltags"].str.split().map(set)
    counts = sorted(Counter(tag for tags in sets for tag in tags).values(), reverse=True)[:10]
    assert frame.sum().astype(int).tolist() == counts


def test_svd_spans_the_tags():
    tags = words.tag_matrix(words.long_tags(POSTS["Alltags"]), len(POSTS))
    full = words.truncated_svd(tags, tags.shape[1] - 1, 0)
    left, values, _ = np.linalg.svd(tags.toarray(), full_matrices=False)
    assert np.linalg.norm(full[:, :5], axis=0) == pytest.approx(values[:5], rel=1e-3)
    assert words.truncated_svd(tags[:, :1], 3, 0).shape == (len(POSTS), 3)  # nothing to reduce: zeros


def test_pointwise_information_by_hand():
    rng = np.random.default_rng(0)
    has = sparse.csr_matrix((rng.random((60, 9)) < 0.3).astype(np.float32))
    count, dense = np.asarray(has.sum(axis=0)).ravel(), has.toarray()
    found = words.ppmi(has.T.tocsr() @ has, count, 60)
    with np.errstate(divide="ignore"):
        pmi = np.log((dense.T @ dense) * 60 / np.outer(count, count))
    np.fill_diagonal(pmi, 0)
    np.testing.assert_allclose(found.toarray(), np.maximum(pmi, 0), rtol=1e-5)
    assert found.has_sorted_indices and (found.data > 0).all() and found.dtype == np.float32


def test_neighbours_place_tags_that_go_together_side_by_side():
    texts = pd.Series(["a b x", "a b", "a x b", "c d y", "c d", "y c d"] * 5)
    vectors = words.tag_neighbours(words.tag_matrix(words.long_tags(texts), len(texts)), 2, 0)
    inside, across = vectors[0] @ vectors[1], vectors[0] @ vectors[3]
    assert inside > across + 1e-3


def test_description_vectors_of_old_releases_are_used():
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=9).astype(np.float32) if i % 3 else None for i in range(len(POSTS))]
    frame = statistic.description(Context(POSTS.assign(user_description_vector=vectors), 8, 10, 0))
    columns = [c for c in frame if c.startswith("user_description_svd")]
    assert len(columns) == 4 and (frame.loc[0, columns] == 0).all() and (frame.loc[1, columns] != 0).all()


def test_missing_texts_dates_and_profiles_do_no_harm():
    empty = POSTS.assign(
        Title="",
        Alltags="",
        photo_count=np.nan,
        timezone_offset=np.nan,
        user_description=pd.Categorical([""] * len(POSTS)),
    )
    empty.loc[3, "Postdate"] = pd.NaT
    block = small_block(empty)
    assert len(block.values) == len(POSTS) and np.isnan(block.values[3, block.columns.index("hour")])


def test_external_block_only_with_its_columns():
    assert external_block(POSTS) is None
    rng = np.random.default_rng(0)
    numbers = {c: rng.integers(1, 1000, size=len(POSTS)).astype(float) for c in external.EXTERNAL}
    posts = POSTS.assign(**numbers)
    posts.loc[5, list(external.EXTERNAL)] = 0.0
    posts.loc[6, list(external.EXTERNAL)] = np.nan
    block = external_block(posts)
    at = {name: block.values[:, i] for i, name in enumerate(block.columns)}
    assert np.isnan(at["log_totalViews"][[5, 6]]).all() and at["external_found"].sum() == len(POSTS) - 2
    assert "crawled" in block.external
    assert at["log_followerCount"][0] == pytest.approx(np.log1p(numbers["followerCount"][0]))
    ratio = numbers["totalFaves"][0] / (numbers["totalViews"][0] + 1)
    assert at["faves_per_view"][0] == pytest.approx(np.log1p(ratio), rel=1e-5)
    assert external_block(posts.assign(**dict.fromkeys(external.EXTERNAL, 0.0))) is None


def test_blocks_join_side_by_side():
    one, two = tiny_block(POSTS), Block("b", np.ones((len(POSTS), 1), dtype=np.float16), ["hour"])
    joined = join_blocks([one, two])
    assert joined.columns == [
        "known_tags",
        "tiny:hour",
        "category_code",
        "constant",
        "noise_0",
        "noise_1",
        "noise_2",
        "b:hour",
    ]
    assert joined.categorical == ["category_code"] and joined.values.dtype == np.float32
    with pytest.raises(InputError, match="differ in rows"):
        join_blocks([one, Block("c", np.ones((3, 1), dtype=np.float32), ["c"])])
    with pytest.raises(InputError, match="no block"):
        join_blocks([])


@pytest.mark.parametrize("make", [statistic_block, behaviour_block])
def test_further_posts_change_no_code_and_no_decomposition(make):
    """What a column means is settled by the posts that models were taught with; only counts see the others."""
    known, further = tiny_posts(), tiny_posts(n_train=0, n_test=50, seed=7)
    further["Pid"], further["Alltags"] = "new" + further["Pid"], further["Alltags"] + " unheard-of"
    further["Category"] = pd.Categorical(["unseen"] * 50)
    posts = pd.concat([known.astype({"Category": object}), further.astype({"Category": object})], ignore_index=True)
    alone, joint = make(known), make(posts, n_known=len(known))
    assert set(alone.columns) <= set(joint.columns)
    fixed = re.compile(r".*(_code|_svd_\d+|_neighbours_\d+|top_tag_\d+|_chars|hour)$")
    settled = [name for name in alone.columns if fixed.match(name) and not name.startswith("author")]
    assert len(settled) >= 5
    for name in settled:
        again = joint.values[: len(known), joint.columns.index(name)]
        np.testing.assert_allclose(again, alone.values[:, alone.columns.index(name)], atol=1e-4, err_msg=name)
    if make is statistic_block:
        assert (joint.values[len(known) :, joint.columns.index("Category_code")] == -1).all()
        assert np.isfinite(joint.values[len(known) :, joint.columns.index("tags_svd_0")]).all()


def test_drift_is_the_largest_gap_between_distributions():
    from kit.features.about import drift
    from kit.run.block import Block

    values = np.array([[0, 5, 1], [1, 5, np.nan], [2, 5, 3], [3, 5, 4], [2, 5, 1], [3, 5, 3]], np.float32)
    split = pd.Series(["train"] * 4 + ["test"] * 2)
    found = drift(Block("b", values, ["moves", "stays", "holes"]), split).set_index("column")
    assert found["distance"].tolist() == pytest.approx([0.5, 0.0, 1 / 3]) and found.loc["moves", "test"] == 2.5
    assert drift(Block("b", values, ["a", "b", "c"]), pd.Series(["train"] * 6)).empty
