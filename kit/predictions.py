"""What the models said, as tables: predictions with their post ids, scores of folds, importances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from kit.errors import InputError
from kit.folds import TEST
from kit.gbdt import FoldResult
from kit.run import atomic_path


def write_folds(path: Path, posts: pd.DataFrame, folds: np.ndarray) -> None:
    """Save ``pid, fold`` of the train posts, so that any other model can be scored on the same folds."""
    train = folds != TEST
    with atomic_path(path) as temporary:
        pd.DataFrame({"pid": posts["Pid"][train], "fold": folds[train]}).to_csv(temporary, index=False)


def score_table(results: Mapping[tuple[str, str], FoldResult]) -> pd.DataFrame:
    """scheme, model, fold, n, src, mae, rounds, seconds: one row per fold of every (scheme, model)."""
    tables = [result.scores.assign(scheme=scheme, model=model) for (scheme, model), result in results.items()]
    table = pd.concat(tables, ignore_index=True)
    return table[["scheme", "model", *(name for name in table.columns if name not in ("scheme", "model"))]]


def importance_table(results: Mapping[str, FoldResult]) -> pd.DataFrame:
    """model, column, gain: the share of each column in each model's gain, for the models that know it."""
    tables = [result.importance.assign(model=model) for model, result in results.items() if len(result.importance)]
    return pd.concat(tables, ignore_index=True)[["model", "column", "gain"]]


def prediction_table(posts: pd.DataFrame, folds: np.ndarray, results: Mapping[str, FoldResult]) -> pd.DataFrame:
    """Pid, fold and one column per model: out-of-fold predictions for train posts, predictions for test posts."""
    table = pd.DataFrame({"Pid": posts["Pid"], "fold": folds})
    test = folds == TEST
    for model, result in results.items():
        table[model] = result.oof
        table.loc[test, model] = result.test
    return table


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Save a prediction table as parquet."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_predictions(path: Path, posts: pd.DataFrame) -> pd.DataFrame:
    """The prediction table, its rows verified to be those of ``posts``.

    Raises:
        InputError: the table was made for other posts.
    """
    table = pd.read_parquet(path)
    if table["Pid"].tolist() != posts["Pid"].tolist():
        raise InputError(f"{path} was made for other posts than this run holds: run 06_gbdt_folds again")
    return table


def split_predictions(table: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(oof, test): model -> (n_posts,) out-of-fold predictions, NaN elsewhere; model -> (n_test,) test predictions."""
    models = [name for name in table.columns if name not in ("Pid", "fold")]
    test = (table["fold"] == TEST).to_numpy()
    oof = {model: np.where(test, np.nan, table[model]) for model in models}
    return oof, {model: table.loc[test, model].to_numpy() for model in models}
