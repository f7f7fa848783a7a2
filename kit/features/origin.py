"""Where a column comes from: its block, and the family of features that makes it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from kit.features import behaviour, statistic
from kit.features.families import Context
from kit.run.directory import Run
from kit.run.matrix import join_blocks

SAMPLE = 300  # posts that tell which family makes which column
MAKERS = {"statistic": (statistic.FAMILIES, Context), "behaviour": (behaviour.FAMILIES, behaviour.AuthorContext)}


def origins(run: Run, posts: pd.DataFrame, blocks: Sequence[str]) -> pd.DataFrame:
    """block, family, column of each column of the blocks side by side; blocks not made of families are named by column."""
    read, rows = [run.read_block(name) for name in blocks], []
    for block in read:
        makers = _makers(posts, block.name)
        rows += [(block.name, makers.get(stem := _stem(column)) or stem.strip("_# ")) for column in block.columns]
    return pd.DataFrame(rows, columns=["block", "family"]).assign(column=join_blocks(read).columns)


def _makers(posts: pd.DataFrame, block: str) -> dict[str, str]:
    """Stem of a column name -> the family that makes it, for the blocks made of families."""
    if block not in MAKERS:
        return {}
    families, context = MAKERS[block]
    some = context(posts.iloc[:SAMPLE].reset_index(drop=True), 2, 5, 0)
    made = {_stem(column): name for name, family in families.items() for column in family(some)}
    return made | {"title_char_svd_#": "title_svd"}


def _stem(column: str) -> str:
    return re.sub(r"\d+$", "#", column)
