"""The floors of kit/: an import goes down, never up; nothing is computed at import; heavy libraries stay in their rooms."""

import ast
import subprocess
import sys
from functools import cache

import pytest

from kit.base.paths import PROJECT_ROOT

FLOORS = {
    "base": 0, "release": 1, "run": 2, "demo": 2, "features": 3, "encoders": 3, "clip_ft": 4, "tuning": 4, "boosting": 4,
    "evaluation": 5, "submission": 5, "viz": 6, "predict": 6, "pipeline": 7,
}  # fmt: skip
BOOSTERS = {"lightgbm", "catboost", "xgboost"}
WITHOUT = {  # room -> libraries that none of its modules may load, directly or through other modules of the kit
    **dict.fromkeys(["base", "release", "run", "demo", "features"], {"torch", "open_clip", *BOOSTERS}),
    **dict.fromkeys(["boosting"], {"torch", "open_clip"}),
    **dict.fromkeys(["encoders", "clip_ft", "tuning"], BOOSTERS),
    **dict.fromkeys(["evaluation", "submission", "viz", "predict", "pipeline"], {"torch", "open_clip", *BOOSTERS}),
}
PUBLIC_IN_SPITE_OF_ITS_NAME = {"os._exit"}
KIT = PROJECT_ROOT / "kit"
MODULES = {".".join(path.relative_to(PROJECT_ROOT).with_suffix("").parts): path for path in KIT.rglob("*.py")}
each_module = pytest.mark.parametrize("module", sorted(MODULES))


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str, whole: bool = True) -> frozenset[str]:
    """Dotted names that a module imports: anywhere, or only while it is imported itself; not what is for types alone."""
    found, waiting = set(), list(tree(module).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif whole or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += ast.iter_child_nodes(node)
    return frozenset(found)


def kit_imports(module: str, whole: bool = True) -> set[str]:
    return {name for name in imports(module, whole) if name in MODULES}


@cache
def loads(module: str) -> frozenset[str]:
    """Top names of all that importing a module imports."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += kit_imports(name, whole=False)
    return frozenset(outside.split(".")[0] for name in seen for outside in imports(name, whole=False))


def room(module: str) -> str:
    return module.split(".")[1]


def test_the_kit_holds_rooms_only():
    assert [path.name for path in KIT.glob("*.py")] == ["__init__.py"]
    assert {path.name for path in KIT.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(FLOORS)


@each_module
def test_imports_go_down(module):
    for other in kit_imports(module) - {"kit"}:
        if room(other) != room(module):
            assert FLOORS[room(other)] < FLOORS[room(module)], f"{module} imports {other}"


def test_no_circles():
    done, under_way = set(), []

    def visit(name):
        assert name not in under_way, " -> ".join([*under_way, name])
        if name not in done:
            under_way.append(name)
            for other in sorted(kit_imports(name)):
                visit(other)
            done.add(under_way.pop())

    for name in MODULES:
        visit(name)


@each_module
def test_heavy_libraries_stay_in_their_rooms(module):
    if module != "kit.__init__":
        assert not loads(module) & WITHOUT[room(module)]


@each_module
def test_no_private_parts_of_libraries(module):
    outside = {alias.asname or alias.name.split(".")[0] for node in ast.walk(tree(module))
               if isinstance(node, ast.Import) for alias in node.names}  # fmt: skip
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            text = ast.unparse(node)
            assert text.split(".")[0] not in outside or text in PUBLIC_IN_SPITE_OF_ITS_NAME, text
        if isinstance(node, ast.ImportFrom) and not node.module.startswith(("kit", "__future__")):
            assert not any(alias.name.startswith("_") for alias in node.names), ast.unparse(node)


@each_module
def test_nothing_is_done_at_import(module):
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for number, node in enumerate(tree(module).body):
        docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
        assert docstring or guard or isinstance(node, allowed), f"{module}: {ast.unparse(node)[:80]}"


def test_init_files_hold_one_sentence():
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name != "kit.__init__":
            assert len(tree(name).body) == 1 and path.read_text().count("\n") == 1, name


@pytest.mark.parametrize("number", ["01", "07"])
def test_light_notebooks_load_no_heavy_library(number):
    import json

    path = next((PROJECT_ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
    code = "\n".join(line for line in lines if line.startswith(("import ", "from ")))
    check = "import sys; loaded = {'torch', 'lightgbm', 'catboost'} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True, cwd=PROJECT_ROOT)
