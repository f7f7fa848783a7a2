"""Counts of what is missing or odd, against a release where it is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from kit.features.about import label_correlation
from kit.release.quality import quality_table, release_facts, word_counts
from kit.release.smpd import read_release
from kit.run.block import Block


def test_quality_counts(release):
    text = release.parts["train"]["text"]
    for row in text + release.parts["test"]["text"]:
        row.update(Title="one two", Alltags="a b")
    text[0].update(Title="", Alltags="")
    text[1].update(Title="word")
    text[2].update(Title="same day")
    text[3].update(Title="same day")
    for row in text[4:]:
        row["Title"] = "post " + row["Pid"]
    root = release.write()
    posts = read_release(root)
    for row, content in ((0, b""), (1, b"image")):
        path = root / "train" / posts["Uid"][row] / f"{posts['Pid'][row]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    table = quality_table(posts).set_index("what")
    assert table.loc["title empty", ["train", "test"]].tolist() == [1, 0]
    assert table.loc["title of one word", "train"] == 1
    assert table.loc["neither title nor tags", "train (%)"] == 2.5
    assert table.loc["same title as another post of the user (album)", ["train", "test"]].tolist() == [2, 12]
    assert table.loc["user not in the train part", ["train", "test"]].tolist() == [0, 12]
    assert table.loc["image file empty", ["train", "test"]].tolist() == [1, 0]
    assert table.loc["image file missing", ["train", "test"]].tolist() == [38, 12]


def test_what_the_reader_replaced_is_counted_by_kind(release):
    release.parts["train"]["text"][3]["Title"] = "a\x00"
    release.parts["train"]["user"][3]["photo_count"] = "many"
    release.parts["test"]["user"][4]["photo_count"] = -1
    release.parts["test"]["additional"][4]["Ispublic"] = 1e10
    posts = read_release(release.write())
    table = quality_table(posts).set_index("what")
    lost = "photo_count is no number from 0 to 1,000,000,000 (taken as missing)"
    assert table.loc[lost, ["train", "train (%)", "test"]].tolist() == [1, 2.5, 1]
    assert table.loc["Title has control characters (taken out)", ["train", "test"]].tolist() == [1, 0]
    kinds = [what for what in table.index if "(taken" in what]
    assert len(kinds) == 3
    assert posts["faults"][3] == f"Title has control characters (taken out); {lost}"
    assert not {kind for kind in quality_table(posts.drop(columns="faults"))["what"] if "(taken" in kind}


def test_image_states_are_told_apart(release):
    release.images = True
    root = release.write()
    posts = read_release(root)
    paths = [Path(path) for path in posts["image_path"]]
    paths[0].write_bytes(b"<html>")
    paths[1].unlink()
    paths[2].unlink()
    paths[2].mkdir()
    posts.loc[45, "image_path"] = ""
    table = quality_table(posts).set_index("what")
    counts = table.loc[table.index.str.contains("image"), ["train", "test"]]
    assert counts.apply(tuple, axis=1).to_dict() == {
        "no image path in the list": (0, 1), "image file missing": (1, 0), "image file empty": (0, 0),
        "image file is a folder or no plain file": (1, 0),
        "image file is no picture (a web page, or another format)": (1, 0),
    }  # fmt: skip


def test_facts(release, tmp_path):
    posts = read_release(release.write())
    facts = release_facts(posts, release.root)
    assert (facts["n_train"], facts["n_test"], facts["synthetic"], facts["external"]) == (40, 12, False, False)
    assert facts["label_low"] == min(release.parts["train"]["label"])
    assert facts["categories"] == 2 and facts["subcategories"] == 4


def test_word_counts():
    assert word_counts(pd.Series(["", "a", " a  b ", "a-b c d"])).tolist() == [0, 1, 2, 3]


def test_label_correlation_reads_train_rows_only():
    labels = pd.Series([1.0, 2.0, 3.0, 4.0, np.nan])
    values = np.array([[1, 9, 5], [2, 3, 5], [3, 2, 5], [np.nan, 1, 5], [-50, 50, 7]], dtype=np.float32)
    table = label_correlation(Block("b", values, ["up", "down", "flat"]), labels).set_index("column")
    assert table.loc["up", "correlation"] == pytest.approx(1)
    assert table.loc["down", "correlation"] == pytest.approx(-1)
    assert np.isnan(table.loc["flat", "correlation"])
    assert table.loc["up", "filled (%)"] == 75


def test_label_correlation_ranks_the_posts_that_have_both():
    rng = np.random.default_rng(0)
    labels = pd.Series(rng.normal(size=60))
    values = (labels.to_numpy() + rng.normal(size=60)).astype(np.float32)
    values[labels.argsort()[20:50]] = np.nan  # as many missing in the middle bend the ranks of all labels
    kept = ~np.isnan(values)
    expected = spearmanr(values[kept], labels[kept]).statistic
    table = label_correlation(Block("b", values[:, None], ["x"]), labels)
    assert table["correlation"][0] == pytest.approx(expected)
