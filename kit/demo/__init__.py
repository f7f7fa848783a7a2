"""A synthetic release with a known recipe (floor 2)."""
