"""A progress bar in a terminal, one line per 10 s elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kit.base.process import TASK

SECONDS_BETWEEN_LINES = 10.0


def progress(
    items: Iterable, total: int | None = None, label: str = "", unit: str = "it", worked: Callable[[Any], float] | None = None
) -> Iterator:  # fmt: skip
    """The items, with a tqdm bar in a terminal and otherwise at most one line per 10 s: count, rate, time left.

    A worker process says nothing: whoever waits for it tells how many tasks are done.

    Args:
        worked: of an item that is finished, the share of its work that this call did and did not read back from an earlier
            one; rate and time left are of this work alone.
    """
    if TASK in os.environ:
        yield from items
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, unit=unit)
        return
    total = total if total is not None else len(items) if hasattr(items, "__len__") else None
    started, done = (last := time.perf_counter()), 0.0
    for count, item in enumerate(items, start=1):
        yield item
        done += worked(item) if worked else 1
        now = time.perf_counter()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(_progress_line(label, unit, count, total, done / (now - started)), flush=True)


def _progress_line(label: str, unit: str, count: int, total: int | None, rate: float) -> str:
    line = f"{label}: {count:,}" + (f" of {total:,}" if total else "") + f" {unit}"
    if not rate:
        return f"{line}, read back so far"
    line += f", {rate:,.1f} {unit}/s" if rate >= 1 else f", {1 / rate:,.1f} s/{unit}"
    return line + (f", {(total - count) / rate:,.0f} s left" if total else "")
