"""CLIP_FT: dual-grained prompts and cross-modal projection over a frozen CLIP (Eqs. 1-8 of the paper).

The towers stay frozen; what learns are two prompt contexts, the projections, one attention block and the
temperatures. Every similarity is computed in float32, whatever precision the tower runs in.

Shapes: B posts, L tokens per text, K classes, d features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.base.errors import InputError
from kit.clip_ft.alignment import global_similarity, pool_local
from kit.clip_ft.projection import CrossModalProjection, prototype_cosine
from kit.clip_ft.prompts import PromptLearner, encode_prompts, tower_precision
from kit.clip_ft.prototypes import Prototypes
from kit.encoders.clip import Clip

MAX_LOGIT_SCALE = 100.0  # CLIP's own limit on 1 / temperature
MIN_TEMPERATURE = 0.01


class Similarities(NamedTuple):
    """What CLIP_FT says about a batch of posts."""

    global_cosine: Tensor  # (B, K) p of Eq. 4
    local_cosine: Tensor  # (B, K) p' of Eq. 5
    visual_cosine: Tensor  # (B, K) of x~ with V~
    textual_cosine: Tensor  # (B, K) of x~ with T~
    image: Tensor  # (B, d) x~
    visual: Tensor  # (B, K, d) V~
    textual: Tensor  # (B, K, d) T~


@dataclass(frozen=True)
class Settings:
    """How CLIP_FT is built and trained; the paper's values where it gives them."""

    epochs: int = 4
    batch_size: int = 128  # posts per step over all processes, at most
    lr: float = 1e-4  # AdamW
    weight_decay: float = 1e-5
    n_ctx: int = 16  # s, learned context tokens per prompt
    tau_s: float = 0.02  # temperature of the token weights, Eq. 5
    tau_prototype: float = 0.07  # initial tau_v and tau_t, Eq. 7
    heads: int = 8  # of the attention block
    dropout: float = 0.1
    share_projection: bool = False  # textual prototypes through the visual projection, as Eq. 6 is printed
    precision: str = "auto"  # of the text tower: fp32, bf16, fp16; auto = fp32 on a CPU, bf16 or fp16 on a GPU
    seed: int = 0


class ClipFT(nn.Module):
    """The paper's model over cached image features, with a frozen text tower.

    Args:
        clip: its text tower stays frozen; its 1 / temperature is where that of Eqs. 4 and 5 in the loss begins, at most 100.
        prototypes: of the K classes, fixed; their names go into the prompts.
        settings: how it is built.
        tower_dtype: precision of the text tower under autocast; everything after it is float32.
    """

    def __init__(
        self, clip: Clip, prototypes: Prototypes, settings: Settings, tower_dtype: torch.dtype = torch.float32
    ):  # fmt: skip
        super().__init__()
        self.tower_dtype, self.tau_s, self.names = tower_dtype, settings.tau_s, list(prototypes.names)
        self.tower = clip.text.requires_grad_(False)
        self.global_prompt, self.local_prompt = (
            PromptLearner(self.tower, self.names, settings.n_ctx, settings.seed + more) for more in (0, 1)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            options = settings.heads, settings.dropout, settings.share_projection
            self.projection = CrossModalProjection(self.tower.dim, *options)
        self.register_buffer("visual", torch.as_tensor(prototypes.visual, dtype=torch.float32))
        self.register_buffer("textual", torch.as_tensor(prototypes.textual, dtype=torch.float32))
        self.log_scale = nn.Parameter(torch.tensor(math.log(clip.logit_scale)))
        self.log_tau_v = nn.Parameter(torch.tensor(math.log(settings.tau_prototype)))
        self.log_tau_t = nn.Parameter(torch.tensor(math.log(settings.tau_prototype)))
        self.clamp_temperatures()

    def class_embeddings(self) -> tuple[Tensor, Tensor]:
        """G (K, d) and L (K, d), the global and local class embeddings, rows of norm 1 (Eq. 2)."""
        with tower_precision(self.log_scale.device, self.tower_dtype):
            global_emb, local_emb = encode_prompts(self.tower, [self.global_prompt, self.local_prompt])
        return global_emb, local_emb

    def forward(
        self, image: Tensor, pooled: Tensor, tokens: Tensor, mask: Tensor, class_emb: tuple[Tensor, Tensor] | None = None
    ) -> Similarities:  # fmt: skip
        """Similarities of a batch.

        Args:
            image: (B, d) image features.
            pooled: (B, d) global text features h.
            tokens: (B, L, d) token features H (Eq. 3).
            mask: (B, L) bool, true on tokens that count.
            class_emb: G and L where they are known already (no training); None computes them.
        """
        global_emb, local_emb = class_emb or self.class_embeddings()
        x, bank = self.projection(image.float(), self.visual, self.textual)
        half, cosine = len(self.visual), prototype_cosine(x, bank)  # cut where it is small
        return Similarities(
            global_similarity(pooled, global_emb),
            pool_local(tokens, mask, local_emb, self.tau_s),
            cosine[:, :half], cosine[:, half:], x, bank[:, :half], bank[:, half:],
        )  # fmt: skip

    def logits(self, out: Similarities) -> dict[str, Tensor]:
        """(B, K) logits of the five classifiers: global, local, visual, textual, averaged (of the last two, Eq. 7)."""
        scale = self.log_scale.exp()
        visual, textual = out.visual_cosine / self.log_tau_v.exp(), out.textual_cosine / self.log_tau_t.exp()
        return {
            "global": scale * out.global_cosine, "local": scale * out.local_cosine,
            "visual": visual, "textual": textual, "averaged": (visual + textual) / 2,
        }  # fmt: skip

    def temperatures(self) -> dict[str, float]:
        """The learned temperatures: tau of the prompts (Eqs. 4 and 5 in the loss), tau_v and tau_t (Eq. 7)."""
        values = {"prompts": -self.log_scale, "visual prototypes": self.log_tau_v, "textual prototypes": self.log_tau_t}
        return {name: value.exp().item() for name, value in values.items()}

    @torch.no_grad()
    def clamp_temperatures(self) -> None:
        """Bring the temperatures back into their range; to be called after every optimiser step."""
        self.log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        self.log_tau_v.clamp_(min=math.log(MIN_TEMPERATURE))
        self.log_tau_t.clamp_(min=math.log(MIN_TEMPERATURE))

    def train(self, mode: bool = True) -> ClipFT:
        """Training mode for everything but the frozen tower, whose own dropout stays off."""
        super().train(mode)
        self.tower.eval()
        return self

    def own_state(self) -> dict[str, Tensor]:
        """The state without the tower: what a checkpoint needs."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("tower.")}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load what ``own_state`` gave; the tower stays as it is."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        if unexpected or any(not name.startswith("tower.") for name in missing):
            raise InputError(f"not a state of this model: missing {missing[:3]}, unexpected {unexpected[:3]}")


def class_losses(logits: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """(B,) terms of Eq. 8, cross-entropy per post: L_g (global), L_o (local), L_c (averaged prototypes).

    The loss of a batch is the mean of their sum.
    """
    terms = {"L_g": "global", "L_o": "local", "L_c": "averaged"}
    return {term: F.cross_entropy(logits[name], labels, reduction="none") for term, name in terms.items()}
