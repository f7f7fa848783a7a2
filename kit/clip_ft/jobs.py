"""A training as files, so that other processes can do it, or a fold of it: what they need is written once, and mapped.

On several GPUs of one machine torchrun starts ``python -m kit.clip_ft.jobs JOB`` once for each, all with the same training
function, and the checkpoint they leave is what the caller's own ``train`` finds finished. A training of minutes gains
little from it, because every process repeats the class prompts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from kit.base.files import read_json, write_json, write_npy, write_table
from kit.base.paths import PROJECT_ROOT
from kit.base.process import HEADLESS, end_with
from kit.base.tasks import machine_shape, map_tasks, on_cluster
from kit.clip_ft.prototypes import Prototypes, load_prototypes
from kit.clip_ft.texts import KEPT, TextBank
from kit.clip_ft.train import Settings, Trained, TrainingData, is_trained, tower_dtype, train, training_key
from kit.encoders.clip import Clip, load_clip


@dataclass(frozen=True)
class Job:
    """One training: what ``train`` takes, and what ``cross_fit`` needs beside it.

    Attributes:
        clip, bank, prototypes, data, settings: as for ``train``.
        text: (n_posts, d) text features the textual prototypes are made from.
        folds: (n_posts,) int, the fold of each train post, authors never split; negative elsewhere.
    """

    clip: Clip
    bank: TextBank
    prototypes: Prototypes
    data: TrainingData
    settings: Settings
    text: np.ndarray | None = None
    folds: np.ndarray | None = None

    def train(self, folder: Path) -> Trained:
        """``train`` of this job, its files in ``folder``."""
        return train(self.clip, self.bank, self.prototypes, self.data, self.settings, folder)

    def key(self) -> str:
        """``training_key`` of this job."""
        return training_key(self.clip, self.bank, self.prototypes, self.data, self.settings)


def fit(job: Job, folder: Path, clip_dir: Path, processes: int = 1) -> Trained:
    """The job trained, in this process or in several of one machine.

    Args:
        job: what to train.
        folder: where the checkpoint lies.
        clip_dir: the folder ``job.clip`` was loaded from.
        processes: number of processes, each with a GPU of its own where there are so many; 1 = this process.
    Raises:
        RuntimeError: the processes failed; their own message is in the output above.
    """
    if processes > 1 and not is_trained(folder, job.key(), job.settings):
        gpus = processes if machine_shape()[1] >= processes else 0
        with as_files(job, folder / "job", clip_dir) as written:
            options = {"common": processes, "cpus": 0, "gpus": gpus, "label": "CLIP_FT", "unit": "training"}
            list(map_tasks(run_torchrun, [written], **options))
    return job.train(folder)


@contextlib.contextmanager
def as_files(job: Job, folder: Path, clip_dir: Path) -> Iterator[Path]:
    """The folder with everything but the CLIP model, which lies in ``clip_dir``; removed when all has gone well."""
    job.prototypes.save(folder / "prototypes")
    data = {name: values for name, values in vars(job.data).items() if values is not None}
    more = {name: values for name in ("text", "folds") if (values := getattr(job, name)) is not None}
    for name, values in (data | more).items():
        write_npy(folder / f"{name}.npy", values)
    write_table(folder / "texts.parquet", pd.DataFrame({"text": job.bank.texts}))
    if job.bank.place == job.bank.device == torch.device("cpu") and not on_cluster():
        job.bank.save(folder)
    content = {"clip": clip_dir, "settings": asdict(job.settings), "bank": job.bank.options, "text": job.bank.precision}
    write_json(folder / "job.json", content | {"data": list(data), "more": list(more)})
    yield folder
    shutil.rmtree(folder)


def open_job(folder: Path, device: torch.device, world: int) -> Job:
    """The job in ``folder`` with its text tower on ``device``, in one of ``world`` processes that share the memory."""
    content = read_json(folder / "job.json")
    settings, options = Settings(**content["settings"]), content["bank"]
    data, more = ({n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in content[kind]} for kind in ("data", "more"))
    clip = load_clip(f"local-dir:{content['clip']}")
    clip.text.place(device, content["text"])
    options["cache_share"] /= world  # a process holds its own copy unless one is kept for all
    texts = pd.read_parquet(folder / "texts.parquet")["text"].to_numpy()
    options["kept"] = folder if device.type == "cpu" and (folder / KEPT[-1]).is_file() else None
    bank = TextBank(clip.text, texts, dtype=tower_dtype(settings.precision, device), **options)
    return Job(clip, bank, load_prototypes(folder / "prototypes"), TrainingData(**data), settings, **more)


def run_torchrun(processes: int, job: Path) -> None:
    """Run the worker so many times on this machine and wait for all of them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {HEADLESS: str(os.getpid())}
    done = subprocess.run(
        [*command, "-m", "kit.clip_ft.jobs", str(job)], cwd=PROJECT_ROOT, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"training on {processes} processes ended with code {done.returncode}: see above")


def worker(job: Path) -> None:
    """One process of the group: read the job, train together with the others."""
    end_with(int(os.environ[HEADLESS]))
    local_rank, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = torch.cuda.device_count() >= world
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        open_job(job, device, world).train(job.parent)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
