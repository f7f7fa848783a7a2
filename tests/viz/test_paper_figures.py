"""The figures of the experiments show the numbers of their tables, also where rows, seeds or classes are missing."""

import numpy as np
import pandas as pd
import pytest

from kit.viz import paper_figures
from kit.viz.figures import COLOURS

RNG = np.random.default_rng(0)


def drawn(figure):
    figure.canvas.draw()
    return figure.axes


def table_one():
    row = {f"{m}_{k}": 0.5 for m in ("lightgbm", "catboost", "fusion") for k in ("src", "src_sd", "mae", "mae_sd")}
    rows = [{"features": "statistic", "note": "", "n": 90} | row, {"features": "statistic+blip", "note": "not run: x"},
            {"features": "statistic+clip", "note": np.nan, "n": 90} | row | {"fusion_src": 0.7}]  # fmt: skip
    return pd.DataFrame(rows)


def test_table_one_leaves_out_what_was_not_run():
    left, right = drawn(paper_figures.table_one(table_one()))
    assert [label.get_text() for label in left.get_yticklabels()] == ["statistic", "statistic+clip"]
    fusion = [line for line in left.lines if line.get_marker() == "D"]
    assert fusion[0].get_xdata().tolist() == [0.5, 0.7] and len(right.containers) == 3
    assert "n = 90" in left.get_title(loc="left")


def test_table_one_with_one_model():
    table = table_one().drop(columns=[c for c in table_one() if c.startswith("catboost")])
    left, _ = drawn(paper_figures.table_one(table))
    assert len(left.containers) == 2


def test_gains_show_what_is_added_with_its_range():
    rows = [
        {"features": "a", "against": "median", "what": "all", "src": 0.5, "mae": -1, "reading": "better"},
        {"features": "a+b", "against": "a", "what": "added: b", "src": 0.02, "mae": -0.1, "reading": "better"},
        {"features": "a+c", "against": "a", "what": "added: c", "src": 0.0, "mae": 0.1, "reading": "worse"},
    ]
    table = pd.DataFrame(rows).assign(src_low=-0.1, src_high=0.1, mae_low=-0.2, mae_high=0.2)
    left, right = drawn(paper_figures.gains(table))
    assert [label.get_text() for label in left.get_yticklabels()] == ["b  to  a", "c  to  a"]
    assert left.lines[0].get_xdata().tolist() == [-0.1, 0.1] and left.lines[1].get_xdata()[0] == 0.02
    assert left.lines[0].get_color() == COLOURS["better"] != left.lines[2].get_color()
    assert drawn(paper_figures.gains(table[:1]))  # nothing was added to anything


def tail_arguments(n=400):
    target = RNG.gamma(4, 2, size=n)
    oof = {"plain": target * 0.7 + 2, "copies x5": target * 0.8 + 2.5, "LDS": target * 0.75 + 2}
    buckets = pd.DataFrame([
        {"variant": name, "low": low, "high": low + 5, "n": 9, "mae": 1.0, "bias": -0.1 * low}
        for name in oof for low in (0.0, 5.0, 10.0)
    ])  # fmt: skip
    return target, oof, buckets, float(np.quantile(target, 0.98))


def test_figure_3_counts_every_post_and_marks_the_tail():
    target, oof, buckets, threshold = tail_arguments()
    whole, tail, bias = drawn(paper_figures.tail(target, oof, buckets, threshold))
    assert sum(bar.get_height() for bar in whole.patches[:49]) == len(target)
    assert tail.get_xlim()[0] < threshold < tail.get_xlim()[1] == pytest.approx(target.max())
    np.testing.assert_allclose(bias.lines[0].get_ydata(), [0.0, -0.5, -1.0])
    assert bias.lines[0].get_color() == COLOURS["predicted"]
    for ax in (whole, tail, bias):
        assert ax.get_xlabel() == "popularity (label scale)" and ax.get_ylabel()


def selection_table(seeds=2):
    base = {"seeds": seeds, "mae": 1.0, "mae_low": 0.9, "mae_high": 1.1, "seconds": 4.0}
    cells = [(1.0, "all", "all posts")]
    cells += [(r, s, "all posts") for s in ("lowest", "highest", "random") for r in (0.77, 0.5)]
    cells += [(r, "lowest", "within subcategory") for r in (0.77, 0.5)]
    return pd.DataFrame([
        base | {"ratio": r, "side": s, "scope": scope, "src": 0.7 * r, "src_low": 0.6 * r, "src_high": 0.8 * r}
        for r, s, scope in cells
    ])  # fmt: skip


@pytest.mark.parametrize("seeds", [1, 3])
def test_figure_4b_starts_every_line_at_full_training(seeds):
    src, mae, seconds = drawn(paper_figures.selection(selection_table(seeds)))
    lines = [line for line in src.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 4 and all(line.get_xdata()[0] == 100 and line.get_ydata()[0] == 0.7 for line in lines)
    assert src.get_xlim()[0] > src.get_xlim()[1] and len(src.collections) == (4 if seeds > 1 else 0)
    assert [line.get_ydata()[0] for line in seconds.lines if len(line.get_xdata()) == 3] == [1.0] * 4
    assert {line.get_color() for line in lines} == {COLOURS[side] for side in paper_figures.SIDES}


def test_figure_4a_names_categories_and_leaves_out_small_classes():
    classes = pd.DataFrame({
        "level": ["Category"] * 3 + ["Subcategory"] * 4, "name": ["Food", "Urban", "Tiny", "a", "b", "c", "d"],
        "n": [300, 200, 5, 100, 100, 100, 100], "src": [0.5, 0.5, 0.9, 0.1, 0.2, 0.3, 0.4], "mae": [1, 1.2, 0, 4, 3, 2, 1],
        "cosine": [0.2, 0.3, 0.9, 0.1, 0.2, 0.3, 0.4],
    })  # fmt: skip
    src, mae = drawn(paper_figures.alignment(classes, "a remark"))
    labels = [entry.get_text() for entry in src.figure.legends[0].get_texts()]
    assert labels == ["a subcategory", "Food", "Urban"] and len(src.collections) == 3
    assert "+1.00" in src.get_title(loc="left") and "-1.00" in mae.get_title(loc="left")
    assert drawn(paper_figures.alignment(classes.assign(cosine=np.nan)))
