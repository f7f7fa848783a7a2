"""Posts and answers as HTML, in which a title of any script is legible; light and dark follow the page around it."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from kit.release.images import decode_image

TEMPLATE = Path(__file__).with_name("cards.html.j2")
SMALL_PX, BIG_PX = 180, 260  # side of a picture on a card
LEAST_SPAN = 0.5  # label units that bars span at least: nothing looks large that is not
SHOWN_FAMILIES, SHOWN_COLUMNS = 12, 10


@dataclass(frozen=True)
class Shown:
    """A table for programs, and the same as HTML for people."""

    table: pd.DataFrame
    html: str

    def _repr_html_(self) -> str:
        return self.html


def grid(table: pd.DataFrame, image_paths: Sequence[str], more: Sequence[str] = ()) -> str:
    """Small cards from a table with Pid, Title, Category, label, prediction (NaN where there is none); a fragment of HTML."""
    cards = []
    for place, (one, path) in enumerate(zip(table.itertuples(), image_paths, strict=True)):
        numbers = f"{_number(one.label, 'label')}, {_number(one.prediction, 'predicted')}".strip(", ")
        lines = [numbers, f"{one.Category} · {one.Pid}", *more[place : place + 1]]
        cards.append(
            {"picture": thumbnail(path, SMALL_PX), "title": one.Title, "lines": [line for line in lines if line]}
        )
    return page("grid", cards)


def thumbnail(path: str, side_px: int) -> str:
    """A picture as base64 of a JPEG of at most that side; "" where there is none."""
    image, reason = decode_image(path, side_px)
    if reason:
        return ""
    image.thumbnail((side_px, side_px))
    content = BytesIO()
    image.save(content, "JPEG", quality=80)
    return base64.b64encode(content.getvalue()).decode()


def bars_html(rows: Sequence[tuple[str, str, float]], head: str) -> str:
    """Rows of name, note and value as bars below a line of text; a fragment of HTML."""
    return page("told_bars", {"head": head, "rows": _bars(rows)})


def why_rows(found: Any) -> dict[str, Any]:
    """`why.Why` as the template takes it."""
    families, columns = found.families[:SHOWN_FAMILIES], found.columns[:SHOWN_COLUMNS]
    left = found.families[SHOWN_FAMILIES:]
    rows = [(f"{one.family.replace('_', ' ')}", one.block, one.contribution) for one in families.itertuples()]
    rows += [("all others", f"{len(left)} families", left["contribution"].sum())] if len(left) else []
    single = [(one.column, _value(one.value), one.contribution) for one in columns.itertuples()]
    return {"prediction": found.prediction, "base": found.base, "families": _bars(rows), "columns": _bars(single)}


def _bars(rows: Sequence[tuple[str, str, float]]) -> list[dict[str, Any]]:
    """Rows with the place of their bars, in percent: all on one scale that holds zero."""
    values = [value for _, _, value in rows]
    low, high = min(0.0, *values), max(0.0, *values)
    span = max(high - low, LEAST_SPAN)
    return [
        {"name": name, "note": note, "value": value, "left": round(100 * (min(value, 0) - low) / span, 1),
         "width": max(1, round(100 * abs(value) / span, 1))}
        for name, note, value in rows
    ]  # fmt: skip


def _value(value: float) -> str:
    return "missing" if np.isnan(value) else f"{value:.4g}"


def _number(value: float, name: str) -> str:
    return f"{name} {value:.2f}" if np.isfinite(value) else ""


def page(macro: str, value: Any) -> str:
    """A macro of the template with its style; a fragment of HTML."""
    used = macros()
    return str(Markup('<div class="kx">{}{}</div>').format(used.style(), getattr(used, macro)(value)))


@functools.cache
def macros() -> Any:
    """The macros of the template."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).module
