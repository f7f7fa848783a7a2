"""Why a post is predicted as it is: what each column adds, in the models that did not see it, weighted as they are fused."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kit.evaluation.table_one import parse_sets
from kit.features import behaviour, statistic
from kit.features.families import Context
from kit.viz.explore import page
from kit.viz.explore.opened import Opened

SAMPLE = 300  # posts that tell which family makes which column
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
        return page.why_html(self)


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
    own = origins(opened, features)
    if taught is not None:
        values = np.r_[values, taught[row]]
        own = pd.concat([own, pd.DataFrame({"block": "taught", "family": "past labels", "column": TAUGHT})])
        own.loc[own["column"] == "ridge", "family"] = "ridge on all words"
    return own.assign(value=values, contribution=found[:-1]), float(found[-1])


def origins(opened: Opened, features: str) -> pd.DataFrame:
    """block, family, column of each column of a feature set, in its order."""
    return opened.keep(("origins", features), lambda: _origins(opened, features))


def _origins(opened: Opened, features: str) -> pd.DataFrame:
    rows = []
    for name in parse_sets([features])[0].blocks:
        block = opened.run.read_block(name)
        makers = opened.keep(("makers", name), lambda name=name: _makers(opened.posts, name))
        rows += [(name, makers.get(_stem(column)) or _stem(column).strip("_# "), column) for column in block.columns]
    table = pd.DataFrame(rows, columns=["block", "family", "column"])
    return table.assign(column=opened.block(features).columns)


def _makers(posts: pd.DataFrame, block: str) -> dict[str, str]:
    """Stem of a column name -> the family that makes it, for the blocks made of families."""
    rooms = {"statistic": (statistic.FAMILIES, Context), "behaviour": (behaviour.FAMILIES, behaviour.AuthorContext)}
    if block not in rooms:
        return {}
    families, context = rooms[block]
    some = context(posts.iloc[:SAMPLE].reset_index(drop=True), 2, 5, 0)
    made = {_stem(column): name for name, family in families.items() for column in family(some)}
    return made | {"title_char_svd_#": "title_svd"}


def _stem(column: str) -> str:
    return re.sub(r"\d+$", "#", column)
