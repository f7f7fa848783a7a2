"""Every figure draws from ordinary and from odd data: one post, one user, no test part, no dates."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import rcParams

from kit.release.quality import word_counts
from kit.release.smpd import read_release
from kit.viz import figures
from kit.viz.labels import label_by
from kit.viz.residuals import residuals


@pytest.fixture
def posts(release):
    return read_release(release.write())


def _drawn(figure):
    figure.canvas.draw()
    return [ax for ax in figure.axes if ax.get_title(loc="left")]


def test_figure_1_shows_every_post(posts):
    counts = {"Title": word_counts(posts["Title"]), "Alltags": np.array([0, 1, 3, 99])}
    title, tags = _drawn(figures.word_counts(counts, longest=5))
    assert sum(bar.get_height() for bar in title.patches) == pytest.approx(100)
    assert [bar.get_height() for bar in tags.patches] == [25, 25, 0, 25, 0, 25]
    assert "50 % have one or none" in tags.get_title(loc="left")


@pytest.mark.parametrize("change", ["none", "train only", "no dates", "one post", "no categories"])
def test_eda_figures_of_odd_data(posts, change):
    if change == "train only":
        posts = posts[posts["split"] == "train"]
    elif change == "no dates":
        posts["Postdate"] = pd.NaT
        posts["Postdate"] = pd.to_datetime(posts["Postdate"], utc=True)
    elif change == "one post":
        posts = posts[:1]
    elif change == "no categories":
        posts["Category"] = pd.Categorical([""] * len(posts))
    for draw in (figures.category_tree, figures.posting_rhythm, figures.users_per_split, label_by):
        assert _drawn(draw(posts))
    assert _drawn(figures.label_histogram(posts["label"].dropna().to_numpy()))
    counts = figures.label_histogram(np.array([0.0, 3e5, 2e6]))
    assert _drawn(counts) and len(counts.axes[0].patches) <= 50  # a bar for each half of a label would take minutes


def test_empty_axes_say_how_many_posts_a_group_needs(posts):
    for figure in (label_by(posts), residuals(posts, np.zeros(len(posts)))):
        said = {ax.get_title(loc="left").split(":")[0]: [text.get_text() for text in ax.texts] for ax in figure.axes}
        assert said["By author"] == ["no group of 5 posts"] and said["By hour"] == ["no group of 20 posts"]


def test_result_figures():
    rng = np.random.default_rng(0)
    target = rng.normal(6, 2, 300)
    assert len(_drawn(figures.actual_against_predicted(target, target + rng.normal(0, 1, 300), "blend"))) == 2
    (errors,) = _drawn(figures.error_by_label(target, target + 0.5))
    np.testing.assert_allclose([bar.get_height() for bar in errors.patches if np.isfinite(bar.get_height())], 0.5)
    gains = pd.DataFrame({"model": ["a", "a", "b"], "column": ["x", "y", "x"], "gain": [0.7, 0.3, 1.0]})
    assert _drawn(figures.importance(gains))
    (weights,) = _drawn(figures.blend_weights({"a": 0.2, "b": 0.8, "c": 0.0}))
    assert [bar.get_width() for bar in weights.patches] == [0.2, 0.8] and "2 of 3" in weights.get_title(loc="left")
    errors = pd.DataFrame(rng.normal(size=(50, 3)), columns=["a/x", "b/x", "c/x"])
    (matrix,) = _drawn(figures.error_correlation(errors))
    np.testing.assert_allclose(matrix.images[0].get_array(), errors.corr())


def test_other_peoples_settings_survive():
    before = dict(rcParams)
    figures.blend_weights({"a": 1.0})
    assert dict(rcParams) == before


def test_prototype_and_training_figures():
    rng = np.random.default_rng(0)
    coverage = pd.DataFrame({
        f"{what}{kind}": np.full(4, value)
        for what in ("months", "concepts", "users")
        for kind, value in (("", 10), ("_shots", 8), ("_random", 5))
    })  # fmt: skip
    first, *_ = _drawn(figures.shot_coverage(coverage))
    assert [line.get_ydata()[0] for line in first.lines] == [50, 80]
    unit = np.eye(3)
    maps = _drawn(figures.similarity_map(unit, unit[::-1], ["a", "b", "c"]))
    np.testing.assert_array_equal(maps[2].images[0].get_array(), unit @ unit[::-1].T)
    picture = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    sheet = figures.contact_sheet({"cats": [picture, picture], "dogs": [picture]})
    sheet.canvas.draw()
    assert [len(ax.images) for ax in sheet.axes] == [1, 1, 1, 0]
    columns = [f"{side}_{term}" for side in ("train", "valid") for term in ("L_g", "L_o", "L_c")]
    columns += [f"valid_accuracy_{head}" for head in ("global", "local", "visual", "textual", "averaged")]
    history = pd.DataFrame(rng.random((3, len(columns))), columns=columns).assign(epoch=range(3))
    losses, accuracies = _drawn(figures.training_history(history))
    assert len(losses.lines) == 6 and len(accuracies.lines) == 5
