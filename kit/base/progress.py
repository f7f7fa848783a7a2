"""A progress bar in a terminal, one line per 10 s elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator

from kit.base.process import TASK

SECONDS_BETWEEN_LINES = 10.0


def progress(items: Iterable, total: int | None = None, label: str = "", unit: str = "it") -> Iterator:
    """The items, with a tqdm bar in a terminal and otherwise at most one line per 10 s: count, rate, time left.

    A worker process says nothing: whoever waits for it tells how many tasks are done.
    """
    if TASK in os.environ:
        yield from items
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, unit=unit)
        return
    total = total if total is not None else len(items) if hasattr(items, "__len__") else None
    started = last = time.perf_counter()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(_progress_line(label, unit, count, total, now - started), flush=True)


def _progress_line(label: str, unit: str, count: int, total: int | None, elapsed_s: float) -> str:
    rate = count / max(elapsed_s, 1e-9)
    speed = f"{rate:,.1f} {unit}/s" if rate >= 1 else f"{1 / rate:,.1f} s/{unit}"
    line = f"{label}: {count:,}" + (f" of {total:,}" if total else "") + f" {unit}, {speed}"
    return line + (f", {(total - count) / rate:,.0f} s left" if total else "")
