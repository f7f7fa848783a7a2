"""What can be said about a block before a model sees it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from kit.run.block import Block
from kit.run.matrix import columns_of


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
    for name, column in columns_of(block):  # one at a time: ranks of a whole block are five times its size
        values = pd.Series(column[train])
        filled = values.notna()  # ranks among the posts that have both
        ranks = values[filled].rank().corr(train_labels[filled].rank()) if values.nunique() > 1 else np.nan
        rows.append((name, ranks, 100 * filled.mean()))
    table = pd.DataFrame(rows, columns=["column", "correlation", "filled (%)"])
    return table.sort_values("correlation", key=np.abs, ascending=False, ignore_index=True)


def drift(block: Block, split: pd.Series) -> pd.DataFrame:
    """How differently each column of a block is distributed in train and test.

    Args:
        block: rows are the posts.
        split: (n_posts,) "train" or "test".
    Returns:
        column, distance (Kolmogorov-Smirnov, over posts that have a value), train, test (means); empty without test posts.
    """
    train, test = (np.flatnonzero(split == part) for part in ("train", "test"))
    rows = []
    for name, column in columns_of(block):
        parts = [column[rows_of].astype(np.float64) for rows_of in (train, test)]
        parts = [part[np.isfinite(part)] for part in parts]
        if min(map(len, parts)):
            rows.append((name, ks_2samp(*parts, method="asymp").statistic, *(part.mean() for part in parts)))
    return pd.DataFrame(rows, columns=["column", "distance", "train", "test"])
