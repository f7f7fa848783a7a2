"""Pick lists and sliders over an `Explorer`, for those who like them; every answer comes without, too."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ipywidgets
from IPython.display import display

from kit.base.errors import InputError
from kit.base.process import HEADLESS
from kit.viz.explore.explorer import Explorer
from kit.viz.figures import WEEKDAYS

AS_POSTED = "as posted"


def panel(look: Explorer) -> ipywidgets.Widget | str:
    """A post by its Pid and a question from a list; and sliders for what could be changed in it.

    In a run of the pipeline only words: nobody moves a slider there, and nbclient at times waits for ever for an output widget.
    """
    if HEADLESS in os.environ:
        return "Sliders and pick lists appear where this notebook is opened by hand: ./run_all.sh --lab"
    pids = look.pids
    views: dict[str, Callable[[str], Any]] = {
        "post": look.post, "why": look.why, "like it by image": look.neighbours,
        "like it by text": lambda pid: look.neighbours(pid, "text"), "like it by tags": lambda pid: look.neighbours(pid, "tags"),
        "best hour": lambda pid: look.best_hour(pid)[0], "which tags": look.which_tags, "words": look.words,
    }  # fmt: skip
    pid = ipywidgets.Combobox(value=next(iter(pids.values())), options=list(pids.values()), description="Pid")
    view = ipywidgets.Dropdown(options=list(views), description="show")
    hour = ipywidgets.SelectionSlider(options=[AS_POSTED, *range(24)], description="hour", continuous_update=False)
    weekday = ipywidgets.Dropdown(
        options=[(AS_POSTED, None), *zip(WEEKDAYS, range(7), strict=True)], description="weekday"
    )
    title, tags = (
        ipywidgets.Text(description=name, placeholder=AS_POSTED, continuous_update=False) for name in ("title", "tags")
    )

    def show(pid: str, view: str) -> None:
        _answer(lambda: views[view](pid))

    def change(pid: str, hour: Any, weekday: int | None, title: str, tags: str) -> None:
        asked = {"hour": None if hour == AS_POSTED else hour, "weekday": weekday, "title": title, "tags": tags}
        _answer(lambda: look.what_if(pid, **{name: value for name, value in asked.items() if value not in (None, "")}))

    shown = ipywidgets.interactive_output(show, {"pid": pid, "view": view})
    changed = {"pid": pid, "hour": hour, "weekday": weekday, "title": title, "tags": tags}
    below = ipywidgets.interactive_output(change, changed)
    return ipywidgets.VBox([ipywidgets.HBox([pid, view]), shown, ipywidgets.HBox([hour, weekday]), title, tags, below])


def _answer(ask: Callable[[], Any]) -> None:
    """Show an answer, or why there is none."""
    try:
        display(ask())
    except InputError as mistake:
        print(mistake)
