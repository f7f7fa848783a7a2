"""Reading a release: ``kit.release.smpd.read_release`` against ``pandas.read_json`` of the same ten files.

The rival does less: it leaves ten tables whose rows nobody has compared, with dates and numbers as text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kit.release.smpd import read_release
from tests.bench.material import release
from tests.bench.measure import Case, Found, Measured, Task

BYTES_PER_MB = 2**20


def ours(folder: Path, n: int) -> Task:
    """One typed table of posts."""
    path = release(folder, n)
    return Task(lambda: read_release(path), lambda posts: _found([posts], [posts]), lambda posts, m: _size([posts], m))


def read_json(folder: Path, n: int) -> Task:
    """Ten tables as they come."""
    names = ("category", "text", "temporalspatial_information", "additional_information", "user_data")
    paths = [
        release(folder, n) / f"{part}_allmetadata_json" / f"{part}_{name}.json"
        for part in ("train", "test")
        for name in names
    ]
    return Task(
        lambda: [pd.read_json(path) for path in paths],
        lambda tables: _found([t for t in tables if "Title" in t], [t for t in tables if "Concept" in t]),
        _size,
    )


def _found(texts: list[pd.DataFrame], classes: list[pd.DataFrame]) -> Found:
    """Ids, words and classes (n_posts,) of tables of consecutive posts."""
    columns = {name: pd.concat([table[name] for table in texts]) for name in ("Pid", "Uid", "Title", "Alltags")}
    columns["Concept"] = pd.concat([table["Concept"] for table in classes])
    return {name: column.astype(object).fillna("").to_numpy().astype(np.str_) for name, column in columns.items()}


def _size(tables: list[pd.DataFrame], measured: Measured) -> str:
    """How large the tables are, and how many times that was held at most beyond what was there before."""
    size = sum(table.memory_usage(deep=True).sum() for table in tables) / BYTES_PER_MB
    return f"table {size:,.1f} MB, added at most {(measured.peak_mb - measured.base_mb) / size:.1f} x table"


CASES = (Case(__name__, "ten JSON files", {"ours": ours, "pandas.read_json": read_json}, release),)
