"""Machines of a cluster that differ from this one: what is said, and whether a run may go on."""

import pytest

from kit.pipeline import machines
from kit.pipeline.command import main


def asked(monkeypatch, folder, answer):
    """The finding about one machine that answers so."""
    monkeypatch.setattr(machines, "ask_each_machine", lambda fn, item: iter([("10.0.0.2", answer(fn(item)))]))
    (found,) = machines.cluster(folder, folder)
    assert not list(folder.glob(".probe*"))
    return found


@pytest.mark.parametrize(("changed", "told", "fatal"), [
    ({}, "10.0.0.2: packages, code, data and run as here", False),
    ({"numpy": "1.0"}, "numpy 1.0 (here 2", False),
    ({"python": "3.9.1"}, "python 3.9.1 (here 3", False),
    ({"code": "other"}, "code other (here ", True),
    ({"data": "other"}, "data other (here ", True),
    ({"probe": ""}, "probe  (here ", True),
])  # fmt: skip
def test_differences_are_named(monkeypatch, tmp_path, changed, told, fatal):
    found = asked(monkeypatch, tmp_path, lambda there: there | changed)
    assert told in found.text and found.fatal == fatal and bool(found.todo) == bool(changed)


def test_a_machine_that_cannot_see_the_folders_is_named(monkeypatch, tmp_path):
    found = asked(monkeypatch, tmp_path, lambda there: FileNotFoundError(2, "No such file", "/data"))
    assert "10.0.0.2: FileNotFoundError" in found.text and found.fatal and "under the same path" in found.todo

    def elsewhere(there):
        there["wrote"].unlink()
        return there

    assert "is not seen here" in asked(monkeypatch, tmp_path, elsewhere).text


def test_nothing_runs_on_machines_that_differ(monkeypatch, tmp_path, capsys):
    finding = machines.Finding("cluster", "10.0.0.2: data other", "share it", True)
    monkeypatch.setattr("kit.pipeline.command.cluster", lambda run_dir, data_dir: iter([finding]))
    monkeypatch.setenv("KIT_ENGINE", "local")
    (tmp_path / "data").mkdir()
    assert main(["--engine", "ray", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert "10.0.0.2: data other" in said.out and "Nothing has been run" in said.err
    assert not (tmp_path / "run" / "logs").exists()


def test_a_cluster_without_machines_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(machines, "ask_each_machine", lambda fn, item: iter(()))
    (found,) = machines.cluster(tmp_path, tmp_path)
    assert found.fatal and "--num-cpus=0" in found.text
