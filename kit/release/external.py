"""Scraped user statistics, which some have collected beside a release: ``user_additional.csv``, joined by Pathalias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.release.values import LARGEST_COUNT, MISSING, TAKEN, add_faults, as_number, is_lost

EXTERNAL = (
    "totalViews", "totalTags", "totalGeotagged", "totalFaves", "totalInGroup", "photoCount", "followerCount",
    "followingCount",
)  # fmt: skip


def external_files(root: Path) -> list[Path]:
    """Where the file may lie: in the release, or beside it."""
    return [root / "user_additional.csv", root.parent / "user_additional.csv"]


def join_external(posts: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The posts with the columns of ``user_additional.csv``; a row of zeros there means that the user was not found.

    Raises:
        InputError: the file cannot be read, or lacks a column.
    """
    path = next((path for path in external_files(root) if path.is_file()), None)
    if path is None:
        return posts
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, OSError) as error:
        raise InputError(
            f"cannot read {path}: {error}. Expected a CSV with Pathalias, {', '.join(EXTERNAL)}"
        ) from error
    if absent := [name for name in ("Pathalias", *EXTERNAL) if name not in table]:
        raise InputError(f"{path} has no column {', '.join(absent)}; it has {', '.join(table.columns)}")
    values = table[list(EXTERNAL)].apply(as_number, low=0, high=LARGEST_COUNT)
    odd = np.any([is_lost(table[name], values[name]) for name in EXTERNAL], axis=0)
    found = values.fillna(0).ne(0).any(axis=1) & ~table["Pathalias"].str.lower().isin(MISSING)
    values = values[found].set_index(table.loc[found, "Pathalias"])
    values = values[~values.index.duplicated()]
    if not posts["Pathalias"].isin(values.index).any():
        return posts  # the file belongs to another release
    odd_posts = posts["Pathalias"].isin(table.loc[odd, "Pathalias"]) & (posts["Pathalias"] != "")
    fault = f"scraped user statistics with a value that is no count {TAKEN}"
    posts["faults"] = add_faults(posts["faults"], {fault: odd_posts}).astype("category")
    return posts.join(values, on="Pathalias")
