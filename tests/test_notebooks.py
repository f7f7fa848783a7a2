"""What every notebook promises, checked without running it."""

import ast
import re

import nbformat
import pytest

from kit.base.paths import PROJECT_ROOT
from kit.pipeline.steps import KEPT, PROFILES, notebooks, read_parameters

NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in notebooks()}
OPEN_MODEL = PROJECT_ROOT / "kit" / "encoders" / "model.py"  # fills folders in the name of the notebook that calls it
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def _code(name):
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]


def test_the_chain_is_there():
    assert list(NOTEBOOKS)[0] == "01_eda" and list(NOTEBOOKS)[-1] == "08_explore"


@each_notebook
def test_committed_clean(name):
    notebook = NOTEBOOKS[name]
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.outputs and cell.execution_count is None for cell in _code(name))


@each_notebook
def test_opens_with_title_and_parameters(name):
    first, second, third = NOTEBOOKS[name].cells[:3]
    number = name.split("_")[0]
    assert first.source.startswith(f"# {number} ")
    assert all(f"**{word}**" in first.source for word in ("reads", "writes", "takes"))
    assert second.metadata.tags == ["parameters"]
    assert f'step="{name}"' in third.source


@each_notebook
def test_parameters_are_typed_and_explained(name):
    for parameter, entry in read_parameters(notebooks()[list(NOTEBOOKS).index(name)]).items():
        assert entry.help, f"{name}: parameter {parameter} has no comment"
        kind = entry.type_name.split("[")[0]
        assert type(entry.default).__name__ == kind, f"{name}: {parameter} = {entry.default!r} is no {kind}"


@each_notebook
def test_a_notebook_calls_and_shows(name):
    for cell in _code(name):
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in nodes), cell.source
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), cell.source
        assert len(cell.source.splitlines()) <= 20, cell.source
    assert "run.finish(" in _code(name)[-1].source


@each_notebook
def test_torch_and_boosting_never_share_a_kernel(name):
    """Threads of one library after a fork of the other hang (LightGBM#4751, LightGBM#6137)."""
    from kit.pipeline.stamps import code_hashes

    modules = set(code_hashes(notebooks()[list(NOTEBOOKS).index(name)])["code"])
    assert not ({"kit.boosting.fit"} & modules and {"kit.encoders.clip", "kit.clip_ft.model"} & modules)


def test_profiles_name_only_what_exists():
    for profile, steps in PROFILES.items():
        for number, values in steps.items():
            path = next(path for path in notebooks() if path.stem.startswith(number))
            assert set(values) <= set(read_parameters(path)), f"profile {profile}, {path.stem}"


@each_notebook
def test_force_knows_every_folder_a_notebook_fills(name):
    """A folder of kept work that ``--force`` does not clear would hand out old results."""
    filled = set()
    code = [cell.source for cell in _code(name)]
    code += [OPEN_MODEL.read_text()] if any("open_model(" in part for part in code) else []
    for node in ast.walk(ast.parse("\n".join(code))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run.folder" and node.args:
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            filled.add(first.value.rstrip("/"))
    kept = KEPT.get(name[:2], ())
    assert all(any(f"{folder}/".startswith(f"{one}/") for one in kept) for folder in filled), filled
    assert all(any(f"{folder}/".startswith(f"{one}/") for folder in filled) for one in kept), kept
