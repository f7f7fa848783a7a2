"""How fast a network learns in the course of its training."""

from __future__ import annotations

import numpy as np


def half_cosine(step: int, n_steps: int, warmup: float) -> float:
    """Share of the full learning rate in step 0 to n_steps: it rises for ``warmup`` steps and falls with half a cosine to 0.

    Source: SGDR, Loshchilov and Hutter, ICLR 2017, without restarts; warm-up: Goyal et al. 2017.
    """
    return min(1, (step + 1) / warmup) * (1 + np.cos(np.pi * (step / n_steps))) / 2
