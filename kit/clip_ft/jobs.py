"""A training as files, so that other processes can run it or a fold of it: what they need is written once, and mapped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit.base.files import atomic_path, read_json, write_json
from kit.clip_ft.prototypes import Prototypes, load_prototypes
from kit.clip_ft.texts import TextBank
from kit.clip_ft.train import Settings, Trained, TrainingData, tower_dtype, train, training_key
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


def write_job(folder: Path, job: Job, clip_dir: Path) -> None:
    """Put everything but the CLIP model, which lies in ``clip_dir``, into ``folder``."""
    job.prototypes.save(folder / "prototypes")
    data = {name: values for name, values in vars(job.data).items() if values is not None}
    more = {name: values for name in ("text", "folds") if (values := getattr(job, name)) is not None}
    for name, values in (data | more).items():
        with atomic_path(folder / f"{name}.npy") as temporary:
            np.save(temporary, values)
    with atomic_path(folder / "texts.parquet") as temporary:
        pd.DataFrame({"text": job.bank.texts}).to_parquet(temporary, index=False)
    content = {"clip": clip_dir, "settings": asdict(job.settings), "bank": job.bank.options}
    write_json(folder / "job.json", content | {"data": list(data), "more": list(more)})


def open_job(folder: Path, device: torch.device, world: int) -> Job:
    """The job in ``folder`` with its text tower on ``device``, in one of ``world`` processes that share the memory."""
    content = read_json(folder / "job.json")
    settings, options = Settings(**content["settings"]), content["bank"]
    data, more = ({n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in content[kind]} for kind in ("data", "more"))
    clip = load_clip(f"local-dir:{content['clip']}")
    clip.text.to(device)
    options["cache_share"] /= world  # every process holds its own copy
    texts = pd.read_parquet(folder / "texts.parquet")["text"].to_numpy()
    bank = TextBank(clip.text, texts, dtype=tower_dtype(settings.precision, device), **options)
    return Job(clip, bank, load_prototypes(folder / "prototypes"), TrainingData(**data), settings, **more)
