"""Where the fusion is wrong: posts that are predicted worst, where its models disagree, what another feature set moves."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from kit.base.errors import InputError
from kit.base.metrics import mae, src
from kit.viz import residuals
from kit.viz.explore import cards, page
from kit.viz.explore.opened import Opened


def gallery(opened: Opened, which: str = "worst", category: str = "", n: int = 12) -> page.Shown:
    """Train posts by their out-of-fold error.

    Args:
        which: "worst" (largest error), "over" (predicted too high), "under" (too low), "median" (as wrong as half of them).
        category: of these posts only; "" for all.
        n: posts shown.

    Raises:
        InputError: another word, or no scored post of that category.
    """
    rows = scored(opened, category)
    return cards.gallery(opened, rows[residuals.extremes(opened.target[rows], opened.prediction[rows], which, n)])


def scored(opened: Opened, category: str = "") -> np.ndarray:
    """Row positions of the posts with a label and an out-of-fold prediction, of one category or all.

    Raises:
        InputError: there is none.
    """
    rows = np.isfinite(opened.target) & np.isfinite(opened.prediction)
    if category:
        rows &= (opened.posts["Category"] == category).to_numpy()
    if not rows.any():
        known = ", ".join(sorted(opened.posts["Category"].astype(str).unique()))
        raise InputError(f"no scored post of category {category!r}; categories are {known}")
    return np.flatnonzero(rows)


def disagreement(opened: Opened, n: int = 12) -> tuple[Figure, page.Shown]:
    """Error against how far the fused models lie apart, and the posts on which they differ most (of both parts).

    The distance is the weighted standard deviation of the models with weight in the fusion.
    """
    apart = _apart(opened)
    rows = scored(opened)
    figure = residuals.disagreement(apart[rows], np.abs(opened.target - opened.prediction)[rows])
    most = np.argsort(-np.nan_to_num(apart, nan=-1), kind="stable")[:n]
    lowest, highest = _ends(opened, most)
    more = [f"models {low:.2f} to {high:.2f}" for low, high in zip(lowest, highest, strict=True)]
    shown = cards.gallery(opened, most, more)
    return figure, page.Shown(shown.table.assign(apart=apart[most], lowest=lowest, highest=highest), shown.html)


def _apart(opened: Opened) -> np.ndarray:
    weights = np.array(list(opened.weights.values()))
    values = np.column_stack([opened.predictions[name] for name in opened.weights])
    mean = values @ weights / weights.sum()
    return np.sqrt(np.square(values - mean[:, None]) @ weights / weights.sum())


def _ends(opened: Opened, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.column_stack([opened.predictions[name][rows] for name in opened.weights])
    return values.min(axis=1), values.max(axis=1)


def compare(opened: Opened, first: str, second: str, n: int = 12) -> page.Shown:
    """The posts that another feature set moves most, by the means of their models; and whether that is for the better.

    Args:
        first, second: names of feature sets of 06.

    Returns:
        A table of all predicted posts: Pid, Title, Category, label, first, second, moved, better (how much smaller the
        error is; NaN without a label), largest move first; and the first n as cards.

    Raises:
        InputError: the run has no such feature set.
    """
    known = list(dict.fromkeys(name.rpartition("/")[0] for name in opened.predictions))
    if unknown := [name for name in (first, second) if name not in known]:
        raise InputError(f"no feature set {unknown[0]!r} in this run; it has {', '.join(known)}")
    mean = {one: np.mean([values for name, values in opened.predictions.items() if name.rpartition("/")[0] == one], axis=0)
            for one in (first, second)}  # fmt: skip
    better = np.abs(opened.target - mean[first]) - np.abs(opened.target - mean[second])
    table = opened.posts[["Pid", "Title", "Category", "label"]].assign(
        first=mean[first], second=mean[second], moved=mean[second] - mean[first], better=better)  # fmt: skip
    table = table[table["moved"].notna()].sort_values("moved", key=np.abs, ascending=False)
    more = [f"moved {one.moved:+.2f}" + (f", error {-one.better:+.2f}" if np.isfinite(one.better) else "")
            for one in table[:n].itertuples()]  # fmt: skip
    both = np.flatnonzero(np.isfinite(better))
    scores = {
        one: (src(opened.target[both], mean[one][both]), mae(opened.target[both], mean[one][both])) for one in mean
    }
    head = f"{len(both):,} scored posts, {np.mean(better[both] > 0):.0%} of them predicted better by {second}: " + "; ".join(
        f"{one} SRC {rank:.4f}, MAE {error:.4f}" for one, (rank, error) in scores.items())  # fmt: skip
    html = cards.gallery(opened, table.index[:n].to_numpy(), more).html
    return page.Shown(table.reset_index(drop=True), f"<p>{head}</p>{html}")
