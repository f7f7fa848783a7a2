"""Blocks from one machine to another, in one file: numbers and hashed post ids, no text, no name, no label."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kit.base.errors import InputError
from kit.base.files import atomic_path, hash_file
from kit.run.block import Block
from kit.run.directory import Run

IDS = "ids.npy"
META = ("columns", "categorical", "source", "external", "hash")  # of a block's meta.json, as far as it goes along


def export_blocks(run: Run, path: Path, names: Sequence[str] = ()) -> list[str]:
    """Write blocks of a run, all by default, into a zip file; returns their names.

    The file holds ``ids.npy``, (n_posts,) uint64 hashes of the post ids, and of each block ``NAME/values.npy`` and
    ``NAME/meta.json`` (names of its columns, where it comes from, a hash of its values).

    Raises:
        InputError: the run has no such block, or none at all.
    """
    blocks = {name: run.read_block(name) for name in names or run.block_names()}
    if not blocks:
        raise InputError(f"{run.dir} has no blocks to export; run 02 to 04 first")
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        ids = io.BytesIO()
        np.save(ids, hashed_ids(run))
        archive.writestr(IDS, ids.getvalue())
        for name, block in blocks.items():
            values = run.dir / "blocks" / name / "values.npy"
            meta = {"columns": block.columns, "categorical": block.categorical, "source": block.source,
                    "external": block.external, "hash": hash_file(values)}  # fmt: skip
            archive.write(values, f"{name}/values.npy")
            archive.writestr(f"{name}/meta.json", json.dumps(meta, ensure_ascii=False))
    return list(blocks)


def import_blocks(run: Run, path: Path) -> list[str]:
    """Read the blocks of such a file into a run that holds the same posts, in whatever order; returns their names.

    An imported block stays where a step of this run cannot make it (its weights are missing); a step that can replaces it.

    Raises:
        InputError: no such file, a damaged one, posts that it does not know, or a block that this run has made itself.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            rows = _rows(run, np.load(io.BytesIO(archive.read(IDS))), path)
            names = sorted(name.split("/")[0] for name in archive.namelist() if name.endswith("/meta.json"))
            if own := [name for name in names if run.has_block(name) and not run.is_imported(name)]:
                raise InputError(
                    f"{run.dir} has blocks of its own named {', '.join(own)}: export without them, or remove theirs in blocks/"
                )
            blocks = [_read(archive, name, path) for name in names]  # all are read before one is written
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is no file of exported blocks, or a damaged one ({error}): export it again"
        ) from error
    for block in blocks:
        run.write_block(replace(block, values=block.values[rows]), imported=path.name)
    return names


def hashed_ids(run: Run) -> np.ndarray:
    """(n_posts,) uint64, a hash of each post id."""
    hashed = (hashlib.blake2b(pid.encode(), digest_size=8).digest() for pid in run.posts()["Pid"])
    return np.frombuffer(b"".join(hashed), dtype="<u8")


def _rows(run: Run, theirs: np.ndarray, path: Path) -> np.ndarray:
    """Of each post of the run its row in the file."""
    own, order = hashed_ids(run), np.argsort(theirs)
    place = order[np.searchsorted(theirs, own, sorter=order).clip(max=len(theirs) - 1)] if len(theirs) else own
    if missing := int((theirs[place] != own).sum()) if len(theirs) else len(own):
        raise InputError(
            f"{path} was made for other posts: {missing:,} of the {len(own):,} posts of {run.dir} are not in it; "
            "both runs must come from the same release"
        )
    return place


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> Block:
    """One block of the file, its values as written there."""
    meta, content = json.loads(archive.read(f"{name}/meta.json")), archive.read(f"{name}/values.npy")
    if not re.fullmatch(r"\w+", name) or set(META) - set(meta):
        raise InputError(f"{path}: {name!r} is no block; export it again")
    if hashlib.sha256(content).hexdigest()[:16] != meta["hash"]:
        raise InputError(f"{path}: the values of block {name} are not those that were exported; copy the file again")
    values = np.load(io.BytesIO(content))
    return Block(name, values, meta["columns"], meta["categorical"], meta["source"], meta["external"])
