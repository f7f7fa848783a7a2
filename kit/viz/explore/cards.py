"""Posts as HTML cards, in which a title of any script is legible, and what stands on them as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from kit.run.folds import TEST
from kit.viz.explore import page
from kit.viz.explore.opened import Opened
from kit.viz.explore.why import why

LONGEST_TAGS = 300  # characters of a post's tags on a card


def post(opened: Opened, pid: str | int) -> page.Shown:
    """One post: picture, texts, author's past, label, what is predicted by models that did not see it, rank in its class."""
    row = opened.row(pid)
    return page.Shown(_facts(opened, row).rename("value").to_frame(), page.page("post", _card(opened, row)))


def explained(opened: Opened, pids: Sequence[str]) -> str:
    """Some posts, each with what makes its prediction; a fragment of HTML."""
    macros = page.macros()
    parts = [macros.post(_card(opened, opened.row(pid))) + macros.why(page.why_rows(why(opened, pid))) for pid in pids]
    return str(Markup('<div class="kx">{}{}</div>').format(macros.style(), Markup("<hr>").join(parts)))


def gallery(opened: Opened, rows: Sequence[int], more: Sequence[str] = ()) -> page.Shown:
    """Posts as a grid of small cards.

    Args:
        rows: their positions.
        more: a line more on each card.
    """
    posts = opened.posts.iloc[rows]
    table = posts[["Pid", "Title", "Category", "Subcategory", "label"]].assign(prediction=opened.prediction[rows])
    return page.Shown(table.reset_index(drop=True), page.grid(table, posts["image_path"], more))


def _facts(opened: Opened, row: int) -> pd.Series:
    """What is known of a post, in words."""
    posts, one = opened.posts, opened.posts.iloc[row]
    when = "no date" if pd.isna(one["Postdate"]) else f"{one['Postdate']:%A, %Y-%m-%d %H:%M} UTC"
    facts = {
        "post": f"{one['Pid']}, {one['split']} part, by {one['Uid']}",
        "class": " / ".join(str(one[name]) for name in ("Category", "Subcategory", "Concept")),
        "posted": when,
        "author's past": _past(posts, row),
    }
    if np.isfinite(one["label"]):
        facts["label"] = f"{one['label']:.2f}, {_rank(opened.target, posts, row)}"
    if np.isfinite(opened.prediction[row]):
        by = "the submission" if opened.fold[row] == TEST else f"models of fold {opened.fold[row]} by {opened.scheme}"
        error = f" (error {opened.prediction[row] - one['label']:+.2f})" if np.isfinite(one["label"]) else ""
        facts["predicted"] = f"{opened.prediction[row]:.2f}{error} by {by}, {_rank(opened.prediction, posts, row)}"
    return pd.Series(facts)


def _past(posts: pd.DataFrame, row: int) -> str:
    """Earlier posts of the author, and how those with a label did."""
    earlier = (posts["Uid"] == posts["Uid"].iloc[row]) & (posts["Postdate"] < posts["Postdate"].iloc[row])
    labels = posts["label"][earlier].dropna()
    how = f", median label {labels.median():.2f}" if len(labels) else ""
    return f"{earlier.sum():,} earlier posts{how}" if earlier.any() else "no earlier post"


def _rank(values: np.ndarray, posts: pd.DataFrame, row: int) -> str:
    """Place of a value among the posts of its subcategory and part that have one."""
    peers = (posts["Subcategory"] == posts["Subcategory"].iloc[row]) & (posts["split"] == posts["split"].iloc[row])
    peers = values[peers.to_numpy() & np.isfinite(values)]
    return f"place {1 + int((peers > values[row]).sum()):,} of {len(peers):,} in its subcategory"


def _card(opened: Opened, row: int) -> dict[str, Any]:
    one = opened.posts.iloc[row]
    models = [
        {"model": name, "weight": weight, "prediction": opened.predictions[name][row]}
        for name, weight in opened.weights.items()
        if np.isfinite(opened.predictions[name][row])
    ]
    tags = one["Alltags"] if len(one["Alltags"]) <= LONGEST_TAGS else one["Alltags"][:LONGEST_TAGS] + " ..."
    return {"picture": page.thumbnail(one["image_path"], page.BIG_PX), "title": one["Title"], "tags": tags,
            "facts": _facts(opened, row).to_dict(), "models": models}  # fmt: skip
