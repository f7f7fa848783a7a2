"""Label history: how earlier posts of the same author, and with the same tags, did before a post appeared.

Only labels of the training side of a fold are read, and for each post only those of strictly earlier posts, so a post never
meets its own label and a later post never teaches an earlier one. Where test authors are new, a model that leans on
authors' history would fall over on them. So `hide_authors` makes histories as rare in training as they are in the test
part, and tags remember other authors' posts only: most authors have tags of their own, which would give them away.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd

from kit.features.past import Past, post_times
from kit.features.words import long_tags

PRIOR_POSTS = 2.0  # a mean over n earlier posts is drawn to the mean of all as if by so many more posts
STRANGER = (np.nan, np.nan, 0.0)  # the author columns of somebody without a past
COMMON_SHARE = 0.02  # a tag in more than this share of posts says little about who is in the picture


class LabelHistory:
    """Past labels of authors and tags for one posts table; call `columns` for each training side.

    Args:
        posts: the posts table; `Uid`, `Alltags`, `Postdate` and `split` are read.
        seed: of the authors whose history is hidden.
    """

    names = (
        "author_past_label", "author_last_label", "author_past_n", "tag_past_label_mean", "tag_past_label_max",
        "tag_past_label_min", "rare_tag_past_label_mean", "rare_tag_past_label_max", "rare_tag_past_n",
    )  # fmt: skip

    def __init__(self, posts: pd.DataFrame, seed: int = 0):
        self._tags = long_tags(posts["Alltags"])
        time = post_times(posts)
        self._author, _ = pd.factorize(posts["Uid"])
        self._by_author = Past(self._author, time)
        tag, row = self._tags["tag"].to_numpy(), self._tags["row"].to_numpy()
        self._by_tag = Past(tag, time[row])
        self._by_tag_of_author = Past(tag * (self._author.max() + 1) + self._author[row], time[row])
        self._is_test = (posts["split"] == "test").to_numpy()
        self._seed = seed

    def columns(self, target: np.ndarray, train_idx: np.ndarray) -> np.ndarray:
        """(n_posts, len(names)) float32 for all posts, taught by the labels of train_idx; NaN where there is no past.

        Args:
            target: (n_posts,) label; only rows of train_idx are read.
            train_idx: row positions of the training side.
        """
        taught = np.zeros(len(self._author))
        taught[train_idx] = 1
        gain = np.zeros(len(taught))
        gain[train_idx] = target[train_idx] - target[train_idx].mean()
        author = self._author_columns(gain, taught)
        author[self.hide_authors(train_idx)] = STRANGER
        return np.column_stack([author, self._tag_columns(gain, taught)]).astype(np.float32)

    def hide_authors(self, train_idx: np.ndarray) -> np.ndarray:
        """(n_posts,) bool: training posts whose author's history is withheld.

        Whole authors are drawn so that about as large a share of training posts knows its author's past as of test posts.
        Nothing is hidden without test posts.
        """
        taught = np.zeros(len(self._author))
        taught[train_idx] = 1
        known = self._by_author.sums(taught) > 0
        share_train, share_test = known[train_idx].mean(), known[self._is_test].mean() if self._is_test.any() else 1.0
        drawn = np.random.default_rng(self._seed).random(self._author.max() + 1)
        return (taught > 0) & (drawn[self._author] > share_test / max(share_train, 1e-9))

    def _author_columns(self, gain: np.ndarray, taught: np.ndarray) -> np.ndarray:
        n = self._by_author.sums(taught)
        mean = np.where(n > 0, self._by_author.sums(gain) / (n + PRIOR_POSTS), np.nan)
        last = self._by_author.latest(np.where(taught > 0, gain, np.nan))
        return np.column_stack([mean, last, np.log1p(n)])

    def _tag_columns(self, gain: np.ndarray, taught: np.ndarray) -> np.ndarray:
        row = self._tags["row"].to_numpy()
        n, total = (self._by_tag.sums(v[row]) - self._by_tag_of_author.sums(v[row]) for v in (taught, gain))
        mean = total / (n + PRIOR_POSTS)
        known, rare = n > 0, (n > 0) & self._rare
        every = [self._over_tags(mean, known, how) for how in ("mean", "max", "min")]
        return np.column_stack([*every, *(self._over_tags(mean, rare, how) for how in ("mean", "max", "n"))])

    @cached_property
    def _rare(self) -> np.ndarray:
        n_with = np.bincount(self._tags["tag"]) if len(self._tags) else np.empty(0)
        return (n_with <= COMMON_SHARE * len(self._author))[self._tags["tag"]]

    def _over_tags(self, values: np.ndarray, use: np.ndarray, how: str) -> np.ndarray:
        """(n_posts,) mean, max, min or number of the used tags' values per post; NaN (number: 0) where there is none."""
        row, values, n_posts = self._tags["row"].to_numpy()[use], values[use], len(self._author)
        count = np.bincount(row, minlength=n_posts)
        if how == "n":
            return count.astype(np.float64)
        out = np.full(n_posts, np.nan)
        starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else row
        reduce = {"mean": np.add, "max": np.maximum, "min": np.minimum}[how].reduceat
        if len(row):
            out[row[starts]] = reduce(values, starts)
        return out / np.maximum(count, 1) if how == "mean" else out
