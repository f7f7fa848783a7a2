"""python -m kit.demo --out FOLDER: make a synthetic release."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from kit.base.errors import InputError
from kit.demo.make import DEMO_POSTS, TEST_SHARE, make_release


def main(argv: list[str] | None = None) -> int:
    """Exit code of the command line: 0, or 2 after one line that says what is wrong with the arguments."""
    parser = _Parser(prog="python -m kit.demo", description="Make a synthetic SMPD release.")
    parser.add_argument("--out", type=Path, default=Path("inputs/demo"), help="folder to make (default: inputs/demo)")
    parser.add_argument(
        "--posts", type=int, default=DEMO_POSTS, help=f"train and test posts together (default: {DEMO_POSTS})"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--test-share", type=float, default=TEST_SHARE, help=f"part of the posts in test (default: {TEST_SHARE})"
    )
    parser.add_argument("--no-images", action="store_true", help="leave the pictures out")
    try:
        args = parser.parse_args(argv)
        start = time.monotonic()
        out = make_release(args.out, args.posts, args.seed, not args.no_images, args.test_share)
    except (InputError, OSError) as error:
        print(f"kit.demo: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {args.posts:,} synthetic posts in {time.monotonic() - start:.0f} s")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message}; see python -m kit.demo --help")


if __name__ == "__main__":
    sys.exit(main())
