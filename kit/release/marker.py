"""The file that says that a release is the synthetic demo."""

from __future__ import annotations

import json
from pathlib import Path

MARKER = "DEMO.json"


def is_demo(path: Path | str) -> bool:
    """Whether the folder is a release made here."""
    try:
        return json.loads((Path(path) / MARKER).read_text(encoding="utf-8")).get("kind") == "synthetic SMPD release"
    except (OSError, ValueError, AttributeError):
        return False
