"""What takes how long and how much memory, beside other ways to do the same: see ``python -m tests.bench --help``.

A stage is a module of this folder with ``CASES`` (see ``measure.Case``) and its name in STAGES, in the order of the table.
"""

STAGES = ("reading", "features", "images", "texts", "clip_ft", "taught", "folds", "engines", "submission")
