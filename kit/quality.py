"""What a release holds and what is wrong with it, counted: the tables of 01_eda and of the report."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from kit import demo
from kit.run import Block


def word_counts(texts: pd.Series) -> np.ndarray:
    """Number of space-separated words of each text, 0 where it is empty: (n_posts,) int."""
    return texts.str.split().str.len().fillna(0).to_numpy(dtype=int)


def release_facts(posts: pd.DataFrame, data_dir: Path) -> dict:
    """What later steps and the report must know of the release: where it is, its size, its label range, if it is synthetic."""
    labels = posts["label"].dropna()
    splits = posts["split"].value_counts()
    return {
        "data_dir": str(data_dir), "synthetic": demo.is_demo(data_dir),
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
    known = posts["Uid"].isin(set(posts.loc[posts["split"] == "train", "Uid"]))
    empty, absent = _image_states(posts["image_path"])
    flags = {
        "title empty": n_title == 0,
        "title of one word": n_title == 1,
        "no tags": n_tags == 0,
        "neither title nor tags": (n_title == 0) & (n_tags == 0),
        "same title as another post of the user (album)": album,
        "no subcategory": posts["Subcategory"] == "",
        "no concept": posts["Concept"] == "",
        "no posting date": posts["Postdate"].isna(),
        "no place (Geoaccuracy 0 or missing)": ~(posts["Geoaccuracy"] > 0),
        "no user profile (first date and photo count missing)": posts["photo_firstdate"].isna()
        & posts["photo_count"].isna(),
        "user not in the train part": ~known,
        "image file missing": absent,
        "image file empty": empty,
    }
    if "followerCount" in posts:
        flags["no scraped user statistics"] = posts["followerCount"].isna()
    return {name: np.asarray(flag, dtype=bool) for name, flag in flags.items()}


def label_correlation(block: Block, labels: pd.Series) -> pd.DataFrame:
    """Spearman correlation of each column of a block with the label over the train posts, strongest first.

    Args:
        block: rows are the posts.
        labels: (n_posts,) float, NaN in the test part.
    Returns:
        columns: column, correlation (NaN for a column that is constant over the train posts), filled (%).
    """
    train = labels.notna().to_numpy()
    values = pd.DataFrame(np.asarray(block.values[train], dtype=np.float32), columns=block.columns)
    varying = values.loc[:, values.nunique() > 1]
    correlation = varying.rank().corrwith(labels[train].rank().reset_index(drop=True)).reindex(block.columns)
    filled = 100 * values.notna().mean()
    table = pd.DataFrame(
        {"column": block.columns, "correlation": correlation.to_numpy(), "filled (%)": filled.to_numpy()}
    )
    return table.sort_values("correlation", key=np.abs, ascending=False, ignore_index=True)


def _image_states(paths: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """(empty, absent): whether each image file has no bytes, or is not there."""
    sizes = np.array([_file_size(path) for path in paths])
    return sizes == 0, sizes < 0


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1
