"""What would be predicted if a post were posted otherwise, by the models that did not see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kit.evaluation import intervals
from kit.evaluation.table_one import parse_sets
from kit.features.past import post_times
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.folds import Folds
from kit.run.predictions import read_folds
from kit.run.tuned import TUNED
from kit.viz.explore import changed as changes_of
from kit.viz.explore import page
from kit.viz.explore.opened import Opened


@dataclass(frozen=True)
class WhatIf:
    """What a change does; in label units.

    Attributes:
        pid: the post.
        stored: what the run predicts for it.
        table: one row per variant: its values, prediction, change; the least and most that any model of the fusion moves
            (models_low, models_high); and low, high: the range of `kit.evaluation.intervals`, which holds 80 % of labels.
        models: prediction of every model with weight, one row per variant.
        held: what stayed as it is although it might move, in words.
    """

    pid: str
    stored: float
    table: pd.DataFrame
    models: pd.DataFrame
    held: list[str]

    def _repr_html_(self) -> str:
        named = self.table.columns[: self.table.columns.get_loc("prediction")]
        rows = []
        for one in self.table.to_dict("records"):
            given = {name: one[name] for name in named if pd.notna(one[name])}
            asked = ", ".join(
                f"{name} {value:.0f}" if isinstance(value, float) else f"{name} {value}"
                for name, value in given.items()
            )
            note = (f"to {one['prediction']:.2f}; single models {one['models_low']:+.2f} to {one['models_high']:+.2f}; "
                    f"80 % of posts like it lie in {one['low']:.2f} to {one['high']:.2f}")  # fmt: skip
            rows.append((asked or "nothing changed", note, one["change"]))
        return page.bars_html(
            rows, f"Post {self.pid}, predicted {self.stored:.2f}. Held fixed: {'; '.join(self.held)}."
        )


def what_if(opened: Opened, pid: str | int, variants: Sequence[Mapping[str, Any]]) -> WhatIf:
    """Re-encode and re-predict a post once per variant.

    Args:
        variants: see `changed.changed_posts`; an empty one changes nothing.

    Raises:
        InputError: no such post, one that only teaches, or a change that makes no sense.
    """
    row = opened.predicted_row(pid)
    changed = changes_of.changed_posts(opened, row, variants)
    changes = changes_of.what_changes(opened, row, changed)
    sets = {name: parse_sets([name])[0] for name in dict.fromkeys(name.rpartition("/")[0] for name in opened.weights)}
    blocks = list(dict.fromkeys(block for one in sets.values() for block in one.blocks))
    tuned = [TUNED] if any(one.tuned for one in sets.values()) else []
    rows = changes_of.block_rows(opened, row, changed, blocks)
    fit = opened.fit_name(row)
    values = {name: np.hstack([rows[block] for block in one.blocks]) for name, one in sets.items()}
    past = None
    if changes & {"time", "tags"} and any(one.taught for one in sets.values()):
        past = _past_labels(opened, row, fit, changed)
    taught_of = {name: _taught(opened, row, fit, name, changed, values[name], past, bool(changes)) for name in sets}
    predicted = {}
    for name in opened.weights:
        features = name.rpartition("/")[0]
        block, taught = opened.block(features), taught_of[features]
        if hasattr(opened.model(name, fit), "predict_changed"):
            predicted[name] = opened.model(name, fit).predict_changed(row, taught)
            continue
        own = Block(features, values[features], block.columns, block.categorical)
        predicted[name] = opened.load(name, fit, own, taught).predict(np.arange(len(changed)))
    return _result(opened, row, variants, changed, predicted, changes_of.held(opened, blocks + tuned, changes))


def _result(
    opened: Opened, row: int, variants: Sequence[Mapping[str, Any]], changed: pd.DataFrame,
    predicted: dict[str, np.ndarray], held: list[str],
) -> WhatIf:  # fmt: skip
    models = pd.DataFrame(predicted)
    before = {name: opened.predictions[name][[row]] for name in predicted}
    change = opened.fuse(predicted) - opened.fuse(before)
    prediction, moves = opened.prediction[row] + change, models - pd.DataFrame(before).iloc[0]
    table = (
        pd.DataFrame([_told(variant) for variant in variants]) if any(variants) else pd.DataFrame(index=models.index)
    )
    low, high = _ranges(opened)(prediction, _earlier(opened, row, changed)).T
    table = table.assign(prediction=prediction, change=change, models_low=moves.min(axis=1), models_high=moves.max(axis=1),
                         low=low, high=high)  # fmt: skip
    return WhatIf(opened.posts["Pid"].iloc[row], float(opened.prediction[row]), table, models, held)


def _told(variant: Mapping[str, Any]) -> dict[str, Any]:
    """A variant with its tags as one text."""
    return {name: " ".join(value) if isinstance(value, (list, tuple)) else value for name, value in variant.items()}


def _ranges(opened: Opened) -> intervals.Ranges:
    """What the out-of-fold predictions of the run teach about ranges."""

    def made() -> intervals.Ranges:
        earlier = intervals.earlier_in_folds(opened.posts, _folds(opened))
        return intervals.fit_ranges(opened.prediction, earlier, opened.target)

    return opened.keep("ranges", made)


def _earlier(opened: Opened, row: int, changed: pd.DataFrame) -> np.ndarray:
    """(n_variants,) number of the author's earlier posts among those that taught the fit of a post."""
    taught = opened.posts.iloc[_side(opened, opened.fit_name(row))]
    own = taught[taught["Uid"] == opened.posts["Uid"].iloc[row]]
    return np.searchsorted(np.sort(post_times(own)), post_times(changed))


def _taught(
    opened: Opened, row: int, fit: str, features: str, changed: pd.DataFrame, values: np.ndarray, past: np.ndarray | None,
    moved: bool,
) -> np.ndarray | None:  # fmt: skip
    """(n_variants, t) label-taught columns of the changed posts, by the labels that taught the fit; None without."""
    kept = opened.keep(("taught", features, fit), lambda: opened.taught(features, fit))
    if kept is None:
        return None
    out = np.repeat(kept[[row]], len(changed), axis=0)
    if past is not None:
        own, new = past[-1], past[:-1]
        same = (new == own) | (np.isnan(new) & np.isnan(own))
        out[:, 1 : 1 + len(own)] = np.where(same, out[:, 1 : 1 + len(own)], new)  # what follows are tuned encoders
    if moved:
        out[:, 0] += _ridge(opened, row, fit, features, changed, values)
    return out


def _past_labels(opened: Opened, row: int, fit: str, changed: pd.DataFrame) -> np.ndarray:
    """(n_variants + 1, t - 1) past labels of author and tags, of the changed posts and last of the post itself."""
    tables = [changes_of.replaced(opened, row, changed.iloc[[place]]) for place in range(len(changed))]
    return np.array([_history(opened, posts, row, fit) for posts in (*tables, opened.posts)])


def _history(opened: Opened, posts: pd.DataFrame, row: int, fit: str) -> np.ndarray:
    """Past labels of a post's author and tags, of a posts table with the run's rows."""
    from kit.boosting.history import LabelHistory

    seed = changes_of.settings_of(opened, "06_gbdt_folds")["seed"]
    return LabelHistory(posts, seed).columns(opened.target, _side(opened, fit))[row]


def _side(opened: Opened, fit: str) -> np.ndarray:
    """Row positions that taught a fit."""
    if fit == "final":
        return np.flatnonzero(opened.posts["split"] == "train")
    return _folds(opened).rows(int(fit.removeprefix("fold_")))[0]


def _folds(opened: Opened) -> Folds:
    return opened.keep("folds", lambda: read_folds(Run(opened.run.dir), opened.posts, opened.scheme))


def _ridge(opened: Opened, row: int, fit: str, features: str, changed: pd.DataFrame, values: np.ndarray) -> np.ndarray:
    """(n_variants,) by how much the ridge on all words moves; it is fitted again, with the changed posts beside the others."""
    from kit.boosting.ridge import Design

    block, n = opened.block(features), len(opened.posts)
    weight = np.zeros(n + len(changed) + 1)
    weight[_side(opened, fit)] = 1
    alpha, view = opened.ridge(features, fit)
    stored = np.asarray(block.values[:], np.float32)
    posts = changes_of.extended(opened, row, changed)
    design = Design(
        Block(features, np.vstack([stored, values, stored[[row]]]), block.columns, block.categorical), posts
    )
    target = np.r_[opened.target, np.full(len(changed) + 1, np.nan)]
    made = design.predict(*design.fit(target, weight, alpha, view))[n:]
    return made[:-1] - made[-1]
