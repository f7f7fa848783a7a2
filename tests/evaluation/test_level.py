"""The level of the next period follows a trend, keeps a common sign and does not chase noise."""

import numpy as np
import pytest

from kit.evaluation.level import next_level


def residuals(medians, n=200, sd=0.35):
    """Folds whose medians are as given; spread as of a normal distribution."""
    spread = sd * np.sort(np.random.default_rng(0).normal(size=n))
    spread -= np.median(spread)
    return np.concatenate([m + spread for m in medians]), np.repeat(np.arange(len(medians)), n)


@pytest.mark.parametrize(("medians", "n", "sd", "low", "high"), [
    ([0.04, 0.02, -0.06, 0.10, 0.27], 68, 0.35, 0.18, 0.27),  # a level on the move: near the last
    ([0.17, 0.14, 0.12, 0.09, 0.18], 605, 2.0, 0.10, 0.16),  # a common sign: near the mean, 0.14
    ([0.30, -0.14, 0.32, -0.01, -0.16], 137, 1.3, 0.01, 0.062),  # back and forth: between 0 and the mean
])  # fmt: skip
def test_three_sets_as_they_were_seen(medians, n, sd, low, high):
    assert low <= next_level(*residuals(medians, n, sd)) <= high


def test_limits():
    assert next_level(np.empty(0), np.empty(0)) == 0.0
    assert next_level(*residuals([0.0, 0.0, 0.0])) == pytest.approx(0.0, abs=1e-9)
    assert 0 < next_level(*residuals([0.4], n=50)) < 0.4  # one fold: its median, shrunk by what its sample can tell
    assert next_level(*residuals([1.0] * 5, n=5000)) == pytest.approx(1.0, abs=0.01)
    assert next_level(*residuals([0.5, -0.5] * 3)) == pytest.approx(0.0, abs=0.1)
    ramp = np.arange(6.0)
    assert next_level(*residuals(ramp)) == pytest.approx(5.0, abs=0.05)
    assert next_level(*residuals(-ramp)) == pytest.approx(-next_level(*residuals(ramp)), abs=1e-9)


def test_on_average_it_helps_where_there_is_a_level_and_costs_little_where_there_is_none():
    rng = np.random.default_rng(1)
    errors = {"level": [], "none": []}
    for kind in errors:
        for _ in range(300):
            walk = np.cumsum(rng.normal(0, 0.2, 6)) if kind == "level" else np.zeros(6)
            seen = walk + rng.normal(0, 0.1, 6)
            told = next_level(*residuals(seen[:5], n=100))
            errors[kind].append((abs(walk[5] - told), abs(walk[5])))
    with_it, without = np.mean(errors["level"], axis=0)
    assert with_it < 0.75 * without
    assert np.mean(errors["none"], axis=0)[0] < 0.1
