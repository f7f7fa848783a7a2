"""Selection by loss and more weight for the tail: exact counts, right sides, and nothing but the rows that were given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.base.errors import InputError
from kit.boosting.sampling import lds_weights, oversample_tail, select_by_loss, tail_threshold, tail_weights

LOSS = np.array([3.0, 1.0, 2.0, 5.0, 4.0])


def test_sides_keep_what_they_say():
    assert select_by_loss(LOSS, 0.4).tolist() == [False, True, True, False, False]
    assert select_by_loss(LOSS, 0.4, side="highest").tolist() == [False, False, False, True, True]
    assert select_by_loss(LOSS, 1.0).all()
    random = [tuple(select_by_loss(LOSS, 0.4, side="random", seed=s)) for s in range(20)]
    assert len(set(random)) > 3 and all(sum(kept) == 2 for kept in random)
    assert random[3] == tuple(select_by_loss(LOSS * 7, 0.4, side="random", seed=3))


def test_within_groups_every_group_keeps_its_share():
    loss = np.r_[np.linspace(0, 1, 10), np.linspace(10, 11, 10)]
    groups = np.repeat(["easy", "hard"], 10)
    assert select_by_loss(loss, 0.5)[:10].all() and not select_by_loss(loss, 0.5)[10:].any()
    kept = select_by_loss(loss, 0.5, groups)
    assert kept[:5].all() and kept[10:15].all() and kept.sum() == 10


def test_rounding_goes_to_the_largest_remainders():
    groups = np.array(["a"] * 7 + ["b"] * 2 + ["c"])
    kept = select_by_loss(np.arange(10.0), 0.5, groups)  # 3.5, 1 and 0.5 of 5
    assert [kept[groups == g].sum() for g in "abc"] in ([4, 1, 0], [3, 1, 1]) and kept.sum() == 5


def test_posts_without_a_loss_are_kept_at_the_same_rate():
    loss = np.where(np.arange(100) < 40, np.nan, np.arange(100.0))
    kept = select_by_loss(loss, 0.5)
    assert kept[:40].sum() == 20 and kept[40:].sum() == 30 and kept[40:70].all()
    assert not np.array_equal(kept[:40], select_by_loss(loss, 0.5, seed=1)[:40])


def test_ties_are_broken_by_the_seed():
    same = np.ones(50)
    assert not np.array_equal(select_by_loss(same, 0.5, seed=0), select_by_loss(same, 0.5, seed=1))


@given(
    st.lists(st.one_of(st.floats(-9, 9), st.just(float("nan"))), min_size=1, max_size=60),
    st.floats(0.01, 1), st.sampled_from(["lowest", "highest", "random"]), st.integers(1, 5),
)  # fmt: skip
def test_any_losses(losses, keep, side, n_groups):
    loss = np.array(losses)
    groups = np.arange(len(loss)) % n_groups
    kept = select_by_loss(loss, keep, groups, side)
    assert kept.dtype == bool and kept.sum() == round(keep * len(loss))
    for g in range(n_groups):
        n = (groups == g).sum()
        assert np.floor(keep * n) - 1 <= kept[groups == g].sum() <= np.ceil(keep * n) + 1


@pytest.mark.parametrize(("arguments", "message"), [
    ((LOSS, 0.0), "keep=0"), ((LOSS, 1.2), "keep=1.2"), ((LOSS, 0.5, None, "middle"), "lowest, highest, random"),
    ((LOSS, 0.5, [1, 2]), "5 losses but 2 group"), ((np.array([1, np.inf]), 0.5), "infinity"),
    ((np.ones((2, 2)), 0.5), "vector"),
])  # fmt: skip
def test_mistakes_in_a_selection(arguments, message):
    with pytest.raises(InputError, match=message):
        select_by_loss(*arguments)


def test_the_tail_is_the_same_share_on_any_scale():
    labels = np.random.default_rng(0).permutation(10_000) / 100
    threshold = tail_threshold(labels)
    assert (labels > threshold).mean() == pytest.approx(0.0176, abs=2e-4)
    assert tail_threshold(labels * 3 - 7) == pytest.approx(threshold * 3 - 7)
    assert tail_threshold(labels, 0.5) == pytest.approx(np.median(labels), abs=0.02)


def test_copies_and_weights_of_the_tail():
    target = np.array([1.0, 13.0, 2.0, 14.0, 99.0, np.nan])
    rows = np.array([0, 1, 2, 3])
    assert oversample_tail(target, rows, 3, threshold=12).tolist() == [0, 1, 1, 1, 2, 3, 3, 3]
    assert oversample_tail(target, rows, 1, threshold=12).tolist() == rows.tolist()
    assert tail_weights(target, rows, 5, threshold=12).tolist() == [1, 5, 1, 5]
    assert oversample_tail(target, rows, 2).tolist() == [0, 1, 2, 3, 3]  # its own quantile: above 13


def test_labels_of_other_rows_are_not_read():
    rng = np.random.default_rng(0)
    target, rows = rng.normal(size=200), np.arange(0, 200, 2)
    other = target.copy()
    other[1::2] = 1e6
    assert np.array_equal(oversample_tail(target, rows, 3), oversample_tail(other, rows, 3))
    assert np.array_equal(tail_weights(target, rows, 3), tail_weights(other, rows, 3))


def test_lds_by_hand():
    target = np.r_[np.zeros(16), np.full(4, 0.6), np.full(1, 3.0)]
    weight = lds_weights(target, bin_width=0.5, kernel_size=3, sigma=1.0)
    side = np.exp(-0.5)
    smooth = {0.0: 4 + side * 2, 0.6: 2 + side * 4, 3.0: 1.0}
    expected = np.array([1 / smooth[value] for value in target])
    assert np.allclose(weight, expected / expected.mean())


def test_lds_weighs_rare_labels_more_and_inverse_more_strongly():
    target = np.random.default_rng(0).normal(8, 2, size=5000)
    for reweight, least in (("sqrt_inv", 3), ("inverse", 8)):
        weight = lds_weights(target, reweight=reweight)
        assert weight.mean() == pytest.approx(1) and weight.min() > 0
        assert weight[target.argmax()] > least * weight[np.abs(target - 8).argmin()]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: oversample_tail(LOSS, np.arange(5), 0), "factor=0"),
    (lambda: oversample_tail(LOSS, np.arange(5), 1.5), "factor=1.5"),
    (lambda: tail_weights(LOSS, np.arange(5), -1), "factor=-1"), (lambda: tail_threshold(LOSS, 0), "share of the tail"),
    (lambda: tail_threshold(np.array([])), "at least one"), (lambda: tail_threshold(np.array([np.nan])), "finite"),
    (lambda: lds_weights(LOSS, reweight="cube"), "sqrt_inv, inverse"), (lambda: lds_weights(LOSS, kernel_size=4), "odd"),
])  # fmt: skip
def test_mistakes_about_the_tail(call, message):
    with pytest.raises(InputError, match=message):
        call()
