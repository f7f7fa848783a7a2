"""python -m kit.pipeline: the command line."""

import sys

from kit.pipeline.command import main

if __name__ == "__main__":
    sys.exit(main())
