"""The run directory: posts table, blocks, atomic writes, and the record of what a step read and wrote.

A run is one folder under ``outputs/``. Notebooks hand work to each other only through it, so every file in it is either
complete or absent (temporary file, then rename) and every array carries the ids of its rows. ``Run`` also notes what a
notebook reads and writes; from that note ``kit.pipeline`` later decides whether the step is still fresh.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.errors import InputError, StepLeftOut
from kit.base.files import (
    atomic_path,
    check_writable,
    digest,
    fingerprint,
    hash_file,
    read_json,
    write_atomic,
    write_json,
    write_npz,
    write_table,
)
from kit.base.machine import loaded_versions
from kit.base.paths import resolve, shown
from kit.base.process import HEADLESS, WRITE, end_with_runner
from kit.run.block import Block
from kit.run.marks import left_out_path, withdraw_marks, write_record
from kit.run.matrix import save_values
from kit.run.scratch import original_of

LISTED = 20  # files that a step names at its end
PCA = "pca.npz"  # in the folder of a block: what its embeddings were reduced with
ABSENT = "absent.json"  # in the folder of a block that could not be made: why


class Run:
    """One run directory, open to write (what the pipeline does for a step) or only to read.

    Opening it to write for a step withdraws the step's done-mark: from then on the step counts as unfinished until
    ``kit.pipeline`` has seen ``finish`` and checked what was written. Opened to read, nothing in the run changes: figures
    and tables are shown and not saved, and all else that would write is refused.
    """

    def __init__(self, path: Path, step: str | None = None, write: bool = False):
        self.dir = path
        self.step = step
        self.write = write
        self._started = time.perf_counter()
        self._reads: dict[str, dict | None] = {}
        self._inputs: dict[str, dict | None] = {}
        self._writes: dict[str, Path] = {}
        self._former = withdraw_marks(path, step) if step and write else set()  # what its last finished run wrote

    @classmethod
    def open(cls, path: str | Path, step: str | None = None, write: bool | None = None) -> Run:
        """The run at ``path`` (relative paths start at the project root).

        Args:
            path: the run directory, e.g. ``outputs/demo``; made if it is opened to write for the first time.
            step: name of the notebook that opens it, e.g. ``04_features``.
            write: whether the notebook may write; by default only if the pipeline runs it (or KIT_WRITE is set), so that
                opening a step by hand to look at it costs nothing, and in a scratch copy, where it harms nothing.
        Raises:
            InputError: a run to read that does not exist, or a folder that cannot be written.
        """
        run_dir = resolve(path)
        origin = original_of(run_dir)
        if write is None:
            write = origin is not None or step is not None and (HEADLESS in os.environ or WRITE in os.environ)
        if write:
            check_writable(run_dir)
            end_with_runner(run_dir)
        elif not run_dir.is_dir():
            raise InputError(
                f"no run at {run_dir}: make it with ./run_all.sh --out {path}, or run 01_eda with write=True"
            )
        if step:
            how = f", in a scratch copy: {shown(origin)} is not changed" if origin else "" if write else ", read only"
            print(f"run {(origin or run_dir).name}, step {step}{how}; {loaded_versions()}")
        return cls(run_dir, step, write)

    # --- posts and blocks -------------------------------------------------------------------------------------------

    def write_posts(self, posts: pd.DataFrame) -> None:
        """Save the posts table as ``posts.parquet``."""
        write_table(self.output("posts.parquet"), posts)

    def posts(self) -> pd.DataFrame:
        """The posts table (see ``kit.release.smpd``), train rows then test rows in the official order."""
        path = self.input("posts.parquet", made_by="01_eda")
        posts = pd.read_parquet(path)
        for column in posts.columns[posts.dtypes.map(lambda dtype: isinstance(dtype, pd.DatetimeTZDtype))]:
            posts[column] = posts[column].dt.as_unit("s")
        return posts

    def write_block(self, block: Block, imported: str = "") -> None:
        """Save a block as ``blocks/<name>/values.npy`` and ``meta.json``, with the ids of its rows.

        ``imported`` names the file it comes from, where no step made it.
        """
        if block.values.dtype not in (np.float16, np.float32):
            raise ValueError(f"block {block.name} is {block.values.dtype}; float16 or float32 expected")
        n_posts = self._ids_hash()[0]
        if len(block.values) != n_posts:
            raise ValueError(f"block {block.name} has {len(block.values):,} rows, the posts table {n_posts:,}")
        shutil.rmtree(self.folder(f"blocks/{block.name}"))
        with atomic_path(self.output(f"blocks/{block.name}/values.npy")) as temporary:
            save_values(temporary, block.values)
        if block.pca:
            write_npz(self.output(f"blocks/{block.name}/{PCA}"), **block.pca)
        self._write_meta(block, imported)

    @contextlib.contextmanager
    def fill_block(self, name: str, columns: list[str], source: str = "", external: str = "") -> Iterator[np.memmap]:
        """A float16 matrix (n_posts, d) on disk, to be filled; it is the block ``name`` once the ``with`` has ended well.

        For a block too large to be held in memory: ``with run.fill_block(...) as values: values[:] = ...``.
        """
        shutil.rmtree(self.folder(f"blocks/{name}"))
        with atomic_path(self.output(f"blocks/{name}/values.npy")) as temporary:
            block = Block(
                name, _open_matrix(temporary, (self._ids_hash()[0], len(columns))), columns, [], source, external
            )
            yield block.values
            block.values.flush()
        self._write_meta(block)

    def _write_meta(self, block: Block, imported: str = "") -> None:
        meta = {
            "name": block.name, "columns": list(block.columns), "categorical": list(block.categorical),
            "source": block.source, "external": block.external, "dtype": str(block.values.dtype),
            "shape": list(block.values.shape), "ids": self._ids_hash()[1],
            "hash": hash_file(self._writes[f"blocks/{block.name}/values.npy"]), "imported": imported,
        }  # fmt: skip
        write_json(self.output(f"blocks/{block.name}/meta.json"), meta)

    def read_block(self, name: str) -> Block:
        """The block of that name, its values memory-mapped and read-only.

        Raises:
            InputError: no such block in this run, or one made for other posts.
        """
        folder = self.dir / "blocks" / name
        if not (folder / "meta.json").is_file():
            known = ", ".join(self.block_names()) or "none"
            raise InputError(f"no block '{name}' in {self.dir}; this run has: {known}")
        meta = read_json(self.input(f"blocks/{name}/meta.json"))
        if meta["ids"] != self._ids_hash()[1]:
            raise InputError(
                f"block '{name}' was made for other posts than {self.dir / 'posts.parquet'} holds: "
                "run the step that writes it again"
            )
        values, pca = np.load(folder / "values.npy", mmap_mode="r"), {}
        if (folder / PCA).is_file():
            with np.load(folder / PCA) as kept:
                pca = dict(kept)
        return Block(
            name, values, meta["columns"], meta["categorical"], meta["source"], meta.get("external", ""), pca=pca
        )

    def drop_block(self, name: str, reason: str = "") -> None:
        """Remove a block that this step does not make, so that no later step reads a left-over; and note why.

        A block that was imported is no left-over and stays.
        """
        if self.is_imported(name):
            return print(f"block {name} was imported and is kept; without that: {reason}")
        shutil.rmtree(self.folder(f"blocks/{name}"))
        if reason:
            write_json(self.folder(f"blocks/{name}") / ABSENT, {"name": name, "reason": reason})

    def block_names(self) -> list[str]:
        """Names of the blocks this run holds."""
        return sorted(path.parent.name for path in (self.dir / "blocks").glob("*/meta.json"))

    def is_imported(self, name: str) -> bool:
        """Whether the block came from another machine (``kit.run.exchange``)."""
        path = self.dir / "blocks" / name / "meta.json"
        return path.is_file() and bool(read_json(path).get("imported"))

    def has_block(self, name: str) -> bool:
        """Whether this run holds the block; a step that asks is run again when the answer changes."""
        return self.has_file(f"blocks/{name}/meta.json")

    def why_no_block(self, name: str) -> str:
        """What the step that would have made the block said it lacked; a general answer where none said anything."""
        absent = f"blocks/{name}/{ABSENT}"
        if not self.has_file(absent):
            return f"no step of this run makes a block {name!r}; it has {', '.join(self.block_names()) or 'none'}"
        return read_json(self.dir / absent)["reason"]

    # --- files ------------------------------------------------------------------------------------------------------

    def folder(self, name: str = "") -> Path:
        """A folder inside the run, made, for a step to write to; those of work to go on from are in ``pipeline.steps.KEPT``.

        Raises:
            InputError: the run was opened only to read.
        """
        if not self.write:
            raise InputError(
                f"{self.dir.name} was opened to read, so nothing is written to {name or 'it'}: this keeps the run's results. "
                f"To replace them by hand: Run.open(run_dir, step={self.step!r}, write=True)"
            )
        path = self.dir / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def output(self, name: str) -> Path:
        """Path of an artefact this step writes, its folder made; it must exist when the step finishes."""
        self._writes[name] = self.folder(str(Path(name).parent)) / Path(name).name
        return self._writes[name]

    def input(self, name: str, made_by: str = "an earlier step") -> Path:
        """Path of a file an earlier step wrote; this step is run again when its content changes.

        Raises:
            InputError: the file is not there.
        """
        path = self.dir / name
        if not path.is_file():
            raise InputError(f"{path} is missing: it is written by {made_by}, run that first (./run_all.sh --from ...)")
        if name not in self._writes:
            self._reads[name] = fingerprint(path)
        return path

    def has_file(self, name: str) -> bool:
        """Whether an earlier step wrote this file; a step that asks is run again when the answer changes."""
        self._reads[name] = fingerprint(self.dir / name)
        return self._reads[name] is not None

    def use(self, *paths: Path) -> None:
        """Note files outside the run that this step reads, or would read if they were there: a release, weights."""
        self._inputs.update({str(path): fingerprint(path) for path in paths})

    def write_table(self, name: str, table: pd.DataFrame, index: bool = False) -> None:
        """Save a table as ``tables/<name>.csv``; a run opened to read keeps its own."""
        if self.write:
            write_table(self.output(f"tables/{name}.csv"), table, index)

    def read_table(self, name: str, **options: Any) -> pd.DataFrame:
        """The table ``tables/<name>.csv`` an earlier step wrote."""
        return pd.read_csv(self.input(f"tables/{name}.csv"), **options)

    def write_figure(self, name: str, figure: Any) -> Any:
        """Save a matplotlib figure as ``figures/<name>.png``; returns the picture for a notebook to show."""
        from IPython.display import Image

        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=144, bbox_inches="tight", facecolor="white")
        if self.write:
            write_atomic(self.output(f"figures/{name}.png"), picture.getvalue())
        return Image(data=picture.getvalue(), width=round(96 * figure.get_figwidth()))

    # --- the end of a step ------------------------------------------------------------------------------------------

    def finish(self, **metrics: float | int | str) -> None:
        """Close the step: check that everything it announced was written, note reads, writes and figures, print them.

        The done-mark itself is written by ``kit.pipeline``, after the notebook has ended without an error.
        """
        if self.step is None:
            raise ValueError("this run was opened for no step; open it with step='NN_name' to finish one")
        self.folder("done")
        if missing := [name for name, path in self._writes.items() if not path.exists()]:
            raise RuntimeError(f"step {self.step} announced files it did not write: {', '.join(missing)}")
        self._remove_left_overs()
        record = write_record(
            self.dir, self.step, reads=self._reads, inputs=self._inputs, metrics=metrics,
            writes={name: fingerprint(path) for name, path in sorted(self._writes.items())},
            kernel_s=round(time.perf_counter() - self._started, 1),
        )  # fmt: skip
        print(f"{self.step} wrote {len(self._writes)} files under {self.dir.name}/:")
        print("\n".join(f"  {name}" for name in list(self._writes)[:LISTED]))
        if len(self._writes) > LISTED:
            print(f"  ... and {len(self._writes) - LISTED} more")
        for name, value in metrics.items():
            print(f"  {name} = {value:.4f}" if isinstance(value, float) else f"  {name} = {value}")
        if record["by_hand"] and not original_of(self.dir):
            number = self.step.split("_")[0]
            print(f"Run by hand: the next ./run_all.sh runs this step again, unless it is told --accept {number}.")

    def leave_out(self, reason: str, blocks: Iterable[str] = ()) -> None:
        """End the step without results because something it needs is not to be had; later steps go on without it.

        What an earlier run of this step wrote is removed, so that nobody takes it for a result of this one; not so if the
        notebook is run by hand, whose parameters may be others than those of the run.

        Args:
            reason: what is needed and where it belongs.
            blocks: names of the blocks this step would have written.
        Raises:
            StepLeftOut: always.
        """
        if HEADLESS in os.environ:
            self._writes.clear()
            self._remove_left_overs()
            for name in blocks:
                self.drop_block(name, reason)
            write_json(left_out_path(self.dir, self.step), {"step": self.step, "reason": reason})
        raise StepLeftOut(reason)

    def _remove_left_overs(self) -> None:
        """Remove what the last finished run of this step wrote and this one did not."""
        for name in self._former - set(self._writes):
            (self.dir / name).unlink(missing_ok=True)
        (self.dir / "done" / f"{self.step}.former").unlink(missing_ok=True)

    def _ids_hash(self) -> tuple[int, str]:
        """Number of posts and a hash of their Pids, cached by the state of posts.parquet."""
        path = self.input("posts.parquet", made_by="01_eda")
        stamp = (path.stat().st_mtime_ns, path.stat().st_size)
        if getattr(self, "_ids", (None,))[0] != stamp:
            pids = pd.read_parquet(path, columns=["Pid"])["Pid"]
            self._ids = (stamp, (len(pids), digest(pids.tolist())))
        return self._ids[1]


def _open_matrix(path: Path, shape: tuple[int, int]) -> np.memmap:
    """A new float16 .npy file of that shape, mapped; its place on the disk is taken now, where the system can do that.

    Writing to a mapped file on a full disk would kill the process; taking the place first raises an error instead.
    """
    values = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    return values
