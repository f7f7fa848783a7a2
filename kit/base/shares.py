"""Whole numbers in given proportions."""

from __future__ import annotations

import numpy as np


def largest_remainder(counts: np.ndarray, total: int) -> np.ndarray:
    """``total`` shared out over groups in proportion to ``counts``, by largest remainder.

    Args:
        counts: (n,) whole numbers.
        total: to share out; no more than ``counts.sum()`` is.
    Returns:
        (n,) int64, each at most its count and within 1 of its exact share; equal remainders in the order given.
    """
    available = int(counts.sum())
    wanted = min(total, available)
    quotas, remainders = np.divmod(counts.astype(np.int64) * wanted, max(available, 1))
    quotas[np.argsort(-remainders, kind="stable")[: wanted - int(quotas.sum())]] += 1
    return quotas
