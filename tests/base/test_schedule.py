"""The rate rises in equal steps, is whole after the warm-up but for the cosine, and ends at 0."""

import numpy as np
import pytest

from kit.base.schedule import half_cosine


def test_it_warms_up_and_falls_to_nothing():
    rate = np.array([half_cosine(step, 100, 10) for step in range(101)])
    cosine = (1 + np.cos(np.linspace(0, np.pi, 101))) / 2
    np.testing.assert_allclose(rate[:10] / cosine[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rate[10:], cosine[10:], atol=1e-15)
    assert rate[50] == pytest.approx(0.5) and rate[100] == 0 and (np.diff(rate[10:]) < 0).all()
    assert half_cosine(0, 6, 0.6) == 1  # of very few steps, none warms up
