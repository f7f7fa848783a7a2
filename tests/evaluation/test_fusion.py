"""Five ways of fusion: what each is for, and the choice between them."""

import numpy as np
import pytest

from kit.base.errors import InputError
from kit.base.metrics import mae, src
from kit.evaluation import fusion
from kit.evaluation.blend import METHODS, compare_methods, fit_blend, method_table
from kit.run.folds import TEST

RNG = np.random.default_rng(0)
N = 800
TARGET = RNG.normal(8, 2, size=N)
MATRIX = np.column_stack([TARGET + RNG.normal(0, s, size=N) for s in (1.0, 1.1, 6.0)])
FOLDS = np.r_[np.arange(700) % 4, np.full(100, TEST)].astype(np.int8)
OOF = {f"m{i}": np.where(FOLDS >= 0, column, np.nan) for i, column in enumerate(MATRIX.T)}
LABELS = np.where(FOLDS >= 0, TARGET, np.nan)


@pytest.mark.parametrize("method", METHODS)
def test_each_beats_its_best_model_on_new_posts(method):
    mix = fusion.METHODS[method](MATRIX[:600], TARGET[:600])
    best = min(mae(TARGET[600:], column[600:]) for column in MATRIX.T)
    assert mae(TARGET[600:], mix(MATRIX[600:])) < best
    assert src(TARGET[600:], mix(MATRIX[600:])) > max(src(TARGET[600:], column[600:]) for column in MATRIX.T)
    assert (mix.weights >= 0).all() and mix.weights[2] < 0.15 * mix.weights.sum()


def test_convex_finds_the_best_of_a_grid():
    weights = fusion.convex(MATRIX, TARGET).weights
    assert weights.sum() == pytest.approx(1)
    grid = [(a, b, 1 - a - b) for a in np.linspace(0, 1, 51) for b in np.linspace(0, 1 - a, 26)]
    assert mae(TARGET, MATRIX @ weights) <= min(mae(TARGET, MATRIX @ np.array(w)) for w in grid) + 1e-3


def test_selection_counts_draws_and_may_take_a_single_model():
    weights = fusion.selection(MATRIX, TARGET).weights
    assert weights.sum() == pytest.approx(1)
    alone = fusion.selection(np.column_stack([TARGET, TARGET + 1, TARGET - 3]), TARGET).weights
    assert alone.tolist() == [1, 0, 0]


def test_shrunk_trusts_few_posts_less():
    """Models that err alike: of few posts a free choice of weights says more of these posts than of new ones."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=40_000)
    common = target + rng.normal(0, 1, len(target))
    matrix = common[:, None] + rng.normal(0, [0.2, 0.25, 0.3], (len(target), 3))
    few = [slice(start, start + 60) for start in range(0, 3000, 60)]
    free, drawn = (
        np.array([way(matrix[at], target[at]).weights for at in few]) for way in (fusion.convex, fusion.shrunk)
    )
    assert np.allclose(drawn.sum(axis=1), 1) and np.abs(drawn - 1 / 3).max() < 0.2 < np.abs(free - 1 / 3).mean()
    new = matrix[3000:]
    assert np.mean([mae(target[3000:], new @ w) for w in drawn]) < np.mean([mae(target[3000:], new @ w) for w in free])
    many = fusion.shrunk(matrix, target).weights  # by least squares as 1 / variance
    assert np.abs(many - np.array([25, 16, 100 / 9]) / (41 + 100 / 9)).max() < 0.05


def test_stack_restores_the_scale():
    mix = fusion.stack(0.5 * MATRIX[:, :2] - 1, TARGET)
    assert mix.weights.sum() > 1.4 and abs((mix(0.5 * MATRIX[:, :2] - 1) - TARGET).mean()) < 1e-6


def test_rank_average_ignores_scale_and_gives_labels():
    rest = np.linspace(0, 1, N), np.sort(TARGET), np.linspace(0, 1, N)
    plain = fusion.Ranked(np.array([0.5, 0.5]), np.sort(MATRIX[:, :2], axis=0), *rest)
    bent = fusion.Ranked(np.array([0.5, 0.5]), np.sort(np.exp(MATRIX[:, :2]), axis=0), *rest)
    assert np.allclose(plain(MATRIX[:, :2]), bent(np.exp(MATRIX[:, :2])))
    mapped = fusion.rank_average(MATRIX, TARGET)(MATRIX)
    assert np.abs(np.sort(mapped) - np.sort(TARGET)).max() < 0.05  # every quantile of the labels is used
    far = fusion.rank_average(MATRIX, TARGET)(np.full((2, 3), [[1e9], [-1e9]]))
    assert far.tolist() == [TARGET.max(), TARGET.min()]


def test_rank_average_keeps_posts_apart_where_many_share_a_label():
    stars = np.searchsorted(np.quantile(TARGET, [0.3, 0.7]), TARGET)  # 0, 1 or 2
    mapped = fusion.rank_average(MATRIX, stars)(MATRIX)
    assert mapped.min() == 0 and mapped.max() == 2
    assert len(np.unique(mapped)) > 0.6 * N  # all but half of the lowest and half of the highest
    assert abs(np.median(mapped) - 1) < 0.05


def test_the_best_comes_first_by_the_sum_of_ranks():
    blends = compare_methods(OOF, LABELS, FOLDS, calibrate="none")
    assert set(blends) == set(METHODS)
    table = method_table(blends, OOF, LABELS, FOLDS).set_index("fusion")
    fused = table.loc[list(METHODS)]
    ranks = fused["mae"].rank() + fused["src"].rank(ascending=False)
    assert ranks[next(iter(blends))] == ranks.min()
    best = table.iloc[-1]
    assert best.name == "best single model: m0" and best["models"] == 1 and best["mae"] > fused["mae"].min()
    assert (table["n"] == 700).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_scored_fold_has_no_say(method):
    changed = LABELS.copy()
    changed[FOLDS == 2] = changed[FOLDS == 2][::-1]
    before, after = (fit_blend(OOF, t, FOLDS, method=method, calibrate="none").oof for t in (LABELS, changed))
    assert np.array_equal(before[FOLDS == 2], after[FOLDS == 2])
    assert not np.array_equal(before[FOLDS == 1], after[FOLDS == 1])


@pytest.mark.parametrize("method", METHODS)
def test_new_posts_get_finite_predictions_inside_the_labels(method):
    blend = fit_blend(OOF, LABELS, FOLDS, method=method)
    new = blend.predict({name: MATRIX[700:, i] for i, name in enumerate(OOF)})
    assert new.shape == (100,) and np.nanmin(LABELS) <= new.min() and new.max() <= np.nanmax(LABELS)
    assert src(TARGET[700:], new) > 0.8


def test_an_unknown_method_is_named():
    with pytest.raises(InputError, match="convex, selection, shrunk, rank_average, stack"):
        fit_blend(OOF, LABELS, FOLDS, method="vote")
