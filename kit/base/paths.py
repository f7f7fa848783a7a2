"""Where things lie: the project root, and paths as people give and read them."""

from __future__ import annotations

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]


def resolve(path: str | Path) -> Path:
    """The absolute path; a relative one starts at the project root, wherever the notebook or the command was started."""
    path = Path(path).expanduser()
    return path.resolve() if path.is_absolute() else (PROJECT_ROOT / path).resolve()


def shown(path: Path) -> str:
    """The path for people: from the project root where it lies inside, else absolute."""
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)
