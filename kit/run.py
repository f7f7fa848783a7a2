"""The run directory: posts table, blocks, atomic writes, and the record of what a step read and wrote.

A run is one folder under ``outputs/``. Notebooks hand work to each other only through it, so every file in it is either
complete or absent (temporary file, then rename) and every array carries the ids of its rows. ``Run`` also notes what a
notebook reads and writes; from that note ``kit.pipeline`` later decides whether the step is still fresh.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from kit.errors import InputError, StepLeftOut

PROJECT_ROOT = Path(__file__).resolve().parent.parent
HEADLESS = "KIT_PIPELINE"  # environment variable: process id of the pipeline that started the notebook; unset by hand
ABSENT = "absent.json"  # in the folder of a block that could not be made: why
SECONDS_BETWEEN_LINES = 10.0
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
FULL_WORDS = re.compile(  # libraries that report a failed write in their own words, without a number
    r"No space left|File too large|quota exceeded|\d+ requested and \d+ written|wrote \d+ of \d+|failed writing|unexpected pos",
    re.I,
)
PR_SET_PDEATHSIG = 1  # of Linux' prctl


@dataclass(frozen=True)
class Block:
    """A named float matrix whose rows are the posts of a run.

    Attributes:
        name: folder name under ``blocks/``, e.g. ``statistic``.
        values: (n_posts, d) float16 or float32; rows in the order of ``posts.parquet``.
        columns: d unique column names.
        categorical: the columns that hold integer codes (-1 for missing) and no quantity.
        source: where the numbers come from, for the report.
    """

    name: str
    values: np.ndarray
    columns: list[str]
    categorical: list[str] = field(default_factory=list)
    source: str = ""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.columns):
            raise ValueError(f"block {self.name}: values {self.values.shape} do not fit {len(self.columns)} columns")
        if len(set(self.columns)) != len(self.columns):
            twice = sorted({c for c in self.columns if self.columns.count(c) > 1})
            raise ValueError(f"block {self.name}: column names appear twice: {twice[:5]}")
        if unknown := sorted(set(self.categorical) - set(self.columns)):
            raise ValueError(f"block {self.name}: categorical columns not among its columns: {unknown[:5]}")

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the values."""
        hasher = hashlib.blake2b(f"{self.values.shape}{self.values.dtype}".encode(), digest_size=16)
        for start in range(0, len(self.values), 4096):  # by pieces: a block may be larger than memory
            hasher.update(np.ascontiguousarray(self.values[start : start + 4096]).data)
        return hasher.hexdigest()


class Run:
    """One run directory, open for a step (a notebook) or only for reading.

    Opening it for a step withdraws the step's done-mark: from then on the step counts as unfinished until
    ``kit.pipeline`` has seen ``finish`` and checked what was written.
    """

    def __init__(self, path: Path, step: str | None = None):
        self.dir = path
        self.step = step
        self._started = time.perf_counter()
        self._reads: dict[str, dict | None] = {}
        self._inputs: dict[str, dict | None] = {}
        self._writes: dict[str, Path] = {}
        self._former: set[str] = set()  # what the last finished run of this step wrote

    @classmethod
    def open(cls, path: str | Path, step: str | None = None) -> Run:
        """The run at ``path`` (relative paths start at the project root); made if a step opens it for the first time.

        Args:
            path: the run directory, e.g. ``outputs/demo``.
            step: name of the notebook that opens it, e.g. ``04_features``; None to read only.
        Raises:
            InputError: a read-only run that does not exist, or a folder that cannot be written.
        """
        run_dir = resolve(path)
        if step is None:
            if not run_dir.is_dir():
                raise InputError(f"no run at {run_dir}: make it with ./run_all.sh --out {path}, or run 01_eda first")
            return cls(run_dir)
        check_writable(run_dir)
        end_with_runner(run_dir)
        former = _former_writes(run_dir, step)
        left_out_path(run_dir, step).unlink(missing_ok=True)
        print(f"run {run_dir.name}, step {step}; {loaded_versions()}")
        run = cls(run_dir, step)
        run._former = former
        return run

    # --- posts and blocks -------------------------------------------------------------------------------------------

    def write_posts(self, posts: pd.DataFrame) -> None:
        """Save the posts table as ``posts.parquet``."""
        with atomic_path(self.output("posts.parquet")) as temporary:
            posts.to_parquet(temporary, index=False)

    def posts(self) -> pd.DataFrame:
        """The posts table (see ``kit.smpd``), train rows then test rows in the official order."""
        path = self.input("posts.parquet", made_by="01_eda")
        posts = pd.read_parquet(path)
        for column in posts.columns[posts.dtypes.map(lambda dtype: isinstance(dtype, pd.DatetimeTZDtype))]:
            posts[column] = posts[column].dt.as_unit("s")
        return posts

    def write_block(self, block: Block) -> None:
        """Save a block as ``blocks/<name>/values.npy`` and ``meta.json``, with the ids of its rows."""
        if block.values.dtype not in (np.float16, np.float32):
            raise ValueError(f"block {block.name} is {block.values.dtype}; float16 or float32 expected")
        ids_hash = self._ids_hash()
        if len(block.values) != ids_hash[0]:
            raise ValueError(f"block {block.name} has {len(block.values):,} rows, the posts table {ids_hash[0]:,}")
        folder = self.dir / "blocks" / block.name
        shutil.rmtree(folder, ignore_errors=True)
        values_path = self.output(f"blocks/{block.name}/values.npy")
        with atomic_path(values_path) as temporary:
            np.save(temporary, block.values)
        meta = {
            "name": block.name, "columns": list(block.columns), "categorical": list(block.categorical),
            "source": block.source, "dtype": str(block.values.dtype), "shape": list(block.values.shape),
            "ids": ids_hash[1], "hash": hash_file(values_path),
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
        values = np.load(folder / "values.npy", mmap_mode="r")
        return Block(name, values, meta["columns"], meta["categorical"], meta["source"])

    def drop_block(self, name: str, reason: str = "") -> None:
        """Remove a block that this step does not make, so that no later step reads a left-over; and note why."""
        shutil.rmtree(self.dir / "blocks" / name, ignore_errors=True)
        if reason:
            write_json(self.path(f"blocks/{name}/{ABSENT}"), {"name": name, "reason": reason})

    def block_names(self) -> list[str]:
        """Names of the blocks this run holds."""
        return sorted(path.parent.name for path in (self.dir / "blocks").glob("*/meta.json"))

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

    def path(self, name: str) -> Path:
        """Path of a file inside the run, its folder made."""
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def output(self, name: str) -> Path:
        """Path of an artefact this step writes; it must exist when the step finishes."""
        self._writes[name] = self.path(name)
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
        """Save a table as ``tables/<name>.csv``."""
        with atomic_path(self.output(f"tables/{name}.csv")) as temporary:
            table.to_csv(temporary, index=index)

    def read_table(self, name: str, **options: Any) -> pd.DataFrame:
        """The table ``tables/<name>.csv`` an earlier step wrote."""
        return pd.read_csv(self.input(f"tables/{name}.csv"), **options)

    def write_figure(self, name: str, figure: Any) -> Any:
        """Save a matplotlib figure as ``figures/<name>.png``; returns the picture for a notebook to show."""
        from IPython.display import Image

        path = self.output(f"figures/{name}.png")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=144, bbox_inches="tight", facecolor="white")
        return Image(data=path.read_bytes(), width=round(96 * figure.get_figwidth()))

    # --- the end of a step ------------------------------------------------------------------------------------------

    def finish(self, **metrics: float | int | str) -> None:
        """Close the step: check that everything it announced was written, note reads, writes and figures, print them.

        The done-mark itself is written by ``kit.pipeline``, after the notebook has ended without an error.
        """
        if self.step is None:
            raise ValueError("this run was opened to read only; open it with step='NN_name' to finish a step")
        if missing := [name for name, path in self._writes.items() if not path.exists()]:
            raise RuntimeError(f"step {self.step} announced files it did not write: {', '.join(missing)}")
        self._remove_left_overs()
        record = {
            "step": self.step, "reads": self._reads, "inputs": self._inputs,
            "writes": {name: fingerprint(path) for name, path in sorted(self._writes.items())},
            "metrics": metrics, "kernel_s": round(time.perf_counter() - self._started, 1),
            "peak_mb": peak_memory_mb(), "by_hand": HEADLESS not in os.environ,
        }  # fmt: skip
        write_json(pending_path(self.dir, self.step), record)
        print(f"{self.step} wrote {len(self._writes)} files under {self.dir.name}/:")
        for name in _short_listing(list(self._writes)):
            print(f"  {name}")
        for name, value in metrics.items():
            print(f"  {name} = {value:.4f}" if isinstance(value, float) else f"  {name} = {value}")
        if record["by_hand"]:
            number = self.step.split("_")[0]
            print(f"Run by hand: the next ./run_all.sh runs this step again, unless it is told --accept {number}.")

    def leave_out(self, reason: str, blocks: Iterable[str] = ()) -> None:
        """End the step without results because something it needs is not to be had; later steps go on without it.

        What an earlier run of this step wrote is removed, so that nobody takes it for a result of this one.

        Args:
            reason: what is needed and where it belongs.
            blocks: names of the blocks this step would have written.
        Raises:
            StepLeftOut: always.
        """
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


# --- paths, files, hashes --------------------------------------------------------------------------------------------


def _former_writes(run_dir: Path, step: str) -> set[str]:
    """Withdraw a step's marks; returns the files its last finished run wrote, remembered until it finishes again."""
    former = run_dir / "done" / f"{step}.former"
    for path in (pending_path(run_dir, step), done_path(run_dir, step)):
        if path.is_file():
            os.replace(path, former)
    try:
        return set(read_json(former)["writes"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def resolve(path: str | Path) -> Path:
    """The absolute path; a relative one starts at the project root, wherever the notebook or the command was started."""
    path = Path(path).expanduser()
    return path.resolve() if path.is_absolute() else (PROJECT_ROOT / path).resolve()


def shown(path: Path) -> str:
    """The path for people: from the project root where it lies inside, else absolute."""
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)


def done_path(run_dir: Path, step: str) -> Path:
    """Where the done-mark of a step lies."""
    return run_dir / "done" / f"{step}.json"


def pending_path(run_dir: Path, step: str) -> Path:
    """Where a notebook leaves its own record before the pipeline turns it into a done-mark."""
    return run_dir / "done" / f"{step}.pending.json"


def left_out_path(run_dir: Path, step: str) -> Path:
    """Where a step says why it was left out."""
    return run_dir / "done" / f"{step}.left_out.json"


_working_in: dict[Path, int] = {}  # run directory -> descriptor that holds it as long as this process lives


def end_with_runner(run_dir: Path) -> None:
    """End this process as soon as the pipeline that started it is gone, so that it never writes beside the next one.

    The run directory is held with a shared lock until this process has ended; the next pipeline waits for that. In a
    notebook run by hand nothing happens.
    """
    if HEADLESS not in os.environ or run_dir in _working_in:
        return
    with contextlib.suppress(ImportError, OSError):  # Windows, and file systems without locks
        import fcntl

        _working_in[run_dir] = os.open(run_dir, os.O_RDONLY)
        fcntl.flock(_working_in[run_dir], fcntl.LOCK_SH)
    runner = int(os.environ[HEADLESS])
    if sys.platform == "linux" and os.getppid() == runner:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not is_alive(runner):
        os._exit(1)
    threading.Thread(target=_watch, args=(runner,), daemon=True).start()


def _watch(runner: int) -> None:
    while is_alive(runner):
        time.sleep(0.5)
    os._exit(1)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine still runs; one that only waits to be collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def check_writable(folder: Path) -> None:
    """Make ``folder`` and make sure that files can be written to it.

    Raises:
        InputError: it is a file, or the system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the output folder {folder} ({error.strerror or error}): "
            "give a folder you may write to with --out"
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name only if the block ends without an error.

    Raises:
        InputError: the disk is full, or the system refuses to write there.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if trouble := write_trouble(error, path):
            raise trouble from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_trouble(error: BaseException, path: Path) -> InputError | None:
    """What to tell people if ``error`` means that ``path`` could not be written; None if it means something else."""
    number = error.errno if isinstance(error, OSError) else None
    full = number in FULL or bool(FULL_WORDS.search(str(error)))
    if isinstance(error, InputError) or not (full or number in REFUSED):
        return None
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    why = getattr(error, "strerror", None) or error
    if full:
        free = f"{shutil.disk_usage(folder).free / 1e9:,.1f} GB are free there"
        what = f"cannot write {shown(path)} ({why}); {free}: make room, or raise the quota or file size limit,"
    else:
        what = f"no access to {shown(path)} ({why}): make the file and its folder readable and writable,"
    return InputError(
        f"{what} or choose another folder with --out. What was finished is kept; the same command goes on from there"
    )


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file at once: a reader sees the old content or the new, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file this kit wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def digest(value: Any) -> str:
    """A short content hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """A short content hash of a file."""
    hasher = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 22):
            hasher.update(chunk)
    return hasher.hexdigest()[:16]


def fingerprint(path: Path) -> dict | None:
    """Size, time of change and content hash of a file; None where there is no file."""
    if not path.is_file():
        return None
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "hash": hash_file(path)}


def matches(path: Path, known: dict | None) -> bool:
    """Whether the file still has the content of a fingerprint; only a file with another time of change is read."""
    if known is None or not path.is_file():
        return known is None and not path.is_file()
    stat = path.stat()
    if stat.st_size != known["size"]:
        return False
    return stat.st_mtime_ns == known["mtime_ns"] or hash_file(path) == known["hash"]


def loaded_versions() -> str:
    """Versions of Python and of the packages this process has imported so far, in one line."""
    names = ["numpy", "pandas", "sklearn", "torch", "open_clip", "lightgbm", "catboost", "kit"]
    loaded = [f"{name} {sys.modules[name].__version__}" for name in names if name in sys.modules]
    return ", ".join([f"python {platform.python_version()}", *loaded])


def peak_memory_mb() -> int:
    """Largest resident memory of this process so far, in MB (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if platform.system() == "Darwin" else 1 << 10))


def progress(items: Iterable, total: int | None = None, label: str = "", unit: str = "it") -> Iterator:
    """The items, with a tqdm bar in a terminal and otherwise at most one line per 10 s: count, rate, time left."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, unit=unit)
        return
    total = total if total is not None else len(items) if hasattr(items, "__len__") else None
    started = last = time.perf_counter()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(_progress_line(label, unit, count, total, now - started), flush=True)


def _progress_line(label: str, unit: str, count: int, total: int | None, elapsed_s: float) -> str:
    rate = count / max(elapsed_s, 1e-9)
    speed = f"{rate:,.1f} {unit}/s" if rate >= 1 else f"{1 / rate:,.1f} s/{unit}"
    line = f"{label}: {count:,}" + (f" of {total:,}" if total else "") + f" {unit}, {speed}"
    return line + (f", {(total - count) / rate:,.0f} s left" if total else "")


def _short_listing(names: list[str], limit: int = 20) -> list[str]:
    return names if len(names) <= limit else [*names[: limit - 1], f"... and {len(names) - limit + 1} more"]


def _plain(value: Any) -> Any:
    """numpy scalars and paths as JSON knows them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
