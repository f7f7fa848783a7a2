"""Which build of torch is installed where."""

import subprocess

import pytest

from kit.base import torch_build


@pytest.fixture
def install(monkeypatch):
    """install(driver, offered, held, **environment) -> (status, arguments of pip's calls)."""
    for name in ("TORCH", "TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)

    def run(driver=False, offered=True, held="", **environment):
        calls = []

        def pip(command, **options):
            calls.append(" ".join(command[3:]))
            return subprocess.CompletedProcess(command, int(not offered))

        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch_build.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
        monkeypatch.setattr(torch_build.subprocess, "run", pip)
        monkeypatch.setattr(torch_build.subprocess, "call", pip)
        monkeypatch.setattr(torch_build, "_held", lambda: held)
        return torch_build.main(), calls

    return run


def test_without_a_driver_torch_comes_without_cuda(install, capsys):
    status, (call,) = install()
    assert status == 0 and call.startswith("install ") and "download.pytorch.org/whl/cpu" in call
    assert [part.split("==")[0] for part in call.split() if part.endswith("+cpu")] == ["torch", "torchvision"]
    assert "for the CPU alone" in capsys.readouterr().out
    assert "--extra-index-url=file:///wheels" in install(TORCH_INDEX="file:///wheels")[1][0]


def test_where_no_index_has_it_the_default_is_taken_and_said(install, capsys):
    assert install(offered=False)[0] == 0 and "the default build, with CUDA, because" in capsys.readouterr().out
    assert install(offered=False, TORCH="cpu")[0] == 2 and "TORCH_INDEX" in capsys.readouterr().err


def test_with_a_driver_torch_comes_with_cuda_unless_told_otherwise(install):
    assert install(driver=True) == (0, [])
    assert install(driver=True, held="2.14.1+cpu")[1] == ["uninstall --quiet --yes torch torchvision"], (
        "it satisfies the pin"
    )
    assert "+cpu" in install(driver=True, TORCH="cpu")[1][0]
    assert install(TORCH="cuda") == (0, [])


def test_another_word_is_refused(install, capsys):
    assert install(TORCH="gpu") == (2, []) and "TORCH=gpu: expected cpu or cuda" in capsys.readouterr().err


def test_pip_takes_the_build_for_the_cpu_from_an_index(tmp_path):
    """A real call of pip finds the local version in a folder of wheels, and the pin without it is satisfied."""
    wheel = tmp_path / "kit_probe-1.0+cpu-py3-none-any.whl"
    _write_wheel(wheel)
    command = [*torch_build.PIP, "install", "--quiet", "--no-deps", "--no-index", f"--find-links={tmp_path}",
               f"--target={tmp_path / 'site'}", "kit-probe==1.0"]  # fmt: skip
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (tmp_path / "site" / "kit_probe-1.0+cpu.dist-info").is_dir()


def _write_wheel(path):
    import zipfile

    folder = "kit_probe-1.0+cpu.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/METADATA", "Metadata-Version: 2.1\nName: kit-probe\nVersion: 1.0+cpu\n")
        archive.writestr(
            f"{folder}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{folder}/RECORD", "")
