"""A run that cannot be lost: the whole chain, killed again and again and once out of disk space, ends as if undisturbed."""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from kit.base.errors import InputError
from kit.base.files import atomic_path, hash_file, read_json, write_json
from kit.base.locks import lock_holder
from kit.base.paths import PROJECT_ROOT
from kit.pipeline import command
from kit.pipeline.command import main
from kit.pipeline.steps import CALLED_FROM
from tests.conftest import SMALL, Release

resource = pytest.importorskip("resource", reason="signals and limits of Unix")
N_KILLS = 9
KINDS = ("runner", "kernel", "all")
FAST = [*SMALL, "--set=04.baselines=", "--set=06.sets=statistic,statistic+clip_ft"]
HANGS_S = 3600  # a chain that takes longer hangs; a busy machine needs minutes
SMALL_FILES = 2_000_000  # bytes per file, less than the weights of the tiny CLIP
WRITERS = """
import json, pathlib, resource, sys
import catboost, lightgbm, numpy as np, pandas as pd, torch
from safetensors.torch import save_file
from kit.base.errors import InputError
from kit.base.files import atomic_path
values = np.random.default_rng(0).random((400, 100))
lgb = lightgbm.train({"verbose": -1, "min_data_in_leaf": 1}, lightgbm.Dataset(values, values[:, 0]), 100)
cat = catboost.CatBoostRegressor(iterations=300, verbose=False, allow_writing_files=False).fit(values, values[:, 0])
writers = {
    ".npy": lambda path: np.save(path, values), ".npz": lambda path: np.savez(path, values=values),
    ".csv": lambda path: pd.DataFrame(values).to_csv(path), ".bin": lambda path: path.write_bytes(values.tobytes()),
    ".parquet": lambda path: pd.DataFrame(values).rename(columns=str).to_parquet(path),
    ".pt": lambda path: torch.save({"values": torch.from_numpy(values)}, path),
    ".safetensors": lambda path: save_file({"values": torch.from_numpy(values)}, path),
    ".txt": lambda path: lgb.save_model(str(path)), ".cbm": lambda path: cat.save_model(str(path)),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
for suffix, write in writers.items():
    try:
        with atomic_path(pathlib.Path(sys.argv[1]) / f"out{suffix}") as temporary:
            write(temporary)
        print(suffix, "written?", flush=True)
    except Exception as error:
        print(suffix, error if isinstance(error, InputError) else repr(error), flush=True)
"""
LANDMARKS = ("shards/images/00000.npz", "gbdt/*/*/*/fold_0.npz")  # work that a step keeps while it goes on


class Chain:
    """The chain on a small release in one run directory, started as often as needed."""

    def __init__(self, data, run_dir):
        self.data, self.dir, self.log = data, run_dir, run_dir.with_suffix(".log")

    def start(self, *arguments, max_file_bytes=None):
        command = [
            sys.executable,
            "-m",
            "kit.pipeline",
            "--data",
            str(self.data),
            "--out",
            str(self.dir),
            *FAST,
        ]
        environment = {
            name: value for name, value in os.environ.items() if name not in (CALLED_FROM, "OMP_NUM_THREADS")
        }

        def limit():
            if max_file_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [*command, *arguments], cwd=PROJECT_ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=limit,
            )  # fmt: skip

    def kept(self):
        """Finished shards and fits -> what changes when one is written again."""
        paths = [
            *self.dir.glob("shards/*/*.npz"),
            *self.dir.glob("gbdt/*/*/*/*.npz"),
            *self.dir.glob("studies/**/*.npz"),
        ]
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths if not path.name.startswith(".")}

    def check_marks(self):
        for path in self.dir.glob("done/[0-9][0-9]_*.json"):
            mark = read_json(path)
            for name, known in mark["writes"].items():
                assert hash_file(self.dir / name) == known["hash"], f"{path.name} vouches for {name}"

    def results(self):
        return [(self.dir / name).read_bytes() for name in ("submission.csv", "submission.json")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Two chains with the same data and parameters that ran side by side, and the folder they lie in."""
    root = tmp_path_factory.mktemp("faults")
    data = Release(root / "data", n_train=90, n_test=30, images=True).write()
    chains = [Chain(data, root / name) for name in ("first", "second")]
    running = [chain.start() for chain in chains]
    assert [process.wait(HANGS_S) for process in running] == [0, 0], chains[0].log.read_text()
    return *chains, root


def test_same_seed_same_submission(undisturbed):
    first, second, _ = undisturbed
    assert first.results() == second.results()


def test_killed_again_and_again(undisturbed):
    reference, _, root = undisturbed
    chain, rng = Chain(reference.data, root / "killed"), np.random.default_rng(1)
    _runs_out_of_space(chain)
    seconds = {path.stem: read_json(path)["seconds"] for path in sorted(reference.dir.glob("done/*.json"))}
    moments = sorted(zip(rng.integers(0, len(seconds), N_KILLS), rng.uniform(0, 0.5, N_KILLS), strict=True))
    kept, cut_off = {}, set()
    for turn, (place, share) in enumerate(moments):
        step = list(seconds)[place]
        process = chain.start()
        _wait(chain, process, step, share * seconds[step], set(LANDMARKS) - cut_off)
        kernels = _kill(process, KINDS[turn % 3])
        _, alive = psutil.wait_procs(kernels, timeout=5)
        assert not alive, f"a kernel outlived its {KINDS[turn % 3]}"
        assert lock_holder(chain.dir) is None
        chain.check_marks()
        now = chain.kept()
        assert {path: now[path] for path in kept} == kept, "finished work was done again"
        kept = now
        cut_off |= {name for name in LANDMARKS if list(chain.dir.glob(name)) and not _is_done(chain, name)}
    assert cut_off == set(LANDMARKS), "no kill fell between finished work and the end of its step"
    assert chain.start().wait(HANGS_S) == 0, chain.log.read_text()[-3000:]
    assert {path: chain.kept()[path] for path in kept} == kept
    assert chain.results() == reference.results()
    assert (chain.dir / "report.html").is_file()
    assert not [*chain.dir.rglob(".*.tmp*"), *chain.dir.rglob("*.running.ipynb")]
    assert "damaged" not in chain.log.read_text()
    chain.check_marks()


def test_every_writer_says_what_it_could_not_write(tmp_path):
    """Each library reports a full disk in its own words; all become the same message, and nothing half-written stays."""
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, str(tmp_path)], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert len(said) == 9, done.stdout
    for line in said:
        name, message = line.split(" ", 1)
        assert f"cannot write {tmp_path / 'out'}{name} (" in message, line
        assert " GB are free there: make room" in message and "the same command goes on from there" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_turns_read_only(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    write_json(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        InputError, match=rf"no access to .*a.json \({os.strerror(number)}\).*readable and writable.*--out"
    ):
        write_json(tmp_path / "a.json", "new")
    assert read_json(tmp_path / "a.json") == "old" and len(list(tmp_path.iterdir())) == 1


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a"):
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        open(tmp_path / "nothing")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is read-only for everybody")
def test_an_output_folder_nobody_can_make(tmp_path, capsys):
    assert main(["--data", str(Release(tmp_path / "data").write()), "--out", "/proc/run"]) == 2
    error = capsys.readouterr().err
    assert "cannot write to the output folder /proc/run" in error and "--out" in error and "Traceback" not in error


def test_a_system_that_refuses_the_lock_file(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "run" / ".lock"))

    monkeypatch.setattr(command, "lock", full)
    assert main(["--data", str(Release(tmp_path / "data").write()), "--out", str(tmp_path / "run")]) == 2
    assert "cannot write" in (error := capsys.readouterr().err) and "No space left" in error


def _runs_out_of_space(chain):
    """No file may grow beyond a limit: the first step that meets it says so, and the same command goes on later."""
    assert chain.start(max_file_bytes=SMALL_FILES).wait(HANGS_S) == 2
    said = chain.log.read_text()
    assert "02_prototypes failed" in said and "File too large" in said and "GB are free there: make room" in said
    assert "go on     python -m kit.pipeline" in said and "Traceback" not in said
    assert (chain.dir / "done" / "01_eda.json").is_file() and not (chain.dir / "done" / "02_prototypes.json").exists()
    chain.check_marks()


def _wait(chain, process, step, seconds, awaited):
    """Let the chain run until it has worked at a step for some seconds, or has kept new work of an awaited kind, or ends."""
    before, until = chain.log.stat().st_size, None
    there = {name: set(chain.dir.glob(name)) for name in awaited}  # a first submission leaves fits, too
    while process.poll() is None and not any(set(chain.dir.glob(name)) - there[name] for name in awaited):
        said = chain.log.read_bytes()[before:].decode()
        if until is None and any(
            line >= step and " running: " in line for line in said.splitlines() if line[:1] == "0"
        ):
            until = time.monotonic() + seconds
        if until is not None and time.monotonic() > until:
            break
        time.sleep(0.02)


def _kill(process, kind):
    """Kill a running chain, or a part of it; its processes besides the runner."""
    if process.poll() is not None:
        return []
    kernels = psutil.Process(process.pid).children(recursive=True)
    if kind == "runner" or not kernels:
        os.kill(process.pid, signal.SIGKILL)
    else:
        if kind == "all":
            os.killpg(process.pid, signal.SIGKILL)
        for kernel in kernels:
            if kernel.is_running():
                kernel.kill()
    process.wait(60)
    return kernels


def _is_done(chain, name):
    return (
        chain.dir / "done" / {"shards": "02_prototypes.json", "gbdt": "06_gbdt_folds.json"}[name.split("/")[0]]
    ).exists()
