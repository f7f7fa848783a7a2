"""Tasks on a Ray cluster: network namespaces are its machines, all processes of one are killed in the middle."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kit.base import cluster
from kit.base.errors import InputError
from kit.base.paths import PROJECT_ROOT
from kit.base.tasks import map_tasks
from tests.base.cluster_driver import N_SHARDS

pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
DEAD = "127.0.0.1:1"  # nobody listens there
MACHINES = {name: f"10.88.0.{number}" for number, name in enumerate(("head", "a", "b"), start=1)}
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "20",
    "OMP_NUM_THREADS": "1", "RAY_ADDRESS": f"{MACHINES['head']}:6400", "PYTHONPATH": str(PROJECT_ROOT),
}  # fmt: skip


def namespace(name: str) -> str:
    return f"kit{os.getpid()}{name}"


def run(*command: str, on: str = "", **more) -> subprocess.Popen:
    inside = ["ip", "netns", "exec", namespace(on)] if on else []
    return subprocess.Popen([*inside, *command], cwd=PROJECT_ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            **more)  # fmt: skip


def ip(words: str, on: str = "") -> None:
    done = run("ip", *words.split(), on=on)
    said = done.communicate(timeout=20)[0]
    assert done.returncode == 0, f"ip {words}: {said}"


def kill_machine(name: str) -> set[int]:
    """End every process of a machine; their ids."""
    found = subprocess.run(["ip", "netns", "pids", namespace(name)], capture_output=True, text=True).stdout.split()
    for pid in found:
        subprocess.run(["kill", "-9", pid], capture_output=True)
    return set(map(int, found))


def machine_processes(name: str) -> set[int]:
    found = subprocess.run(["ip", "netns", "pids", namespace(name)], capture_output=True, text=True).stdout
    return set(map(int, found.split()))


def start(name: str, options: list[str], environment: dict) -> None:
    """Ray gives its helpers 15 s to start, which they miss while other programs use all cores: it is tried again."""
    command = [str(Path(sys.executable).with_name("ray")), "start", f"--node-ip-address={MACHINES[name]}", *options]
    command += [
        "--object-store-memory=100000000",
        "--num-gpus=0",
        "--disable-usage-stats",
        "--include-log-monitor=false",
    ]
    for last in (*(False,) * 4, True):
        started = run(*command, on=name, env=environment)
        said, _ = started.communicate(timeout=120)
        if started.returncode == 0:
            return
        kill_machine(name)
        assert not last, said


@pytest.fixture(scope="module")
def machines():
    """A head without tasks and two machines of one core; yields the environment of a driver on the head."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and iproute2 to make network namespaces")
    folder = Path(tempfile.mkdtemp(prefix="kit-", dir="/tmp"))  # sockets need a short path
    own = {name: value for name, value in os.environ.items() if not name.startswith("KIT_")}  # those of a test command
    environment = own | ENVIRONMENT | {"HOME": str(folder)}
    try:
        for name in MACHINES:
            ip(f"netns add {namespace(name)}")
            ip("link set lo up", on=name)
        ip("link add bridge type bridge", on="head")
        ip(f"addr add {MACHINES['head']}/24 dev bridge", on="head")
        ip("link set bridge up", on="head")
        for name in ("a", "b"):
            ip(f"link add to_{name} netns {namespace('head')} type veth peer name eth0 netns {namespace(name)}")
            ip(f"link set to_{name} master bridge up", on="head")
            ip(f"addr add {MACHINES[name]}/24 dev eth0", on=name)
            ip("link set eth0 up", on=name)
        head = ["--head", "--port=6400", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}/r"]
        start("head", head, environment)
        for name in ("a", "b"):
            start(name, [f"--address={MACHINES['head']}:6400", "--num-cpus=1"], environment)
        yield environment | {"KIT_ENGINE": "ray"}
    finally:
        for name in MACHINES:
            kill_machine(name)
            subprocess.run(["ip", "netns", "del", namespace(name)], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def driver(part: str, folder: Path, environment: dict) -> str:
    done = run(sys.executable, "-m", "tests.base.cluster_driver", part, str(folder), on="head", env=environment)
    said = done.communicate(timeout=300)[0]
    assert done.returncode == 0, said
    return said


@pytest.mark.parametrize("named", ["nowhere", "by RAY_ADDRESS", "in the folder of Ray"])
def test_without_a_cluster_it_says_how_to_start_one(named, monkeypatch, tmp_path):
    """Also where a cluster that is dead is named: at once, and not after the minutes that Ray waits for it."""
    monkeypatch.setenv("KIT_ENGINE", "ray")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where a cluster of this machine, even a dead one, is written down
    monkeypatch.setenv("RAY_ADDRESS", DEAD if named == "by RAY_ADDRESS" else "")
    if named == "in the folder of Ray":
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(DEAD)
    if named != "nowhere":
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())  # which is not asked
    cluster.cluster_shape.cache_clear()
    with pytest.raises(
        InputError, match=f"no cluster answers .*{DEAD if named != 'nowhere' else 'auto'}.*`ray start --head`"
    ):
        list(map_tasks(abs, [1, 2]))


def test_without_ray_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setenv("KIT_ENGINE", "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    cluster.cluster_shape.cache_clear()
    with pytest.raises(InputError, match=r"Ray is not installed.*\.\[ray\]"):
        list(map_tasks(abs, [1, 2]))


def test_machines_surroundings_and_errors(machines, tmp_path):
    said = driver("look_around", tmp_path, machines)
    for name in ("a", "b"):
        assert f"{MACHINES[name]} (1 cores, 0 GPUs): packages, code, data and run as here" in said
    assert not list(tmp_path.glob(".*"))  # nothing of the probes is left
    assert f"'{tmp_path}', 1000000.0, (" in said and "['1', '7', None, None]" in said
    assert "processes stay: True and end: True" in said  # a batch with something in common ends them
    assert "InputError the second one is wrong" in said
    assert "InputError fits 1 (1): its process or machine was lost 1 times, last by WorkerCrashedError" in said
    began = {int((tmp_path / name).read_text()) for name in ("0", "1")}
    assert not began & {pid for name in MACHINES for pid in machine_processes(name)}  # the others were ended


def test_a_machine_lost_in_the_middle_costs_its_tasks(machines, tmp_path):
    for name in ("local", "ray"):
        (tmp_path / name).mkdir()
    local = run(sys.executable, "-m", "tests.base.cluster_driver", "work", str(tmp_path / "local"),
                env=machines | {"KIT_ENGINE": "local"})  # fmt: skip
    done = run(
        sys.executable, "-m", "tests.base.cluster_driver", "work", str(tmp_path / "ray"), on="head", env=machines
    )
    began, shards = tmp_path / "ray" / "began", tmp_path / "ray" / "shards"
    while done.poll() is None:
        under_way = {path.name for path in began.glob("*")}
        lost = {name for name in under_way if int(name.split("_")[1]) in machine_processes("b")
                and not (shards / f"{int(name.split('_')[0]):05d}.npz").exists()}  # fmt: skip
        if lost and len(list(shards.glob("[0-9]*.npz"))) >= 2:
            break
        time.sleep(0.05)
    killed = kill_machine("b")
    assert done.wait(timeout=200) == 0, done.stdout.read()
    assert local.wait(timeout=200) == 0, local.stdout.read()
    begun = [tuple(map(int, path.name.split("_"))) for path in began.iterdir()]
    assert len(begun) > N_SHARDS and any(pid in killed for _, pid in begun)  # at least one was done again
    assert {shard for shard, _ in begun} == set(range(N_SHARDS))
    same_files(tmp_path / "local", tmp_path / "ray")


def same_files(one: Path, other: Path) -> None:
    """Equal bytes; of kept fits, which hold seconds, equal numbers."""
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file() and path.parent.name != "began"}
    assert names == {
        path.relative_to(other) for path in other.rglob("*") if path.is_file() and path.parent.name != "began"
    }
    fits = 4 * (3 + 5)  # of each of four: two folds and one of all posts, and the columns of the sides that taught them
    assert len([name for name in names if name.suffix == ".npz"]) == N_SHARDS + fits
    assert not [name for name in names if ".tmp" in name.name]
    for name in names:
        if name.parts[0] == "run" and name.suffix == ".npz":
            with np.load(one / name) as kept, np.load(other / name) as made:
                assert kept.files == made.files
                for key in set(kept.files) - {"seconds"}:
                    np.testing.assert_array_equal(kept[key], made[key])
        elif name.name == "scores.json":
            kept, made = (json.loads((folder / name).read_text()) for folder in (one, other))
            assert (kept["src"], kept["mae"]) == (made["src"], made["mae"])
        elif name.suffix != ".cbm":  # CatBoost writes when it was trained
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
