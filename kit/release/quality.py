"""What a release holds and what is wrong with it, counted: the tables of 01_eda and of the report."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from kit.release import images, marker

IMAGE_STATES = {  # as `images.file_state` says it -> for the reader of the table
    images.NO_PATH: "no image path in the list",
    images.MISSING: "image file missing",
    images.EMPTY: "image file empty",
    images.NO_FILE: "image file is a folder or no plain file",
    images.TOO_LARGE: "image file too large to be a photograph",
    images.NO_IMAGE: "image file is no picture (a web page, or another format)",
}
OTHER_STATE = "image file cannot be opened (permission?)"
N_THREADS = 8  # that wait for the disk


def word_counts(texts: pd.Series) -> np.ndarray:
    """Number of space-separated words of each text, 0 where it is empty: (n_posts,) int."""
    return texts.str.split().str.len().fillna(0).to_numpy(dtype=int)


def release_facts(posts: pd.DataFrame, data_dir: Path) -> dict:
    """What later steps and the report must know of the release: where it is, its size, its label range, if it is synthetic."""
    labels = posts["label"].dropna()
    splits = posts["split"].value_counts()
    return {
        "data_dir": str(data_dir), "synthetic": marker.is_demo(data_dir),
        "n_train": int(splits.get("train", 0)), "n_test": int(splits.get("test", 0)), "users": posts["Uid"].nunique(),
        "categories": _distinct(posts["Category"]), "subcategories": _distinct(posts["Subcategory"]),
        "concepts": _distinct(posts["Concept"]), "label_low": labels.min(), "label_high": labels.max(),
        "first_post": str(posts["Postdate"].min()), "last_post": str(posts["Postdate"].max()),
        "external": "followerCount" in posts,
    }  # fmt: skip


def _distinct(values: pd.Series) -> int:
    return int(values[values != ""].nunique())


def quality_table(posts: pd.DataFrame) -> pd.DataFrame:
    """Counts of missing and odd values in the train and the test part, with the share of posts they concern.

    What the reader of the release replaced (column `faults` of the posts) has a row for each kind that occurs. Pictures that
    start well and break later are only found when they are decoded, and listed by the step that does it.

    Returns:
        columns: what, train, train (%), test, test (%).
    """
    train = (posts["split"] == "train").to_numpy()
    rows = [(name, int(flag[train].sum()), int(flag[~train].sum())) for name, flag in _flags(posts).items()]
    table = pd.DataFrame(rows, columns=["what", "train", "test"])
    n_train, n_test = int(train.sum()), int((~train).sum())
    table.insert(2, "train (%)", (100 * table["train"] / n_train).round(1))
    table["test (%)"] = (100 * table["test"] / n_test).round(1) if n_test else np.nan
    return table


def _flags(posts: pd.DataFrame) -> dict[str, np.ndarray]:
    """Condition -> (n_posts,) bool, in the order a reader wants them."""
    n_title, n_tags = word_counts(posts["Title"]), word_counts(posts["Alltags"])
    album = (
        posts.loc[posts["Title"] != ""].duplicated(["Uid", "Title"], keep=False).reindex(posts.index, fill_value=False)
    )
    train = posts.loc[posts["split"] == "train"]
    known = posts["Uid"].isin(set(train["Uid"]))
    class_size = posts["Subcategory"].astype(str).map(train["Subcategory"].astype(str).value_counts()).fillna(0)
    named = posts["Subcategory"] != ""
    flags = {
        "title empty": n_title == 0,
        "title of one word": n_title == 1,
        "no tags": n_tags == 0,
        "neither title nor tags": (n_title == 0) & (n_tags == 0),
        "same title as another post of the user (album)": album,
        "no category": posts["Category"] == "",
        "no subcategory": ~named,
        "no concept": posts["Concept"] == "",
        "no posting date": posts["Postdate"].isna(),
        "no place (Geoaccuracy 0 or missing)": ~(posts["Geoaccuracy"] > 0),
        "no user profile (first date and photo count missing)": posts["photo_firstdate"].isna()
        & posts["photo_count"].isna(),
        "user not in the train part": ~known,
        "subcategory not in the train part": named & (class_size == 0),
        "subcategory with one train post only": named & (class_size == 1),
        "same Pid as a post of another user": posts.duplicated("Pid", keep=False),
        "label below 0": posts["label"] < 0,
    }
    if "followerCount" in posts:
        flags["no scraped user statistics"] = posts["followerCount"].isna()
    flags |= _image_flags(posts["image_path"]) | replaced(posts)
    return {name: np.asarray(flag, dtype=bool) for name, flag in flags.items()}


def _image_flags(paths: pd.Series) -> dict[str, np.ndarray]:
    """State of the image file -> (n_posts,) bool; missing and empty files always, the rarer states where they occur."""
    with ThreadPoolExecutor(N_THREADS) as pool:
        parts = [paths.iloc[start : start + 1024] for start in range(0, len(paths), 1024)]
        states = np.array(
            sum(pool.map(lambda part: [images.file_state(path) for path in part], parts), []), dtype=object
        )
    flags = {row: states == state for state, row in IMAGE_STATES.items()}
    flags[OTHER_STATE] = (states != "") & ~np.isin(states, list(IMAGE_STATES))
    usual = [IMAGE_STATES[images.MISSING], IMAGE_STATES[images.EMPTY]]
    return {row: flag for row, flag in flags.items() if row in usual or flag.any()}


def replaced(posts: pd.DataFrame) -> dict[str, np.ndarray]:
    """Kind of value that the reader replaced -> (n_posts,) bool, for the kinds that occur."""
    if "faults" not in posts:
        return {}
    codes, distinct = pd.factorize(posts["faults"])
    kinds = [set(str(text).split("; ")) - {""} for text in distinct]
    return {kind: np.array([kind in found for found in kinds])[codes] for kind in sorted(set().union(*kinds))}
