"""The final models of a finished run on posts that it has never met (floor 6)."""
