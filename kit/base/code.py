"""A hash of the code that computes something, for the keys of kept results and for the stamps of steps.

The code is read, never imported: a module that loads torch is hashed in milliseconds.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable
from pathlib import Path

from kit.base.files import digest
from kit.base.paths import PROJECT_ROOT

PACKAGE = PROJECT_ROOT / "kit"
PLUMBING = {  # what these do cannot change a result: messages, exceptions, locks, the end of a process
    "kit.base.cluster", "kit.base.errors", "kit.base.locks", "kit.base.process", "kit.base.progress", "kit.base.tasks",
}  # fmt: skip


def code_of(*modules: str) -> str:
    """Hash of the modules' code and of every kit module they import, directly or not.

    Comments, docstrings and layout do not count; a data file of the package that a module names (``taxonomy.csv``) counts
    as its code. Left out are the modules of ``PLUMBING``. Each file is read once per process.

    Args:
        modules: dotted names, e.g. ``code_of("kit.boosting.fit", "kit.boosting.ridge")``.
    Raises:
        ValueError: a name is no module of the kit.
    """
    if unknown := [module for module in modules if not is_module(module)]:
        raise ValueError(f"no module {', '.join(unknown)}; give dotted names of files, as kit.boosting.fit")
    return digest(module_hashes(modules))


def module_hashes(modules: Iterable[str]) -> dict[str, str]:
    """Module -> hash of its code, for the given kit modules and all that they import, those of ``PLUMBING`` left out."""
    hashes: dict[str, str] = {}
    waiting = set(modules) - PLUMBING
    while waiting:
        module = waiting.pop()
        hashes[module], imports = _read_module(_module_path(module))
        waiting |= imports - PLUMBING - set(hashes)
    return dict(sorted(hashes.items()))


def kit_imports(tree: ast.AST) -> set[str]:
    """Dotted names of the kit modules that the code imports, e.g. ``kit.run.folds``; folders are none."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kit":
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if is_module(name)}


def is_module(name: str) -> bool:
    """Whether a dotted name is a file of the kit."""
    return name.startswith("kit.") and _module_path(name).is_file()


def hash_code(tree: ast.AST) -> str:
    """Hash of the code without comments, docstrings and layout."""
    return digest(ast.dump(_DropDocstrings().visit(tree)))


def _module_path(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


@functools.cache
def _read_module(path: Path) -> tuple[str, frozenset[str]]:
    """Hash of a module with the data files it names, and the kit modules it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    data = [path.with_name(name) for name in sorted(names) if re.fullmatch(r"[\w.]+\.(csv|json|j2)", name)]
    content = [file.read_text(encoding="utf-8") for file in data if file.is_file()]
    return digest([hash_code(tree), *content]), frozenset(kit_imports(tree))


class _DropDocstrings(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        return node
