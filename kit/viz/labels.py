"""How popular posts are by what is known of them, before anything is learned."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kit.viz.figures import COLOURS, LABEL, grid, styled
from kit.viz.residuals import MIN_AUTHOR_POSTS, MIN_POSTS, between_authors, nothing

MOST_TAGS = 30  # posts with more stand with these


@styled
def label_by(posts: pd.DataFrame) -> Figure:
    """Median label, and the quartiles, by hour, by number of tags, by photos of the account and by author.

    Args:
        posts: the posts table; train posts are drawn.
    """
    posts = posts[posts["label"].notna()]
    label = posts["label"]
    figure, axes = grid(1, 4, width=13.5, height=3.0, share_y=True)
    _band(axes[0, 0], label, posts["Postdate"].dt.hour, "hour (UTC)", "By hour")
    n_tags = posts["Alltags"].str.split().str.len().clip(upper=MOST_TAGS)
    _band(axes[0, 1], label, n_tags, f"tags ({MOST_TAGS}: and more)", "By number of tags")
    photos = np.floor(2 * np.log10(posts["photo_count"].clip(lower=1))) / 2
    _band(axes[0, 2], label, photos, "log10 of the account's photos", "By photos of the account")
    by_author = label.groupby(posts["Uid"]).agg(["median", "size"]).query("size >= @MIN_AUTHOR_POSTS")["median"]
    axes[0, 3].hist(by_author, bins=20, orientation="horizontal", color=COLOURS["train"])
    if by_author.empty:
        nothing(axes[0, 3], MIN_AUTHOR_POSTS)
    share = between_authors(label, posts["Uid"])
    axes[0, 3].set(xlabel=f"authors of {MIN_AUTHOR_POSTS} posts and more", title=f"By author: {share:.0%} of variance")
    axes[0, 0].set_ylabel(LABEL)
    return figure


def _band(ax: Axes, label: pd.Series, group: pd.Series, name: str, title: str) -> None:
    """Median and quartiles of the groups with posts enough."""
    table = label.groupby(group).agg(["size", "median", lambda x: x.quantile(0.25), lambda x: x.quantile(0.75)])
    table = table[table["size"] >= MIN_POSTS]
    ax.fill_between(table.index, table.iloc[:, 2], table.iloc[:, 3], color=COLOURS["actual"], alpha=0.2, linewidth=0)
    ax.plot(table.index, table["median"], "o-", color=COLOURS["blend"], markersize=4)
    ax.set(xlabel=name, title=title)
    if table.empty:
        nothing(ax)
