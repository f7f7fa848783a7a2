"""The synthetic release: same bytes for a seed, SMPD's layout and distributions, and the recipe really in the data."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, UnidentifiedImageError

from kit.base.errors import InputError
from kit.base.paths import PROJECT_ROOT
from kit.demo import make
from kit.demo.__main__ import main as make_demo
from kit.demo.pictures import BROKEN_KINDS, draw_batch, motif_styles
from kit.demo.posts import DAY_S, FIRST_DAY, LABEL_COUNTS, N_DAYS, SHARES, UNSEEABLE, make_posts, quantile_label
from kit.release import marker
from kit.release.taxonomy import read_taxonomy

N_SMALL = 400
FIELDS = {
    "category": ["Pid", "Uid", "Category", "Subcategory", "Concept"],
    "text": ["Pid", "Uid", "Title", "Mediatype", "Alltags"],
    "temporalspatial_information": ["Pid", "Uid", "Postdate", "Latitude", "Longitude", "Geoaccuracy"],
    "additional_information": ["Pid", "Uid", "Pathalias", "Ispublic", "Mediastatus"],
}
USER_COLUMNS = [
    "Pid", "Uid", "photo_firstdate", "photo_count", "ispro", "canbuypro", "timezone_offset", "photo_firstdatetaken",
    "timezone_id", "user_description", "location_description",
]  # fmt: skip


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return make.make_release(tmp_path_factory.mktemp("one") / "demo", N_SMALL, seed=3)


@pytest.fixture(scope="module")
def big() -> tuple[pd.DataFrame, pd.DataFrame]:
    return make_posts(30_000, seed=1, test_share=0.37)


def tree_hashes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_rows(root: Path, split: str, name: str) -> pd.DataFrame:
    return pd.DataFrame(json.loads((root / f"{split}_allmetadata_json" / f"{split}_{name}.json").read_bytes()))


def read_user_data(root: Path, split: str) -> dict:
    return json.loads((root / f"{split}_allmetadata_json" / f"{split}_user_data.json").read_bytes())


def read_lines(root: Path, split: str, name: str) -> list[str]:
    return (root / f"{split}_allmetadata_json" / f"{split}_{name}.txt").read_text().splitlines()


# ---------------------------------------------------------------------------------------------------------------- bytes


def test_same_seed_gives_same_bytes_elsewhere_and_under_another_hash_seed(release, tmp_path):
    out = tmp_path / "deep" / "er" / "other"
    command = [sys.executable, "-m", "kit.demo", "--posts", str(N_SMALL), "--seed", "3", "--out", str(out)]
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert tree_hashes(release) == tree_hashes(out)


def test_another_seed_gives_other_posts_and_pictures(release, tmp_path):
    one, two = tree_hashes(release), tree_hashes(make.make_release(tmp_path / "demo", N_SMALL, seed=4))
    same = {name for name in one.keys() & two.keys() if one[name] == two[name]}
    assert not {name for name in same if not name.startswith(("train/", "test/"))}
    pictures = [{digest for name, digest in tree.items() if name.endswith(".jpg")} for tree in (one, two)]
    assert len(pictures[0] & pictures[1]) <= 1  # the empty file


# --------------------------------------------------------------------------------------------------------------- layout


def test_release_has_the_official_files_and_no_others(release):
    names = {name for name in tree_hashes(release) if not name.endswith(".jpg")}
    both = [*(f"{name}.json" for name in [*FIELDS, "user_data"]), "img_filepath.txt"]
    expected = {f"{split}_allmetadata_json/{split}_{name}" for split in ("train", "test") for name in both}
    assert names == expected | {"train_allmetadata_json/train_label.txt", "answers/truth.csv", "DEMO.json"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_files_of_a_split_are_row_aligned(release, split):
    frames = [read_rows(release, split, name) for name in FIELDS]
    for frame, columns in zip(frames, FIELDS.values(), strict=True):
        assert list(frame.columns) == columns
        assert frame[["Pid", "Uid"]].equals(frames[0][["Pid", "Uid"]])
        assert frame["Pid"].map(type).eq(str).all() and frame["Pid"].is_unique
    users = read_user_data(release, split)
    assert list(users) == USER_COLUMNS
    positions = [str(i) for i in range(len(frames[0]))]
    assert all(list(column) == positions for column in users.values())
    assert (
        list(users["Pid"].values()) == frames[0]["Pid"].tolist()
        and list(users["Uid"].values()) == frames[0]["Uid"].tolist()
    )
    expected = [f"{split}/{uid}/{pid}.jpg" for uid, pid in zip(frames[0]["Uid"], frames[0]["Pid"], strict=True)]
    assert read_lines(release, split, "img_filepath") == expected
    assert frames[0]["Uid"].str.fullmatch(r"\d+@N\d\d").all()


def test_order_of_posts_and_answers(release):
    train, test = (read_rows(release, split, "category")["Pid"] for split in ("train", "test"))
    assert len(train) + len(test) == N_SMALL and len(test) == round(N_SMALL * make.TEST_SHARE)
    assert train.astype(int).is_monotonic_increasing and not test.astype(int).is_monotonic_increasing
    assert not set(train) & set(test)
    truth = make.read_truth(release)
    assert truth["Pid"].tolist() == [*train, *test]
    assert truth["split"].tolist() == ["train"] * len(train) + ["test"] * len(test)
    labels = read_lines(release, "train", "label")
    assert [f"{label:.2f}" for label in truth["label"][: len(train)]] == labels


def test_nothing_in_the_test_files_tells_the_label(release):
    truth = make.read_truth(release)
    folder = release / "test_allmetadata_json"
    assert not [path for path in folder.iterdir() if "label" in path.name]
    keys = set()
    for name in FIELDS:
        keys |= set(read_rows(release, "test", name).columns)
    keys |= set(read_user_data(release, "test"))
    assert not {key for key in keys if any(word in key.lower() for word in ("label", "score", "view", "fav"))}
    text = "".join(path.read_text() for path in folder.iterdir())
    scores = truth.loc[truth["split"] == "test", "score"].map("{:.4f}".format)
    assert not [score for score in scores if f'"{score}"' in text or f":{score}" in text]


def test_missing_values_are_spelled_as_in_smpd(release):
    place = read_rows(release, "train", "temporalspatial_information")
    no_place = place["Longitude"] == ""
    assert 0 < no_place.mean() < 1
    assert place.loc[no_place, ["Latitude", "Geoaccuracy"]].eq("0").all(axis=None)
    assert place.loc[~no_place, "Latitude"].astype(float).abs().between(1, 90).all()
    text = read_rows(release, "train", "text")
    assert text["Title"].isna().any() and text["Title"].eq("").any() and text["Alltags"].eq("").any()
    assert set(text["Mediatype"]) == {"photo", "video"}
    users = {name: list(column.values()) for name, column in read_user_data(release, "train").items()}
    assert "None" in users["photo_firstdate"] and None in users["photo_count"] and None in users["location_description"]
    assert {type(value) for value in users["ispro"]} == {int, type(None)}
    assert any(value and "<a href" in value for value in users["user_description"])
    alias = read_rows(release, "train", "additional_information").groupby("Uid")["Pathalias"].agg(set)
    assert alias.map(lambda names: names == {"None"}).any()
    assert alias.map(lambda names: len(names - {"None"}) <= 1).all()


# ----------------------------------------------------------------------------------------------------- taxonomy, labels


def test_taxonomy_adds_up_to_the_published_counts():
    taxonomy = read_taxonomy()
    assert len(taxonomy) == 668 and taxonomy["train_count"].sum() == 305_613
    assert taxonomy["category"].nunique() == 11
    count = taxonomy.groupby(["category", "subcategory"])["train_count"].sum()
    assert len(count) == 77
    published = {("Food", "Coffee"): 1510, ("Travel&Active&Sports", "Super"): 15, ("Social&People", "Good"): 5654,
                 ("Holiday&Celebrations", "Halloween"): 16390, ("Fashion", "High,Heels"): 146}  # fmt: skip
    assert {key: count[key] for key in published} == published
    assert taxonomy.drop_duplicates("category")["category_test_count"].sum() == 180_581
    assert not taxonomy.duplicated(["category", "concept"]).any()


def test_release_uses_the_taxonomy_in_its_proportions(release, big):
    rows = pd.concat([read_rows(release, split, "category") for split in ("train", "test")])
    taxonomy = read_taxonomy()
    known = set(taxonomy[["category", "subcategory", "concept"]].itertuples(index=False, name=None))
    assert set(rows[["Category", "Subcategory", "Concept"]].itertuples(index=False, name=None)) <= known
    posts, _ = big
    share = posts.groupby("is_test")["category"].value_counts(normalize=True).unstack()
    first = taxonomy.drop_duplicates("category")
    train = taxonomy.groupby("category", sort=False)["train_count"].sum().to_numpy() / 305_613
    np.testing.assert_allclose(share.loc[False], train, atol=0.003)
    np.testing.assert_allclose(share.loc[True], first["category_test_count"] / 180_581, atol=0.003)
    assert posts.groupby("is_test")["subcategory"].nunique().tolist() == [77, 77]


def test_default_size_has_every_subcategory_in_both_splits():
    posts, _ = make_posts(5500, seed=0, test_share=make.TEST_SHARE)
    counts = posts.groupby("is_test")["subcategory"].value_counts().unstack()
    assert counts.shape == (2, 77) and (counts.min(axis=1) >= [3, 1]).all()


def test_quantile_label_gives_back_the_published_histogram_on_the_lattice():
    n = sum(LABEL_COUNTS)
    labels = quantile_label((np.arange(n) + 0.5) / n)
    assert (np.diff(labels) >= 0).all() and (labels[0], labels[-1]) == (1.0, 16.56)
    histogram = np.histogram(labels, np.arange(1, 17.5, 0.5) - 1e-9)[0]
    np.testing.assert_array_equal(histogram, LABEL_COUNTS)
    lattice = np.round(np.log2(np.arange(2, 100_001)), 2)
    assert np.isin(labels, lattice).all()


def test_train_labels_have_the_real_quantiles(big):
    labels = big[0].loc[~big[0]["is_test"], "label"]
    real = {0.01: 1.00, 0.05: 2.58, 0.25: 4.70, 0.5: 6.23, 0.75: 7.98, 0.95: 10.73, 0.99: 12.79}
    np.testing.assert_allclose(labels.quantile(list(real)), list(real.values()), atol=0.05)
    assert abs(labels.mean() - 6.4055) < 0.02 and abs(labels.std() - 2.4730) < 0.02


# ------------------------------------------------------------------------------------------------------- users and time


@pytest.mark.parametrize("n_posts", [50, 300, 5500, 30_000])
def test_split_is_chronological_and_mostly_of_new_users(n_posts):
    posts, users = make_posts(n_posts, seed=2, test_share=0.37)
    train, test = posts[~posts["is_test"]], posts[posts["is_test"]]
    assert FIRST_DAY <= train["time"].min() and train["time"].max() < test["time"].min()
    assert test["time"].max() < FIRST_DAY + N_DAYS * DAY_S
    seen = test["user"].isin(train["user"]).mean()
    assert 0 < seen <= 0.2
    assert posts["user"].nunique() == len(users)


def test_users_are_heavy_tailed_and_post_in_bursts(big):
    posts, users = big
    n_own = posts["user"].value_counts()
    assert 5 < n_own.mean() < 9 and n_own.median() < n_own.mean() - 1 and n_own.iloc[0] > 10 * n_own.mean()
    gaps = posts.sort_values(["user", "time"]).groupby("user")["time"].diff().dropna()
    assert (gaps < 600).mean() > 0.5 and (gaps > DAY_S).mean() > 0.1
    hours = posts["time"] % DAY_S // 3600
    assert (hours == 20).sum() > 4 * (hours == 4).sum()
    weekend = (posts["time"] // DAY_S + 3) % 7 >= 5
    assert weekend.mean() > 2 / 7 + 0.05
    pids = posts.loc[~posts["is_test"], "Pid"]
    assert 0.7 < (pids.diff() == 1).mean() < 0.85


# ----------------------------------------------------------------------------------------------------------- the recipe


def test_parts_have_their_shares_and_make_the_label(big):
    posts, _ = big
    assert sum(SHARES.values()) == pytest.approx(1)
    parts = posts[[f"part_{name}" for name in SHARES]].to_numpy()
    np.testing.assert_allclose(parts.std(axis=0), 1, atol=1e-6)
    latent = parts @ np.sqrt(list(SHARES.values()))
    assert pd.Series(latent).corr(posts["label"], method="spearman") > 0.999
    assert latent.var() == pytest.approx(1, abs=0.1)


def test_score_is_the_expected_label_and_the_ceiling_is_where_the_docstring_says(big):
    posts, _ = big
    test = posts[posts["is_test"]]
    assert test["score"].corr(test["label"], method="spearman") == pytest.approx(0.84, abs=0.02)
    decile = pd.qcut(posts["score"], 10, labels=False)
    means = posts.groupby(decile)[["score", "label"]].mean()
    np.testing.assert_allclose(means["score"], means["label"], atol=0.12)
    assert abs(posts["score"].corr(posts["part_noise"])) < 0.02
    assert abs(posts["score"].corr(posts["part_author_hidden"])) < 0.1
    no_pixels = [name for name in SHARES if name not in UNSEEABLE and not name.startswith(("image", "motif", "colour"))]
    known = sum(np.sqrt(SHARES[name]) * test[f"part_{name}"] for name in no_pixels)
    assert 0.66 < known.corr(test["label"], method="spearman") < 0.76


def test_text_carries_what_the_recipe_says(big):
    posts, _ = big
    words = posts["Title"].str.split().str.len()
    assert 0.05 < (words == 0).mean() < 0.12 and 0.18 < (words == 1).mean() < 0.3 and words.max() > 12
    n_tags = posts["Alltags"].str.split().str.len()
    assert n_tags.median() == pytest.approx(8, abs=1.5) and n_tags.max() > 30
    assert n_tags.corr(posts["part_tag_count"], method="spearman") > 0.999
    assert words.clip(upper=6).corr(posts["part_title_length"]) > 0.999
    assert posts["Alltags"].map(lambda tags: len(set(tags.split())) == len(tags.split())).all()
    taxonomy = read_taxonomy()
    concept, prompt = (taxonomy[name].to_numpy()[posts["concept"]] for name in ("concept", "prompt_name"))
    title = posts["Title"].str.lower()
    named = [c in t or p in t for c, p, t in zip(concept, prompt, title, strict=True)]
    assert 0.5 < np.mean(named) < 0.8
    albums = posts.groupby("album")["Title"].agg(["nunique", "size"])
    assert 0.4 < (albums.loc[albums["size"] > 1, "nunique"] == 1).mean() < 0.7


def test_agreement_of_picture_and_text_raises_the_label(big):
    posts, _ = big
    agrees = posts["motif"] == posts["subcategory"]
    assert agrees.mean() == pytest.approx(0.75, abs=0.02)
    assert posts.loc[agrees, "label"].mean() > posts.loc[~agrees, "label"].mean() + 1
    for name, sign in {"contrast": 1, "clutter": -1, "sharpness": 1, "subject_size": 1}.items():
        assert sign * posts[name].corr(posts["label"]) > 0.1


# ------------------------------------------------------------------------------------------------------------- pictures


def pictures_with(quality: str, n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Values of one quality, spread over [0, 1], and pictures of one motif that share all else."""
    posts = pd.DataFrame({name: np.full(n, 0.5) for name in ("contrast", "clutter", "sharpness", "subject_size")})
    posts["ground"] = np.arange(n) % 10
    posts[quality] = np.linspace(0, 1, n)
    return posts[quality].to_numpy(), draw_batch(motif_styles(read_taxonomy()).iloc[6], posts, np.random.default_rng(0))


def rank_corr(a, b) -> float:
    return pd.Series(np.asarray(a)).corr(pd.Series(np.asarray(b)), method="spearman")


def test_contrast_is_in_the_pixels():
    value, pixels = pictures_with("contrast")
    assert rank_corr(value, pixels.std(axis=(1, 2)).mean(axis=1)) > 0.8


def test_clutter_is_in_the_pixels():
    value, pixels = pictures_with("clutter")
    steps = np.abs(np.diff(pixels.astype(float), axis=2)).max(axis=3) > 25
    assert rank_corr(value, steps.sum(axis=(1, 2))) > 0.7


def test_qualities_of_written_files_are_measurable(tmp_path):
    root = make.make_release(tmp_path / "demo", 600, seed=5)
    posts, _ = make_posts(600, seed=5, test_share=make.TEST_SHARE)
    paths = [root / line for split in ("train", "test") for line in read_lines(root, split, "img_filepath")]
    grey = {}
    for row, path in enumerate(paths):
        try:
            grey[row] = np.asarray(Image.open(path).convert("L").resize((96, 96)), float)
        except (OSError, UnidentifiedImageError):
            continue
    assert len(grey) > 590
    rows, grey = list(grey), np.stack(list(grey.values()))
    spread = grey.std(axis=(1, 2))
    assert rank_corr(posts["contrast"].iloc[rows], spread) > 0.5
    roughness = np.abs(np.diff(grey, 2, axis=2)).mean(axis=(1, 2)) / (spread + 1)
    assert rank_corr(posts["sharpness"].iloc[rows], roughness) > 0.3


def test_every_motif_looks_different():
    styles = motif_styles(read_taxonomy())
    assert len(styles) == 77
    assert not styles.duplicated(["shape", "texture", "layout"]).any()


def test_some_pictures_are_broken_in_known_ways(release):
    found = dict.fromkeys([*BROKEN_KINDS, "L", "CMYK", "RGB"], 0)
    for split in ("train", "test"):
        for line in read_lines(release, split, "img_filepath"):
            path = release / line
            if not path.exists() or path.stat().st_size == 0:
                found["empty" if path.exists() else "missing"] += 1
                continue
            with Image.open(path) as image:
                try:
                    image.load()
                    found["palette_png" if image.format == "PNG" else image.mode] += 1
                except OSError:
                    found["truncated"] += 1
                assert max(image.size) == 96
    assert all(found[kind] == 1 for kind in BROKEN_KINDS)
    assert found["L"] > 0 and found["CMYK"] > 0 and found["RGB"] > 0.95 * N_SMALL


def test_without_images_the_rest_is_the_same(release, tmp_path):
    out = make.make_release(tmp_path / "demo", N_SMALL, seed=3, images=False)
    with_images = {k: v for k, v in tree_hashes(release).items() if not k.endswith(".jpg") and k != "DEMO.json"}
    assert {k: v for k, v in tree_hashes(out).items() if k != "DEMO.json"} == with_images


# ------------------------------------------------------------------------------------------------- arguments and folder


@pytest.mark.parametrize("n_posts,share", [(50, 0.05), (50, 0.8), (51, 0.37), (900, 0.8)])
def test_small_releases_and_odd_shares(tmp_path, n_posts, share):
    out = make.make_release(tmp_path / "demo", n_posts, images=False, test_share=share)
    assert make.read_truth(out)["split"].eq("test").sum() == round(n_posts * share)


@pytest.mark.parametrize("arguments,words", [
    (["--posts", "49"], "--posts is 49"), (["--posts", "many"], "--posts"), (["--seed", "-1"], "--seed is -1"),
    (["--test-share", "1"], "--test-share is 1.0"), (["--nonsense"], "--nonsense"),
])  # fmt: skip
def test_bad_arguments_end_with_one_line_and_code_2(arguments, words, tmp_path, capsys):
    assert make_demo(["--out", str(tmp_path / "demo"), *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_never_touched(tmp_path):
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("keep")
    for out in (foreign, foreign / "mine.txt"):
        with pytest.raises(InputError, match="photos"):
            make.make_release(out, 60, images=False)
    in_the_way = tmp_path / ".demo.partial"
    foreign.rename(in_the_way)
    with pytest.raises(InputError, match="in the way"):
        make.make_release(tmp_path / "demo", 60, images=False)
    assert (in_the_way / "mine.txt").read_text() == "keep"


def test_an_older_demo_is_replaced_and_an_empty_folder_used(tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    make.make_release(out, 60, seed=1, images=False)
    (out / "stray").write_text("")
    make.make_release(out, 70, seed=2, images=False)
    assert len(make.read_truth(out)) == 70 and not (out / "stray").exists()
    assert json.loads((out / "DEMO.json").read_text()) == {
        "kind": "synthetic SMPD release", "version": make.FORMAT_VERSION, "n_posts": 70, "seed": 2, "images": False,
        "test_share": make.TEST_SHARE, "generator_sha256": make.generator_hash(),
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_killed_generation_leaves_the_old_release_whole(tmp_path):
    out = make.make_release(tmp_path / "demo", 60, images=False)
    before = tree_hashes(out)
    die = "import os; from kit.demo import make; make._write_answers = lambda *_: os._exit(9); "
    command = [sys.executable, "-c", die + f"make.make_release({str(out)!r}, 80, images=False)"]
    assert subprocess.run(command, cwd=PROJECT_ROOT).returncode == 9
    assert tree_hashes(out) == before and (tmp_path / ".demo.partial").exists()
    make.make_release(out, 80, images=False)
    assert len(make.read_truth(out)) == 80 and [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_is_demo_and_read_truth_know_other_folders(release, tmp_path):
    assert marker.is_demo(release)
    assert (
        not marker.is_demo(tmp_path) and not marker.is_demo(tmp_path / "absent") and make.read_truth(tmp_path) is None
    )
    (tmp_path / "DEMO.json").write_text("[]")
    assert not marker.is_demo(tmp_path)
