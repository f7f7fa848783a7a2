"""Which train posts prototypes and prompts learn from, which authors are held out, and the text r of every post.

Notebook 02 decides and writes it; 03, and 04 for its encoders, read it: no two steps can disagree.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.release.texts import post_texts
from kit.run.folds import inner_holdout

SPLIT_FILE = "prototypes/split.parquet"  # in the run
FIT, HELD_OUT, TEST = "fit", "held out", "test"


def make_split(
    posts: pd.DataFrame, text_source: str = "title_tags", valid_share: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    """Pid, text and side of every post; side is "fit", "held out" (train posts that only validate) or "test".

    Args:
        posts: the posts table.
        text_source: see ``post_texts``.
        valid_share: of the train posts to hold out, whole authors; 0 holds out none, as the paper.
        seed: of the draw of authors.
    Raises:
        InputError: a share outside [0, 1), or fewer than two authors.
    """
    if not 0 <= valid_share < 1:
        raise InputError(
            f"valid_share = {valid_share}: the share of train posts to hold out is from 0 to below 1, as 0.1"
        )
    side = np.where(posts["split"] == "train", FIT, TEST).astype(object)
    if valid_share:
        train_idx = np.flatnonzero(side == FIT)
        side[inner_holdout(posts, train_idx, share=valid_share, seed=seed)[1]] = HELD_OUT
    return pd.DataFrame({"Pid": posts["Pid"].to_numpy(), "text": post_texts(posts, text_source), "side": side})


def fit_and_valid(split: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Row positions of the posts to learn from and of those by held-out authors; the latter may be empty."""
    return np.flatnonzero(split["side"] == FIT), np.flatnonzero(split["side"] == HELD_OUT)
