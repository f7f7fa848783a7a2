"""Run one notebook in a fresh kernel: parameters in, executed copy and log out, a clear account of any failure."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from kit.base.errors import StepLeftOut
from kit.base.files import write_trouble
from kit.base.machine import GB, memory_gb, usable_cores
from kit.base.paths import PROJECT_ROOT
from kit.base.process import HEADLESS, PARAMETERS
from kit.base.progress import SECONDS_BETWEEN_LINES
from kit.pipeline.plan import clock

DIED = 138  # exit status of the pipeline where a kernel was killed or crashed
MUCH = 0.5  # share of the memory from which on a killed kernel was most likely killed for it
CRASHES = {"SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"}
QUIET = ["--log-level=50"]  # a kernel that is told to end may log an interrupt; errors of cells come by another way
MAX_SOCKET_PATH = 90  # characters; systems allow some 100
ENVIRONMENT = {  # for the kernels
    "OMP_WAIT_POLICY": "passive",  # spinning threads make LightGBM 10 times slower next to any other process
    # torch makes and frees arrays of some MB in each step; as it comes, glibc hands them back to the system each time
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "MPLBACKEND": "agg",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm misses widgets that no log could show
}


class StepFailed(Exception):
    """A notebook that did not reach its end, told so that a user knows where to look."""

    def __init__(
        self, message: str, section: str = "", cell: int = 0, trace: Sequence[str] = (), notebook: Path | None = None,
        status: int = 1,
    ):  # fmt: skip
        super().__init__(message)
        self.message, self.section, self.cell = message, section, cell
        self.trace, self.notebook, self.status = trace, notebook, status


def execute(
    notebook: Path, run_dir: Path, parameters: dict[str, Any], width: int = 0, ahead: Sequence[float] = ()
) -> tuple[float, int]:
    """Run the notebook into ``<run>/notebooks/`` with its output in ``<run>/logs/``.

    Args:
        width: of the step's name in the lines that are printed.
        ahead: seconds that this step and each later one will take, as far as they are known (else NaN).
    Returns:
        seconds it took, and the peak memory of its kernel in MB as sampled from outside.
    Raises:
        StepFailed: a cell raised, or the kernel died.
        StepLeftOut: the notebook found that something it needs is not to be had.
        InputError: the executed copy or the log could not be written.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    kernel_class, exit_codes = _kernel_class()
    output = run_dir / "notebooks" / f"{notebook.stem}.ipynb"
    running, failed = output.with_suffix(".running.ipynb"), output.with_suffix(".failed.ipynb")
    log_path = run_dir / "logs" / f"{notebook.stem}.log"
    for path in (output, log_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    started = time.perf_counter()
    with (
        _kernel_environment(parameters),
        _transport() as transport,
        open(log_path, "w", encoding="utf-8") as log,
        _Heartbeat(notebook.stem, log_path, width, ahead) as heartbeat,
    ):
        try:
            papermill.execute_notebook(
                str(notebook), str(running), parameters=parameters, kernel_name="python3", cwd=str(PROJECT_ROOT),
                progress_bar=False, stdout_file=log, stderr_file=log, start_timeout=180,
                extra_arguments=QUIET, kernel_manager_class=kernel_class, **transport,
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            if error.ename == StepLeftOut.__name__:
                running.replace(output)
                raise StepLeftOut(error.evalue) from None
            running.replace(failed)
            log.write("\n".join(_plain(line) for line in error.traceback) + "\n")
            raise _cell_failed(error, failed) from error
        except (DeadKernelError, RuntimeError) as error:
            running.replace(failed)
            raise _kernel_died(error, exit_codes, heartbeat.peak_mb, failed) from error
        except OSError as error:
            raise write_trouble(error, Path(error.filename or running)) or StepFailed(
                f"the notebook could not be run ({error}). If that is the Python of its kernel, remove .venv and call "
                "./run_all.sh again"
            ) from error
    if running.is_file():
        running.replace(output)
    return time.perf_counter() - started, heartbeat.peak_mb


@contextlib.contextmanager
def _kernel_environment(parameters: dict[str, Any]) -> Iterator[None]:
    """The process environment as kernels shall inherit it, for as long as one runs."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    os.environ[HEADLESS], os.environ[PARAMETERS] = str(os.getpid()), json.dumps(parameters)
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    os.environ.pop("JUPYTER_PREFER_ENV_PATH", None)  # set to 0 it prefers another environment's kernel to ours
    for name in ("papermill", "traitlets", "asyncio"):  # what they would tell of a dead kernel is told by StepFailed
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _transport() -> Iterator[dict[str, Any]]:
    """Kernels talk through files in a folder of their own instead of ports: no clash between runs, nothing to listen on."""
    if sys.platform == "win32" or len(tempfile.gettempdir()) > MAX_SOCKET_PATH:
        yield {}
        return
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix="kit-", ignore_cleanup_errors=True) as folder:
        yield {"config": Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})}


def _cell_failed(error: Any, notebook: Path) -> StepFailed:
    if error.ename == "InputError":  # a mistake of the user: the message is all there is to say
        return StepFailed(error.evalue, notebook=notebook, status=2)
    trace = [line for line in _plain("\n".join(error.traceback)).splitlines() if line.strip()]
    section = _section(notebook, error.cell_index)
    return StepFailed(f"{error.ename}: {error.evalue}", section, error.exec_count or 0, trace[-12:-1], notebook)


def _section(notebook: Path, cell_index: int) -> str:
    """The last heading above a cell."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells[: cell_index + 1]
    headings = [line for cell in cells if cell.cell_type == "markdown" and "papermill-error" not in str(cell.metadata)
                for line in cell.source.splitlines() if line.startswith("#")]  # fmt: skip
    return headings[-1].lstrip("# ") if headings else ""


def _kernel_class() -> tuple[type, list[int]]:
    """A kernel manager, and the list in which it notes the exit code of a kernel that has ended by itself."""
    from jupyter_client import AsyncKernelManager

    codes: list[int] = []

    class Kernel(AsyncKernelManager):
        async def is_alive(self) -> bool:
            alive = await super().is_alive()
            if not alive and self.has_kernel and (code := await self.provisioner.poll()) is not None:
                codes.append(code)
            return alive

    return Kernel, codes


def _kernel_died(error: Exception, exit_codes: list[int], peak_mb: int, notebook: Path) -> StepFailed:
    """What is known of a kernel that ended in the middle of a cell: its signal or exit code, and the memory it held."""
    import nbformat

    total_mb = memory_gb()[0] * GB / (1 << 20)
    how = _signal_name(exit_codes)
    if how == "SIGKILL":
        much = peak_mb > MUCH * total_mb
        what = "its kernel was killed (SIGKILL)" + (", most likely because the system ran out of memory: close other "
               "programs, or set smaller parameters (--list shows them)" if much else ", by hand or by the system")  # fmt: skip
    elif how in CRASHES:
        what = f"its kernel crashed in native code ({how}): a fault of a library, which the last cell had called"
    else:
        what = f"its kernel ended ({how or error})"
    cells = nbformat.read(notebook, as_version=4).cells
    begun = [index for index, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    section = _section(notebook, begun[-1]) if begun else ""
    held = f"It held up to {peak_mb:,} MB of this machine's {total_mb:,.0f} MB"
    return StepFailed(f"{what}. {held}", section, notebook=notebook, status=DIED)


def _signal_name(exit_codes: list[int]) -> str:
    """Name of the signal that ended a process, or its exit code; "" where neither is known."""
    code = exit_codes[0] if exit_codes else None
    if code is not None and code < 0 and -code in {*signal.Signals}:
        return signal.Signals(-code).name
    return "" if code is None else f"exit code {code}"


def _plain(text: str) -> str:
    """Text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


class _Heartbeat:
    """Prints the last line of a log every 10 s while a step runs, and watches the memory of the kernel."""

    def __init__(self, label: str, log_path: Path, width: int, ahead: Sequence[float]):
        self.label, self.log_path, self.width, self.ahead, self.peak_mb = label, log_path, width, ahead, 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        said = 0.0
        while not self._stopped.wait(0.5):
            self.peak_mb = max(self.peak_mb, _children_mb())
            elapsed = time.perf_counter() - self._started
            if elapsed - said >= SECONDS_BETWEEN_LINES:
                said, line = elapsed, self._last_line()
                print(f"{self.label:{self.width}}  {elapsed:4.0f} s  {line}{self._left(elapsed, line)}", flush=True)

    def _left(self, elapsed: float, line: str = "") -> str:
        """What is left of the whole run, as far as it is known: by the plan, or by what the step itself says if that is more."""
        own, *later = (0.0 if seconds != seconds else seconds for seconds in self.ahead or [0.0])
        says = re.search(r"([\d,]+) s left$", line)
        own_left = max(0.0, own - elapsed, float(says[1].replace(",", "")) if says else 0.0)
        return f" | run: {clock(own_left + sum(later))} left" if own or own_left or sum(later) else ""

    def _last_line(self) -> str:
        with open(self.log_path, "rb") as handle:
            handle.seek(max(0, self.log_path.stat().st_size - 4000))
            lines = handle.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
        return next((line.strip()[:120] for line in reversed(lines) if line.strip()), "")


def _children_mb() -> int:
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            pass  # it ended between the two calls
    return total >> 20
