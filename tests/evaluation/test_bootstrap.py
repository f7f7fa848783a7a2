"""The paired bootstrap: right about the difference, and about how sure it is."""

import numpy as np
import pytest

from kit.base.errors import InputError
from kit.base.metrics import mae, src
from kit.evaluation.bootstrap import paired_difference

RNG = np.random.default_rng(0)
AUTHORS = RNG.integers(150, size=1200)
TARGET = RNG.normal(8, 2, size=1200)
FAIR, GOOD = TARGET + RNG.normal(0, 2, size=1200), TARGET + RNG.normal(0, 1, size=1200)


def test_the_difference_is_that_of_the_metrics():
    found = paired_difference(TARGET, FAIR, GOOD, AUTHORS)
    assert found.src == pytest.approx(src(TARGET, GOOD) - src(TARGET, FAIR), abs=1e-9)
    assert found.mae == pytest.approx(mae(TARGET, GOOD) - mae(TARGET, FAIR), abs=1e-9)
    assert found.src_low < found.src < found.src_high and found.mae_low < found.mae < found.mae_high
    assert found.src_low > 0 and found.mae_high < 0
    assert paired_difference(TARGET, FAIR, GOOD, AUTHORS) == found


def test_the_range_is_that_of_slow_draws():
    found = paired_difference(TARGET, FAIR, GOOD, AUTHORS, n_draws=1500)
    rng, slow = np.random.default_rng(1), []
    rows_of = [np.flatnonzero(AUTHORS == a) for a in range(150)]
    for _ in range(300):
        rows = np.concatenate([rows_of[a] for a in rng.integers(150, size=150)])
        slow.append((src(TARGET[rows], GOOD[rows]) - src(TARGET[rows], FAIR[rows]),
                     mae(TARGET[rows], GOOD[rows]) - mae(TARGET[rows], FAIR[rows])))  # fmt: skip
    low, high = np.percentile(slow, [2.5, 97.5], axis=0)
    assert np.allclose([found.src_low, found.mae_low], low, atol=0.01 + 0.05 * abs(low))
    assert np.allclose([found.src_high, found.mae_high], high, atol=0.01 + 0.05 * abs(high))


def test_authors_not_posts_are_drawn():
    """A model that is better for one author only is no safe bet, however many posts that author has."""
    authors = np.r_[np.zeros(600), np.arange(1, 601)]
    better = np.where(authors == 0, GOOD, FAIR)
    assert paired_difference(TARGET, FAIR, better, np.arange(1200)).mae_high < 0
    assert paired_difference(TARGET, FAIR, better, authors).mae_high > -0.01


def test_equal_models_do_not_differ():
    found = paired_difference(TARGET, GOOD, GOOD, AUTHORS)
    assert (found.src, found.src_low, found.mae_low, found.mae_high) == (0, 0, 0, 0)


def test_coverage_of_pure_noise():
    """Two equally bad models: the range leaves out zero about as rarely as it says, 1 time in 20, and not never."""
    rng, misses = np.random.default_rng(5), 0
    for _ in range(200):
        target = rng.normal(size=200)
        a, b = target + rng.normal(size=200), target + rng.normal(size=200)
        found = paired_difference(target, a, b, np.arange(200), n_draws=300)
        misses += not found.mae_low <= 0 <= found.mae_high
    assert 4 <= misses <= 18


def test_seeds_are_averaged_inside_each_draw():
    """Two seeds of one way of training: means of their differences, and a range between those of the seeds."""
    rng = np.random.default_rng(2)
    other, pairs = GOOD + rng.normal(0, 0.5, size=1200), ([FAIR, FAIR], [GOOD, GOOD])
    assert paired_difference(TARGET, *pairs, AUTHORS) == paired_difference(TARGET, FAIR, GOOD, AUTHORS)
    both = paired_difference(TARGET, [FAIR, FAIR], [GOOD, other], AUTHORS)
    one, two = (paired_difference(TARGET, FAIR, second, AUTHORS) for second in (GOOD, other))
    for name in ("src", "mae"):
        assert getattr(both, name) == pytest.approx((getattr(one, name) + getattr(two, name)) / 2)
    assert two.src_low < both.src_low < one.src_low and one.mae_high < both.mae_high < two.mae_high


def test_a_constant_model_counts_as_no_correlation():
    found = paired_difference(TARGET, np.full(1200, 8.0), GOOD, AUTHORS)
    assert found.src == pytest.approx(src(TARGET, GOOD)) and 0.7 < found.src_low < found.src < found.src_high < 1


@pytest.mark.parametrize("arguments", [
    (TARGET, FAIR[:-1], GOOD, AUTHORS), (TARGET, FAIR, GOOD, AUTHORS[:-1]), (TARGET[:1], FAIR[:1], GOOD[:1], AUTHORS[:1]),
    (np.where(np.arange(1200) == 3, np.nan, TARGET), FAIR, GOOD, AUTHORS),
])  # fmt: skip
def test_mistakes(arguments):
    with pytest.raises(InputError):
        paired_difference(*arguments)
