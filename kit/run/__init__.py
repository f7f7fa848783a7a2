"""The run directory: blocks, matrices, folds, predictions and marks as files (floor 2)."""
