"""Gradient boosting over folds: learners, label-taught columns, kept fits (floor 4)."""
