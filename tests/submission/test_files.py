"""A submission is right in every byte, or it is not written."""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.base.errors import InputError
from kit.base.metrics import mae, src
from kit.release.smpd import read_release
from kit.submission.__main__ import main
from kit.submission.files import remove_submission, validate_submission, write_submission


@pytest.fixture
def posts():
    pids = ["5", "9", "30731", "96454", "1116"]
    return pd.DataFrame({
        "Pid": pids, "split": ["train", "train", "test", "test", "test"], "label": [1.0, 16.56, np.nan, np.nan, np.nan],
    })  # fmt: skip


def test_both_files_in_the_official_form(posts, tmp_path):
    csv_path, json_path = write_submission(tmp_path, posts, np.array([6.123456, 1.0, 16.56]))
    assert csv_path.read_text() == "post_id,popularity_score\npost30731,6.1235\npost96454,1.0\npost1116,16.56\n"
    assert json_path.read_text().startswith(
        '{\n    "version": "VERSION 1.2",\n    "result": [\n        {\n            "post_id": "post30731",\n'
        '            "popularity_score": 6.1235\n        },'
    )
    external = json.loads(json_path.read_text())["external_data"]
    assert external == {"used": "false", "details": ""}
    assert validate_submission(csv_path, posts) == validate_submission(json_path, posts) == 3


def test_external_data_is_declared(posts, tmp_path):
    _, json_path = write_submission(tmp_path, posts, np.full(3, 5.0), "CLIP ViT-B-32")
    assert json.loads(json_path.read_text())["external_data"] == {"used": "true", "details": "CLIP ViT-B-32"}


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ([1.0, 2.0], "2 predictions for 3 test posts"),
        ([1.0, np.nan, 2.0], "1 scores are not finite numbers, the first at post96454"),
        (
            [1.0, 17.0, 0.2],
            r"2 scores lie outside the train labels' range 1.00 to 16.56, the first 17.0000 at post96454",
        ),
    ],
)
def test_a_wrong_prediction_writes_nothing(posts, tmp_path, prediction, message):
    with pytest.raises(InputError, match=message):
        write_submission(tmp_path, posts, np.array(prediction))
    assert list(tmp_path.iterdir()) == []


GOOD = ["post30731,5.0", "post96454,6.0", "post1116,7.0"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["id,score", *GOOD], "columns are id, score; expected post_id, popularity_score"),
        (["post_id,popularity_score", *GOOD[:2]], "1 of 3 test posts are missing, e.g. post1116"),
        (
            ["post_id,popularity_score", *GOOD, "post7,5.0"],
            "1 ids are not in the test part, e.g. post7 in row 3, which is unk",
        ),
        (["post_id,popularity_score", "post9,5.0", *GOOD[1:]], "e.g. post9 in row 0, which is a train post"),
        (
            ["post_id,popularity_score", *(line[4:] for line in GOOD)],
            '3 ids .* e.g. 30731 in row 0, which lacks the "post"',
        ),
        (["post_id,popularity_score", "post030731,5.0", *GOOD[1:]], "e.g. post030731 in row 0, which is unknown"),
        (["post_id,popularity_score", *GOOD, GOOD[0]], "1 ids appear twice, e.g. post30731 in rows 0 and 3; keep one"),
        (["post_id,popularity_score", GOOD[1], GOOD[0], GOOD[2]], r"row 0 is post96454 .*2 rows out of order"),
        (
            ["post_id,popularity_score", *GOOD[:2], "post1116,high"],
            "not finite numbers, the first at post1116 .row 2: 'high'",
        ),
        (["post_id,popularity_score", *GOOD[:2], "post1116,"], "not finite numbers, the first at post1116"),
        (["post_id,popularity_score", *GOOD[:2], "post1116,-inf"], "not finite numbers, the first at post1116"),
        (
            ["post_id,popularity_score", *GOOD[:2], "post1116,1e99999999999"],
            "not finite numbers, the first at post1116",
        ),
        (["post_id,popularity_score", *GOOD[:2], "post1116,1_0"], "not finite numbers, the first at post1116"),
        (["post_id,popularity_score", *GOOD[:2], "post1116,1e400"], "not finite numbers, the first at post1116"),
        (
            ["post_id,popularity_score", *GOOD[:2], 'post1116,"7,0"'],
            "post1116 .row 2: '7,0'.; expected a number with a decimal",
        ),
        (
            ["post_id,popularity_score", "post30731,5,0", *GOOD[1:]],
            "line 2: 'post30731,5,0' has 3 fields, expected a post_id",
        ),
        (["post_id,popularity_score", *(line.replace(".", ",") for line in GOOD)], "line 2: .* has 3 fields"),
        (["post_id;popularity_score", *GOOD], "columns are post_id;popularity_score; expected"),
        (["popularity_score,post_id", *GOOD], "columns are popularity_score, post_id; expected"),
        (GOOD, "columns are post30731, 5.0; expected"),
        (["\ufeffpost_id,popularity_score", *GOOD], "byte-order mark.*save it as UTF-8 without"),
        (["post_id,popularity_score"], "3 of 3 test posts are missing, e.g. post30731, which belongs into row 0"),
        (["post_id,popularity_score", "x" * 200_000], "line 2: field larger than"),
    ],
)
def test_validation_names_the_first_fault(posts, tmp_path, lines, message):
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=message):
        validate_submission(path, posts)


def test_json_must_have_the_official_keys(posts, tmp_path):
    _, path = write_submission(tmp_path, posts, np.full(3, 5.0))
    content = json.loads(path.read_text())
    content["external_data"]["used"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match='must be the text "true" or "false"'):
        validate_submission(path, posts)
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot read .* as a submission"):
        validate_submission(path, posts)
    path.write_text("{}")
    with pytest.raises(InputError, match="expected an object with version, result and external_data"):
        validate_submission(path, posts)
    with pytest.raises(InputError, match="is a .csv or a .json file"):
        validate_submission(tmp_path / "x.txt", posts)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"post_id": "post30731"}, "result 0: .*expected a post_id .text. and a popularity_score .number"),
        ({"post_id": 30731, "popularity_score": 5.0}, "result 0"),
        ({"post_id": "post30731", "popularity_score": "5.0"}, "result 0"),
        ({"post_id": "post30731", "popularity_score": True}, "result 0"),
        ({"post_id": "post30731", "popularity_score": 5.0, "rank": 1}, "result 0"),
        (
            {"post_id": "post30731", "popularity_score": float("nan")},
            "1 scores are not finite numbers, the first at post30731",
        ),
        ({"post_id": "post30731", "popularity_score": -(10**400)}, "1 scores lie outside the train labels' range"),
        ("post30731", "result 0: post30731; expected"),
    ],
)
def test_json_rows_are_checked_one_by_one(posts, tmp_path, row, message):
    _, path = write_submission(tmp_path, posts, np.full(3, 5.0))
    content = json.loads(path.read_text())
    content["result"][0] = row
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        validate_submission(path, posts)


def test_unreadable_files_are_named(posts, tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*no.csv as a submission .No such file"):
        validate_submission(tmp_path / "no.csv", posts)
    (tmp_path / "a.csv").write_bytes("post_id,popularity_score\n".encode("utf-16"))
    with pytest.raises(InputError, match="byte-order mark"):
        validate_submission(tmp_path / "a.csv", posts)
    (tmp_path / "a.csv").write_bytes(b"post_id,popularity_score\n\xff")
    with pytest.raises(InputError, match="not UTF-8 text .byte 25"):
        validate_submission(tmp_path / "a.csv", posts)
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(InputError, match="is empty; expected the line post_id"):
        validate_submission(tmp_path / "a.csv", posts)


def crowd(n_test: int = 40) -> pd.DataFrame:
    n = 60 + n_test
    labels = np.where(np.arange(n) < 60, np.linspace(1, 16, n), np.nan)
    return pd.DataFrame(
        {"Pid": [str(7 * i) for i in range(n)], "split": ["train"] * 60 + ["test"] * n_test, "label": labels}
    )


@pytest.mark.parametrize("spread", [0, 1e-4])
def test_scores_that_rank_nothing_are_refused(tmp_path, spread):
    posts = crowd()
    with pytest.raises(
        InputError, match="the scores hardly differ .standard deviation .*they rank nothing; check the model"
    ):
        write_submission(tmp_path, posts, 5 + spread * np.arange(40) / 40)
    assert list(tmp_path.iterdir()) == []


def test_honest_models_are_not_refused(tmp_path):
    """A model of shuffled labels keeps about 1 % of their spread; few posts, or labels that are alike, have none."""
    posts = crowd()
    shuffled = 5 + 0.01 * posts["label"].std() * np.random.default_rng(0).normal(size=40)
    assert len(write_submission(tmp_path, posts, shuffled)) == 2
    assert len(write_submission(tmp_path, crowd(5), np.full(5, 5.0))) == 2
    alike = posts.assign(label=posts["label"].where(posts["label"].isna(), 4.0))
    assert len(write_submission(tmp_path, alike, np.full(40, 4.0))) == 2


POSTS = crowd(12)
SPOILS = {
    "drop": lambda lines, i: lines[:i] + lines[i + 1 :],
    "repeat": lambda lines, i: [*lines, lines[i]],
    "swap": lambda lines, i: [*lines[:i], *lines[i : i + 2][::-1], *lines[i + 2 :]] if i < 11 else lines[::-1],
    "other id": lambda lines, i: [*lines[:i], "1" + lines[i], *lines[i + 1 :]],
    "no score": lambda lines, i: [*lines[:i], lines[i].split(",")[0] + ",", *lines[i + 1 :]],
    "nan": lambda lines, i: [*lines[:i], lines[i].split(",")[0] + ",nan", *lines[i + 1 :]],
    "comma": lambda lines, i: [*lines[:i], lines[i].replace(".", ","), *lines[i + 1 :]],
    "too high": lambda lines, i: [*lines[:i], lines[i].replace(",", ",9"), *lines[i + 1 :]],
    "one field": lambda lines, i: [*lines[:i], lines[i].replace(",", " "), *lines[i + 1 :]],
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1, 9), min_size=12, max_size=12, unique_by=lambda score: round(score, 3)))
def test_any_prediction_survives_to_four_decimals(scores):
    with tempfile.TemporaryDirectory() as folder:
        try:
            csv_path, json_path = write_submission(Path(folder), POSTS, np.array(scores))
        except InputError as error:
            assert "hardly differ" in str(error) and np.std(scores) < 0.01
            return
        rows = json.loads(json_path.read_text())["result"]
        assert np.abs(pd.read_csv(csv_path)["popularity_score"] - scores).max() <= 0.5001e-4
        assert [row["popularity_score"] for row in rows] == pd.read_csv(csv_path)["popularity_score"].tolist()
        assert [row["post_id"] for row in rows] == ["post" + pid for pid in POSTS["Pid"][60:]]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SPOILS)), st.integers(0, 11))
def test_any_spoilt_table_is_refused(spoil, row):
    with tempfile.TemporaryDirectory() as folder:
        csv_path, _ = write_submission(Path(folder), POSTS, np.linspace(2.5, 9.5, 12))
        header, *lines = csv_path.read_text().splitlines()
        csv_path.write_text("\n".join([header, *SPOILS[spoil](lines, row)]) + "\n")
        with pytest.raises(InputError):
            validate_submission(csv_path, POSTS)


def test_command_line(release, tmp_path, capsys):
    posts = read_release(release.write())
    scores = np.round(np.linspace(2, 4, 12), 4)
    csv_path, json_path = write_submission(tmp_path, posts, scores)
    truth = np.round(np.random.default_rng(0).normal(4, 1, 12), 2)
    (tmp_path / "truth.txt").write_text("\n".join(map(str, truth)) + "\n\n")
    ids = "post" + posts["Pid"][40:].to_numpy()
    table = pd.DataFrame({"post_id": ids, "popularity_score": truth}).sort_values("popularity_score")
    table.to_csv(tmp_path / "truth.csv", index=False)
    for path, labels in ((csv_path, "truth.txt"), (json_path, "truth.csv")):
        assert main([str(path), "--data", str(release.root), "--labels", str(tmp_path / labels)]) == 0
        said = capsys.readouterr().out
        assert "valid, 12 posts; standard deviation 0.6" in said
        assert f"SRC {src(truth, scores):.4f}  MAE {mae(truth, scores):.4f}  (n = 12)" in said
    csv_path.write_text(csv_path.read_text().replace("\npost", "\n", 3))
    assert main([str(csv_path), "--data", str(release.root)]) == 2
    assert re.match(
        'error: .*3 ids are not in the test part, e.g. [0-9]+ in row 0, which lacks the "post"', capsys.readouterr().err
    )
    assert main([str(json_path), "--data", str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\n2\n", "2 labels for 12 test posts; expected one number per line"),
        ("1\n2\nx\n" + "3\n" * 9, r"the label of post\d+ .row 2. is 'x'; expected a number"),
        ("post_id,popularity_score\npost1,2\n", "no label for 12 of 12 test posts"),
        ("post_id,popularity_score\npost1,2\npost1,3\n", "post1 has two labels"),
        ("", "0 labels for 12 test posts"),
    ],
)
def test_labels_that_do_not_fit(release, tmp_path, capsys, content, message):
    posts = read_release(release.write())
    csv_path, _ = write_submission(tmp_path, posts, np.linspace(2, 4, 12))
    (tmp_path / "truth").write_text(content)
    assert main([str(csv_path), "--data", str(release.root), "--labels", str(tmp_path / "truth")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_no_test_part_no_submission(posts, tmp_path):
    with pytest.raises(InputError, match="no test part"):
        write_submission(tmp_path, posts[:2], np.empty(0))
    write_submission(tmp_path, posts, np.full(3, 5.0))
    remove_submission(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_positional_and_id_scorers_agree(posts, tmp_path):
    """The server compares by position, older scorers sorted by id: both must see the same pairs."""
    truth = pd.Series([3.0, 9.0, 6.0], index=["post30731", "post96454", "post1116"])
    csv_path, _ = write_submission(tmp_path, posts, np.array([4.0, 8.0, 5.0]))
    table = pd.read_csv(csv_path)
    by_position = np.abs(table["popularity_score"].to_numpy() - truth.to_numpy())
    by_id = np.abs(table.set_index("post_id")["popularity_score"] - truth).loc[truth.index]
    np.testing.assert_array_equal(by_position, by_id)
