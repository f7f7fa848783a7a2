"""Tasks in worker processes: results by position, threads and devices handed out, deaths told and repeated once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kit.base import tasks
from kit.base.errors import InputError
from kit.base.machine import usable_cores
from kit.base.paths import PROJECT_ROOT
from kit.base.tasks import map_tasks


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def environment(_: int) -> tuple:
    early = "numpy" in sys.modules  # loaded before the number of threads was known
    import numpy  # noqa: F401
    from threadpoolctl import threadpool_info

    return early, {pool["num_threads"] for pool in threadpool_info()}, os.environ["OMP_WAIT_POLICY"], usable_cores()


def visible(item: tuple[Path, int, int]) -> str:
    folder, number, n_tasks = item
    (folder / str(number)).touch()
    while len(list(folder.iterdir())) < n_tasks:  # until each worker has a task
        time.sleep(0.05)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def refuse(number: int) -> int:
    if number == 1:
        raise InputError("the second one is wrong")
    time.sleep(120)


def die(item: tuple[Path, int, str]) -> int:
    """Dies by a signal in task 1: as often as there are letters, one file each."""
    folder, number, signals = item
    before = len(list(folder.glob(f"{number}_*")))
    (folder / f"{number}_{before}").touch()
    if number == 1 and before < len(signals):
        os.kill(os.getpid(), {"k": signal.SIGKILL, "s": signal.SIGSEGV, "t": signal.SIGTERM}[signals[before]])
        time.sleep(60)
    return number


def test_one_worker_is_a_loop_in_this_process():
    here = os.getpid()
    assert list(map_tasks(square, [3, 4], cores=1)) == [(0, (9, here)), (1, (16, here))]
    assert list(map_tasks(square, [3], cores=9)) == [(0, (9, here))] and list(map_tasks(square, [], cores=9)) == []
    assert [place for place, _ in map_tasks(square, [1, 2], cpus=4, cores=7)] == [0, 1]  # room for one


def test_what_tasks_have_in_common_is_given_to_each(monkeypatch):
    for cores in (1, 2):
        found = dict(map_tasks(divmod, [3, 4], common=17, cores=cores))
        assert found == {0: (5, 2), 1: (4, 1)}


def test_results_come_with_their_position_from_other_processes():
    found = dict(map_tasks(square, range(7), cores=2))
    assert [found[i][0] for i in range(7)] == [i**2 for i in range(7)]
    workers = {pid for _, pid in found.values()}
    assert os.getpid() not in workers and not [pid for pid in workers if psutil.pid_exists(pid)]


def test_libraries_of_a_worker_know_its_threads():
    for early, threads, policy, cores in dict(map_tasks(environment, [0, 1], cpus=2, cores=4)).values():
        assert not early and threads == {2} and policy == "passive" and cores == min(2, usable_cores())


@pytest.mark.parametrize(("shown", "expected"), [("4,7", {"4", "7"}), (None, {"0", "1"})])
def test_each_worker_gets_one_of_the_visible_gpus(monkeypatch, tmp_path, shown, expected):
    monkeypatch.setattr(tasks, "gpu_names", lambda: ["one", "two"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown) if shown else monkeypatch.delenv("CUDA_VISIBLE_DEVICES", False)
    assert set(dict(map_tasks(visible, [(tmp_path, i, 2) for i in range(2)], gpus=1)).values()) == expected


def test_an_error_of_a_task_ends_the_others():
    with pytest.raises(InputError, match="^the second one is wrong$"):
        list(map_tasks(refuse, range(4), cores=2))
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize(
    ("by", "told"), [("k", "SIGKILL (killed: most"), ("s", "SIGSEGV (segmentation"), ("t", "SIGTERM")]
)
def test_the_task_of_a_dead_worker_is_repeated(tmp_path, capfd, by, told):
    items = [(tmp_path, number, by) for number in range(4)]
    assert sorted(map_tasks(die, items, cores=2, label="fits")) == [(i, i) for i in range(4)]
    assert len(list(tmp_path.glob("1_*"))) == 2
    said = capfd.readouterr().out
    assert "fits 2 (" in said and told in said and "the largest worker so far held" in said and "it is repeated" in said


def test_a_task_whose_worker_dies_twice_is_named(tmp_path):
    with pytest.raises(InputError, match=r"fits 2 \(.*, 1, 'sk'.*died 2 times, last by SIGKILL .*held [\d,]+ MB"):
        list(map_tasks(die, [(tmp_path, number, "sk") for number in range(4)], cores=2, label="fits"))


def test_workers_end_with_the_process_that_waits_for_them():
    code = (
        "import signal\nfrom kit.base.tasks import map_tasks\nfrom tests.base.test_tasks import refuse\n"
        "if __name__ == '__main__':\n    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored behind nohup
        "    list(map_tasks(refuse, [5, 6], cores=2))"
    )
    parent = psutil.Popen(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    )
    while len(parent.children()) < 3:  # two workers and what tracks their resources
        assert parent.poll() is None
        time.sleep(0.05)
    workers = parent.children()
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(workers, timeout=30)[1]


def test_an_interrupt_ends_the_workers():
    code = (
        "import signal\nfrom kit.base.tasks import map_tasks\nfrom tests.base.test_tasks import refuse\n"
        "if __name__ == '__main__':\n    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored behind nohup
        "    list(map_tasks(refuse, [5, 6], cores=2))"
    )
    parent = psutil.Popen([sys.executable, "-c", code], cwd=PROJECT_ROOT, env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
                          start_new_session=True, stderr=subprocess.PIPE)  # fmt: skip
    while len(parent.children()) < 3:
        assert parent.poll() is None
        time.sleep(0.05)
    workers = parent.children()
    os.killpg(parent.pid, signal.SIGINT)
    assert b"KeyboardInterrupt" in parent.communicate(timeout=60)[1]
    assert not psutil.wait_procs(workers, timeout=30)[1]
