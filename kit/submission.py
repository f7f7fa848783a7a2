"""Write the submission of the SMP Challenge, and refuse to write a wrong one.

Two files come from one table: the CSV of 2025 and 2026 (``post_id,popularity_score``) and the JSON of 2019 to 2024. The
official scorer compares by position and never looks at the ids, so rows keep the order of the official test files; the
ids are right as well, so that a scorer that sorts agrees.

Source: the challenge's evaluation.py and the submission sections of its pages 2019 to 2024.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from kit.errors import InputError
from kit.run import atomic_path

VERSION = "VERSION 1.2"
DECIMALS = 4  # rounding there changes SRC by 3e-8 on the official test part


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
        InputError: the table would not be a valid submission; then nothing is written.
    """
    table = submission_table(posts, prediction)
    validate_table(table, posts, "the prediction")
    csv_path, json_path = folder / "submission.csv", folder / "submission.json"
    with atomic_path(csv_path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
        validate_table(read_submission(temporary, ".csv"), posts, csv_path.name)
    with atomic_path(json_path) as temporary:
        temporary.write_text(_as_json(table, external_data), encoding="utf-8")
        validate_table(read_submission(temporary, ".json"), posts, json_path.name)
    return [csv_path, json_path]


def remove_submission(folder: Path) -> None:
    """Take away the files of an earlier run, so that nobody submits predictions for other posts."""
    for name in ("submission.csv", "submission.json"):
        (folder / name).unlink(missing_ok=True)


def validate_submission(path: Path, posts: pd.DataFrame) -> int:
    """Number of posts in a submission file (CSV or JSON) that is valid for the test part of ``posts``.

    Raises:
        InputError: the first thing that is wrong: format, ids missing, unknown, twice or in another order, scores not
            finite or outside the range of the train labels.
    """
    path = Path(path)
    table = read_submission(path, path.suffix)
    validate_table(table, posts, str(path))
    return len(table)


def read_submission(path: Path, kind: str) -> pd.DataFrame:
    """post_id (str) and popularity_score (float) as they stand in a submission file.

    Args:
        kind: ".csv" or ".json".
    """
    try:
        if kind == ".csv":
            table = pd.read_csv(path, dtype={"post_id": str})
        elif kind == ".json":
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            table = _check_json(content, path)
        else:
            raise InputError(f"{path}: a submission is a .csv or a .json file")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {path} as a submission: {error}") from error
    if list(table.columns) != ["post_id", "popularity_score"]:
        raise InputError(
            f"{path}: columns are {', '.join(map(str, table.columns))}; expected post_id, popularity_score"
        )
    return table


def validate_table(table: pd.DataFrame, posts: pd.DataFrame, where: str) -> None:
    """Check ids and scores against the test part of ``posts``; see ``validate_submission``."""
    test = posts.loc[posts["split"] == "test", "Pid"]
    if not len(test):
        raise InputError("this release has no test part, so there is nothing to submit")
    expected = "post" + test.to_numpy()
    if pd.Series(expected).duplicated().any():
        raise InputError("two test posts share a Pid: a submission cannot tell them apart")
    ids = table["post_id"].to_numpy()
    if twice := table["post_id"][table["post_id"].duplicated()].tolist():
        raise InputError(f"{where}: {len(twice):,} ids appear twice, e.g. {twice[0]}")
    if absent := sorted(set(expected) - set(ids)):
        raise InputError(f"{where}: {len(absent):,} of {len(expected):,} test posts are missing, e.g. {absent[0]}")
    if unknown := sorted(set(ids) - set(expected)):
        raise InputError(f"{where}: {len(unknown):,} ids are not in the test part, e.g. {unknown[0]}")
    if (wrong := (ids != expected).nonzero()[0]).size:
        row = int(wrong[0])
        raise InputError(
            f"{where}: row {row} is {ids[row]} where {expected[row]} is expected ({wrong.size:,} rows out of order). The "
            "official scorer compares by position: keep the order of the test files"
        )
    _check_scores(table["popularity_score"], posts, ids, where)


def _check_scores(scores: pd.Series, posts: pd.DataFrame, ids: np.ndarray, where: str) -> None:
    values = pd.to_numeric(scores, errors="coerce").to_numpy(dtype=float)
    if (wrong := ~np.isfinite(values)).any():
        raise InputError(
            f"{where}: {int(wrong.sum()):,} scores are not finite numbers, the first at {ids[wrong.argmax()]}"
        )
    low, high = posts["label"].min(), posts["label"].max()
    margin = 0.5 * 10.0**-DECIMALS
    if (wrong := (values < low - margin) | (values > high + margin)).any():
        first = wrong.argmax()
        raise InputError(
            f"{where}: {int(wrong.sum()):,} scores lie outside the train labels' range {low:.2f} to {high:.2f}, the first "
            f"{values[first]:.4f} at {ids[first]}; clip them"
        )


def _as_json(table: pd.DataFrame, external_data: str) -> str:
    rows = [
        {"post_id": i, "popularity_score": s} for i, s in zip(table["post_id"], table["popularity_score"], strict=True)
    ]
    used = "true" if external_data else "false"  # a string in the official format
    content = {"version": VERSION, "result": rows, "external_data": {"used": used, "details": external_data}}
    return json.dumps(content, indent=4) + "\n"


def _check_json(content: object, path: Path) -> pd.DataFrame:
    if not isinstance(content, dict) or set(content) != {"version", "result", "external_data"}:
        raise InputError(f"{path}: expected an object with version, result and external_data")
    external = content["external_data"]
    if not isinstance(external, dict) or external.get("used") not in ("true", "false"):
        raise InputError(f'{path}: external_data.used must be the text "true" or "false", found {external!r}')
    return pd.DataFrame(content["result"], columns=["post_id", "popularity_score"])
