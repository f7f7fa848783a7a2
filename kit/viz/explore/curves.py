"""What a person who posts wants to know: which hour, which day, which tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kit.base.errors import InputError
from kit.viz.explore import alike, page
from kit.viz.explore.opened import Opened
from kit.viz.explore.what_if import WhatIf, what_if
from kit.viz.figures import COLOURS, SOFT, WEEKDAYS, grid, styled

ASKED = 50  # posts by others with most of the tags in common, whose tags are tried


def best_hour(opened: Opened, pid: str | int, step: int = 2) -> tuple[Figure, WhatIf]:
    """The prediction over the hours (UTC) of the post's own day, every `step` hours, and over the days of its week.

    Raises:
        InputError: as in `what_if`, or a step out of range.
    """
    if not 1 <= step <= 12:
        raise InputError(f"step={step}: expected 1 to 12 hours")
    own = opened.posts["Postdate"].iloc[opened.predicted_row(pid)]
    hours = [{"hour": hour} for hour in range(0, 24, step)]
    found = what_if(opened, pid, [*hours, *({"weekday": day} for day in range(7))])
    return _time_curves(found, len(hours), own), found


@styled
def _time_curves(found: WhatIf, n_hours: int, own: pd.Timestamp) -> Figure:
    figure, axes = grid(1, 2, width=10.5, height=3.1, share_y=True, widths=(1.5, 1))
    parts = {"hour": found.table[:n_hours], "weekday": found.table[n_hours:]}
    for ax, (name, table) in zip(axes[0], parts.items(), strict=True):
        x = table[name].to_numpy()
        _band(ax, x, table, found.stored)
        now = getattr(own, name) if name == "hour" else own.weekday()
        ax.axvline(now, color=COLOURS["blend"], linewidth=1, linestyle="--")
        ax.set(xlabel=f"{name} (UTC)")
    axes[0, 0].set_title(f"Post {found.pid} by hour (dashed: as posted)")
    axes[0, 1].set(title="by weekday", xticks=range(7), xticklabels=WEEKDAYS)
    axes[0, 0].set(ylabel="prediction", xticks=range(0, 24, 3))
    axes[0, 0].legend(fontsize=8)
    return figure


def _band(ax: Axes, x: np.ndarray, table: pd.DataFrame, stored: float) -> None:
    """The fusion, and between which changes its models lie."""
    ax.fill_between(x, stored + table["models_low"], stored + table["models_high"], color=COLOURS["predicted"], alpha=0.2,
                    linewidth=0, label="changes by single models")  # fmt: skip
    ax.plot(x, table["prediction"], "o-", color=COLOURS["predicted"], label="fusion")
    ax.axhline(stored, color=SOFT, linewidth=0.8)


def which_tags(opened: Opened, pid: str | int, more: Sequence[str] = (), n: int = 6) -> page.Shown:
    """What the prediction becomes without each of the post's first n tags, and with each of some others.

    Args:
        more: tags to try; by default the n that posts by others with the same tags, or of the same subcategory, use most.

    Raises:
        InputError: as in `what_if`.
    """
    row = opened.predicted_row(pid)
    own = opened.posts["Alltags"].iloc[row].split()
    more = list(more) or _company(opened, row, own, n)
    variants = [{"tags": " ".join(other for other in own if other != tag)} for tag in dict.fromkeys(own[:n])]
    names = [f"without {tag}" for tag in dict.fromkeys(own[:n])] + [f"with {tag}" for tag in more]
    variants += [{"tags": " ".join([*own, tag])} for tag in more]
    if not variants:
        raise InputError(f"post {pid} has no tags, and none are given in `more`")
    found = what_if(opened, pid, variants)
    table = found.table.assign(what=names).sort_values("change", ascending=False, ignore_index=True)
    notes = [
        f"single models {low:+.2f} to {high:+.2f}"
        for low, high in zip(table["models_low"], table["models_high"], strict=True)
    ]
    head = f"Post {found.pid}, predicted {found.stored:.2f}. Held fixed: {'; '.join(found.held)}."
    return page.Shown(table, page.bars_html(list(zip(table["what"], notes, table["change"], strict=True)), head))


def _company(opened: Opened, row: int, own: Sequence[str], n: int) -> list[str]:
    """The tags that like posts of other authors have most often, and this one has not."""
    others = np.flatnonzero((opened.posts["Uid"] != opened.posts["Uid"].iloc[row]).to_numpy())
    cosine = alike.cosines(alike.vectors(opened, "tags"), row)[others]
    like = others[np.argsort(-cosine, kind="stable")[:ASKED]]
    if not own or cosine.max(initial=0) == 0:
        peers = (opened.posts["Subcategory"] == opened.posts["Subcategory"].iloc[row]).to_numpy()[others]
        like = others[peers]
    known = {tag.lower() for tag in own}
    used = Counter(tag for text in opened.posts["Alltags"].iloc[like] for tag in set(text.lower().split()) - known)
    return [tag for tag, _ in sorted(used.items(), key=lambda item: (-item[1], item[0]))[:n]]
