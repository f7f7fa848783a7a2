"""What the models said, as tables: predictions with their post ids, scores of folds, importances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.files import atomic_path
from kit.base.metrics import mae, src
from kit.run.folds import TEST


def write_folds(path: Path, posts: pd.DataFrame, folds: np.ndarray) -> None:
    """Save ``pid, fold`` of the train posts, so that any other model can be scored on the same folds."""
    train = folds != TEST
    with atomic_path(path) as temporary:
        pd.DataFrame({"pid": posts["Pid"][train], "fold": folds[train]}).to_csv(temporary, index=False)


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Save a prediction table as parquet."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_predictions(path: Path, posts: pd.DataFrame, made_by: str = "06_gbdt_folds") -> pd.DataFrame:
    """A table with a Pid for every post, as predictions or losses, its rows verified to be those of ``posts``.

    Raises:
        InputError: the table was made for other posts.
    """
    table = pd.read_parquet(path)
    if table["Pid"].tolist() != posts["Pid"].tolist():
        raise InputError(f"{path} was made for other posts than this run holds: run {made_by} again")
    return table


def split_predictions(table: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(oof, test): model -> (n_posts,) out-of-fold predictions, NaN elsewhere; model -> (n_test,) test predictions.

    Test predictions are NaN in the tables of schemes that 06_gbdt_folds was not asked to submit.
    """
    models = [name for name in table.columns if name not in ("Pid", "fold")]
    test = (table["fold"] == TEST).to_numpy()
    oof = {model: np.where(test, np.nan, table[model]) for model in models}
    return oof, {model: table.loc[test, model].to_numpy() for model in models}


def class_scores(posts: pd.DataFrame, oof: np.ndarray, cosine: np.ndarray | None = None) -> pd.DataFrame:
    """How well popularity is predicted inside each category and subcategory.

    Args:
        posts: the posts table.
        oof: (n_posts,) out-of-fold predictions, NaN where a post is not scored.
        cosine: (n_posts,) agreement of image and text, NaN where there is none; over scored posts, like the scores.

    Returns:
        level, name, n, src, mae, cosine, largest classes first; SRC is NaN where it is undefined.
    """
    table = pd.DataFrame({"label": posts["label"], "oof": oof, "cosine": np.nan if cosine is None else cosine})
    scored = np.isfinite(oof) & posts["label"].notna().to_numpy()
    rows = []
    for level in ("Category", "Subcategory"):
        for name, part in table[scored].groupby(posts[level][scored].astype(str)):
            if name == "":
                continue
            ranked = part["label"].nunique() > 1 and part["oof"].nunique() > 1
            rows.append({"level": level, "name": name, "n": len(part),
                         "src": src(part["label"], part["oof"]) if ranked else np.nan,
                         "mae": mae(part["label"], part["oof"]), "cosine": part["cosine"].mean()})  # fmt: skip
    return pd.DataFrame(rows).sort_values(["level", "n"], ascending=[True, False], ignore_index=True)
