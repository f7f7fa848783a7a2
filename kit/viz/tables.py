"""Tables as people read them: mean and spread in one cell, the paper's numbers beside ours."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.evaluation.table_one import FUSION


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people: "mean ± sd" over folds for each model, the paper's fusion beside it where it has that row."""
    models = [
        column.removesuffix("_src") for column in table if column.endswith("_src") and not column.startswith("paper")
    ]
    out = pd.DataFrame({"features": table["features"]})
    for model in models:
        for metric in ("src", "mae"):
            pairs = zip(table[f"{model}_{metric}"], table[f"{model}_{metric}_sd"], strict=True)
            out[f"{model} {metric.upper()}"] = [spread(mean, sd) for mean, sd in pairs]
    for metric in ("src", "mae"):
        numbers = table[f"paper_{FUSION}_{metric}"]
        out[f"paper's fusion {metric.upper()}"] = ["" if np.isnan(number) else f"{number:.4f}" for number in numbers]
    for model in (model for model in models if f"{model}_rounds" in table):
        rounds, at_limit, device = (table[f"{model}_{name}"] for name in ("rounds", "at_limit", "device"))
        out[f"{model} trees"] = [
            "" if np.isnan(n) else f"{n:.0f}, {place or '-'}" + (f", {at:.0f} folds at the limit" if at else "")
            for n, at, place in zip(rounds, at_limit, device.fillna(""), strict=True)
        ]
    out["note"] = table["note"].fillna("")
    return out if (out["note"] != "").any() else out.drop(columns="note")


def spread(mean: float, sd: float, digits: int = 4) -> str:
    """ "mean ± sd" with so many decimals; the mean alone where there is one fold, "" where there is no number."""
    return "" if np.isnan(mean) else f"{mean:.{digits}f}" + ("" if np.isnan(sd) else f" ± {sd:.{digits}f}")


def gains_as_text(gains: pd.DataFrame) -> pd.DataFrame:
    """Table of `table_one.gains` with each difference and its 95 % range in one cell."""
    out = gains[["features", "against", "what"]].copy()
    for metric in ("src", "mae"):
        cells = gains[[metric, f"{metric}_low", f"{metric}_high"]].itertuples(index=False)
        out[f"{metric.upper()} (95 % range)"] = [f"{d:+.4f} ({low:+.4f} to {high:+.4f})" for d, low, high in cells]
    return out.assign(reading=gains["reading"])


def coverage_as_text(coverage: pd.DataFrame) -> pd.DataFrame:
    """Table of `intervals.coverage`, with `scheme`: each measure of the ranges beside that of one range for all posts."""
    out = coverage[["scheme", "authors", "n"]].copy()
    for name, shape in {"inside": "{:.1%}", "width": "{:.2f}", "pinball": "{:.3f}"}.items():
        out[name] = coverage[name].map(shape.format)
        out[f"{name}, one for all"] = coverage[f"same_{name}"].map(shape.format)
    return out
