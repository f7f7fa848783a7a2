"""Is a step still fresh? The code, parameters, inputs and versions it was made with, compared with those of now.

A done-mark (``done/NN_name.json``) is the only proof that a step finished: an executed notebook looks finished even when
its kernel was killed. The mark is written last, by the pipeline, from the record the notebook left in ``Run.finish``.
"""

from __future__ import annotations

import ast
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.base.code import hash_code, kit_imports, module_hashes
from kit.base.files import hash_file, matches, read_json, write_json
from kit.base.machine import package_versions
from kit.run.marks import RECORD_KEYS, done_path, left_out_path, pending_path, read_mark, read_record

REDRAW = "redrawing figures"


def code_hashes(notebook: Path) -> dict[str, dict[str, str]]:
    """Hashes of the code that a notebook runs: the notebook, and every kit module it imports, directly or not.

    Prose does not count; nor does the parameters cell, whose values are compared one by one (see ``kit.base.code``).

    Returns:
        "code": what computes; "figures": what only draws, ``kit.viz`` and modules that nothing else here imports.
    """
    cells = [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    source = "\n".join(
        "".join(cell["source"]) for cell in cells if "parameters" not in cell["metadata"].get("tags", [])
    )
    tree = ast.parse(source)
    imports = kit_imports(tree)
    drawing = {module for module in imports if module.startswith("kit.viz.")}
    code = {notebook.stem: hash_code(tree), **module_hashes(imports - drawing)}
    return {"code": code, "figures": {m: value for m, value in module_hashes(drawing).items() if m not in code}}


def current_stamp(notebook: Path, parameters: dict[str, Any]) -> dict:
    """What the step would be made with now."""
    # through JSON, so that it compares equal with a stamp that was written and read
    return json.loads(json.dumps({
        **code_hashes(notebook), "parameters": parameters, "packages": package_versions(),
    }))  # fmt: skip


def why_stale(run_dir: Path, step: str, stamp: dict) -> str | None:
    """Why the step must run (again), in words: the first reason, and how many more; None if all it made is still right.

    Where only code that draws has changed, the reason begins with ``REDRAW``: fits and features are read back.
    """
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
    if not reasons and (drawn := next(_changes("code of", mark.get("figures", {}), stamp["figures"]), None)):
        return f"{REDRAW}: {drawn}"
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
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    mark = {**record, **stamp, "seconds": seconds, "finished": finished, "peak_mb": max(peak_mb, record["peak_mb"])}
    write_json(done_path(run_dir, step), mark)
    pending_path(run_dir, step).unlink()
    return mark
