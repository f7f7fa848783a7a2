"""Columns taught by labels, ridge and past labels, of one training side: what a fold of notebook 06 needs twice.

The ridge reads every word and tag, so it is the stage that a real vocabulary weighs on most.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kit.boosting.taught import TaughtColumns
from kit.features.statistic import statistic_block
from kit.run.folds import fold_rows, inner_holdout, make_folds
from tests.bench.material import posts_table
from tests.bench.measure import Case, Task, n_threads

SEED = 0


def ours(folder: Path, n: int) -> Task:
    """Both sides of a fold: without the authors who decide when to stop, and with them."""
    posts = posts_table(folder, n)
    block, target = statistic_block(posts), posts["label"].to_numpy()
    train_idx, _ = fold_rows(make_folds(posts, 5, "user", SEED), 0)
    fit_idx, _ = inner_holdout(posts, train_idx, 0.2, SEED)

    def work() -> list[np.ndarray]:
        teachers = TaughtColumns(block, target, posts, np.zeros(n), SEED, None)
        return [teachers.columns(rows, np.ones(n), n_threads(), fit_idx)[1] for rows in (fit_idx, train_idx)]

    return Task(
        work,
        lambda found: {"columns": np.hstack(found)},
        lambda found, measured: f"{len(train_idx):,} posts teach; {len(block.columns)} columns, every tag and word",
    )


CASES = (Case(__name__, "taught columns of a fold", {"ours": ours}, posts_table),)
