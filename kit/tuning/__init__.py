"""Encoders tuned on the label, out of fold: predictions that no fit's own labels are in (floor 4)."""
