"""LoRA on the tuned half of a network, started from a ridge on its frozen vectors, so that it can only be left where it helps.

Source: LoRA, Hu et al., ICLR 2022, by the library peft; embeddings tuned on the target before boosting: MulTaBench,
arXiv 2605.10616.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.base.schedule import half_cosine
from kit.tuning.activations import Activations

RANK = 8
EPOCHS = 2
BATCH, CHUNK = 32, 16  # posts of a step; steps whose posts are sorted by length together
RATE, HEAD_RATE, WARM = 1e-3, 3e-4, 0.1  # of the adapters and of the head behind them; share of the steps that warm up
ALPHAS = np.geomspace(0.3, 300, 7)  # penalties of the ridge, of vectors whose mean square is 1
SCORED = 256  # posts of a forward pass without gradient


class Regressor(nn.Module):
    """The tuned half with a linear head: hidden rows and lengths -> (B,) standardised label."""

    def __init__(self, top: nn.Module, mean: np.ndarray, scale: float, weight: np.ndarray):
        super().__init__()
        self.top, self.scale = top, scale
        self.register_buffer("mean", torch.from_numpy(mean))
        self.weight = nn.Parameter(torch.from_numpy(weight.astype(np.float32)))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return (self.top(hidden, lengths) - self.mean) @ (self.weight * self.scale) + self.bias


def tuned_predictions(
    top: nn.Module, kept: Activations, target: np.ndarray, fit: np.ndarray, stop: np.ndarray, rows: np.ndarray, seed: int,
    device: str,
) -> tuple[np.ndarray, np.ndarray, list[float]]:  # fmt: skip
    """What a network taught by the labels of ``fit`` and ``stop`` says of ``rows``, and what it said before it was tuned.

    Args:
        top: from ``top_half``; stays as it is.
        target: (n_posts,) label.
        fit: posts that teach.
        stop: posts by other authors, that choose the ridge's penalty and the epoch, the first one of which is none.
        rows: posts to predict.
    Returns:
        (n,) float32 tuned and frozen, in the units of the label; mean square on ``stop`` after each epoch, standardised.
    """
    mean, sd = target[fit].mean(), target[fit].std() or 1.0
    wanted = ((target - mean) / sd).astype(np.float32)
    vectors = kept.vectors[kept.item]
    centre = vectors[fit].mean(axis=0)
    scale = 1 / max(1e-9, math.sqrt(np.square(vectors[fit] - centre).sum(axis=1).mean()))
    weight = _ridge((vectors[fit] - centre) * scale, wanted[fit], (vectors[stop] - centre) * scale, wanted[stop])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Regressor(_with_adapters(copy.deepcopy(top)), centre, scale, weight).to(device)
    frozen = (vectors[rows] - centre) @ (scale * weight)
    losses = _train(model, kept, wanted, fit, stop, np.random.default_rng(seed), device)
    tuned = _predict(model, kept, rows, device) if np.argmin(losses) else frozen
    return tuned * sd + mean, frozen * sd + mean, losses


def _train(
    model: Regressor, kept: Activations, wanted: np.ndarray, fit: np.ndarray, stop: np.ndarray, rng: np.random.Generator,
    device: str,
) -> list[float]:  # fmt: skip
    """Train in place and go back to the best epoch; mean squares on ``stop``."""
    steps = [batch for _ in range(EPOCHS) for batch in _batches(fit, kept.lengths(fit), rng)]
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    adapters = [value for name, value in parameters.items() if name.startswith("top.")]
    groups = [
        {"params": adapters, "lr": RATE},
        {"params": [model.weight, model.bias], "lr": HEAD_RATE, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: half_cosine(step, len(steps), WARM * len(steps))
    )
    losses, best = [], {}
    for step in range(len(steps) + 1):
        if step % (len(steps) // EPOCHS) == 0:  # before the first epoch, and after each
            losses.append(float(np.square(_predict(model, kept, stop, device) - wanted[stop]).mean()))
            if np.argmin(losses) == len(losses) - 1:
                best = {name: value.detach().clone() for name, value in parameters.items()}
        if step < len(steps):
            label = torch.from_numpy(wanted[steps[step]]).to(device)
            loss = F.mse_loss(model(*kept.batch(steps[step], device)), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.load_state_dict(best, strict=False)
    return losses


def _with_adapters(top: nn.Module) -> nn.Module:
    """LoRA beside every linear layer and every convolution of single places."""
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, part in top.named_modules() if isinstance(part, nn.Linear) or _is_pointwise(part)]
    return inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names), top)


def _is_pointwise(part: nn.Module) -> bool:
    return isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1


@torch.inference_mode()
def _predict(model: Regressor, kept: Activations, rows: np.ndarray, device: str) -> np.ndarray:
    """(n,) float32, standardised."""
    order, found = np.argsort(kept.lengths(rows), kind="stable"), np.empty(len(rows), np.float32)
    for places in np.array_split(order, math.ceil(len(rows) / SCORED)):
        found[places] = model(*kept.batch(rows[places], device)).cpu().numpy()
    return found


def _batches(rows: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The posts of an epoch's steps: drawn, then sorted by length among those of CHUNK steps."""
    order, batches = rng.permutation(len(rows)), []
    for chunk in np.array_split(order, math.ceil(len(rows) / (BATCH * CHUNK))):
        sorted_rows = rows[chunk[np.argsort(lengths[chunk], kind="stable")]]
        batches += np.array_split(sorted_rows, math.ceil(len(chunk) / BATCH))
    return [batches[place] for place in rng.permutation(len(batches))]


def _ridge(values: np.ndarray, wanted: np.ndarray, others: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """(d,) weights of the penalty that does best on other posts."""
    values, gram = values.astype(np.float64), values.T.astype(np.float64) @ values
    found = [np.linalg.solve(gram + alpha * np.eye(len(gram)), values.T @ wanted) for alpha in ALPHAS]
    return min(found, key=lambda weight: np.square(others @ weight - judged).mean())
