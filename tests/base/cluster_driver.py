"""What the tests of a cluster run on its head, as ``python -m tests.base.cluster_driver PART FOLDER``."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from kit.base import cluster
from kit.base.errors import InputError
from kit.base.paths import PROJECT_ROOT
from kit.base.tasks import machine_shape, map_tasks
from kit.pipeline import machines
from kit.run.directory import Run
from tests.tiny import tiny_block, tiny_posts

N_SHARDS, SHARD = 12, 10


class Slow:
    """Lengths of texts, slowly; each shard leaves the id of each process that began it."""

    name, fingerprint, made_by = "slow", "f", "kit.encoders.encoders"

    def __init__(self, began: Path):
        from torch import nn

        self.began, self.module = began, nn.Linear(1, 8, bias=False)
        nn.init.constant_(self.module.weight, 0.37)

    def tokenize(self, texts):
        import torch

        (self.began / f"{len(texts[0]) // SHARD}_{os.getpid()}").touch()
        time.sleep(1)
        return torch.tensor([[len(text)] for text in texts])

    def lengths(self, ids):
        import torch

        return torch.ones(len(ids), dtype=torch.long)

    def encode_batch(self, module, ids):
        return module(ids.float().to(module.weight.dtype))


def work(folder: Path) -> None:
    """Encode 12 shards, fit 4 sets."""
    from kit.encoders.bulk import encode_texts

    (folder / "began").mkdir()
    texts = ["w" * n for n in range(N_SHARDS * SHARD)]
    encode_texts(texts, Slow(folder / "began"), folder / "shards", shard_size=SHARD, precision="float32", cpus=1)
    del sys.modules["kit.encoders.bulk"]

    from kit.boosting.fit import Machine, Training
    from kit.boosting.tasks import FitTask, fit_all
    from kit.run.folds import make_folds

    posts, run = tiny_posts(300, 60), Run(folder / "run", write=True)
    run.write_posts(posts)
    run.write_block(tiny_block(posts))
    folds, tasks = make_folds(posts, 2, "user"), {}
    for model in ("lightgbm", "catboost"):
        for seed in (0, 1):
            training = Training(model, {"learning_rate": 0.2}, rounds=20, patience=5, seed=seed)
            out = run.folder(f"fits/{model}{seed}")
            tasks[model, seed] = FitTask(run.dir, ("tiny",), folds, training, Machine(1), out_dir=out)
    fit_all(tasks)


def refuse(number: int) -> None:
    """Task 1 is wrong, the others take long; each leaves the id of its process."""
    Path(str(number)).write_text(str(os.getpid()))
    if number == 1:
        while not Path("0").exists():
            time.sleep(0.1)
        raise InputError("the second one is wrong")
    time.sleep(300)


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def who(number: int) -> int:
    time.sleep(0.3)
    return os.getpid()


def look(common: np.ndarray, number: int) -> tuple:
    variables = [os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONHASHSEED", "KIT_ENGINE", "KIT_PIPELINE")]
    return os.getpid(), os.getcwd(), float(common.sum()), machine_shape(), variables


def look_around(folder: Path) -> None:
    """What the machines hold, what a task says of its surroundings, what it raises, and a process that always dies."""
    print(*machines.cluster(folder, PROJECT_ROOT), sep="\n")
    os.chdir(folder)
    os.environ |= {"PYTHONHASHSEED": "7", "KIT_PIPELINE": "1"}
    first, second = ({*dict(map_tasks(who, range(4), label="who")).values()} for _ in range(2))
    print(machine_shape(), dict(map_tasks(look, range(4), common=np.ones(10**6), label="look")))
    third = {*dict(map_tasks(who, range(4), label="who")).values()}
    print("processes stay:", bool(first & second), "and end:", not (first | second) & third)
    for fn, items, retries in ((refuse, range(4), 3), (die, [1], 0)):
        cluster.RETRIES = retries
        try:
            list(map_tasks(fn, items, label="fits"))
        except InputError as error:
            print(type(error).__name__, error)


if __name__ == "__main__":
    from tests.base import cluster_driver as here

    getattr(here, sys.argv[1])(Path(sys.argv[2]))
