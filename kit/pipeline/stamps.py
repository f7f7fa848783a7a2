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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.base.files import digest, hash_file, matches, read_json, write_json
from kit.base.machine import package_versions
from kit.base.paths import PROJECT_ROOT
from kit.run.marks import RECORD_KEYS, done_path, left_out_path, pending_path, read_mark, read_record

PACKAGE = PROJECT_ROOT / "kit"


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
        if module not in hashes:
            hashes[module], imports = _module(_module_path(module))
            waiting |= imports
    return dict(sorted(hashes.items()))


@functools.cache
def _module(path: Path) -> tuple[str, frozenset[str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    data = [path.with_name(name) for name in sorted(names) if re.fullmatch(r"\w+\.(csv|json|j2)", name)]
    content = [file.read_text(encoding="utf-8") for file in data if file.is_file()]
    return digest([_hash_tree(tree), *content]), frozenset(_kit_imports(tree))


def _kit_imports(tree: ast.AST) -> set[str]:
    """Dotted names of the kit modules that the code imports, e.g. ``kit.run.folds``; folders are none."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kit":
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("kit.")}
    return {name for name in found if _module_path(name).is_file()}


def _module_path(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


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


def current_stamp(notebook: Path, parameters: dict[str, Any]) -> dict:
    """What the step would be made with now."""
    # through JSON, so that it compares equal with a stamp that was written and read
    return json.loads(json.dumps({
        "code": code_hashes(notebook), "parameters": parameters, "packages": package_versions(),
    }))  # fmt: skip


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
    record = read_record(pending_path(run_dir, step), RECORD_KEYS)
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
