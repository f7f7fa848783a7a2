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
from importlib import metadata
from pathlib import Path
from typing import Any

from kit.run import PROJECT_ROOT, digest, done_path, left_out_path, matches, pending_path, read_json, write_json

PACKAGE = Path(__file__).resolve().parent


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


def why_stale(run_dir: Path, step: str, stamp: dict) -> str | None:
    """The first reason why the step must run (again), in words; None if all it made is still right."""
    mark_path = done_path(run_dir, step)
    if not mark_path.is_file():
        if left_out_path(run_dir, step).is_file():
            return "left out last time"
        if pending_path(run_dir, step).is_file():
            return f"run by hand or cut off before its done-mark (keep its results with --accept {step.split('_')[0]})"
        return "not run yet" if not (run_dir / "logs" / f"{step}.log").is_file() else "not finished last time"
    mark = read_json(mark_path)
    return (
        _first_change("code of", mark["code"], stamp["code"])
        or _first_change("parameter", mark["parameters"], stamp["parameters"], values=True)
        or _first_change("package", mark["packages"], stamp["packages"], values=True)
        or _changed_file("input", Path("/"), mark["inputs"])
        or _changed_file("input", run_dir, mark["reads"])
        or _changed_file("artefact", run_dir, mark["writes"])
    )


def _first_change(what: str, old: dict, new: dict, values: bool = False) -> str | None:
    for name in {**new, **old}:
        if old.get(name) != new.get(name):
            shown = f" {_show(old, name)} -> {_show(new, name)}" if values else " changed"
            return f"{what} {name}{shown}"
    return None


def _show(values: dict, name: str) -> str:
    text = repr(values[name]) if name in values else "(not set)"
    return text if len(text) <= 60 else text[:57] + "..."


def _changed_file(what: str, folder: Path, known: dict[str, dict | None]) -> str | None:
    for name, fingerprint in known.items():
        path = folder / name
        if not matches(path, fingerprint):
            change = "is new" if fingerprint is None else "changed" if path.is_file() else "is gone"
            return f"{what} {name} {change}"
    return None


def write_mark(run_dir: Path, step: str, stamp: dict, seconds: float | None = None, peak_mb: int = 0) -> dict:
    """Turn the notebook's record into the step's done-mark and return it.

    Raises:
        FileNotFoundError: the notebook left no record: its last cell did not run.
        RuntimeError: an artefact it announced has gone or changed since.
    """
    record = read_json(pending_path(run_dir, step))
    if changed := _changed_file("artefact", run_dir, record["writes"]):
        raise RuntimeError(f"{changed} after the step had closed")
    seconds = record["kernel_s"] if seconds is None else round(seconds, 1)
    finished = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    mark = {**record, **stamp, "seconds": seconds, "finished": finished, "peak_mb": max(peak_mb, record["peak_mb"])}
    write_json(done_path(run_dir, step), mark)
    pending_path(run_dir, step).unlink()
    return mark
