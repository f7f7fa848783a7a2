"""What takes how long and how much memory, beside other ways to do the same: see ``python -m tests.bench --help``."""

STAGES = ("reading", "features", "images", "texts", "clip_ft", "submission")  # modules of this folder with CASES
