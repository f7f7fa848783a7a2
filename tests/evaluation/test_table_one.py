"""Table 1: rows as asked for, numbers of the folds, gains against the right row, and honest gaps."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.base.metrics import mae, src
from kit.boosting.result import FoldResult
from kit.evaluation import table_one
from kit.evaluation.blend import fit_blend
from kit.release.smpd import read_release
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.folds import TEST
from kit.run.marks import pending_path, read_record
from kit.viz import tables

RNG = np.random.default_rng(0)
FOLDS = np.r_[np.arange(600) % 3, np.full(50, TEST)].astype(np.int8)
TARGET = np.where(FOLDS >= 0, RNG.normal(8, 2, size=650), np.nan)
AUTHORS = RNG.integers(120, size=650)
SETS = table_one.parse_sets(["statistic", "statistic+clip", "statistic+blip", "statistic+clip+taught"])
NOISE = {"statistic": 2.0, "statistic+clip": 1.0, "statistic+clip+taught": 1.0}


def result(name: str, noise: float, seed: int) -> FoldResult:
    oof = TARGET + np.random.default_rng(seed).normal(0, noise, size=650)
    scores = [
        {"fold": k, "n": int((FOLDS == k).sum()), "src": src(TARGET[FOLDS == k], oof[FOLDS == k]),
         "mae": mae(TARGET[FOLDS == k], oof[FOLDS == k]), "rounds": 5, "seconds": 1.0} for k in range(3)
    ]  # fmt: skip
    return FoldResult(name, oof, np.zeros(50), pd.DataFrame(scores), pd.DataFrame({"column": [], "gain": []}))


RESULTS = {
    (name, model): result(model, noise, 100 + seed + 10 * place)
    for place, (name, noise) in enumerate(NOISE.items())
    for seed, model in enumerate(("lightgbm", "catboost"))
}
LACKING = {"statistic+blip": "not run: blip: needs its weights"}


def test_names_are_parsed():
    one = SETS[-1]
    assert one.parts == ("statistic", "clip", "taught") and one.blocks == ("statistic", "clip") and one.taught
    paper = table_one.parse_sets(["paper", "statistic+behaviour+taught"])
    assert len(paper) == 13 and paper[0].name == "statistic" and paper[11].name == "statistic+behaviour+clip_ft"


@pytest.mark.parametrize(("names", "message"), [
    ([], "no feature set"), (["statistic+"], "'statistic\\+'"), (["taught"], "block names"), (["a+a"], "each once"),
    (["a+b", "b+a"], "'b\\+a' stands in the list twice"),
])  # fmt: skip
def test_bad_names(names, message):
    with pytest.raises(InputError, match=message):
        table_one.parse_sets(names)


def test_the_table_holds_means_and_spreads_over_folds():
    table, fused = table_one.table_one(SETS, RESULTS, TARGET, FOLDS, LACKING)
    assert table["features"].tolist() == [one.name for one in SETS]
    row = table.set_index("features").loc["statistic+clip"]
    scores = RESULTS["statistic+clip", "catboost"].scores
    assert row["catboost_src"] == scores["src"].mean() and row["catboost_mae_sd"] == scores["mae"].std(ddof=1)
    blend = fit_blend({m: RESULTS["statistic+clip", m].oof for m in ("lightgbm", "catboost")}, TARGET, FOLDS)
    assert row["fusion_mae"] == blend.scores["mae"].mean() < min(row["lightgbm_mae"], row["catboost_mae"])
    assert row["n"] == 600 and row["folds"] == 3 and np.array_equal(fused["statistic+clip"], blend.oof, equal_nan=True)
    missing = table.set_index("features").loc["statistic+blip"]
    assert missing["note"] == LACKING["statistic+blip"] and np.isnan(missing["fusion_src"])


def test_trees_devices_and_the_limit_are_in_the_table():
    results = {key: replace(one, scores=one.scores.assign(device="gpu")) if key[1] == "catboost" else one
               for key, one in RESULTS.items()}  # fmt: skip
    late = results["statistic+clip", "lightgbm"]
    results["statistic+clip", "lightgbm"] = replace(late, scores=late.scores.assign(rounds=[5, 290, 271]))
    table, _ = table_one.table_one(SETS, results, TARGET, FOLDS, LACKING, limit=270)
    row = table.set_index("features").loc["statistic+clip"]
    assert row["lightgbm_rounds"] == pytest.approx((5 + 290 + 271) / 3) and row["lightgbm_at_limit"] == 2
    assert (row["catboost_at_limit"], row["catboost_device"], row["lightgbm_device"]) == (0, "gpu", "")
    warning = table_one.limit_warning(table)
    assert "statistic+clip lightgbm (2 of 3 folds)" in warning and "06.rounds" in warning and "catboost" not in warning
    text = tables.as_text(table_one.beside_paper(table)).set_index("features")
    assert text.loc["statistic+clip", "lightgbm trees"] == "189, -, 2 folds at the limit"
    assert (
        text.loc["statistic+clip", "catboost trees"] == "5, gpu" and text.loc["statistic+blip", "catboost trees"] == ""
    )
    assert table_one.limit_warning(table_one.table_one(SETS, results, TARGET, FOLDS, LACKING)[0]) == ""


def test_the_papers_rows_take_the_full_block_where_the_run_has_it(release, tmp_path):
    run = Run.open(tmp_path, step="03_clip_ft")
    run.write_posts(read_release(release.write()))
    assert [one.name for one in table_one.parse_sets(["paper"], run)] == [
        one.name for one in table_one.parse_sets(["paper"])
    ]
    for name in ("clip_ft_full", "blip2"):
        run.write_block(Block(name, np.ones((52, 1), np.float32), ["a"]))
    sets = table_one.parse_sets(["paper", "statistic+clip_ft"], run)
    assert [one.name for one in sets if "clip_ft" in one.blocks] == ["statistic+clip_ft"]
    assert sets[11].name == "statistic+behaviour+clip_ft_full" and sets[5].name == "statistic+blip2"
    beside = table_one.beside_paper(pd.DataFrame({"features": [one.name for one in sets]})).set_index("features")
    assert beside.loc["statistic+behaviour+clip_ft_full", "paper_fusion_src"] == 0.7395
    assert np.isnan(beside.loc["statistic+clip_ft", "paper_fusion_src"])


def test_all_is_every_block_of_the_run_in_a_fixed_order(release, tmp_path):
    run = Run.open(tmp_path, step="04_features", write=True)
    run.write_posts(read_release(release.write()))
    assert [one.name for one in table_one.parse_sets(["all"])] == ["statistic+behaviour+taught"]
    for name in ("mine", "minilm", "clip_image", "behaviour", "statistic"):
        run.write_block(Block(name, np.ones((52, 1), np.float32), ["a"]))
    sets = table_one.parse_sets(["statistic", "all", "statistic+behaviour+minilm+mine+taught"], run)
    assert [one.name for one in sets] == ["statistic", "statistic+behaviour+minilm+mine+taught"]
    later = Run.open(tmp_path, step="06_gbdt_folds", write=True)
    table_one.parse_sets(["all"], later)
    later.finish()
    assert read_record(pending_path(later.dir, later.step), set())["reads"]["blocks/efficientnet/meta.json"] is None


def test_gains_are_against_the_set_inside_and_the_row_above():
    _, fused = table_one.table_one(SETS, RESULTS, TARGET, FOLDS, LACKING)
    gains = table_one.gains(SETS, fused, TARGET, AUTHORS)
    assert gains[["features", "against", "what"]].to_numpy().tolist() == [
        ["statistic", "median of all labels", "all"],
        ["statistic+clip", "statistic", "added: clip"],
        ["statistic+clip+taught", "statistic+clip", "added: taught"],
    ]
    first, second, third = gains.to_dict("records")
    scored = FOLDS >= 0
    expected = mae(TARGET[scored], fused["statistic+clip"][scored]) - mae(TARGET[scored], fused["statistic"][scored])
    assert second["mae"] == pytest.approx(expected) and second["reading"] == "better" == first["reading"]
    assert third["reading"] == "no clear difference" and third["mae_low"] < 0 < third["mae_high"]


def test_a_row_that_contains_no_other_is_compared_with_the_row_above():
    sets = table_one.parse_sets(["statistic", "clip", "statistic+clip+taught"])
    fused = {one.name: RESULTS[name, "lightgbm"].oof for one, name in zip(sets, NOISE, strict=True)}
    gains = table_one.gains(sets, fused, TARGET, AUTHORS)
    assert gains["against"].tolist() == ["median of all labels", "statistic", "clip"]
    assert gains["what"].tolist() == ["all", "row above", "added: statistic taught"]


def test_worse_and_mixed_are_said():
    row = {"src_low": -0.1, "src_high": -0.01, "mae_low": 0.01, "mae_high": 0.1}
    assert table_one.reading(row) == "worse"
    assert table_one.reading(row | {"src_low": 0.01, "src_high": 0.1}) == "mixed"
    assert table_one.reading(row | {"mae_low": -0.01}) == "worse"
    assert table_one.reading({"src_low": -1, "src_high": 1, "mae_low": -1, "mae_high": 1}) == "no clear difference"


def test_rows_without_their_block_say_what_is_needed(release, tmp_path):
    run = Run.open(tmp_path, step="04_features")
    run.write_posts(read_release(release.write()))
    for name in ("statistic", "external"):
        run.write_block(Block(name, np.ones((52, 2), np.float32), [f"{name}_a", "b"]))
    run.drop_block("blip", "needs the model in inputs/weights/blip")
    lacking = table_one.not_run(run, SETS[:3])
    assert set(lacking) == {"statistic+clip", "statistic+blip"}
    assert lacking["statistic+blip"] == "not run: blip: needs the model in inputs/weights/blip"
    with pytest.raises(
        InputError, match="none of the feature sets can be run. statistic\\+clip: not run: clip: no step"
    ):
        table_one.not_run(run, SETS[1:2])
    block = table_one.set_block(run, table_one.parse_sets(["external+statistic"])[0])
    assert block.columns == ["external_a", "external:b", "statistic_a", "statistic:b"]
    assert table_one.set_block(run, SETS[0]).columns == ["statistic_a", "b"]  # a set is what its name says


def test_what_stands_behind_weights_above_zero_is_declared(release, tmp_path):
    run = Run.open(tmp_path, step="04_features")
    run.write_posts(read_release(release.write()))
    outside = {"statistic": "", "clip": "pre-trained CLIP X", "clip_ft": "pre-trained CLIP X", "external": "crawled"}
    for name, source in outside.items():
        run.write_block(Block(name, np.ones((52, 1), np.float32), [name], external=source))
    weights = {"statistic/lightgbm": 1.0, "statistic+clip+taught/catboost": 0.0, "external+statistic/lightgbm": 0.0}
    assert table_one.external_sources(run, weights) == []
    assert table_one.external_sources(run, {**weights, "statistic+clip+taught/catboost": 0.01}) == [
        "pre-trained CLIP X"
    ]
    every = {**weights, "clip+clip_ft/lightgbm": 0.5, "external+statistic/lightgbm": 0.1}
    assert table_one.external_sources(run, every) == ["pre-trained CLIP X", "crawled"]
    assert table_one.external_sources(run, {"clip/lightgbm": 0.0}) == []
    meta = run.dir / "blocks" / "clip" / "meta.json"  # of a run made before blocks carried the mark
    meta.write_text(meta.read_text().replace('"external"', '"else"'))
    assert run.read_block("clip").external == ""


def test_the_paper_stands_beside_and_text_keeps_gaps():
    table, _ = table_one.table_one(SETS, RESULTS, TARGET, FOLDS, LACKING)
    beside = table_one.beside_paper(table)
    assert len(beside) == len(table)
    assert beside.set_index("features").loc["statistic+clip", "paper_fusion_mae"] == 1.2087
    text = tables.as_text(beside).set_index("features")
    assert text.loc["statistic+blip", "fusion SRC"] == "" and "needs its weights" in text.loc["statistic+blip", "note"]
    assert text.loc["statistic+clip+taught", "paper's fusion SRC"] == ""
    row = table.set_index("features").loc["statistic"]
    assert text.loc["statistic", "fusion MAE"] == f"{row['fusion_mae']:.4f} ± {row['fusion_mae_sd']:.4f}"
    paper = pd.read_csv(table_one.PAPER).set_index("features")
    assert paper.loc["statistic+behaviour+clip_ft", ["fusion_src", "fusion_mae"]].tolist() == [0.7395, 1.1810]
    assert len(paper) == 12 and (paper["lightgbm_src"].between(0.70, 0.73)).all()
