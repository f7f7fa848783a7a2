"""Image paths that leave their folder over symbolic links."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

import numpy as np


def leads_out(paths: Sequence[str], allowed: Sequence[str | os.PathLike]) -> np.ndarray:
    """(n,) bool: whether a path ends outside all `allowed` folders once symbolic links are followed.

    Each folder is looked at once, and only what may be a link is followed one by one: files that are links, and folders in
    a folder that holds any.

    Args:
        paths: files that need not exist, their parts joined by `os.sep`; "" leads nowhere.
        allowed: folders; they may be links themselves.
    """
    homes = [os.path.realpath(folder) for folder in allowed]
    links_in, is_folder = cache(_links_in), cache(os.path.isdir)
    is_outside = cache(lambda folder: not _is_inside(os.path.realpath(folder), homes))
    outside, links = {}, {}
    for start in {_start(path) for path in paths if path}:
        folder = os.path.dirname(start)
        parent, name = os.path.split(folder)
        is_plain = parent and name not in ("", ".", "..") and not is_outside(parent) and links_in(parent) == set()
        outside[start] = not is_plain and is_outside(folder)
        links[start] = _links_in(folder) if is_folder(parent or os.curdir) else set()
    out = np.zeros(len(paths), dtype=bool)
    if any(outside.values()) or any(links.values()) or None in links.values():
        for row, path in enumerate(paths):
            if path:
                start = _start(path)
                followed = links[start] is None or path[len(start) :] in links[start]
                out[row] = outside[start] or (followed and not _is_inside(os.path.realpath(path), homes))
    return out


def _start(path: str) -> str:
    """The folder of a file, with its separator: ten times faster than os.path.dirname."""
    return path[: path.rfind(os.sep) + 1]


def _links_in(folder: str) -> set[str] | None:
    """Names of the symbolic links in a folder, None where it may not be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except PermissionError:
        return None
    except OSError:
        return set()


def _is_inside(path: str, homes: Sequence[str]) -> bool:
    return any(path == home or path.startswith(home.rstrip(os.sep) + os.sep) for home in homes)
