"""Writing a submission: checked, written whole, read back and checked again, against dumping the same two files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from kit.submission.files import VERSION, write_submission
from tests.bench.measure import Case, Found, Task

SEED = 0
LOW, HIGH = 1.0, 16.0  # labels of SMPD


def ours(folder: Path, n: int) -> Task:
    """``kit.submission.files.write_submission``."""
    posts, prediction = _predicted(n)
    return Task(lambda: write_submission(folder, posts, prediction), _found)


def dumped(folder: Path, n: int) -> Task:
    """The same files by pandas and json, unchecked."""
    posts, prediction = _predicted(n)

    def work() -> list[Path]:
        test = posts[posts["split"] == "test"]
        table = pd.DataFrame({"post_id": "post" + test["Pid"], "popularity_score": prediction.round(4)})
        paths = [folder / "plain.csv", folder / "plain.json"]
        table.to_csv(paths[0], index=False)
        rows = table.to_dict("records")
        with paths[1].open("w") as file:
            used = {"used": "false", "details": ""}
            json.dump({"version": VERSION, "result": rows, "external_data": used}, file, indent=4)
        return paths

    return Task(work, _found)


def _predicted(n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """What the submission reads of n train and n test posts, and a prediction (n,) for the latter."""
    rng = np.random.default_rng(SEED)
    labels, prediction = rng.uniform(LOW, HIGH, n), rng.uniform(LOW + 1, HIGH - 1, n)
    posts = pd.DataFrame(
        {
            "Pid": rng.permutation(2 * n).astype(str).astype(object),
            "split": pd.Categorical(np.repeat(["train", "test"], n)),
            "label": np.r_[labels, np.full(n, np.nan)],
        }
    )
    return posts, prediction


def _found(paths: list[Path]) -> Found:
    """The lines of both files."""
    return {path.suffix[1:]: np.array(path.read_text().splitlines()) for path in paths}


CASES = (Case(__name__, "CSV and JSON", {"ours": ours, "to_csv, json.dump": dumped}),)
