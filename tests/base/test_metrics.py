"""SRC and MAE against scipy, numpy and their limits."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from kit.base.errors import InputError
from kit.base.metrics import mae, over_folds, spread, src


@pytest.mark.parametrize("seed", range(5))
def test_src_equals_scipy_with_and_without_ties(seed):
    rng = np.random.default_rng(seed)
    target, prediction = rng.normal(size=301), rng.normal(size=301)
    assert src(target, prediction) == pytest.approx(spearmanr(target, prediction)[0], abs=1e-12)
    target, prediction = np.round(target), np.round(prediction * 2)
    assert len(np.unique(target)) < 10
    assert src(target, prediction) == pytest.approx(spearmanr(target, prediction)[0], abs=1e-12)


def test_src_limits():
    target = np.array([1.0, 2.5, 2.5, 9.0])
    assert src(target, target**3) == 1
    assert src(target, -target) == -1


@pytest.mark.parametrize("side", ["prediction", "target"])
def test_src_of_a_constant_is_zero_and_warns(side):
    pair = {"target": np.arange(5.0), "prediction": np.arange(5.0), side: np.full(5, 3.3)}
    with pytest.warns(RuntimeWarning, match=f"constant {side}"):
        assert src(**pair) == 0


def test_mae_by_hand():
    assert mae([1, 2, 6], [2, 2, 2]) == pytest.approx(5 / 3, abs=1e-15)
    assert mae([4.5], [4.5]) == 0


def test_spread_is_of_a_sample():
    mean, sd = spread([1.0, 2.0, 6.0])
    assert mean == 3 and sd == pytest.approx((14 / 2) ** 0.5)
    assert spread([2.0])[0] == 2 and np.isnan(spread([2.0])[1])
    scores = pd.DataFrame({"src": [0.1, 0.3], "mae": [1.0, 1.0]})
    assert over_folds(scores) == pytest.approx({"src": 0.2, "src_sd": 0.02**0.5, "mae": 1.0, "mae_sd": 0.0})


@pytest.mark.parametrize("score", [src, mae])
@pytest.mark.parametrize(("target", "prediction", "message"), [
    ([1, 2], [1, 2, 3], "2 targets but 3 predictions"),
    ([], [], "nothing to score"),
    ([1, 2, 3], [1, np.nan, 3], "prediction has 1 values that are not finite, the first at position 1"),
    ([1, np.inf, 3], [1, 2, 3], "target has 1 values"),
    ([[1, 2]], [[1, 2]], r"shape \(1, 2\)"),
])  # fmt: skip
def test_bad_input_is_named(score, target, prediction, message):
    with pytest.raises(InputError, match=message):
        score(target, prediction)
