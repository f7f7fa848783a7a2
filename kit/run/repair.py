"""What a killed process or a broken disk leaves in a run: temporary files removed, damaged ones set aside."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from pathlib import Path

from kit.base.files import read_json
from kit.base.process import is_alive


def remove_temporary(run_dir: Path) -> None:
    """Remove the temporary files of processes that no longer live, and executed copies that were cut off."""
    for path in run_dir.rglob(".*.tmp*"):
        pid = re.search(r"\.(\d+)\.tmp", path.name)
        if pid and not is_alive(int(pid[1])):
            path.unlink(missing_ok=True)
    for path in (run_dir / "notebooks").glob("*.running.ipynb"):
        path.unlink()


def set_aside_damaged(run_dir: Path) -> list[str]:
    """Rename archives and JSON files that cannot be read whole to ``<name>.damaged``: what they held is made again.

    Nothing here writes such files, every file takes its name only once it is complete; a broken disk can, or a copy of
    the run that was cut off.

    Returns:
        The names of the damaged files, from the run directory.
    """
    damaged = [
        path for suffix in (".json", ".npz", ".pt", ".safetensors") for path in sorted(run_dir.rglob(f"*{suffix}"))
        if path.is_file() and not path.is_symlink() and not _is_whole(path)
    ]  # fmt: skip
    for path in damaged:
        path.replace(path.with_name(f"{path.name}.damaged"))
    return [str(path.relative_to(run_dir)) for path in damaged]


def _is_whole(path: Path) -> bool:
    """Whether a file has the form, length and checksums it should have; one that may not be read passes."""
    try:
        if path.suffix == ".json":
            read_json(path)
            return True
        if path.suffix == ".safetensors":
            return _safetensors_bytes(path) == path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except OSError:
        return True
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False


def _safetensors_bytes(path: Path) -> int:
    """The length that a safetensors file should have: 8 bytes, a header of so many, and the arrays it lists."""
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(min(length, path.stat().st_size)))
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    return 8 + length + max(ends, default=0)
