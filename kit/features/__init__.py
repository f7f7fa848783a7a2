"""Posts to blocks without labels: statistic, behaviour, words, external (floor 3)."""
