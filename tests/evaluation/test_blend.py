"""The blend: convex, honest about its own score, and able to undo a drift."""

import numpy as np
import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.base.files import write_table
from kit.base.metrics import mae, src
from kit.evaluation.blend import fit_blend, for_the_test_part, levelled
from kit.run.directory import Run
from kit.run.folds import TEST, TRAIN_ONLY

RNG = np.random.default_rng(0)
FOLDS = np.r_[np.arange(600) % 4, np.full(100, TEST)].astype(np.int8)
SCORED = FOLDS >= 0
TRUTH = RNG.normal(8, 2, size=700)
TARGET = np.where(SCORED, TRUTH, np.nan)
GOOD, FAIR, BAD = (np.where(SCORED, TRUTH + RNG.normal(0, s, size=700), np.nan) for s in (1.0, 1.2, 9.0))
NEW = {"good": TRUTH[600:], "fair": TRUTH[600:], "bad": TRUTH[600:]}


def test_weights_are_convex_and_better_than_any_model():
    blend = fit_blend({"good": GOOD, "bad": BAD, "fair": FAIR}, TARGET, FOLDS, calibrate="none")
    assert sum(blend.weights.values()) == pytest.approx(1) and min(blend.weights.values()) >= 0
    assert blend.weights["good"] > blend.weights["fair"] > blend.weights["bad"]
    nested = mae(TARGET[SCORED], blend.oof[SCORED])
    assert nested < mae(TARGET[SCORED], GOOD[SCORED]) and nested < mae(TARGET[SCORED], FAIR[SCORED])


def test_weights_are_the_best_of_a_fine_grid():
    blend = fit_blend({"good": GOOD, "fair": FAIR}, TARGET, FOLDS, calibrate="none")
    errors = {w: mae(TARGET[SCORED], (w * GOOD + (1 - w) * FAIR)[SCORED]) for w in np.linspace(0, 1, 101)}
    mine = mae(TARGET[SCORED], (blend.weights["good"] * GOOD + blend.weights["fair"] * FAIR)[SCORED])
    assert mine <= min(errors.values()) + 1e-3


def test_one_model_is_passed_through():
    blend = fit_blend({"good": GOOD}, TARGET, FOLDS, calibrate="none")
    assert blend.weights == {"good": 1.0}
    for k in range(4):
        others = TARGET[SCORED & (FOLDS != k)]
        assert np.array_equal(blend.oof[FOLDS == k], np.clip(GOOD[FOLDS == k], others.min(), others.max()))
    assert np.array_equal(
        blend.predict({"good": np.array([8.0, 1e9, -1e9])}), [8.0, blend.learnt.high, blend.learnt.low]
    )
    assert (blend.learnt.low, blend.learnt.high) == (np.nanmin(TARGET), np.nanmax(TARGET))


def test_a_line_is_recovered_and_used_only_where_it_helps():
    shrunk = {"good": 0.5 * GOOD + 1, "fair": 0.5 * FAIR + 1}
    blend = fit_blend(shrunk, TARGET, FOLDS, calibrate="auto")
    assert blend.learnt.slope == pytest.approx(1.6, abs=0.2)  # 2, drawn back by the models' noise
    assert mae(TARGET[SCORED], blend.oof[SCORED]) < mae(TARGET[SCORED], shrunk["good"][SCORED]) - 0.5
    exact = {"truth": TARGET + RNG.choice([-1, 1], size=700)}
    assert fit_blend(exact, TARGET, FOLDS, calibrate="none").learnt.slope == 1
    affine = fit_blend({"truth": 0.8 * TARGET - 3}, TARGET, FOLDS, calibrate="affine")
    assert affine.learnt.slope == pytest.approx(1.25, abs=1e-3) and affine.learnt.intercept == pytest.approx(
        3.75, abs=0.02
    )


def test_auto_decides_for_the_line_that_pays():
    for model, pays in ((TARGET, False), (0.5 * GOOD, True)):
        blends = {c: fit_blend({"m": model}, TARGET, FOLDS, calibrate=c) for c in ("none", "affine", "auto")}
        errors = {c: mae(TARGET[SCORED], blend.oof[SCORED]) for c, blend in blends.items()}
        assert errors["auto"] == errors["affine" if pays else "none"] < errors["none" if pays else "affine"]
    assert errors["affine"] < errors["none"] - 1


def test_a_single_fold_that_teaches_is_enough_for_a_line():
    folds = np.where(FOLDS == TEST, TEST, np.array([TRAIN_ONLY, TRAIN_ONLY, 0, 1])[FOLDS]).astype(np.int8)
    auto, none = (fit_blend({"m": 0.5 * GOOD}, TARGET, folds, calibrate=c).scores["mae"] for c in ("auto", "none"))
    assert auto[1] < none[1] - 1 and auto[0] == none[0]  # fold 0 has no teacher


@pytest.mark.parametrize("calibrate", ["none", "affine", "auto"])
def test_the_scored_fold_has_no_say(calibrate):
    """Other labels in fold 2, as far out as can be: its own nested predictions stay, those of other folds move."""
    models = {"good": 0.8 * GOOD, "fair": FAIR + 1}
    changed = TARGET.copy()
    changed[FOLDS == 2] = 100 - 3 * changed[FOLDS == 2][::-1]  # would turn the line round, and move both limits
    before, after = (fit_blend(models, t, FOLDS, calibrate=calibrate).oof for t in (TARGET, changed))
    assert np.array_equal(before[FOLDS == 2], after[FOLDS == 2])
    assert not np.array_equal(before[FOLDS == 1], after[FOLDS == 1])


@pytest.mark.parametrize("calibrate", ["affine", "auto"])
def test_in_time_only_earlier_folds_have_a_say(calibrate):
    folds = FOLDS.copy()
    folds[:100] = TRAIN_ONLY
    models = {"good": 0.8 * GOOD, "fair": FAIR + 1}
    changed = TARGET.copy()
    changed[folds == 2] = 100 - changed[folds == 2][::-1]
    before, after = (fit_blend(models, t, folds, calibrate=calibrate).oof for t in (TARGET, changed))
    early = (folds >= 0) & (folds <= 2)
    assert np.array_equal(before[early], after[early]) and not np.array_equal(before[folds == 3], after[folds == 3])
    teach = TARGET[folds == TRAIN_ONLY]
    first = np.clip((models["good"] + models["fair"]) / 2, teach.min(), teach.max())
    assert np.allclose(before[folds == 0], first[folds == 0])  # nothing to learn from: equal weights
    assert np.isnan(before[folds < 0]).all()


def test_a_level_that_moves_is_foretold_by_folds_in_time_alone():
    order = np.arange(700) // 100  # seven periods of 100 posts; the labels rise by 0.6 from one to the next
    truth = np.random.default_rng(3).normal(8, 1, size=700)
    label, model = truth + 0.6 * order, truth + np.random.default_rng(4).normal(0, 0.3, size=700)
    folds = np.where(order == 0, TRAIN_ONLY, order - 1).astype(np.int8)
    folds[order == 6] = TEST
    target = np.where(folds == TEST, np.nan, label)
    oof = {"m": np.where(folds >= 0, model, np.nan)}
    errors = {}
    for calibrate in ("auto", "affine", "none"):
        blend = fit_blend(oof, target, folds, calibrate=calibrate)
        errors[calibrate] = mae(label[order == 6], blend.predict({"m": model[order == 6]}))
        if calibrate != "none":
            assert blend.scores["mae"].iloc[-1] < 1.2  # nested: 0.6 of drift and the noise, not all of the 3.0 so far
    assert max(errors["auto"], errors["affine"]) < 1.3 and errors["none"] > 3
    by_author = fit_blend(
        {"m": np.where(folds == TEST, np.nan, model)}, target, np.where(folds == TRAIN_ONLY, 0, folds), calibrate="none"
    )
    moved = levelled(by_author, oof, target, folds)
    assert moved.learnt.intercept > 2.5 and moved.scores is by_author.scores
    assert mae(label[order == 6], moved.predict({"m": model[order == 6]})) < 1.3
    by_author = fit_blend(oof, target, np.where(folds == TRAIN_ONLY, 0, folds), calibrate="affine")
    assert (
        abs(by_author.learnt.intercept) < 4
        and mae(label[order == 6], by_author.predict({"m": model[order == 6]})) > 1.5
    )


def test_the_level_is_that_of_folds_as_far_ahead_as_the_test_part(tmp_path):
    run = Run.open(tmp_path, step="06_gbdt_folds")
    posts = pd.DataFrame({"Pid": np.arange(700).astype(str), "label": TARGET})
    schemes = pd.DataFrame({"scheme": ["test part", "user"], "decides": [False, True], "lag_days": [9.0, -5.0]})
    run.write_table("schemes", schemes)
    blend = fit_blend({"good": GOOD}, TARGET, FOLDS, calibrate="none")

    def level(scheme="user", calibrate="auto"):
        return for_the_test_part(blend, run, posts, scheme, calibrate).learnt.intercept

    assert level() == 0, "nothing runs forward"
    for name, off in (("time", 1.0), ("matched", 3.0)):  # labels lie so far above what was said
        table = pd.DataFrame({"Pid": posts["Pid"], "fold": FOLDS, "good": np.where(SCORED, TRUTH - off, np.nan)})
        write_table(run.output(f"predictions_{name}.parquet"), table)
        assert level() == pytest.approx(off, abs=0.1)
    assert level(calibrate="none") == level("matched") == 0
    run.write_table("schemes", schemes.assign(lag_days=[-1.0, -5.0]))
    assert level() == 0, "the test part is not later"


def test_scores_per_fold_are_those_of_the_nested_predictions():
    blend = fit_blend({"good": GOOD, "fair": FAIR}, TARGET, FOLDS)
    assert blend.scores["fold"].tolist() == [0, 1, 2, 3] and blend.scores["n"].sum() == SCORED.sum()
    for row in blend.scores.itertuples():
        at = FOLDS == row.fold
        assert row.src == src(TARGET[at], blend.oof[at]) and row.mae == mae(TARGET[at], blend.oof[at])


def test_posts_that_one_model_lacks_do_not_count():
    holes = np.where(np.arange(700) < 200, np.nan, GOOD)
    blend = fit_blend({"holes": holes, "fair": FAIR}, TARGET, FOLDS)
    assert blend.scores["n"].sum() == 400 and np.isnan(blend.oof[:200]).all()


@pytest.mark.parametrize(("arguments", "message"), [
    (({}, TARGET, FOLDS), "no model"),
    (({"good": GOOD, "short": GOOD[:-1]}, TARGET, FOLDS), "differ in rows"),
    (({"good": GOOD}, TARGET[:-1], FOLDS), "rows differ"),
    (({"good": np.full(700, np.nan)}, TARGET, FOLDS), "nothing to blend"),
])  # fmt: skip
def test_mistakes_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        fit_blend(*arguments)


def test_unknown_calibration_and_models_are_named():
    with pytest.raises(InputError, match="choose one of auto, affine, none"):
        fit_blend({"good": GOOD}, TARGET, FOLDS, calibrate="isotonic")
    with pytest.raises(InputError, match=r"\['fair', 'good'\]"):
        fit_blend({"good": GOOD, "fair": FAIR}, TARGET, FOLDS).predict({"good": GOOD})
