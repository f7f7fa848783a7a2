"""The two experiments: only training rows change, the controls are there, and the readings follow the numbers."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.base.metrics import error_buckets, mae
from kit.boosting import sampling
from kit.boosting.fit import Machine, Training, fit_folds
from kit.boosting.result import FoldResult
from kit.evaluation import studies
from kit.run.folds import fold_rows, make_folds
from tests.tiny import tiny_block, tiny_posts

POSTS = tiny_posts(500, 40, n_authors=80)
TARGET, AUTHORS = POSTS["label"].to_numpy(), POSTS["Uid"].to_numpy()
BLOCK, FOLDS = tiny_block(POSTS), make_folds(POSTS, 3, "user")
SCORED = FOLDS >= 0
GROUPS = POSTS["Subcategory"].astype(str).to_numpy()
TRAINING = Training("lightgbm", {"learning_rate": 0.15}, rounds=30, patience=10, taught=False, final=False)


def fit(seed=0, target=TARGET, **variant):
    return fit_folds(BLOCK, target, FOLDS, POSTS, replace(TRAINING, seed=seed), Machine(1), **variant)


def each(fit):
    """What the studies take: a function of all variants at once."""
    return lambda variants: {name: fit(**variant) for name, variant in variants.items()}


LOSS = np.random.default_rng(3).gamma(2, size=len(POSTS))


@pytest.fixture(scope="module")
def tail():
    return studies.tail_study(
        each(fit), TARGET, FOLDS, AUTHORS, factors=(2, 5), threshold=float(np.nanquantile(TARGET, 0.9))
    )


def test_every_variant_is_there_and_scored_like_the_metrics(tail):
    assert tail.table["variant"].tolist() == ["plain", "copies x2", "copies x5", "weight x2", "weight x5", "LDS"]
    row = tail.table.set_index("variant").loc["copies x5"]
    oof, at = tail.oof["copies x5"][0], SCORED & (TARGET > tail.threshold)
    assert row["mae_tail"] == pytest.approx(mae(TARGET[at], oof[at])) and row["n_tail"] == at.sum()
    assert row["bias"] == pytest.approx((oof - TARGET)[SCORED].mean())
    plain = tail.table.set_index("variant").loc["plain"]
    assert plain[["d_src", "d_mae", "d_src_low", "d_mae_high"]].tolist() == [0, 0, 0, 0]
    assert np.isnan(oof[~SCORED]).all() and np.isfinite(oof[SCORED]).all()


def test_more_weight_moves_predictions_up_and_helps_the_tail(tail):
    table = tail.table.set_index("variant")
    for name in ("copies x5", "weight x5"):
        assert table.loc[name, "bias"] > table.loc["plain", "bias"]
        assert table.loc[name, "mae_tail"] < table.loc["plain", "mae_tail"]
    reading = studies.read_tail(tail)
    best = table["mae_tail"].drop("plain").idxmin()
    assert f"to {table.loc[best, 'mae_tail']:.3f} (the best of 5 variants on these very posts)" in reading
    assert best in reading and f"n = {(table['n_tail'].iloc[0])}" in reading


def test_every_number_of_the_tail_study_is_over_all_seeds():
    seeds = {seed: fit(seed) for seed in (0, 1)}
    arguments = {"factors": (), "threshold": float(np.nanquantile(TARGET, 0.9))}
    known = each(lambda seed, **_: seeds[seed])
    both = studies.tail_study(known, TARGET, FOLDS, AUTHORS, seeds=[0, 1], **arguments)
    alone = [studies.tail_study(known, TARGET, FOLDS, AUTHORS, seeds=[s], **arguments) for s in (0, 1)]
    for name in ("src", "mae", "src_tail", "mae_tail", "bias", "bias_tail"):
        assert both.table[name][0] == pytest.approx(np.mean([study.table[name][0] for study in alone]))
    plain = both.buckets[both.buckets["variant"] == "plain"]
    assert plain["n"].sum() == SCORED.sum()
    errors = [study.buckets[study.buckets["variant"] == "plain"].set_index("low")["bias"] for study in alone]
    assert np.allclose(plain["bias"], (errors[0] + errors[1]) / 2)
    assert both.oof["LDS"].shape == (2, len(POSTS))


def test_differences_to_plain_average_the_seeds():
    """ "plain" is right about the mean, a variant is off by more in one seed than in the other."""

    def fake(seed, weight=None, copies=None, **_):
        changed = weight is not None or copies is not None
        oof = np.where(SCORED, TARGET + (0.5 + seed if changed else 0.25) * (-1.0) ** np.arange(len(TARGET)), np.nan)
        scores = pd.DataFrame({"n": [1, 1], "src": [0.5, 0.5], "mae": [1.0, 1.0], "seconds": [1.0, 1.0]})
        return FoldResult("fake", oof, np.array([]), scores, pd.DataFrame())

    table = studies.tail_study(each(fake), TARGET, FOLDS, AUTHORS, factors=(), seeds=[0, 1]).table.set_index("variant")
    assert table.loc["LDS", "d_mae"] == pytest.approx((0.5 + 1.5) / 2 - 0.25)
    assert table.loc["LDS", "d_mae_low"] == pytest.approx(0.75) == table.loc["LDS", "d_mae_high"]


def test_buckets_cover_every_scored_post(tail):
    for _, part in tail.buckets.groupby("variant"):
        assert part["n"].sum() == SCORED.sum()
    by_hand = error_buckets(np.array([0.0, 1.0, 9.0, 10.0]), np.array([1.0, 1.0, 9.0, 8.0]), 2)
    assert by_hand[["n", "mae", "bias"]].to_numpy().tolist() == [[2, 0.5, 0.5], [2, 1.0, -1.0]]


def test_scored_posts_never_teach():
    """Resampled and selected rows of a fold are rows of its training side, whatever the ratio or variant."""
    for ratio, side in ((0.5, "lowest"), (0.77, "highest"), (0.3, "random")):
        kept = studies.selected(LOSS, FOLDS, ratio, side, GROUPS, seed=1)
        for k in range(3):
            train_idx, valid_idx = fold_rows(FOLDS, k)
            assert not kept[k, valid_idx].any() and not kept[k, FOLDS < 0].any()
            assert kept[k, train_idx].sum() == round(ratio * len(train_idx))
    copies = studies.per_fold(FOLDS, lambda rows: studies._copies(TARGET, rows, 3, None))
    for k in range(3):
        train_idx, valid_idx = fold_rows(FOLDS, k)
        assert not copies[k, valid_idx].any() and set(copies[k, train_idx]) == {1, 3}


def test_losses_and_labels_of_the_scored_fold_have_no_say():
    _, valid_idx = fold_rows(FOLDS, 1)
    other = LOSS.copy()
    other[valid_idx] = 1e6
    assert np.array_equal(
        studies.selected(LOSS, FOLDS, 0.5, "lowest")[1], studies.selected(other, FOLDS, 0.5, "lowest")[1]
    )
    changed = TARGET.copy()
    changed[valid_idx] += 50
    for maker in (
        lambda t: lambda rows: studies._copies(t, rows, 3, None),
        lambda t: lambda rows: sampling.lds_weights(t[rows]),
    ):
        one, two = (studies.per_fold(FOLDS, maker(target))[1] for target in (TARGET, changed))
        assert np.array_equal(one, two)


@pytest.fixture(scope="module")
def selection():
    return studies.selection_study(each(fit), LOSS, FOLDS, GROUPS, ratios=[1, 0.77, 0.5], seeds=[0, 1])


def test_every_ratio_has_its_controls(selection):
    assert selection[["ratio", "side"]].iloc[0].tolist() == [1.0, "all"]
    cells = selection.iloc[1:].groupby(["side", "scope"])["ratio"].apply(list).to_dict()
    both = {(side, scope): [0.77, 0.5] for side in ("lowest", "highest") for scope in studies.SCOPES}
    assert cells == both | {("random", "all posts"): [0.77, 0.5]}
    sizes = [len(fold_rows(FOLDS, k)[0]) for k in range(3)]
    assert selection["n_taught"].tolist() == [round(ratio * np.mean(sizes)) for ratio in selection["ratio"]]
    assert (selection["src_low"] <= selection["src"]).all() and (selection["src"] <= selection["src_high"]).all()


def test_dropped_posts_teach_nothing():
    """Nonsense labels on dropped posts change no prediction."""
    kept = studies.selected(LOSS, FOLDS, 0.5, "lowest")
    dropped_everywhere = SCORED & (kept.sum(axis=0) == 0)
    nonsense = np.where(dropped_everywhere, 1e4, TARGET)
    one, two = fit(copies=kept), fit(target=nonsense, copies=kept)
    assert dropped_everywhere.sum() > 50 and np.array_equal(one.oof, two.oof, equal_nan=True)


def test_the_reading_of_a_selection_follows_the_control():
    base = {"scope": "all posts", "src_sd": 0, "mae": 1, "seeds": 3}
    full = base | {"ratio": 1.0, "side": "all", "src": 0.70, "src_low": 0.70, "src_high": 0.70}

    def table(lowest, random):
        sides = {"lowest": lowest, "random": random, "highest": 0.6}
        return pd.DataFrame([full] + [
            base | {"ratio": 0.77, "side": s, "src": v, "src_low": v - 0.001, "src_high": v + 0.001} for s, v in sides.items()
        ])  # fmt: skip

    assert "within 1 %" in studies.read_selection(table(0.698, 0.69)) and "beats" in studies.read_selection(
        table(0.698, 0.69)
    )
    assert "not within 1 %" in studies.read_selection(table(0.65, 0.69)) and "worse" in studies.read_selection(
        table(0.65, 0.69)
    )
    assert "no different" in studies.read_selection(table(0.6965, 0.697))
    assert "77%" in studies.read_selection(table(0.69, 0.69)) and "highest -14.3%" in studies.read_selection(
        table(0.69, 0.69)
    )


def test_fits_are_kept_and_read_back(tmp_path, monkeypatch):
    one = studies.selection_study(each(fit), LOSS, FOLDS, GROUPS, ratios=[0.5], folder=tmp_path)
    monkeypatch.setattr("kit.boosting.fit._Fitter.fit", lambda *_: pytest.fail("fitted again"))
    pd.testing.assert_frame_equal(
        one, studies.selection_study(each(fit), LOSS, FOLDS, GROUPS, ratios=[0.5], folder=tmp_path)
    )


def test_both_studies_share_training_as_it_is(tmp_path, monkeypatch):
    tail = studies.tail_study(each(fit), TARGET, FOLDS, AUTHORS, factors=(), seeds=[0, 1], folder=tmp_path)
    plain = tail.table.iloc[0]
    monkeypatch.setattr("kit.boosting.fit._Fitter.fit", lambda *_: pytest.fail("fitted again"))
    table = studies.selection_study(each(fit), LOSS, FOLDS, GROUPS, ratios=[1.0], seeds=[0, 1], folder=tmp_path)
    assert table.loc[0, ["src", "mae", "seconds"]].tolist() == plain[["src", "mae", "seconds"]].tolist()


@pytest.mark.parametrize("ratios", [[], [0.0], [0.5, 1.5]])
def test_bad_ratios(ratios):
    with pytest.raises(InputError, match="shares above 0"):
        studies.selection_study(each(fit), LOSS, FOLDS, GROUPS, ratios=ratios)
