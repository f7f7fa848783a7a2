"""What the ways work on: synthetic releases of any size, made once per folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kit.base.files import atomic_path
from kit.demo.make import make_release
from kit.release.smpd import read_release

SEED = 0


def release(folder: Path, n: int, images: bool = False) -> Path:
    """Folder of a synthetic release of n posts."""
    path = folder / f"release_{n}{'_images' if images else ''}"
    return path if path.is_dir() else make_release(path, n, SEED, images)


def posts_table(folder: Path, n: int, images: bool = False) -> pd.DataFrame:
    """The posts table of such a release, from a parquet file as a run keeps it."""
    path = folder / f"posts_{n}{'_images' if images else ''}.parquet"
    if not path.is_file():
        with atomic_path(path) as temporary:
            read_release(release(folder, n, images)).to_parquet(temporary, index=False)
    return pd.read_parquet(path)
