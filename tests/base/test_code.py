"""A hash of code changes with the code that computes, in the module or in what it imports, and with nothing else."""

import shutil
import subprocess
import sys

import pytest

from kit.base import code
from kit.base.code import code_of
from kit.base.paths import PROJECT_ROOT


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """edited(file, old, new) -> code_of(kit.boosting.ridge) in a copy of the kit with that one edit."""

    def run(name, old, new):
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "kit"
        shutil.copytree(PROJECT_ROOT / "kit", folder, ignore=shutil.ignore_patterns("__pycache__"))
        source = (folder / name).read_text()
        assert old in source
        (folder / name).write_text(source.replace(old, new, 1))
        monkeypatch.setattr(code, "PACKAGE", folder)
        return code_of("kit.evaluation.table_one")

    return run


def test_what_changes_the_hash_and_what_does_not(edited):
    plain = code_of("kit.evaluation.table_one")
    table = "evaluation/table_one.py"
    assert edited(table, "\n", "  # a comment\n\n") == plain
    assert edited(table, '"""', '"""Other words. ') == plain
    assert edited(table, "from __future__", "ONE = 1\nfrom __future__") != plain
    assert edited("base/metrics.py", "from __future__", "ONE = 1\nfrom __future__") != plain  # imported
    assert edited("base/errors.py", "from __future__", "ONE = 1\nfrom __future__") == plain  # plumbing
    assert edited("viz/figures.py", "from __future__", "ONE = 1\nfrom __future__") == plain  # not imported
    assert edited("evaluation/paper_table_1.csv", "\n", "\n1") != plain  # a data file it names


def test_order_does_not_matter_and_names_do():
    both = code_of("kit.boosting.fit", "kit.evaluation.blend")
    assert both == code_of("kit.evaluation.blend", "kit.boosting.fit")
    assert both not in (code_of("kit.boosting.fit"), code_of("kit.evaluation.blend"))
    assert code_of("kit.boosting.fit") == code_of("kit.boosting.fit", "kit.boosting.ridge")  # imported anyway
    for wrong in ("kit.boosting.nothing", "kit.boosting", "numpy"):
        with pytest.raises(ValueError, match=wrong):
            code_of(wrong)


def test_nothing_is_imported():
    check = (
        "import sys; from kit.base.code import code_of; code_of('kit.boosting.fit', 'kit.clip_ft.train')\n"
        "loaded = {'torch', 'lightgbm', 'catboost', 'kit.boosting.fit'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=PROJECT_ROOT)
