"""Training of CLIP_FT on cached image features: resumable every epoch, the same on one device and under torchrun.

Every process walks the same shuffled batches and takes its share of each; losses are weighted so that the average of
the processes' gradients is the gradient of the whole batch. One process and several therefore see the same loss.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kit.base.code import code_of
from kit.base.errors import InputError
from kit.base.files import atomic_path, digest, hash_array, write_table
from kit.base.progress import progress
from kit.clip_ft.model import ClipFT, Settings, class_losses
from kit.clip_ft.prototypes import Prototypes
from kit.clip_ft.texts import TextBank, to_device
from kit.encoders.clip import Clip
from kit.encoders.text_tower import TextTower

EVAL_BATCH = 256
TERMS = ("L_g", "L_o", "L_c")
MODEL_FILE = "model.safetensors"  # of a training, without the tower
SHAPE = ("n_ctx", "tau_s", "tau_prototype", "heads", "share_projection", "seed")  # of Settings, what a trained model is
HEADS = ("global", "local", "visual", "textual", "averaged")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingData:
    """What training sees of the posts.

    Attributes:
        image: (n_posts, d) image features of the frozen tower, memory-mapped or not.
        labels: (n_posts,) int class, -1 where a post has none.
        fit_rows: rows to train on; those without a class or a readable image are left out.
        valid_rows: rows that choose the best epoch, none of an author in ``fit_rows``; may be empty.
        image_ok: (n_posts,) bool, false where the image could not be read; None means all can.
    """

    image: np.ndarray
    labels: np.ndarray
    fit_rows: np.ndarray
    valid_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    image_ok: np.ndarray | None = None

    def usable(self, rows: np.ndarray) -> np.ndarray:
        """Those of ``rows`` that have a class and a readable image."""
        keep = self.labels[rows] >= 0
        return rows[keep if self.image_ok is None else keep & self.image_ok[rows]]


@dataclass
class Trained:
    """A trained model at its best epoch, and the history that chose it (epoch 0 = before training)."""

    model: ClipFT
    history: pd.DataFrame
    best_epoch: int


# --- public -----------------------------------------------------------------------------------------------------------


def build_model(clip: Clip, prototypes: Prototypes, settings: Settings, device: str | torch.device = "cpu") -> ClipFT:
    """An untrained CLIP_FT; the same settings give the same numbers."""
    device = torch.device(device)
    return ClipFT(clip, prototypes, settings, tower_dtype(settings.precision, device)).to(device)


def open_trained(
    clip: Clip, prototypes: Prototypes, parameters: Mapping[str, Any], folder: Path, device: str | torch.device = "cpu"
) -> ClipFT:
    """The model whose training left its files in a folder, to be asked.

    Args:
        parameters: of the step that trained it; those of ``SHAPE`` are read.
    """
    settings = Settings(**{name: parameters[name] for name in SHAPE})
    model = build_model(clip, prototypes, settings, device)
    model.load_own_state(load_file(folder / MODEL_FILE))
    return model.eval()


def batch_and_rate(tower: TextTower, batch_size: int, lr: float) -> tuple[int, float]:
    """Posts per step and learning rate; for ``batch_size`` 0 the paper's, or four times both where prompts cost most of a step.

    That is where a tower cannot pack the classes (``kit.clip_ft.prompts``): it reads all of them anew in each step.
    """
    more = 1 if tower.is_causal and tower.can_truncate else 4
    return (batch_size, lr) if batch_size else (more * Settings.batch_size, more * lr)


def train(
    clip: Clip, bank: TextBank, prototypes: Prototypes, data: TrainingData, settings: Settings, folder: Path
) -> Trained:
    """CLIP_FT trained on ``data`` (Eq. 8), at its best epoch: lowest validation loss, or the last one without validation.

    Works alone or as one of several processes of an initialised ``torch.distributed`` group. After each epoch the
    whole state is written to ``folder/checkpoint.pt``; a later call with the same arguments goes on from there, or
    returns at once.
    Also written, by the first process: ``model.safetensors`` (without the tower) and ``history.csv``.

    Args:
        clip: the frozen model; its text tower must be on the device to train on.
        bank: text features of all posts, on the same device.
        prototypes: from notebook 02, built without validation authors.
        data: image features, classes and rows.
        settings: hyper-parameters.
        folder: where the checkpoint lies.
    """
    model = build_model(clip, prototypes, settings, bank.device)
    trainer = _Trainer(model, bank, data, settings)
    key = training_key(clip, bank, prototypes, data, settings)
    state = _load_checkpoint(folder / "checkpoint.pt", key)
    if state is None:
        trainer.record(epoch=0, train={})
    else:
        print(f"going on after epoch {_epoch(state)} of {settings.epochs}")
        trainer.load(state)
    for epoch in range(trainer.epochs_done + 1, settings.epochs + 1):
        trainer.run_epoch(epoch)
        _save_checkpoint(folder / "checkpoint.pt", key, trainer)
    return _finish(trainer, folder)


def is_trained(folder: Path, key: str, settings: Settings) -> bool:
    """Whether ``folder`` holds a finished training of that ``training_key``."""
    state = _load_checkpoint(folder / "checkpoint.pt", key)
    return state is not None and _epoch(state) >= settings.epochs


def training_key(clip: Clip, bank: TextBank, prototypes: Prototypes, data: TrainingData, settings: Settings) -> str:
    """Hash of everything the result depends on: weights, texts, every array, settings, and the code that trains."""
    arrays = [prototypes.visual, prototypes.textual, data.labels, data.fit_rows, data.valid_rows, data.image]
    arrays += [] if data.image_ok is None else [data.image_ok]
    parts = [clip.fingerprint, bank.fingerprint, prototypes.names, asdict(settings), [hash_array(a) for a in arrays]]
    return digest([*parts, code_of("kit.clip_ft.train")])


@torch.no_grad()
def evaluate(model: ClipFT, bank: TextBank, data: TrainingData, rows: np.ndarray) -> dict[str, float]:
    """Mean loss terms ``L_g``, ``L_o``, ``L_c``, their sum ``loss`` and ``accuracy_<head>`` over ``rows``.

    Under ``torch.distributed`` each process takes its share and all get the whole result.
    """
    model.eval()
    rank, world = rank_and_world()
    class_emb = model.class_embeddings()
    names = [*TERMS, *(f"accuracy_{head}" for head in HEADS)]
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=bank.device)
    for part in batches(rows[rank::world], EVAL_BATCH):
        labels = torch.as_tensor(data.labels[part], device=bank.device)
        logits = model.logits(model(*model_inputs(bank, data.image, part), class_emb))
        values = [*class_losses(logits, labels).values(), *(logits[head].argmax(dim=1) == labels for head in HEADS)]
        sums += torch.stack([*(value.double().sum() for value in values), sums.new_tensor(len(part))])
    if world > 1:
        dist.all_reduce(sums)
    means = dict(zip(names, (sums[:-1] / sums[-1]).tolist(), strict=True))
    return {"loss": sum(means[term] for term in TERMS), **means}


def step_seconds(clip: Clip, bank: TextBank, names: Sequence[str], settings: Settings, n: int = 2) -> float:
    """Seconds of a training step, the mean of n after a first one: ``bank``'s texts, random images and prototypes, kept nowhere.

    Args:
        clip, bank, settings: as for ``train``; texts are repeated up to ``settings.batch_size``.
        names: K class names.
    """
    rng, n_posts = np.random.default_rng(0), len(bank)
    image, visual, textual = (rng.normal(size=(m, clip.dim)).astype(np.float32) for m in (n_posts, *2 * [len(names)]))
    made = Prototypes(list(names), list(names), visual, textual, pd.DataFrame())
    data = TrainingData(image, np.arange(n_posts) % len(names), np.arange(n_posts))
    trainer = _Trainer(build_model(clip, made, settings, bank.device).train(), bank, data, settings)
    rows = np.resize(np.arange(n_posts), settings.batch_size)
    trainer.step(rows)
    started = time.perf_counter()
    for _ in range(n):
        trainer.step(rows)
    return (time.perf_counter() - started) / n


# --- shared with export and the distributed worker --------------------------------------------------------------------


def tower_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The precision of the text tower; ``auto`` is float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    if precision != "auto" and precision not in PRECISIONS:
        raise InputError(f"precision '{precision}' is unknown; choose auto, {', '.join(PRECISIONS)}")
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def model_inputs(bank: TextBank, image: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image features, h, H and mask of a batch, as ``ClipFT.forward`` takes them."""
    features = to_device(torch.from_numpy(np.asarray(image[rows], dtype=np.float32)), bank.device)
    return features, *bank.batch(rows)


def batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """``rows`` in parts of at most ``size``, as equal as possible."""
    return np.array_split(rows, max(1, -(-len(rows) // size))) if len(rows) else []


def rank_and_world() -> tuple[int, int]:
    """Number of this process and how many there are; (0, 1) outside torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


# --- the trainer ------------------------------------------------------------------------------------------------------


class _Trainer:
    """Model, optimiser and history between epochs."""

    def __init__(self, model: ClipFT, bank: TextBank, data: TrainingData, settings: Settings):
        self.model, self.bank, self.data, self.settings = model, bank, data, settings
        self.rank, self.world = rank_and_world()
        self.fit_rows, self.valid_rows = data.usable(data.fit_rows), data.usable(data.valid_rows)
        if len(self.fit_rows) < self.world:
            raise InputError(f"{len(self.fit_rows)} posts have a class and a readable image: too few to train CLIP_FT")
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=settings.lr, weight_decay=settings.weight_decay)
        self.scaler = torch.amp.GradScaler(bank.device.type, enabled=model.tower_dtype == torch.float16)
        self.history: list[dict] = []
        self.best: dict = {"epoch": 0, "loss": np.inf, "state": {}}
        self._forward = _distributed(model) if self.world > 1 else model

    @property
    def epochs_done(self) -> int:
        return self.history[-1]["epoch"]

    def run_epoch(self, epoch: int) -> None:
        """One pass over the shuffled training rows, then validation."""
        self._forward.train()
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(self.fit_rows)
        sums = torch.zeros(len(TERMS), device=self.bank.device)
        steps = batches(order, self.settings.batch_size)
        seed = (self.settings.seed, epoch, self.rank)  # of dropout, another in each process
        with _seeded(self.bank.device, *seed), _tensor_cores(self.bank.device):
            for rows in progress(steps, label=f"CLIP_FT epoch {epoch}/{self.settings.epochs}", unit="steps"):
                sums += self.step(rows)
        if self.world > 1:
            dist.all_reduce(sums)
        means = dict(zip(TERMS, (sums / len(order)).tolist(), strict=True))
        self.record(epoch, {"loss": sum(means.values()), **means})

    def step(self, rows: np.ndarray) -> Tensor:
        """One optimiser step on the batch ``rows``; the sums of this process's three loss terms."""
        part = rows[self.rank :: self.world]
        labels = torch.as_tensor(self.data.labels[part], device=self.bank.device)
        out = self._forward(*model_inputs(self.bank, self.data.image, part))
        terms = torch.stack([loss.sum() for loss in class_losses(self.model.logits(out), labels).values()])
        loss = terms.sum() * self.world / len(rows)  # processes average their gradients: together the batch's mean
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.clamp_temperatures()
        return terms.detach()

    def record(self, epoch: int, train: dict[str, float]) -> None:
        """Validate, add a line to the history, remember the state if it is the best so far."""
        valid = evaluate(self.model, self.bank, self.data, self.valid_rows) if len(self.valid_rows) else {}
        line = {"epoch": epoch, **{f"train_{name}": value for name, value in train.items()}}
        self.history.append(line | {f"valid_{name}": value for name, value in valid.items()})
        loss = valid.get("loss", -epoch)  # without validation rows the last epoch is the best
        if loss < self.best["loss"]:
            state = {name: value.detach().cpu().clone() for name, value in self.model.own_state().items()}
            self.best = {"epoch": epoch, "loss": loss, "state": state}

    def state(self) -> dict:
        """All that a later process needs to go on; random numbers depend on the epoch alone."""
        return {
            "model": self.model.own_state(), "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(), "history": self.history, "best": self.best,
        }  # fmt: skip

    def load(self, state: dict) -> None:
        """Go on from what ``state`` gave."""
        self.model.load_own_state(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history, self.best = state["history"], state["best"]


def _distributed(model: ClipFT) -> nn.Module:
    device = model.log_scale.device
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


@contextlib.contextmanager
def _seeded(device: torch.device, *seed: int) -> Iterator[None]:
    """Random numbers that depend on ``seed`` alone; the generators outside are left as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


@contextlib.contextmanager
def _tensor_cores(device: torch.device) -> Iterator[None]:
    """On a GPU, float32 products of the training steps in TF32; evaluation and export stay at full precision."""
    before = torch.get_float32_matmul_precision()
    try:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _finish(trainer: _Trainer, folder: Path) -> Trained:
    """The model at its best epoch; files written by the first process."""
    model, best = trainer.model, trainer.best
    model.load_own_state(best["state"])
    history = pd.DataFrame(trainer.history)
    if trainer.rank == 0:
        with atomic_path(folder / MODEL_FILE) as temporary:
            save_file({name: value.contiguous() for name, value in best["state"].items()}, temporary)
        write_table(folder / "history.csv", history)
    return Trained(model.eval(), history, best["epoch"])


# --- checkpoint -------------------------------------------------------------------------------------------------------


def _save_checkpoint(path: Path, key: str, trainer: _Trainer) -> None:
    if trainer.rank == 0:
        with atomic_path(path) as temporary:
            torch.save({"key": key, **trainer.state()}, temporary)


def _load_checkpoint(path: Path, key: str) -> dict | None:
    """The checkpoint's content; None if there is none, or one of another training."""
    if not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state if state["key"] == key else None


def _epoch(state: dict) -> int:
    """The last finished epoch of a checkpoint."""
    return state["history"][-1]["epoch"]
