"""What the models said, as tables: predictions with their post ids, scores of folds, importances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.files import write_table
from kit.base.metrics import mae, src
from kit.run.directory import Run
from kit.run.folds import TEST, Folds

FUSED = "fused.parquet"  # in the run: what the fusion says of every post


def write_folds(path: Path, posts: pd.DataFrame, cuts: Mapping[str, Folds]) -> None:
    """Save the folds of the train posts, so that any other model can be scored on the same ones.

    Columns: `pid`; per scheme the fold in which a post is scored, TRAIN_ONLY (-2) for none; and, where a scheme has such
    posts, `<scheme>_withheld` with the numbers of the folds that a post does not teach.
    """
    train = (posts["split"] == "train").to_numpy()
    table = {"pid": posts["Pid"][train]}
    for scheme, folds in cuts.items():
        table[scheme] = folds.fold[train]
        if folds.withheld.any():
            table[f"{scheme}_withheld"] = [" ".join(map(str, np.flatnonzero(row))) for row in folds.withheld.T[train]]
    write_table(path, pd.DataFrame(table))


def read_folds(run: Run, posts: pd.DataFrame, scheme: str) -> Folds:
    """Folds of a scheme as 01_eda made them.

    Raises:
        InputError: the run has no folds by that scheme, or they were made for other posts.
    """
    path = run.input("folds.csv", made_by="01_eda")
    table = pd.read_csv(path, dtype={"pid": str, f"{scheme}_withheld": str})
    train = (posts["split"] == "train").to_numpy()
    if scheme not in table or scheme == "pid" or table["pid"].tolist() != posts["Pid"][train].tolist():
        schemes = [name for name in table if name != "pid" and not name.endswith("_withheld")]
        raise InputError(
            f"{path} has no folds by {scheme!r} of this run's posts, but by {', '.join(schemes)}; run 01_eda again"
        )
    fold = np.full(len(posts), TEST, dtype=np.int8)
    fold[train] = table[scheme]
    withheld = np.zeros((int(fold.max()) + 1, len(posts)), dtype=bool)
    if f"{scheme}_withheld" in table:
        numbers = table[f"{scheme}_withheld"].fillna("").str.split()
        for row, found in zip(np.flatnonzero(train), numbers, strict=True):
            withheld[[int(k) for k in found], row] = True
    return Folds(scheme, fold, withheld)


def which_schemes(run: Run, asked: Iterable[str]) -> list[str]:
    """Names of schemes, each once; "auto" becomes the one that decides (table `schemes` of 01_eda) and "user" beside it.

    Where folds by author decide, the second one runs forward: "matched", which also foretells the level of the test part, or
    "time". A second one that 01_eda could not make is left out.
    """
    table = run.read_table("schemes").set_index("scheme")
    deciding = table.index[table["decides"]][0]
    seconds = ("matched", "time") if deciding == "user" else ("user",)
    auto = [deciding, *[name for name in seconds if table["n"].get(name, 0)][:1]]
    return list(dict.fromkeys(name for one in asked for name in (auto if one == "auto" else [one])))


def read_predictions(path: Path, posts: pd.DataFrame, made_by: str = "06_gbdt_folds") -> pd.DataFrame:
    """A table with a Pid for every post, as predictions or losses, its rows verified to be those of ``posts``.

    Raises:
        InputError: the table was made for other posts.
    """
    table = pd.read_parquet(path)
    if table["Pid"].tolist() != posts["Pid"].tolist():
        raise InputError(f"{path} was made for other posts than this run holds: run {made_by} again")
    return table


def write_fused(
    path: Path, posts: pd.DataFrame, fold: np.ndarray, oof: np.ndarray, test: np.ndarray, **how: str
) -> None:
    """Save what the fusion predicts: Pid, fold, prediction, and in further columns how it was made.

    Args:
        fold: (n_posts,) of the scheme that decides.
        oof: (n_posts,) nested predictions of train posts, NaN elsewhere.
        test: (n_test,) as submitted.
        how: scheme, method, calibrate.
    """
    prediction = oof.copy()
    prediction[fold == TEST] = test
    write_table(path, pd.DataFrame({"Pid": posts["Pid"], "fold": fold, "prediction": prediction, **how}))


def read_fused(run: Run, posts: pd.DataFrame) -> tuple[pd.DataFrame, str, str, str]:
    """The table of `write_fused`, and how it was made: scheme, method, calibrate.

    Raises:
        InputError: 07 has not finished in this run, or with other posts.
    """
    table = read_predictions(run.input(FUSED, made_by="07_blend"), posts, made_by="07_blend")
    return table, *table.loc[0, ["scheme", "method", "calibrate"]]


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
