"""A finished run, asked: contributions add up, nothing changed changes nothing, neighbours are the nearest."""

import json

import numpy as np
import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.base.process import HEADLESS, WRITE
from kit.boosting.ridge import Design
from kit.boosting.taught import TAUGHT
from kit.evaluation.table_one import parse_sets
from kit.features.behaviour import behaviour_block
from kit.features.statistic import statistic_block
from kit.pipeline.command import main
from kit.run.directory import Run
from kit.viz.explore import alike, changed, what_if
from kit.viz.explore.explorer import Explorer

POSTS = (0, 17, 60, -1)  # row positions: train posts of both folds, and a test post


@pytest.fixture(scope="module")
def look(finished):
    found = Explorer(Run(finished[1]))
    yield found
    found.close()


def pid_of(look, row):
    return look.opened.posts["Pid"].iloc[row]


@pytest.mark.parametrize("row", POSTS)
def test_contributions_add_up(look, row):
    found, opened = look.why(pid_of(look, row)), look.opened
    assert len(found.models) == len(opened.weights) and set(found.models["model"]) == set(opened.weights)
    np.testing.assert_allclose(found.models["total"], found.models["prediction"], atol=1e-6)
    assert found.base + found.families["contribution"].sum() == pytest.approx(opened.prediction[row], abs=1e-9)
    by_column = found.columns.groupby(["block", "family"])["contribution"].sum()
    own = found.families[found.families["block"] != "fusion"].set_index(["block", "family"])["contribution"]
    np.testing.assert_allclose(by_column.sort_index(), own.sort_index(), atol=1e-9)
    if row == -1:  # the submission's own weights: what is left is the foretold level, the same for all
        rest = [
            look.why(pid_of(look, other)).families.set_index("block").loc["fusion", "contribution"]
            for other in (-1, -2, -7)
        ]
        np.testing.assert_allclose(rest, rest[0], atol=1e-6)


def test_columns_come_with_their_own_values(look):
    found, opened = look.why(pid_of(look, 17)).columns.set_index("column"), look.opened
    block = opened.run.read_block("statistic")
    assert found.loc["hour", "value"] == pytest.approx(block.values[17, block.columns.index("hour")])
    assert found.loc["hour", "family"] == "posting_time" and found.loc["title_svd_0", "family"] == "title_svd"


def test_families_of_one_author_are_the_same_without_the_others(look):
    opened = look.opened
    mine = np.flatnonzero(opened.posts["Uid"] == opened.posts["Uid"].iloc[17])
    every = changed._context(opened, opened.posts)
    alone = changed._context(opened, opened.posts.iloc[mine].reset_index(drop=True))
    for name in changed.BY_AUTHOR:
        with_others = changed.FAMILIES[name](every).iloc[mine].reset_index(drop=True)
        pd.testing.assert_frame_equal(changed.FAMILIES[name](alone), with_others, check_exact=True)


@pytest.mark.parametrize("row", POSTS)
def test_nothing_changed_is_the_stored_prediction(look, row):
    opened, one = look.opened, look.opened.posts.iloc[row]
    same = {
        "hour": one["Postdate"].hour,
        "weekday": one["Postdate"].weekday(),
        "title": one["Title"],
        "tags": one["Alltags"],
    }
    variants = [
        {},
        same,
        {"image": one["image_path"]},
        {"hour": (one["Postdate"].hour + 5) % 24},
        {"title": "a dog at night"},
    ]
    found = what_if.what_if(opened, one["Pid"], variants)
    for name, values in found.models.items():
        np.testing.assert_allclose(values[:3], opened.predictions[name][row], atol=1e-6)
    np.testing.assert_allclose(found.table["prediction"][:3], opened.prediction[row], atol=1e-6)
    assert (found.table["low"] < found.table["high"]).all()


def test_ranges_are_those_of_the_table_and_follow_the_date(look):
    opened, kept = (
        look.opened,
        pd.read_csv(look.opened.run.dir / "tables" / "intervals.csv", dtype={"Pid": str}).set_index("Pid"),
    )
    for row in np.flatnonzero(opened.posts["split"] == "test")[::6]:
        pid = opened.posts["Pid"].iloc[row]
        found = what_if.what_if(opened, pid, [{}]).table.iloc[0]
        low, high = found[["low", "high"]].clip(opened.blend.learnt.low, opened.blend.learnt.high)
        assert (low, high) == pytest.approx(tuple(kept.loc[pid, ["low", "high"]]))
        assert what_if._earlier(opened, row, opened.posts.iloc[[row]]) == kept.loc[pid, "earlier"]
        first = opened.posts.iloc[[row]].assign(Postdate=opened.posts["Postdate"].min())
        assert what_if._earlier(opened, row, first) == 0
    assert kept["earlier"].max() > 0


def test_a_change_moves_what_the_models_say(look):
    """Not each of a few small trees asks for each column: of 30 posts, some move."""
    pids, opened = look.opened.posts["Pid"].iloc[::4], look.opened
    moved = [what_if.what_if(opened, pid, [{"hour": 3, "title": "a dog at night"}]).table["change"][0] for pid in pids]
    assert np.count_nonzero(moved)


@pytest.mark.parametrize(
    "change", [{"hour": 3}, {"weekday": 6, "hour": 22}, {"title": "sunny dog"}, {"tags": "cat sea cat"}]
)
def test_changed_columns_are_those_of_a_table_with_the_changed_post(look, change):
    """Against both blocks made anew from such a table; decompositions and what is held fixed are compared elsewhere."""
    opened, row = look.opened, 25
    one = changed.changed_posts(opened, row, [change])
    found = changed.block_rows(opened, row, one, ["statistic", "behaviour"])
    posts = changed.replaced(opened, row, one)
    made = {"statistic": statistic_block(posts, svd_dim=4), "behaviour": behaviour_block(posts, dim=4)}
    held = (
        "svd",
        "tag_neighbours",
        "tag_sequence",
        "top_tag",
        "author_",
        "log_album_size",
        "post_private",
        "log_burst",
    )
    past = ("author_log", "author_earlier", "log_author")
    n_checked = 0
    for name, block in made.items():
        stored = opened.run.read_block(name).columns
        for place, column in enumerate(block.columns):
            if column in stored and (column.startswith(past) or not any(word in column for word in held)):
                if name == "behaviour" and column.startswith("author_"):
                    continue
                np.testing.assert_allclose(
                    found[name][0, stored.index(column)], block.values[row, place], rtol=1e-5, err_msg=column
                )
                n_checked += 1
    assert n_checked > 60


def test_a_tag_moves_its_column_and_its_decomposition_like_those_who_have_it(look):
    """The decomposed columns of a changed post come near those of a stored post with the very same tags."""
    opened = look.opened
    posts, block = opened.posts, opened.run.read_block("statistic")
    twins = posts[posts["Alltags"].str.split().str.len() >= 2].index
    row, other = twins[0], next(i for i in twins if posts["Alltags"][i] != posts["Alltags"][twins[0]])
    found = changed.block_rows(
        opened, row, changed.changed_posts(opened, row, [{"tags": posts["Alltags"][other]}]), ["statistic"]
    )
    for stem, tolerance in (("top_tag_", 1e-6), ("tags_svd_", 0.12), ("tag_neighbours_", 0.35)):
        at = [i for i, column in enumerate(block.columns) if column.startswith(stem)]
        assert at and np.abs(found["statistic"][0, at] - block.values[other, at]).max() < tolerance, stem


def test_the_ridge_is_fitted_again_as_it_was(look):
    opened = look.opened
    features = next(
        name for name in (one.rpartition("/")[0] for one in opened.predictions) if parse_sets([name])[0].taught
    )
    alpha, view = opened.ridge(features, "fold_0")
    assert alpha > 0 and view in ("words", "characters", "both") and TAUGHT[0] == "ridge"
    design, taught_by = Design(opened.block(features), opened.posts), what_if._side(opened, "fold_0")
    weight = np.isin(np.arange(len(opened.posts)), taught_by).astype(float)
    made = design.predict(*design.fit(opened.target, weight, alpha, view))[weight == 0]
    np.testing.assert_allclose(made, opened.taught(features, "fold_0")[weight == 0, 0], atol=5e-3)


@pytest.mark.parametrize("by", ["image", "text", "tags", "clip_ft"])
def test_neighbours_are_the_nearest(look, by):
    opened = look.opened
    vectors = alike.vectors(opened, by)
    vectors = np.asarray(vectors.todense() if by == "tags" else vectors, np.float64)
    for row in (3, 40, -1):
        row %= len(vectors)
        cosine = [(-float(vectors[row] @ other), i) for i, other in enumerate(vectors) if i != row]
        table = look.neighbours(pid_of(look, row), by, 5).table
        np.testing.assert_allclose(table["cosine"], [-value for value, _ in sorted(cosine)[:5]], atol=1e-4)
        assert pid_of(look, row) not in set(table["Pid"])


def test_search_is_by_the_text_tower(look):
    found = look.search("dog", 4).table
    assert found["cosine"].is_monotonic_decreasing and len(found) == 4
    assert (
        found["Pid"].tolist() != look.search("sea. blue night", 4).table["Pid"].tolist()
        or found["cosine"].nunique() == 1
    )


def test_words_of_a_post_by_a_model_that_never_met_it(look):
    found = look.words(pid_of(look, 5))
    assert found.tokens["weight"].sum() == pytest.approx(1, abs=1e-3) and "never met" in found.model
    assert (
        found.classes.groupby("head")["probability"].sum().between(0, 1.0001).all()
        and found.classes["head"].nunique() == 5
    )
    assert found.name in found._repr_html_() and len(found.context["global"]) == 16
    assert "all fitting posts" in look.words(pid_of(look, -1)).model


def test_galleries(look):
    opened = look.opened
    error = pd.Series(opened.prediction - opened.target, index=opened.posts["Pid"]).dropna()
    assert look.gallery("over", n=1).table["Pid"][0] == error.idxmax()
    assert look.gallery("under", n=1).table["Pid"][0] == error.idxmin()
    assert look.gallery("worst", n=1).table["Pid"][0] == error.abs().idxmax()
    middle = look.gallery("median", n=1).table.iloc[0]
    assert abs(abs(middle["prediction"] - middle["label"]) - error.abs().median()) < 0.05
    assert set(look.gallery("worst", category="A", n=5).table["Category"]) == {"A"}


def test_disagreement_and_comparison(look):
    opened = look.opened
    _, most = look.disagreement(3)
    assert most.table["apart"].is_monotonic_decreasing
    assert (most.table["highest"] - most.table["lowest"] >= most.table["apart"]).all()
    sets = list(dict.fromkeys(name.rpartition("/")[0] for name in opened.predictions))
    table = look.compare(sets[0], sets[0]).table
    assert (table["moved"] == 0).all() and not (table["better"].dropna() != 0).any()
    table = look.compare(sets[0], sets[-1]).table
    assert table["moved"].abs().is_monotonic_decreasing and len(table) == 120


def test_similar_pairs(look):
    opened = look.opened
    vectors, posts = alike.vectors(opened, "image"), opened.posts
    wanted = [abs(posts["label"][i] - posts["label"][j]) for i in range(len(posts)) for j in range(i)
              if posts["Uid"][i] == posts["Uid"][j] and posts["Category"][i] == posts["Category"][j]
              and np.isfinite(posts["label"][i] + posts["label"][j]) and vectors[i] @ vectors[j] > 0.9]  # fmt: skip
    row = look.similar_pairs(least=0.9).iloc[0]
    assert row["pairs"] == len(wanted) > 10 and row["median"] == pytest.approx(np.median(wanted))
    assert row["share of a factor 4"] == pytest.approx(np.mean(np.array(wanted) >= 2))


def test_what_a_person_who_posts_asks(look):
    figure, found = look.best_hour(pid_of(look, 30), step=6)
    assert found.table["hour"].dropna().tolist() == [0, 6, 12, 18] and found.table["weekday"].dropna().tolist() == list(
        range(7)
    )
    assert len(figure.axes) == 2
    shown = look.which_tags(pid_of(look, 30), more=["love"], n=3)
    own = look.opened.posts["Alltags"].iloc[30].split()
    assert "with love" in set(shown.table["what"]) and len(shown.table) == 1 + len(dict.fromkeys(own[:3]))


def test_titles_of_any_script_are_escaped_and_kept(look):
    opened = look.opened
    before = opened.posts["Title"].copy()
    opened.posts.loc[0, "Title"] = "东京の夜 <b>&"
    shown = look.post(pid_of(look, 0)).html
    opened.posts["Title"] = before
    assert "东京の夜 &lt;b&gt;&amp;" in shown


def test_mistakes_are_told(look):
    pid = pid_of(look, 0)
    for ask, said in (
        (lambda: look.post("nobody"), "no post 'nobody'"),
        (lambda: look.neighbours(pid, by="sound"), "choose one of image, text, clip_ft, tags"),
        (lambda: look.gallery("best"), "choose one of worst, over, under, median"),
        (lambda: look.gallery(category="Z"), "categories are A, B"),
        (lambda: look.what_if(pid, hour=24), "hour=24: expected a whole number from 0 to 23"),
        (lambda: look.what_if(pid, colour="red"), "what_if knows hour, weekday, tags, title, image"),
        (lambda: look.what_if(pid, image="nowhere.jpg"), "missing file"),
        (lambda: look.compare("statistic", "magic"), "no feature set 'magic'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said.replace("?", r"\?")):
            ask()
    fold = look.opened.fold.copy()
    look.opened.fold[0] = -2
    with pytest.raises(InputError, match="teaches every fold"):
        look.why(pid)
    look.opened.fold[:] = fold


def test_the_panel_answers_without_a_notebook(look, capsys, monkeypatch):
    from kit.viz.explore.panel import panel

    monkeypatch.setenv(HEADLESS, "1")
    assert "by hand" in panel(look)
    monkeypatch.delenv(HEADLESS)
    made = panel(look)
    pick = made.children[0].children[0]
    pick.value = "nobody"
    assert pick.options and "nobody" == pick.value


def test_exploring_changes_nothing(finished, monkeypatch):
    arguments, run_dir = finished
    monkeypatch.delenv(WRITE)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    look = Explorer(run_dir)
    look.why(pid_of(look, 1)), look.what_if(pid_of(look, 1), hour=2), look.gallery(n=2)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()} == before
    mark = json.loads((run_dir / "done" / "08_explore.json").read_text())
    assert list(mark["writes"]) == ["explained.html"]
    others = [json.loads(path.read_text()) for path in (run_dir / "done").glob("0[1-7]_*.json")]
    assert len(others) == 7 and not any("explained.html" in other["reads"] for other in others)


def test_08_holds_nothing_up(finished, tmp_path, capsys):
    """Left out where asked; where it fails, the submission and a report are there, and the failure is told."""
    import shutil

    arguments, run_dir = finished
    copy = shutil.copytree(run_dir, tmp_path / "run")
    arguments = [*arguments[:3], str(copy), *arguments[4:]]
    (copy / "done" / "08_explore.json").unlink()
    assert main([*arguments, "--without", "8"]) == 0
    assert "08_explore" not in capsys.readouterr().out
    assert main([*arguments, "--set", "08.pid=nobody"]) == 2
    said = capsys.readouterr()
    assert "no post 'nobody'" in said.err and "earlier run" not in said.err and "submission" in said.out
    assert (copy / "report.html").stat().st_mtime_ns > (copy / "done" / "07_blend.json").stat().st_mtime_ns
