"""Write the submission of the SMP Challenge, refuse to write a wrong one, and check any other.

    python -m kit.submission FILE --data DIR [--labels FILE]     exit status 0: valid, 2: not

Two files come from one table: the CSV of 2025 and 2026 (``post_id,popularity_score``) and the JSON of 2019 to 2024. The
official scorer compares by position and never looks at the ids, so rows keep the order of the official test files; the
ids are right as well, so that a scorer that sorts agrees.

Source: the challenge's evaluation.py and the submission sections of its pages 2019 to 2024.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.base.files import atomic_path
from kit.release.values import to_floats

VERSION = "VERSION 1.2"
HEADER = ["post_id", "popularity_score"]
DECIMALS = 4  # rounding there changes SRC by 3e-8 on the official test part
MIN_SPREAD = 0.001  # of the train labels' standard deviation; models of shuffled labels, which know nothing, keep 0.011
USUAL_SPREAD = 0.1  # what a model of SRC 0.1 keeps; below it a note is due
MIN_POSTS_TO_SPREAD = 10  # fewer may honestly be alike
BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def submission_table(posts: pd.DataFrame, prediction: np.ndarray) -> pd.DataFrame:
    """post_id and popularity_score of every test post, in the official order.

    Args:
        posts: the posts table; its test rows count.
        prediction: (n_test,) float, the target scale of the labels, in the order of the test rows.
    Raises:
        InputError: another number of predictions than test posts.
    """
    test = posts.loc[posts["split"] == "test"]
    if len(prediction) != len(test):
        raise InputError(f"{len(prediction):,} predictions for {len(test):,} test posts; one per post is expected")
    scores = np.round(np.asarray(prediction, dtype=float), DECIMALS)
    return pd.DataFrame({"post_id": "post" + test["Pid"].to_numpy(), "popularity_score": scores})


def write_submission(folder: Path, posts: pd.DataFrame, prediction: np.ndarray, external_data: str = "") -> list[Path]:
    """Write ``submission.csv`` and ``submission.json``, read them back and validate what was read.

    Args:
        folder: the run directory.
        posts: the posts table.
        prediction: (n_test,) float in the order of the test rows.
        external_data: what was used beyond the release, in words ("" for nothing); the JSON format asks for it.
    Returns:
        The two paths.
    Raises:
        InputError: the table would not be a valid submission (see ``validate_submission``); then nothing is written.
    """
    table = submission_table(posts, prediction)
    validate_table(table, posts, "the prediction")
    csv_path, json_path = folder / "submission.csv", folder / "submission.json"
    with atomic_path(csv_path) as csv_file, atomic_path(json_path) as json_file:
        table.to_csv(csv_file, index=False, lineterminator="\n")
        json_file.write_text(_as_json(table, external_data), encoding="utf-8")
        validate_table(read_submission(csv_file, ".csv"), posts, csv_path.name)
        validate_table(read_submission(json_file, ".json"), posts, json_path.name)
    return [csv_path, json_path]


def remove_submission(folder: Path) -> None:
    """Take away the files of an earlier run, so that nobody submits predictions for other posts."""
    for name in ("submission.csv", "submission.json"):
        (folder / name).unlink(missing_ok=True)


def validate_submission(path: Path, posts: pd.DataFrame) -> int:
    """Number of posts in a submission file (CSV or JSON) that is valid for the test part of ``posts``.

    Raises:
        InputError: the first thing that is wrong: format, ids missing, unknown, twice or in another order; scores not
            finite, outside the range of the train labels (clipping to it can only lower the error), or all alike.
    """
    path = Path(path)
    table = read_submission(path, path.suffix.lower())
    validate_table(table, posts, str(path))
    return len(table)


def read_submission(path: Path, kind: str) -> pd.DataFrame:
    """post_id (str) and popularity_score as they stand in a submission file: text in a CSV, numbers in a JSON.

    Args:
        kind: ".csv" or ".json".
    Raises:
        InputError: the file cannot be read as such; the message names the first wrong line or entry.
    """
    if kind not in (".csv", ".json"):
        raise InputError(f"{path}: a submission is a .csv or a .json file")
    text = _read_text(path)
    return _parse_csv(text, path) if kind == ".csv" else _parse_json(text, path)


def validate_table(table: pd.DataFrame, posts: pd.DataFrame, where: str) -> np.ndarray:
    """The scores (n_test,) float64, once ids and scores fit the test part of ``posts``; see ``validate_submission``."""
    test = posts["split"] == "test"
    if not test.any():
        raise InputError("this release has no test part, so there is nothing to submit")
    if posts["Pid"][test].duplicated().any():
        raise InputError("two test posts share a Pid: a submission cannot tell them apart")
    ids = table["post_id"].to_numpy(dtype=object)
    _check_ids(ids, "post" + posts["Pid"][test].to_numpy(dtype=object), set("post" + posts["Pid"][~test]), where)
    values = _check_scores(table["popularity_score"], posts["label"], ids, where)
    _check_spread(values, posts["label"], where)
    return values


def read_test_labels(path: Path, posts: pd.DataFrame) -> np.ndarray:
    """(n_test,) float64 labels of the test posts in the official order.

    Args:
        path: one number per line in that order, or a CSV post_id,popularity_score in any order.
        posts: the posts table.
    Raises:
        InputError: another number of labels than test posts, other posts, or a label that is no finite number.
    """
    expected = "post" + posts.loc[posts["split"] == "test", "Pid"].to_numpy(dtype=object)
    text = _read_text(path)
    if text.startswith(HEADER[0]):
        table = _parse_csv(text, path).set_index("post_id")
        if (twice := table.index.duplicated()).any():
            raise InputError(f"{path}: {table.index[twice][0]} has two labels; keep one line per post")
        if absent := [i for i in expected if i not in table.index]:
            raise InputError(f"{path}: no label for {len(absent):,} of {len(expected):,} test posts, e.g. {absent[0]}")
        given = table.loc[expected, "popularity_score"]
    else:
        given = pd.Series(text.rstrip().splitlines(), dtype=object).str.strip()
    if len(given) != len(expected):
        raise InputError(
            f"{path}: {len(given):,} labels for {len(expected):,} test posts; expected one number per line"
        )
    labels = to_floats(given)
    if (wrong := ~np.isfinite(labels)).any():
        row = int(wrong.argmax())
        raise InputError(
            f"{path}: the label of {expected[row]} (row {row}) is {given.iloc[row]!r}; expected a number such as 6.23"
        )
    return labels


def _read_text(path: Path) -> str:
    try:
        content = Path(path).read_bytes()
        if content.startswith(BOMS):
            raise InputError(
                f"{path} begins with a byte-order mark, which scorers may take for a part of the first name: save it as "
                "UTF-8 without one"
            )
        return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path} as a submission ({error.strerror}): give the path of the file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start:,}): save it as UTF-8") from error


def _parse_csv(text: str, path: Path) -> pd.DataFrame:
    reader = csv.reader(io.StringIO(text, newline=""))
    rows = []
    try:
        for row in reader:
            if reader.line_num == 1 and row != HEADER:
                raise InputError(f"{path}: columns are {', '.join(row)[:200]}; expected post_id, popularity_score")
            if row and len(row) != len(HEADER):
                raise InputError(
                    f"{path}, line {reader.line_num}: {','.join(row)[:80]!r} has {len(row)} fields, expected a post_id and a "
                    "score with a decimal point, divided by a comma"
                )
            rows += [row] if row else []
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; expected a CSV post_id,popularity_score") from error
    if not rows:
        raise InputError(f"{path} is empty; expected the line post_id,popularity_score and one line per test post")
    return pd.DataFrame(rows[1:], columns=HEADER, dtype=object)


def _parse_json(text: str, path: Path) -> pd.DataFrame:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path} as a submission: {error}") from error
    if not isinstance(content, dict) or set(content) != {"version", "result", "external_data"}:
        raise InputError(f"{path}: expected an object with version, result and external_data")
    external = content["external_data"]
    if not isinstance(external, dict) or external.get("used") not in ("true", "false"):
        raise InputError(f'{path}: external_data.used must be the text "true" or "false", found {external!r}')
    rows = content["result"] if isinstance(content["result"], list) else [content["result"]]
    for i, row in enumerate(rows):
        if not (isinstance(row, dict) and set(row) == set(HEADER) and isinstance(row["post_id"], str)
                and type(row["popularity_score"]) in (int, float)):  # fmt: skip
            raise InputError(
                f"{path}, result {i}: {str(row)[:80]}; expected a post_id (text) and a popularity_score (number)"
            )
    largest = sys.float_info.max  # a whole number may exceed all floats
    scores = [min(max(row["popularity_score"], -largest), largest) for row in rows]
    return pd.DataFrame(
        {"post_id": [row["post_id"] for row in rows], "popularity_score": np.array(scores, dtype=float)}
    )


def _check_ids(ids: np.ndarray, expected: np.ndarray, train: set[str], where: str) -> None:
    """The ids are those of the test posts, each once, in their order."""
    if (twice := pd.Series(ids).duplicated().to_numpy()).any():
        row = int(twice.argmax())
        rows = f"rows {np.flatnonzero(ids == ids[row])[0]} and {row}"
        raise InputError(f"{where}: {int(twice.sum()):,} ids appear twice, e.g. {ids[row]} in {rows}; keep one of each")
    if (unknown := ~pd.Series(ids).isin(expected).to_numpy()).any():
        row = int(unknown.argmax())
        first = ids[row]
        hint = "is a train post" if first in train else "is unknown"
        hint = 'lacks the "post" in front of the Pid' if "post" + first in set(expected) else hint
        raise InputError(
            f"{where}: {int(unknown.sum()):,} ids are not in the test part, e.g. {first} in row {row}, which {hint}; expected "
            f"ids as {expected[min(row, len(expected) - 1)]}, one for each test post"
        )
    if (absent := ~pd.Series(expected).isin(ids).to_numpy()).any():
        row = int(absent.argmax())
        raise InputError(
            f"{where}: {int(absent.sum()):,} of {len(expected):,} test posts are missing, e.g. {expected[row]}, which belongs "
            f"into row {row}; predict every test post"
        )
    if (wrong := (ids != expected).nonzero()[0]).size:
        row = int(wrong[0])
        raise InputError(
            f"{where}: row {row} is {ids[row]} where {expected[row]} is expected ({wrong.size:,} rows out of order). The "
            "official scorer compares by position: keep the order of the test files"
        )


def _check_scores(scores: pd.Series, labels: pd.Series, ids: np.ndarray, where: str) -> np.ndarray:
    """The scores as (n,) float64, all finite and in the range of the labels."""
    values = to_floats(scores)
    if (wrong := ~np.isfinite(values)).any():
        row = int(wrong.argmax())
        raise InputError(
            f"{where}: {int(wrong.sum()):,} scores are not finite numbers, the first at {ids[row]} (row {row}: "
            f"{str(scores.iloc[row])[:40]!r}); expected a number with a decimal point"
        )
    low, high = labels.min(), labels.max()
    margin = 0.5 * 10.0**-DECIMALS
    if (wrong := (values < low - margin) | (values > high + margin)).any():
        row = int(wrong.argmax())
        raise InputError(
            f"{where}: {int(wrong.sum()):,} scores lie outside the train labels' range {low:.2f} to {high:.2f}, the first "
            f"{values[row]:.4f} at {ids[row]} (row {row}); clip them"
        )
    return values


def _check_spread(values: np.ndarray, labels: pd.Series, where: str) -> None:
    """Predictions that are all alike rank nothing: something went wrong on the way, unless the labels are alike, too."""
    if len(values) < MIN_POSTS_TO_SPREAD or labels.nunique() < 2:
        return
    if np.std(values) < MIN_SPREAD * labels.std(ddof=0):
        raise InputError(
            f"{where}: the scores hardly differ (standard deviation {np.std(values):.2g}, that of the train labels is "
            f"{labels.std(ddof=0):.2g}), so they rank nothing; check the model, or the order in which its steps ran"
        )


def describe_spread(values: np.ndarray, labels: pd.Series) -> str:
    share = np.std(values) / max(labels.std(ddof=0), 1e-12)
    note = "; NOTE: that is little, as of a model that has learned nothing" if share < USUAL_SPREAD else ""
    return f"standard deviation {np.std(values):.3f}, {share:.0%} of the train labels'{note}"


def _as_json(table: pd.DataFrame, external_data: str) -> str:
    rows = [
        {"post_id": i, "popularity_score": s} for i, s in zip(table["post_id"], table["popularity_score"], strict=True)
    ]
    used = "true" if external_data else "false"  # a string in the official format
    content = {"version": VERSION, "result": rows, "external_data": {"used": used, "details": external_data}}
    return json.dumps(content, indent=4) + "\n"
