"""python -m kit.submission FILE --data DIR: check any submission, and score it where labels are given."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kit.base.errors import InputError
from kit.base.metrics import mae, src
from kit.release import smpd
from kit.submission.files import describe_spread, read_submission, read_test_labels, validate_table


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 the file is valid, 2 it is not or cannot be judged)."""
    parser = argparse.ArgumentParser(prog="python -m kit.submission", description="Check a submission file.")
    parser.add_argument("file", metavar="FILE", type=Path, help="the submission, .csv or .json")
    parser.add_argument("--data", metavar="DIR", required=True, help="folder of the release it is made for")
    parser.add_argument(
        "--labels", metavar="FILE", type=Path,
        help="true labels of the test posts: one number per line in the official order, or a CSV post_id,popularity_score",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        posts = smpd.read_release(options.data)
        table = read_submission(options.file, options.file.suffix.lower())
        scores = validate_table(table, posts, str(options.file))
        print(f"{options.file}: valid, {len(table):,} posts; {describe_spread(scores, posts['label'])}")
        if options.labels:
            labels = read_test_labels(options.labels, posts)
            print(f"SRC {src(labels, scores):.4f}  MAE {mae(labels, scores):.4f}  (n = {len(table):,})")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
