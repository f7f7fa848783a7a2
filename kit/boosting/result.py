"""What a model says out of fold: predictions, scores of folds, importances. No booster is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kit.base.metrics import mae, over_folds, src
from kit.run.folds import TEST, fold_rows


@dataclass(frozen=True)
class FoldResult:
    """What a model predicts for posts it was not taught with.

    Attributes:
        model: its name.
        oof: (n_posts,) float64, NaN where a post is scored in no fold (test posts, TRAIN_ONLY posts).
        test: (n_test,) float64 in the order of the test posts, from a model fitted on all train posts.
        scores: one row per fold: fold, n, src, mae, rounds, device, seconds.
        importance: column, gain (share of the total, mean over fits), largest first.
        fitted: share of its fits that were made; the others were read back.
    """

    model: str
    oof: np.ndarray
    test: np.ndarray
    scores: pd.DataFrame
    importance: pd.DataFrame
    fitted: float = 1.0

    def summary(self) -> dict[str, float]:
        """src, src_sd, mae, mae_sd over folds, with the number of posts, folds and seconds."""
        n, seconds = self.scores[["n", "seconds"]].sum()
        return over_folds(self.scores) | {"n": int(n), "folds": len(self.scores), "seconds": float(seconds)}


def collect(
    model: str, device: str, columns: list[str], target: np.ndarray, folds: np.ndarray, parts: list[dict], test: np.ndarray,
    fitted: float,
) -> FoldResult:  # fmt: skip
    """The result of the fits of all folds."""
    oof = np.full(len(target), np.nan)
    scores = []
    for k, part in enumerate(parts):
        _, valid_idx = fold_rows(folds, k)
        oof[valid_idx] = part["prediction"]
        scores.append({
            "fold": k, "n": len(valid_idx), "src": src(target[valid_idx], oof[valid_idx]),
            "mae": mae(target[valid_idx], oof[valid_idx]), "rounds": int(part["rounds"]), "device": device,
            "seconds": round(float(part["seconds"]), 2),
        })  # fmt: skip
    gain = np.mean([part["gain"] / max(part["gain"].sum(), 1e-12) for part in parts], axis=0)
    importance = pd.DataFrame({"column": columns, "gain": gain}).sort_values("gain", ascending=False, kind="stable")
    return FoldResult(model, oof, test, pd.DataFrame(scores), importance.reset_index(drop=True), fitted)


def score_table(results: Mapping[tuple[str, str, str], FoldResult]) -> pd.DataFrame:
    """scheme, features, model, fold, n, src, mae, rounds, device, seconds: one row per fold of every fit."""
    names = ["scheme", "features", "model"]
    tables = [result.scores.assign(**dict(zip(names, key, strict=True))) for key, result in results.items()]
    table = pd.concat(tables, ignore_index=True)
    return table[[*names, *(name for name in table.columns if name not in names)]]


def importance_table(results: Mapping[str, FoldResult]) -> pd.DataFrame:
    """model, column, gain: the share of each column in each model's gain, for the models that know it; others not at all."""
    tables = [one.importance.assign(model=model) for model, one in results.items() if one.importance["gain"].any()]
    return pd.concat([pd.DataFrame(columns=["model", "column", "gain"], dtype=float), *tables], ignore_index=True)


def prediction_table(posts: pd.DataFrame, folds: np.ndarray, results: Mapping[str, FoldResult]) -> pd.DataFrame:
    """Pid, fold and one column per model: out-of-fold predictions for train posts, predictions for test posts."""
    table = pd.DataFrame({"Pid": posts["Pid"], "fold": folds})
    test = folds == TEST
    for model, result in results.items():
        table[model] = result.oof
        table.loc[test, model] = result.test
    return table
