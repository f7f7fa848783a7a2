"""Is a step still fresh? The code, parameters, inputs and versions it was made with, compared with those of now.

A done-mark (``done/NN_name.json``) is the only proof that a step finished: an executed notebook looks finished even when
its kernel was killed. The mark is written last, by the pipeline, from the record the notebook left in ``Run.finish``.
"""

from __future__ import annotations

import ast
import datetime
import functools
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from kit.run import (
    PROJECT_ROOT,
    digest,
    done_path,
    hash_file,
    is_alive,
    left_out_path,
    matches,
    pending_path,
    read_json,
    write_json,
)

PACKAGE = Path(__file__).resolve().parent
RECORD_KEYS = {"step", "inputs", "reads", "writes", "metrics", "kernel_s", "peak_mb"}  # what a notebook leaves
STAMP_KEYS = {"code", "parameters", "packages", "seconds", "finished"}  # what the pipeline adds


def code_hashes(notebook: Path) -> dict[str, str]:
    """Hash of the notebook's code and of every kit module it imports, directly or not.

    Comments, docstrings, layout and prose do not count; nor does the parameters cell, whose values are compared one by
    one. A data file of the package that a module names (``taxonomy.csv``) counts as code of that module.
    """
    cells = [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells if "parameters" not in cell["metadata"].get("tags", []))
    tree = ast.parse(code)
    hashes = {notebook.stem: _hash_tree(tree)}
    waiting = _kit_imports(tree)
    while waiting:
        module = waiting.pop()
        if f"kit.{module}" not in hashes:
            hash_, imports = _module(PACKAGE / f"{module}.py")
            hashes[f"kit.{module}"] = hash_
            waiting |= imports
    return dict(sorted(hashes.items()))


@functools.cache
def _module(path: Path) -> tuple[str, frozenset[str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    data = sorted(name for name in names if re.fullmatch(r"\w+\.(csv|json)", name) and (PACKAGE / name).is_file())
    return digest([_hash_tree(tree), *((PACKAGE / name).read_text() for name in data)]), frozenset(_kit_imports(tree))


def _kit_imports(tree: ast.AST) -> set[str]:
    """Names of the kit modules that the code imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kit":
            steps = node.module.split(".")
            found |= {steps[1]} if len(steps) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kit.")}
    return {name for name in found if (PACKAGE / f"{name}.py").is_file()}


def _hash_tree(tree: ast.AST) -> str:
    """Hash of the code without comments, docstrings and layout."""
    return digest(ast.dump(_DropDocstrings().visit(tree)))


class _DropDocstrings(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and body:
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:] or [ast.Pass()]
        return node


@functools.cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that requirements.txt names ("missing" where one is not installed)."""
    versions = {}
    for line in (PROJECT_ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if name := re.match(r"[\w.-]+", line):
            try:
                versions[name[0]] = metadata.version(name[0])
            except metadata.PackageNotFoundError:
                versions[name[0]] = "missing"
    return versions


def current_stamp(notebook: Path, parameters: dict[str, Any]) -> dict:
    """What the step would be made with now."""
    # through JSON, so that it compares equal with a stamp that was written and read
    return json.loads(json.dumps({
        "code": code_hashes(notebook), "parameters": parameters, "packages": package_versions(),
    }))  # fmt: skip


def read_mark(run_dir: Path, step: str) -> dict | None:
    """The done-mark of a step; None where there is none, or one that cannot be read."""
    path = done_path(run_dir, step)
    return _read_record(path, RECORD_KEYS | STAMP_KEYS) if path.is_file() else None


def _read_record(path: Path, keys: set[str]) -> dict | None:
    """The content of a JSON file; None if it is damaged or lacks a key."""
    try:
        record = read_json(path)
    except ValueError:
        return None
    return record if isinstance(record, dict) and keys <= set(record) else None


def why_stale(run_dir: Path, step: str, stamp: dict) -> str | None:
    """Why the step must run (again), in words: the first reason, and how many more; None if all it made is still right."""
    mark = read_mark(run_dir, step)
    if mark is None:
        return _why_no_mark(run_dir, step)
    reasons = [
        *_changes("code of", mark["code"], stamp["code"]),
        *_changes("parameter", mark["parameters"], stamp["parameters"], values=True),
        *_changes("package", mark["packages"], stamp["packages"], values=True),
        *_changed_files("input", Path("/"), mark["inputs"]),
        *_changed_files("input", run_dir, mark["reads"]),
        *_changed_files("artefact", run_dir, mark["writes"]),
    ]
    more = f" (and {len(reasons) - 1} more change{'s' * (len(reasons) > 2)})" if len(reasons) > 1 else ""
    return reasons[0] + more if reasons else None


def _why_no_mark(run_dir: Path, step: str) -> str:
    if done_path(run_dir, step).is_file():
        return f"its done-mark done/{step}.json is damaged"
    if left_out_path(run_dir, step).is_file():
        return "left out last time"
    if pending_path(run_dir, step).is_file():
        return f"run by hand or cut off before its done-mark (keep its results with --accept {step.split('_')[0]})"
    return "not run yet" if not (run_dir / "logs" / f"{step}.log").is_file() else "not finished last time"


def _changes(what: str, old: dict, new: dict, values: bool = False) -> Iterator[str]:
    for name in {**new, **old}:
        if old.get(name) != new.get(name):
            shown = f" {_show(old, name)} -> {_show(new, name)}" if values else " changed"
            yield f"{what} {name}{shown}"


def _show(values: dict, name: str) -> str:
    text = repr(values[name]) if name in values else "(not set)"
    return text if len(text) <= 60 else text[:57] + "..."


def _changed_files(what: str, folder: Path, known: dict[str, dict | None]) -> Iterator[str]:
    for name, fingerprint in known.items():
        path = folder / name
        if not matches(path, fingerprint):
            new = path.is_file()
            change = "is new" if fingerprint is None else _file_change(path, fingerprint) if new else "is gone"
            yield f"{what} {name} {change}"


def _file_change(path: Path, known: dict) -> str:
    """How a file differs from its fingerprint, old -> new."""
    now = path.stat()
    content = (
        f"{known['size']:,} -> {now.st_size:,} bytes"
        if known["size"] != now.st_size else f"content {known['hash'][:8]} -> {hash_file(path)[:8]}"
    )  # fmt: skip
    times = [
        datetime.datetime.fromtimestamp(ns / 1e9).isoformat(" ", "seconds")
        for ns in (known["mtime_ns"], now.st_mtime_ns)
    ]
    return f"changed: {content}, written {times[0]} -> {times[1]}"


def write_mark(run_dir: Path, step: str, stamp: dict, seconds: float | None = None, peak_mb: int = 0) -> dict:
    """Turn the notebook's record into the step's done-mark and return it.

    Raises:
        FileNotFoundError: the notebook left no record: its last cell did not run.
        RuntimeError: the record is damaged, or an artefact it announced has gone or changed since.
    """
    record = _read_record(pending_path(run_dir, step), RECORD_KEYS)
    if record is None:
        raise RuntimeError("its record is damaged")
    if changed := next(_changed_files("artefact", run_dir, record["writes"]), None):
        raise RuntimeError(f"{changed} after the step had closed")
    seconds = record["kernel_s"] if seconds is None else round(seconds, 1)
    finished = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    mark = {**record, **stamp, "seconds": seconds, "finished": finished, "peak_mb": max(peak_mb, record["peak_mb"])}
    write_json(done_path(run_dir, step), mark)
    pending_path(run_dir, step).unlink()
    return mark


# --- what a killed process leaves -------------------------------------------------------------------------------------


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
        if path.is_file() and not _is_whole(path)
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
    return (
        8
        + length
        + max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    )
