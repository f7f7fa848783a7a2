"""kit.base.shares: largest remainder."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.base.shares import largest_remainder


@settings(max_examples=200)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=20), st.integers(1, 300))
def test_whole_numbers_nearest_to_the_shares(counts, total):
    counts = np.array(counts)
    quotas = largest_remainder(counts, total)
    wanted = min(total, counts.sum())
    exact = counts * wanted / max(counts.sum(), 1)
    assert quotas.sum() == wanted
    assert (np.abs(quotas - exact) < 1).all() and (quotas <= counts).all()
    gained, lost = quotas > exact, quotas < exact
    if gained.any() and lost.any():  # whoever was rounded up had at least the remainder of whoever was rounded down
        assert (exact - np.floor(exact))[gained].min() >= (exact - np.floor(exact))[lost].max() - 1e-9
