"""Submissions written, checked and scored (floor 5)."""
