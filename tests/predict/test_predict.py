"""Final models on new posts: a run's own test posts come out as it predicted them; what cannot be is refused in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.encoders.registry import ENCODERS
from kit.predict import blocks, models
from kit.predict.__main__ import main, predict
from kit.predict.posts import join_posts, read_new
from kit.release.smpd import read_test_part
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.predictions import read_predictions, split_predictions
from tests.conftest import Release

POST = {"Pid": "n1", "Uid": "9@N9", "Title": "sunny dog", "Alltags": "dog cat", "Category": "A", "Subcategory": "s1",
        "Concept": "c1", "Postdate": "1435000000", "image": "own.png"}  # fmt: skip


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / "run", symlinks=True)


@pytest.fixture
def data(finished):
    return Path(finished[0][1])


def write_json(tmp_path, content, image=True):
    from PIL import Image

    if image:
        Image.new("RGB", (30, 20), "green").save(tmp_path / "own.png")
    path = tmp_path / "post.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_every_model_says_of_the_runs_own_test_posts_what_it_said_in_the_run(finished, data, tmp_path):
    """Blocks, taught columns, trees: all made anew from the files of the release, for every model and not only those fused."""
    run = Run.open(finished[1])
    posts, rows, said = join_posts(run.posts(), read_test_part(data))
    assert not said and len(posts) == len(run.posts()) and (rows >= 90).all()
    stored = split_predictions(read_predictions(run.dir / "predictions_user.parquet", run.posts()))[1]
    names = ["statistic", "behaviour", "clip", "clip_ft"]
    values, ok = blocks.new_values(run, posts, rows, names, tmp_path)
    assert ok.all()
    for name in names:
        np.testing.assert_allclose(
            values[name], run.read_block(name).values[rows], atol=2e-3, err_msg=name
        )  # float16 inside
    for name in ("statistic", "behaviour"):
        assert np.array_equal(values[name], run.read_block(name).values[rows], equal_nan=True), name
    joint = {name: blocks.joint_block(run.read_block(name), values[name], rows, len(posts)) for name in names}
    told = models.final_predictions(run, posts, rows, joint, list(stored), tmp_path)
    assert set(told) == set(stored) and len(told) > 7
    for model, values in told.items():
        np.testing.assert_allclose(values, stored[model][rows - 90], atol=1e-6, err_msg=model)


def test_the_table_holds_what_was_submitted_and_a_range(finished, data, tmp_path, capsys):
    assert main([str(finished[1]), "--posts", str(data), "--out", str(tmp_path / "p.csv"), "--level", "0.8"]) == 0
    table = pd.read_csv(tmp_path / "p.csv", dtype={"Pid": str})
    sent = pd.read_csv(finished[1] / "submission.csv", dtype={"post_id": str}).set_index("post_id").iloc[:, 0]
    np.testing.assert_allclose(table["prediction"], sent["post" + table["Pid"]], atol=1e-3)
    assert (table["low"] <= table["prediction"]).all() and (table["prediction"] <= table["high"]).all()
    ranges = (
        pd.read_csv(finished[1] / "tables" / "intervals.csv", dtype={"Pid": str}).set_index("Pid").loc[table["Pid"]]
    )
    np.testing.assert_allclose(table[["low", "high"]], ranges[["low", "high"]], atol=1e-3)
    wide = predict(finished[1], data, 0.95)
    assert (wide["low"] <= table["low"] + 1e-9).all() and (wide["high"] - wide["low"]).sum() > 1.1 * (
        table["high"] - table["low"]
    ).sum()


def test_one_post_and_its_image(finished, tmp_path, capsys):
    table = predict(finished[1], write_json(tmp_path, POST))
    assert (
        table["Pid"].tolist() == ["n1"]
        and np.isfinite(table["prediction"]).all()
        and table["low"][0] < table["high"][0]
    )
    assert "note" not in capsys.readouterr().out
    less = {name: POST[name] for name in ("Title", "Postdate")} | {"Subcategory": "never seen"}
    table = predict(finished[1], write_json(tmp_path, [POST, less]))
    said = capsys.readouterr().out
    assert np.isfinite(table["prediction"]).all() and table["Pid"].tolist() == ["n1", "new_1"]
    assert (
        "post new_1: Alltags, Category, Concept, image not given" in said and "Subcategory never seen not among" in said
    )


def test_a_new_post_leaves_the_others_where_they_are(finished, data, tmp_path):
    """Its own numbers come by the codes and vocabularies of the run, and it stands behind the posts of the run."""
    run = Run.open(finished[1])
    (tmp_path / "release").mkdir()
    new, _ = read_new(write_json(tmp_path, POST), tmp_path / "release")
    posts, rows, _ = join_posts(run.posts(), new)
    assert rows.tolist() == [120] and posts["Pid"].tolist()[:120] == run.posts()["Pid"].tolist()
    values, _ = blocks.new_values(run, posts, rows, ["statistic"], tmp_path)
    block = run.read_block("statistic")
    column = block.columns.index("Title_chars")
    assert values["statistic"].shape == (1, len(block.columns)) and values["statistic"][0, column] == len("sunny dog")
    same = run.posts()["Subcategory"] == "s1"
    code = block.columns.index("Subcategory_code")
    assert values["statistic"][0, code] == block.values[np.flatnonzero(same)[0], code]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[{", "not valid JSON"),
        ("[]", "holds no post"),
        ([3], "item 0 is no object"),
        (POST | {"Titel": "x"}, "unknown field 'Titel'; most like it: Title"),
        (POST | {"image": "none.jpg"}, "names the image .*none.jpg, which is no file"),
        (POST | {"Pid": "a/b", "image": "own.png"}, "a/b"),
        ([POST, POST], "n1"),
    ],
)  # fmt: skip
def test_json_that_cannot_be_is_refused_in_one_line(finished, tmp_path, capsys, content, told):
    path = write_json(tmp_path, content)
    with pytest.raises(InputError, match=told):
        predict(finished[1], path)
    assert main([str(finished[1]), "--posts", str(path), "--out", str(tmp_path / "out.csv")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and not (tmp_path / "out.csv").exists()


def test_runs_that_cannot_be_asked(run_dir, data, tmp_path):
    mark = run_dir / "done" / "06_gbdt_folds.json"
    content = mark.read_text()
    made = json.loads(content)
    made["code"]["kit.run.matrix"] = "other"
    mark.write_text(json.dumps(made))
    with pytest.raises(InputError, match="made by other code .06_gbdt_folds: kit.run.matrix"):
        predict(run_dir, data)
    mark.unlink()
    with pytest.raises(InputError, match="06_gbdt_folds did not run to the end"):
        predict(run_dir, data)
    mark.write_text(content)
    for path in run_dir.rglob("final.npz"):
        path.unlink()
    with pytest.raises(InputError, match="keeps no final model"):
        predict(run_dir, data)
    with pytest.raises(InputError, match="no file or folder"):
        read_new(tmp_path / "nothing", tmp_path)


def test_train_posts_are_refused(finished, tmp_path):
    run = Run.open(finished[1])
    with pytest.raises(InputError, match="are train posts of this run"):
        join_posts(run.posts(), run.posts().iloc[:2])


def test_blocks_that_no_step_makes_are_told(run_dir):
    run = Run.open(run_dir, write=True)
    run.write_block(Block("mine", np.zeros((120, 1), np.float32), ["a"]))
    run.write_block(Block("blip", np.zeros((120, 1), np.float32), ["a"]), imported="blocks.zip")
    assert "no step of the chain" in blocks.why_not(run, "mine", ENCODERS)
    assert "imported" in blocks.why_not(run, "blip", ENCODERS)
    (run_dir / "blocks" / "clip" / "pca.npz").unlink()
    assert "earlier version" in blocks.why_not(run, "clip", ENCODERS) and not blocks.why_not(run, "statistic", ENCODERS)


def test_the_test_part_alone_is_enough(tmp_path):
    release = Release(tmp_path / "data", n_train=8, n_test=6)
    whole = read_test_part(release.write())
    for path in release.root.glob("train*"):
        path.unlink()
    pd.testing.assert_frame_equal(read_test_part(release.root), whole)
