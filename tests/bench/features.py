"""Making features: blocks ``statistic`` and ``behaviour`` against groupby and apply, and all of both blocks at full size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from kit.features.behaviour import behaviour_block
from kit.features.statistic import statistic_block
from kit.run.block import Block
from tests.bench import features_plain
from tests.bench.material import posts_table
from tests.bench.measure import Case, Found, Task, same_values

STATISTIC = ("counts",)
BEHAVIOUR = ("tag_frequency", "posting_rhythm", "author_history", "albums", "windows")
TOLERANCE = 1e-4  # our columns are float32


def chosen(folder: Path, n: int) -> Task:
    """The families that the plain version has, too."""
    posts = posts_table(folder, n)
    return Task(
        lambda: [statistic_block(posts, STATISTIC), behaviour_block(posts, BEHAVIOUR)],
        lambda blocks: {
            name: values for block in blocks for name, values in zip(block.columns, block.values.T, strict=True)
        },
        lambda blocks, measured: (
            f"{sum(len(block.columns) for block in blocks)} columns of {', '.join((*STATISTIC, *BEHAVIOUR))}"
        ),
    )


def plain(folder: Path, n: int) -> Task:
    """The same columns by groupby and apply, those included that ours leaves out for being constant."""
    posts = posts_table(folder, n)
    families = [getattr(features_plain, name) for name in (*STATISTIC, *BEHAVIOUR)]
    return Task(
        lambda: [family(posts) for family in families],
        lambda frames: {name: frame[name].to_numpy() for frame in frames for name in frame},
    )


def whole(block: Callable[[pd.DataFrame], Block], folder: Path, n: int) -> Task:
    """All families of a block, as notebook 04 makes it."""
    posts = posts_table(folder, n)
    return Task(
        lambda: block(posts),
        lambda made: {name: made.values[:, i] for i, name in enumerate(made.columns)},
        lambda made, measured: f"{len(made.columns)} columns",
    )


def _differs(ours: Found, other: Found) -> str:
    return same_values(ours, other, rtol=TOLERANCE, atol=TOLERANCE)


CASES = (
    Case(
        __name__,
        "six families",
        {"ours": chosen, "groupby, apply": plain},
        posts_table,
        "rival_posts",
        _differs,
    ),
    Case(__name__, "block statistic, all families", {"ours": partial(whole, statistic_block)}, posts_table),
    Case(__name__, "block behaviour, all families", {"ours": partial(whole, behaviour_block)}, posts_table),
)
