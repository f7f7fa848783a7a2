"""What can be said about a block before a model sees it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.run.block import Block


def label_correlation(block: Block, labels: pd.Series) -> pd.DataFrame:
    """Spearman correlation of each column of a block with the label over the train posts, strongest first.

    Args:
        block: rows are the posts.
        labels: (n_posts,) float, NaN in the test part.
    Returns:
        columns: column, correlation (NaN for a column that is constant over the train posts), filled (%).
    """
    train = np.flatnonzero(labels.notna())
    train_labels = labels.iloc[train].reset_index(drop=True)
    rows = []
    for i, name in enumerate(block.columns):  # one at a time: ranks of a whole block are five times its size
        values = pd.Series(np.asarray(block.values[train, i], dtype=np.float32))
        filled = values.notna()  # ranks among the posts that have both
        ranks = values[filled].rank().corr(train_labels[filled].rank()) if values.nunique() > 1 else np.nan
        rows.append((name, ranks, 100 * filled.mean()))
    table = pd.DataFrame(rows, columns=["column", "correlation", "filled (%)"])
    return table.sort_values("correlation", key=np.abs, ascending=False, ignore_index=True)
