"""Strictly earlier events of the same key: the one place where the past of a post is cut off."""

from __future__ import annotations

import numpy as np
import pandas as pd


def post_times(posts: pd.DataFrame) -> np.ndarray:
    """(n_posts,) int64 for `Past`: when each post appeared; posts without a date come after all others."""
    return posts["Postdate"].astype("int64").where(posts["Postdate"].notna(), np.iinfo(np.int64).max).to_numpy()


class Past:
    """What came strictly before each event of the same key, for values that change while keys and times stay.

    Args:
        key: (n,) integer; events of one key form a history.
        time: (n,) sortable; events of one instant do not see each other.
    """

    def __init__(self, key: np.ndarray, time: np.ndarray):
        self._order = np.lexsort((time, key))
        key, time = key[self._order], time[self._order]
        self._time = time
        new_key = np.r_[True, key[1:] != key[:-1]] if len(key) else np.empty(0, dtype=bool)
        new_instant = new_key | np.r_[True, time[1:] != time[:-1]] if len(key) else new_key
        positions = np.arange(len(key))
        self._key_start = np.maximum.accumulate(np.where(new_key, positions, 0))
        self._instant_start = np.maximum.accumulate(np.where(new_instant, positions, 0))

    def counts(self, within: int | None = None) -> np.ndarray:
        """(n,) int: number of earlier events of the key; with `within`, of those at most so long before."""
        start = self._key_start
        if within is not None:
            span = int(np.ptp(self._time)) + within + 1 if len(self._time) else 1  # keys lie further apart than times
            stamp = self._key_start * span + (self._time - self._time.min(initial=0))
            start = np.maximum(start, np.searchsorted(stamp, stamp - within))
        out = np.empty(len(start), dtype=np.int64)
        out[self._order] = self._instant_start - start
        return out

    def earliest(self, values: np.ndarray) -> np.ndarray:
        """(n,) float64: the value of the first event of the key, NaN where it is not an earlier one."""
        ordered = np.asarray(values, dtype=np.float64)[self._order]
        out = np.empty(len(ordered))
        out[self._order] = np.where(self._instant_start > self._key_start, ordered[self._key_start], np.nan)
        return out

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(n,) float64: for each event, the sum of `values` over the earlier events of its key."""
        before = np.r_[0.0, np.cumsum(values[self._order], dtype=np.float64)]
        out = np.empty(len(values))
        out[self._order] = before[self._instant_start] - before[self._key_start]
        return out

    def latest(self, values: np.ndarray) -> np.ndarray:
        """(n,) float64: the value of the last earlier event of the key that is not NaN, or NaN."""
        ordered = np.asarray(values, dtype=np.float64)[self._order]
        known = np.where(np.isfinite(ordered), np.arange(len(ordered)), -1)
        last = np.r_[-1, np.maximum.accumulate(known)][self._instant_start] if len(ordered) else known
        out = np.full(len(ordered), np.nan)
        found = last >= self._key_start
        out[self._order[found]] = ordered[last[found]]
        return out
