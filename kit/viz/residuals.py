"""Where predictions are off: residuals (label less prediction) by what is known of a post, calibration, extremes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kit.base.errors import InputError
from kit.viz.figures import COLOURS, INK, LABEL, SOFT, grid, styled

EXTREMES = ("worst", "over", "under", "median")
MIN_POSTS, MIN_AUTHOR_POSTS = 20, 5  # of a group, of an author that is drawn
CLASSES, AUTHORS = 14, 30  # groups drawn at most


@styled
def residuals(posts: pd.DataFrame, prediction: np.ndarray) -> Figure:
    """Mean residual by class, hour, age of the account and author, with 95 % ranges.

    Args:
        posts: the scored posts.
        prediction: (n,) out of fold.
    """
    residual = pd.Series(posts["label"].to_numpy() - prediction)
    posts = posts.reset_index(drop=True)
    age = (posts["Postdate"] - posts["photo_firstdate"]).dt.days / 365.25
    figure, axes = grid(2, 2, width=11, height=7.4)
    _by_class(axes[0, 0], residual, posts["Subcategory"].astype(str))
    _by_number(axes[0, 1], residual, posts["Postdate"].dt.hour, "hour (UTC)", "By hour")
    _by_number(axes[1, 0], residual, (4 * age).round() / 4 if age.max() < 8 else age.round(), "years since the first photo",
               "By age of the account")  # fmt: skip
    _by_author(axes[1, 1], residual, posts["Uid"])
    return figure


def _means(residual: pd.Series, group: pd.Series, least: int = MIN_POSTS) -> pd.DataFrame:
    """mean, ci (half of the 95 % range), n of the groups with posts enough."""
    table = residual.groupby(group.to_numpy()).agg(["mean", "std", "size"])
    table = table[table["size"] >= least]
    return table.assign(ci=1.96 * table["std"] / np.sqrt(table["size"]))


def _by_class(ax: Axes, residual: pd.Series, name: pd.Series) -> None:
    table = _means(residual, name)
    table = table.loc[table["mean"].abs().nlargest(CLASSES).index].sort_values("mean")
    labels = [f"{label[:24] or '(none)'} ({n:,})" for label, n in table["size"].items()]
    ax.barh(labels, table["mean"], xerr=table["ci"], height=0.7, color=_signs(table["mean"]), ecolor=SOFT)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="label less prediction", title="Subcategories that are furthest off (n)")
    if table.empty:
        nothing(ax)


def _by_number(ax: Axes, residual: pd.Series, value: pd.Series, name: str, title: str) -> None:
    table = _means(residual[value.notna()], value.dropna())
    ax.errorbar(
        table.index, table["mean"], yerr=table["ci"], fmt="o-", color=COLOURS["predicted"], ecolor=SOFT, markersize=4
    )
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.set(xlabel=name, ylabel="label less prediction", title=title)
    if table.empty:
        nothing(ax)


def _by_author(ax: Axes, residual: pd.Series, author: pd.Series) -> None:
    table = _means(residual, author, MIN_AUTHOR_POSTS)
    table = table.loc[table["size"].nlargest(AUTHORS).index].sort_values("mean")
    ax.errorbar(
        range(len(table)), table["mean"], yerr=table["ci"], fmt="o", color=COLOURS["train"], ecolor=SOFT, markersize=4
    )
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.set(xticks=[], xlabel="authors with most posts", ylabel="label less prediction",
           title=f"By author: {between_authors(residual, author):.0%} of the variance")  # fmt: skip
    if table.empty:
        nothing(ax, MIN_AUTHOR_POSTS)


def between_authors(residual: pd.Series, author: pd.Series) -> float:
    """Share of the squared residuals that the authors' own means explain, less what chance would; 0 to 1.

    Analysis of variance: authors of one post say nothing of it and are left out.
    """
    table = residual.groupby(author.to_numpy()).agg(["mean", "size", "var"])
    table = table[table["size"] > 1]
    n, k = table["size"].sum(), len(table)
    if k < 2 or n <= k:
        return 0.0
    within = float(((table["size"] - 1) * table["var"]).sum() / (n - k))
    mean = float((table["size"] * table["mean"]).sum() / n)
    across = float((table["size"] * (table["mean"] - mean) ** 2).sum() / (k - 1))
    per_author = (n - (table["size"] ** 2).sum() / n) / (k - 1)
    component = max(0.0, (across - within) / per_author)
    return component / (component + within) if component + within > 0 else 0.0


@styled
def calibration(target: np.ndarray, prediction: np.ndarray, n_bins: int = 15) -> Figure:
    """Mean label of posts by what was predicted, equally many per point, with the middle 80 % of their labels."""
    figure, axes = grid(1, 1, width=6.2, height=4.0)
    ax = axes[0, 0]
    parts = np.array_split(np.argsort(prediction, kind="stable"), min(n_bins, len(prediction)))
    x = np.array([prediction[part].mean() for part in parts])
    low, high = np.array([np.quantile(target[part], [0.1, 0.9]) for part in parts]).T
    ax.fill_between(x, low, high, color=COLOURS["actual"], alpha=0.18, linewidth=0, label="middle 80 % of the labels")
    ax.plot(x, x, color=INK, linewidth=0.8, label="as predicted")
    ax.plot(x, [target[part].mean() for part in parts], "o-", color=COLOURS["blend"], label="mean label")
    ax.set(xlabel="prediction, out of fold", ylabel=LABEL, title=f"Calibration (n = {len(target):,})")
    ax.legend(loc="upper left")
    return figure


@styled
def disagreement(apart: np.ndarray, error: np.ndarray, n_bins: int = 12) -> Figure:
    """Mean absolute error of posts by how far the models of the fusion lie apart, equally many posts per point."""
    figure, axes = grid(1, 1, width=6.2, height=3.2)
    parts = np.array_split(np.argsort(apart, kind="stable"), min(n_bins, len(apart)))
    x, y = ([values[part].mean() for part in parts] for values in (apart, error))
    axes[0, 0].plot(x, y, "o-", color=COLOURS["blend"])
    axes[0, 0].set(xlabel="standard deviation of the models (label units)", ylabel="MAE of the fusion",
                   title=f"Where the models disagree (n = {len(apart):,})")  # fmt: skip
    axes[0, 0].set_ylim(bottom=0)
    return figure


def extremes(target: np.ndarray, prediction: np.ndarray, which: str, n: int) -> np.ndarray:
    """(n,) positions of the posts that are "worst" predicted, "over" (too high), "under" (too low) or "median" (typical).

    Raises:
        InputError: another word.
    """
    if which not in EXTREMES:
        raise InputError(f"gallery {which!r}: choose one of {', '.join(EXTREMES)}")
    error = prediction - target
    size = np.abs(error)
    key = {"worst": -size, "over": -error, "under": error, "median": np.abs(size - np.median(size))}[which]
    return np.argsort(key, kind="stable")[:n]


def _signs(values: pd.Series) -> list[str]:
    return [COLOURS["better"] if value > 0 else COLOURS["worse"] for value in values]


def nothing(ax: Axes, least: int = MIN_POSTS) -> None:
    """Says why the axes are empty."""
    ax.text(0.5, 0.6, f"no group of {least} posts", transform=ax.transAxes, ha="center", color=SOFT)
    ax.set(xticks=[])
