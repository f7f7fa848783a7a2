"""Why a post is predicted as it is: what each column adds, in the models that did not see it, weighted as they are fused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kit.evaluation.table_one import parse_sets
from kit.features.origin import origins
from kit.run.tuned import tuned_columns
from kit.viz.explore import page
from kit.viz.explore.opened import Opened

REST = "the fusion itself"  # what its limits and the weights of the post's own fold change
LITTLE = 0.05  # label units between base and prediction below which a fusion's stretch cannot be told from them


@dataclass(frozen=True)
class Why:
    """What makes a prediction; contributions are in label units.

    Attributes:
        pid: the post.
        prediction: of the fusion.
        base: what is predicted before anything is known of the post.
        families: block, family, contribution; with `base` they sum to the prediction.
        columns: block, family, column, value, contribution of every column, largest first.
        models: model, weight, fit, prediction, total (base and contributions of that model, which are its prediction).
    """

    pid: str
    prediction: float
    base: float
    families: pd.DataFrame
    columns: pd.DataFrame
    models: pd.DataFrame

    def _repr_html_(self) -> str:
        return page.page("why", page.why_rows(self))


def why(opened: Opened, pid: str | int) -> Why:
    """What the models with weight in the fusion saw in a post that none of them was taught with.

    Contributions are TreeSHAP values: LightGBM's `pred_contrib`, CatBoost's `ShapValues`. A line on top, or a fusion on
    ranks, stretches the scale; all contributions are stretched alike. The submission's weights know all folds, the
    prediction of a train post those of the other folds; what that changes is the family "the fusion itself".

    Raises:
        InputError: no such post, or one that only teaches.

    Source: Lundberg et al. 2020, "From local explanations to global understanding with explainable AI for trees".
    """
    row = opened.predicted_row(pid)
    fit, parts, models = opened.fit_name(row), [], []
    for name, weight in opened.weights.items():
        table, base = _of_model(opened, name, fit, row)
        total = base + table["contribution"].sum()
        models.append((name, weight, fit, opened.predictions[name][row], total, base))
        parts.append(table.assign(contribution=table["contribution"] * weight))
    models = pd.DataFrame(models, columns=["model", "weight", "fit", "prediction", "total", "base"])
    columns = pd.concat(parts).groupby(["block", "family", "column"], sort=False, as_index=False).agg(
        {"value": "first", "contribution": "sum"})  # fmt: skip
    base, fused = (float(opened.fuse(dict(zip(models["model"], models[[name]].to_numpy(), strict=True)))[0])
                   for name in ("base", "total"))  # fmt: skip
    added = columns["contribution"].sum()
    columns["contribution"] *= (fused - base) / added if abs(added) > LITTLE else opened.blend.learnt.slope
    families = columns.groupby(["block", "family"], as_index=False)["contribution"].sum()
    rest = opened.prediction[row] - base - families["contribution"].sum()
    families.loc[len(families)] = ["fusion", REST, rest]
    order = {"key": np.abs, "ascending": False, "ignore_index": True}
    return Why(str(pid), float(opened.prediction[row]), base, families.sort_values("contribution", **order),
               columns.sort_values("contribution", **order), models.drop(columns="base"))  # fmt: skip


def _of_model(opened: Opened, name: str, fit: str, row: int) -> tuple[pd.DataFrame, float]:
    """block, family, column, value, contribution of one model's columns, and what it says without any."""
    from kit.boosting.taught import TAUGHT

    features = name.rpartition("/")[0]
    block, taught = opened.block(features), opened.taught(features, fit)
    found = opened.model(name, fit).contributions(np.array([row]))[0]
    values = block.values[np.array([row])][0]
    blocks = parse_sets([features])[0].blocks
    own = opened.keep(("origins", features), lambda: origins(opened.run, opened.posts, blocks))
    if taught is not None:
        values = np.r_[values, taught[row]]
        tuned = tuned_columns(opened.run) if taught.shape[1] > len(TAUGHT) else []
        columns = {
            "column": [*TAUGHT, *tuned],
            "family": ["past labels"] * len(TAUGHT) + ["tuned encoders"] * len(tuned),
        }
        own = pd.concat([own, pd.DataFrame(columns).assign(block="taught")])
        own.loc[own["column"] == "ridge", "family"] = "ridge on all words"
    return own.assign(value=values, contribution=found[:-1]), float(found[-1])
