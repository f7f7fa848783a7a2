"""What test posts share with train posts, and what that is worth: same author, same title, a picture that looks the same.

A model that memorises such pairs looks good on folds that part them at random. The worth is measured on the train part: how
near the mean label of its partners is to a post's own.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.base.metrics import mae, src
from kit.release.near_same import picture_groups

RANKED = 30  # posts below which a rank correlation says nothing


def shared_table(posts: pd.DataFrame, pictures: bool = True) -> pd.DataFrame:
    """A row for everything that posts may share, with any author or with others alone.

    Args:
        posts: the posts table; `Uid`, `Title`, `image_path`, `split` and, of train posts, `label` are read.
        pictures: read them all, for the rows about pictures.

    Returns:
        shared; test, test (%): test posts with a partner in the train part; train, train (%): train posts with another one
        there; of those: src and mae of their partners' mean label, and mae_median, that of the median of all train labels.
    """
    title = posts["Title"].fillna("").astype(str).str.strip().str.lower()
    keys = {"title": np.where(title == "", -1, pd.factorize(title)[0])}
    keys |= {"picture that looks the same": picture_groups(posts["image_path"].tolist())} if pictures else {}
    author, row = pd.factorize(posts["Uid"])[0], np.arange(len(posts))
    label = np.where(posts["split"] == "train", posts["label"].to_numpy(dtype=np.float64), np.nan)
    rows = [{"shared": "author", **_worth(author, row, label)}]
    for name, key in keys.items():
        rows.append({"shared": name, **_worth(key, row, label)})
        rows.append({"shared": f"{name}, other author", **_worth(key, author, label)})
    return pd.DataFrame(rows)


def _worth(key: np.ndarray, unlike: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """What partners say: train posts (those with a label) of the same key, -1 for none, that differ in `unlike`."""
    train, keyed = np.isfinite(label), key >= 0
    _, pair = np.unique(key * (unlike.max(initial=0) + 1) + unlike, return_inverse=True)
    n, total = np.zeros((2, len(key)))
    for values, sums in ((train & keyed, n), (np.where(train & keyed, label, 0), total)):
        sums[keyed] = np.bincount(key[keyed], values[keyed])[key[keyed]] - np.bincount(pair, values)[pair[keyed]]
    found = n > 0
    taught = found & train
    said, constant = np.round(total[taught] / n[taught], 9), np.full(taught.sum(), np.median(label[train]))
    return {
        "test": (found & ~train).sum(), "test (%)": 100 * (found & ~train).sum() / max(1, (~train).sum()),
        "train": taught.sum(), "train (%)": 100 * taught.sum() / max(1, train.sum()),
        "src": src(label[taught], said) if taught.sum() >= RANKED else np.nan,
        "mae": mae(label[taught], said) if taught.any() else np.nan,
        "mae_median": mae(label[taught], constant) if taught.any() else np.nan,
    }  # fmt: skip
