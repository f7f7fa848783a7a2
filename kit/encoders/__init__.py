"""Frozen encoders: weights found, networks loaded, images and texts encoded in bulk (floor 3)."""
