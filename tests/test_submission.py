"""A submission is right in every byte, or it is not written."""

import json

import numpy as np
import pandas as pd
import pytest

from kit.errors import InputError
from kit.submission import remove_submission, validate_submission, write_submission


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
        (["post_id,popularity_score", *GOOD, "post7,5.0"], "1 ids are not in the test part, e.g. post7"),
        (["post_id,popularity_score", *GOOD, GOOD[0]], "1 ids appear twice, e.g. post30731"),
        (["post_id,popularity_score", GOOD[1], GOOD[0], GOOD[2]], r"row 0 is post96454 .*2 rows out of order"),
        (["post_id,popularity_score", *GOOD[:2], "post1116,high"], "not finite numbers, the first at post1116"),
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
    path.write_text("{}")
    with pytest.raises(InputError, match="expected an object with version, result and external_data"):
        validate_submission(path, posts)
    with pytest.raises(InputError, match="is a .csv or a .json file"):
        validate_submission(tmp_path / "x.txt", posts)


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
