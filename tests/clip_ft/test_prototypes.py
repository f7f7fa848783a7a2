"""kit.clip_ft.prototypes: texts, names, the three-stage sampler and the mean directions."""

import numpy as np
import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.clip_ft.prototypes import (
    Prototypes,
    build_prototypes,
    class_codes,
    load_prototypes,
    sample_shots,
    shot_coverage,
    similar_classes,
)
from kit.release import taxonomy
from kit.release.taxonomy import prompt_names
from kit.release.texts import post_texts


def make_posts(n=1200, n_classes=3, n_users=40, n_months=6, n_test=50, seed=0):
    """Posts with a few users who post most, several concepts per class, and some months busier than others."""
    rng = np.random.default_rng(seed)
    total = n + n_test
    subcategory = rng.integers(n_classes, size=total)
    month = rng.choice(n_months, total, p=np.arange(1, n_months + 1) / np.arange(1, n_months + 1).sum())
    user = np.minimum(rng.zipf(1.5, total), n_users)
    dates = pd.Timestamp("2015-01-01", tz="UTC") + pd.to_timedelta(month * 31 + rng.integers(20, size=total), unit="D")
    return pd.DataFrame({
        "Uid": [f"u{i}" for i in user], "Pid": [str(1000 + i) for i in range(total)],
        "Subcategory": pd.Categorical([f"Class{i}" for i in subcategory]),
        "Concept": pd.Categorical([f"k{s}-{c}" for s, c in zip(subcategory, rng.integers(5, size=total), strict=True)]),
        "Postdate": pd.DatetimeIndex(dates).as_unit("s"), "Title": "a title", "Alltags": "one two",
        "split": pd.Categorical(["train"] * n + ["test"] * n_test),
    })  # fmt: skip


@pytest.fixture(scope="module")
def posts():
    return make_posts()


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 17, 64, 256, 5000])
def test_each_class_gives_min_of_shots_and_its_size(posts, shots):
    drawn = sample_shots(posts, shots)
    sizes = posts[posts["split"] == "train"].groupby("Subcategory", observed=True).size()
    assert (drawn.groupby("Subcategory").size() == np.minimum(shots, sizes)).all()
    assert drawn["row"].is_unique
    source = posts.iloc[drawn["row"]].reset_index(drop=True)
    for column in ("Pid", "Uid", "Subcategory"):
        assert (source[column].astype(str) == drawn[column]).all()
    assert (source["Concept"].astype(str) == drawn["concept"]).all()
    assert (source["Postdate"].dt.strftime("%Y-%m") == drawn["month"]).all()
    assert (source["split"] == "train").all()


def test_months_get_their_share(posts):
    drawn = sample_shots(posts, 60)
    train = posts[posts["split"] == "train"]
    for name, group in train.groupby("Subcategory", observed=True):
        share = group["Postdate"].dt.strftime("%Y-%m").value_counts(normalize=True) * 60
        got = drawn[drawn["Subcategory"] == name]["month"].value_counts().reindex(share.index, fill_value=0)
        assert ((got - share).abs() < 1).all()


def test_concepts_take_turns_within_a_month():
    posts = make_posts(n_users=10_000)
    posts["Uid"] = [f"u{i}" for i in range(len(posts))]  # one post per user: only concepts decide
    drawn = sample_shots(posts, 60)
    left = posts[(posts["split"] == "train") & ~posts.index.isin(drawn["row"])]
    left = left.assign(month=left["Postdate"].dt.strftime("%Y-%m"), concept=left["Concept"].astype(str))
    for (name, month), group in drawn.groupby(["Subcategory", "month"]):
        still = left[(left["Subcategory"] == name) & (left["month"] == month)]["concept"]
        counts = group["concept"].value_counts()
        for concept in still.unique():  # a concept with posts left is at most one turn behind the fullest
            assert counts.get(concept, 0) >= counts.max() - 1


def test_no_user_passes_the_cap_while_others_are_left(posts):
    cap = 2
    drawn = sample_shots(posts, 60, user_cap=cap)
    per_user = drawn.groupby(["Subcategory", "Uid"]).size()
    assert per_user.max() > cap, "the data must force the cap to be passed somewhere, or this test shows nothing"
    left = posts[(posts["split"] == "train") & ~posts.index.isin(drawn["row"])]
    months_left = left["Postdate"].dt.strftime("%Y-%m")
    for (name, month), group in drawn.groupby(["Subcategory", "month"]):
        seen = drawn[(drawn["Subcategory"] == name) & (drawn["month"] <= month)].groupby("Uid").size()
        if (seen.reindex(group["Uid"].unique()) > cap).any():
            others = left[(left["Subcategory"] == name) & (months_left == month)]["Uid"].unique()
            assert (seen.reindex(others, fill_value=0) >= cap).all()


def test_users_of_one_concept_take_turns():
    posts = make_posts(n_classes=1, n_months=1)
    posts["Concept"] = pd.Categorical(["k"] * len(posts))
    drawn = sample_shots(posts, 100, user_cap=1000)
    counts = drawn["Uid"].value_counts()
    left = posts[(posts["split"] == "train") & ~posts.index.isin(drawn["row"])]["Uid"].unique()
    assert all(counts.get(user, 0) >= counts.max() - 1 for user in left)


def test_same_seed_same_shots_other_seed_others(posts):
    first, again, other = sample_shots(posts, 40, 1), sample_shots(posts, 40, 1), sample_shots(posts, 40, 2)
    pd.testing.assert_frame_equal(first, again)
    assert set(first["row"]) != set(other["row"])


def test_only_given_rows_are_drawn_and_test_rows_refused(posts):
    rows = np.arange(0, 1200, 3)
    assert set(sample_shots(posts, 30, rows=rows)["row"]) <= set(rows)
    with pytest.raises(InputError, match="training posts only"):
        sample_shots(posts, 30, rows=np.array([1210]))


def test_posts_without_date_or_class_are_handled():
    posts = make_posts(300)
    posts.loc[:20, "Postdate"] = pd.NaT
    posts["Subcategory"] = posts["Subcategory"].cat.add_categories([""])
    posts.loc[30:40, "Subcategory"] = ""
    drawn = sample_shots(posts, 1000)
    assert "unknown" in set(drawn["month"]) and "" not in set(drawn["Subcategory"])
    posts["Subcategory"] = pd.Categorical([""] * len(posts))
    with pytest.raises(InputError, match="no training post has a subcategory"):
        sample_shots(posts)


def test_coverage_beats_random_and_is_bounded(posts):
    drawn = sample_shots(posts, 24, user_cap=2)
    table = shot_coverage(posts, drawn)
    assert list(table.index) == ["Class0", "Class1", "Class2"] and (table["shots"] == 24).all()
    for what in ("months", "concepts", "users"):
        assert (table[f"{what}_shots"] <= table[what]).all() and (table[f"{what}_random"] <= table[what]).all()
    assert (table["users_shots"] > table["users_random"]).all()
    assert (table["top_user"] < table["top_user_random"]).all()
    one = drawn[drawn["Subcategory"] == "Class1"]
    assert table.loc["Class1", "users_shots"] == one["Uid"].nunique()
    assert table.loc["Class1", "top_user"] == pytest.approx(one["Uid"].value_counts(normalize=True).max())


# --- prototypes -------------------------------------------------------------------------------------------------------


def test_prototypes_equal_the_obvious_mean(posts):
    embeddings = np.random.default_rng(0).standard_normal((len(posts), 8)).astype(np.float16) * 3
    shots = sample_shots(posts, 20)
    found = build_prototypes(embeddings, shots)
    for k, name in enumerate(["Class0", "Class1", "Class2"]):
        rows = [embeddings[row].astype(np.float64) for row in shots[shots["Subcategory"] == name]["row"]]
        mean = sum(row / np.sqrt((row**2).sum()) for row in rows) / len(rows)
        np.testing.assert_allclose(found[k], mean / np.sqrt((mean**2).sum()), atol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_prototypes_leave_unusable_images_out(posts):
    rng = np.random.default_rng(0)
    embeddings, shots = rng.standard_normal((len(posts), 8)), sample_shots(posts, 20)
    usable = rng.random(len(posts)) < 0.5
    usable[shots[shots["Subcategory"] == "Class2"]["row"]] = False
    found = build_prototypes(embeddings, shots, usable)
    kept = shots[usable[shots["row"]]]
    np.testing.assert_allclose(found[:2], build_prototypes(embeddings, kept), atol=1e-6)
    everything = build_prototypes(embeddings, kept.assign(Subcategory="all"))
    np.testing.assert_allclose(found[2], everything[0], atol=1e-6)
    with pytest.raises(InputError, match="no usable post"):
        build_prototypes(embeddings, shots, np.zeros(len(posts), bool))


def test_save_and_load_give_the_same(posts, tmp_path):
    shots = sample_shots(posts, 5)
    shots["concept"] = "NA"  # a word pandas would read as missing
    visual = build_prototypes(np.random.default_rng(0).standard_normal((len(posts), 4)), shots)
    saved = Prototypes(["Class0", "Class1", "Class2"], ["class0", "class1", "class2"], visual, visual[::-1], shots)
    assert all(path.is_file() for path in saved.save(tmp_path))
    loaded = load_prototypes(tmp_path)
    assert (loaded.classes, loaded.names) == (saved.classes, saved.names)
    np.testing.assert_array_equal(loaded.visual, saved.visual)
    np.testing.assert_array_equal(loaded.textual, saved.textual)
    pd.testing.assert_frame_equal(loaded.shots, saved.shots)
    np.save(tmp_path / "visual.npy", visual[:2])
    with pytest.raises(InputError, match="3 classes, but 2 visual"):
        load_prototypes(tmp_path)
    (tmp_path / "shots.csv").unlink()
    with pytest.raises(InputError, match="02_prototypes"):
        load_prototypes(tmp_path)


def test_class_codes(posts):
    assert list(class_codes(posts.iloc[:50], ["Class2", "Class0"])) == [
        {"Class2": 0, "Class0": 1}.get(name, -1) for name in posts["Subcategory"].iloc[:50]
    ]


# --- texts and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "tags", "both", "title_first", "tags_first"),
    [
        ("Sunset.", "sea sky", "Sunset. sea sky", "Sunset.", "sea sky"),
        ("Sunset", "", "Sunset", "Sunset", "Sunset"),
        ("??? 12", "sea sky", "sea sky", "sea sky", "sea sky"),
        ("??? 12", "", "??? 12", "??? 12", "??? 12"),
        ("", "", "", "", ""),
        ("<a href='x'>Cats &amp;  dogs</a>", " pet ", "Cats & dogs. pet", "Cats & dogs", "pet"),
        ("été", "mer", "été. mer", "été", "mer"),
    ],
)
def test_post_texts(title, tags, both, title_first, tags_first):
    posts = pd.DataFrame({"Title": [title], "Alltags": [tags]}, index=[7])
    assert list(post_texts(posts)) == [both]
    assert list(post_texts(posts, "title")) == [title_first]
    assert list(post_texts(posts, "tags")) == [tags_first]
    with pytest.raises(InputError, match="title_tags, title, tags"):
        post_texts(posts, "titles")


def test_prompt_names_know_smpd_and_clean_the_rest():
    assert prompt_names(["New", "High,Heels", "high,heels"]) == ["new year", "high heels", "high heels"]
    assert prompt_names(["San", "General"]) == ["san francisco 49ers", "food"]
    assert prompt_names(["Sci_Fi&Fantasy", "  Film,Noir "]) == ["sci fi fantasy", "film noir"]


def test_taxonomy_has_a_name_for_each_subcategory():
    names = taxonomy.taxonomy_names()
    assert len(names) == 77 and all(key and value == value.strip().lower() for key, value in names.items())


def test_similar_classes_are_others_and_the_nearest():
    unit = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    table = similar_classes(Prototypes(["a", "b", "c"], ["a", "b", "c"], unit, unit[::-1].copy(), pd.DataFrame()))
    assert dict(zip(table["subcategory"], table["looks_like"], strict=True)) == {"a": "b", "b": "a", "c": "b"}
    assert table["image_cosine"].tolist() == pytest.approx([0.8, 0.8, 0.6])
    assert table.set_index("subcategory").loc["a", ["reads_like", "text_cosine"]].tolist() == ["b", pytest.approx(0.6)]
