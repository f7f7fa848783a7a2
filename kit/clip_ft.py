"""CLIP_FT: dual-grained prompts and cross-modal projection over a frozen CLIP (Eqs. 1-8 of the paper).

The towers stay frozen; what learns are two prompt contexts, the projections, one attention block and the
temperatures. Every similarity is computed in float32, whatever precision the tower runs in.

Shapes: B posts, L tokens per text, K classes, d features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.clip_ft_prompts import PromptLearner, encode_prompts, tower_precision, zero_shot_classes
from kit.errors import InputError
from kit.text_tower import TextTower

__all__ = [
    "ClipFT", "CrossModalProjection", "PromptLearner", "Similarities", "class_losses", "global_similarity",
    "pool_local", "prototype_cosine", "prototype_logits", "zero_shot_classes",
]  # fmt: skip
MAX_LOGIT_SCALE = 100.0  # CLIP's own limit on 1 / temperature
MIN_TEMPERATURE = 0.01


# --- fine-grained textual alignment (section 3.2) ---------------------------------------------------------------------


def global_similarity(pooled: Tensor, class_emb: Tensor) -> Tensor:
    """(B, K) cosines p between texts (B, d) and class embeddings (K, d) (Eq. 4)."""
    return F.normalize(pooled.float(), dim=-1) @ F.normalize(class_emb.float(), dim=-1).T


def pool_local(tokens: Tensor, mask: Tensor, class_emb: Tensor, tau_s: float = 0.02) -> Tensor:
    """(B, K) local similarity p': the cosines of a text's tokens, averaged with softmax weights over them (Eq. 5).

    The limit of ``tau_s`` towards 0 is the best token's cosine, towards infinity the mean over tokens.

    Args:
        tokens: (B, L, d) token features.
        mask: (B, L) bool, true on tokens that count.
        class_emb: (K, d) class embeddings.
        tau_s: temperature of the weights.
    Source: Eq. 5 with TaI-DPT's weights; as printed, the fraction is 1.
    """
    cosine = F.normalize(tokens.float(), dim=-1) @ F.normalize(class_emb.float(), dim=-1).T  # (B, L, K)
    scores = (cosine / tau_s).masked_fill(~mask[..., None], torch.finfo(cosine.dtype).min)
    return (scores.softmax(dim=1) * cosine).sum(dim=1)


# --- cross-modal projection (section 3.3) -----------------------------------------------------------------------------


class CrossModalProjection(nn.Module):
    """Image, visual and textual prototypes through their projections and one self-attention block (Eq. 6).

    Each sample is a set of 2K + 1 tokens: its own image and all prototypes. The prototypes are the same for the whole
    batch, so what they attend to among themselves is computed once; a sample's image enters every prototype's softmax
    as one more term, a gate in closed form. That is the same function as full attention over B x (2K + 1) tokens, at
    a fraction of its cost. Projections begin as the identity and the attention's output small, so training starts
    near plain prototypes.

    Args:
        dim: width d of the features, also of the output.
        heads: attention heads; must divide ``dim``.
        dropout: share of the attention's output dropped in training.
        residual: add the tokens to the attention's output before the norm.
        share_projection: send textual prototypes through the visual projection, as Eq. 6 is printed.
    Source: Eq. 6; residual and norm as in FEAT* (Sha-Lab/FEAT, model/models/featstar.py).
    """

    def __init__(
        self, dim: int, heads: int = 8, dropout: float = 0.1, residual: bool = True, share_projection: bool = False
    ):
        super().__init__()
        if dim % heads:
            divisors = ", ".join(str(h) for h in range(1, 17) if dim % h == 0)
            raise InputError(f"heads = {heads} does not divide the feature width {dim}; choose one of {divisors}")
        self.heads, self.residual = heads, residual
        self.visual_proj = _identity_linear(dim)
        self.textual_proj = self.visual_proj if share_projection else _identity_linear(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.xavier_uniform_(self.out.weight, gain=0.1)
        nn.init.zeros_(self.out.bias)

    def forward(self, image: Tensor, visual: Tensor, textual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x~ (B, d), V~ (B, K, d), T~ (B, K, d) from image (B, d), visual (K, d) and textual (K, d) features."""
        x = self.visual_proj(_unit(image))  # (B, d)
        bank = torch.cat([self.visual_proj(_unit(visual)), self.textual_proj(_unit(textual))])  # (2K, d)
        attended_x, attended_bank = self._attend(x, bank)
        x, bank = self._finish(x, attended_x), self._finish(bank, attended_bank)
        return x, bank[:, : len(visual)], bank[:, len(visual) :]

    def _attend(self, x: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        """Attention output of images (B, d) and prototypes (B, 2K, d); i, j run over prototypes, h over heads."""
        q_x, k_x, v_x = self._split(x)  # (B, h, e)
        q_p, k_p, v_p = self._split(bank)  # (2K, h, e)
        scale = q_x.shape[-1] ** -0.5
        out = self.out.weight.view(-1, *q_x.shape[1:])  # (d, h, e): the output projection, head by head
        x_out = torch.einsum("bhe,dhe->bhd", v_x, out)  # what the image contributes wherever it is attended to

        among = torch.einsum("ihe,jhe->hij", q_p, k_p) * scale  # prototypes among themselves: the same for all samples
        among_out = torch.einsum("hij,jhe,dhe->ihd", among.softmax(dim=-1), v_p, out)
        to_x = torch.einsum("ihe,bhe->bhi", q_p, k_x) * scale
        gate = torch.sigmoid(to_x - among.logsumexp(dim=-1))  # (B, h, 2K): weight of the image in a prototype's softmax
        attended_bank = torch.einsum("bhi,ihd->bid", 1 - gate, among_out) + torch.einsum("bhi,bhd->bid", gate, x_out)

        from_x = torch.einsum("bhe,jhe->bhj", q_x, k_p) * scale
        itself = (q_x * k_x).sum(dim=-1, keepdim=True) * scale
        weights = torch.cat([from_x, itself], dim=-1).softmax(dim=-1)  # (B, h, 2K + 1)
        attended_x = torch.einsum("bhj,jhe->bhe", weights[..., :-1], v_p) + weights[..., -1:] * v_x
        return self.out(attended_x.flatten(1)), attended_bank + self.out.bias

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (n, heads, d / heads) of (n, d)."""
        return self.qkv(tokens).view(len(tokens), 3, self.heads, -1).unbind(dim=1)

    def _finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        attended = self.dropout(attended)
        return self.norm(tokens + attended if self.residual else attended)


def prototype_cosine(image: Tensor, prototypes: Tensor) -> Tensor:
    """(B, K) cosines between images (B, d) and their prototypes (B, K, d), or (K, d) shared ones."""
    dots = (prototypes @ image[..., None]).squeeze(-1)
    norms = torch.linalg.vector_norm(prototypes, dim=-1) * torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    return dots / norms.clamp_min(1e-12)


def prototype_logits(image: Tensor, visual: Tensor, textual: Tensor, tau_v: Tensor, tau_t: Tensor) -> Tensor:
    """(B, K) mean of the visual and the textual logits, cosine over temperature (Eq. 7, combined as in section 3.4).

    Args:
        image: (B, d) x~.
        visual: (B, K, d) V~.
        textual: (B, K, d) T~.
        tau_v: temperature of the visual logits.
        tau_t: temperature of the textual logits.
    """
    return (prototype_cosine(image, visual) / tau_v + prototype_cosine(image, textual) / tau_t) / 2


# --- the model and its loss (section 3.4) -----------------------------------------------------------------------------


class Similarities(NamedTuple):
    """What CLIP_FT says about a batch of posts."""

    global_cosine: Tensor  # (B, K) p of Eq. 4
    local_cosine: Tensor  # (B, K) p' of Eq. 5
    visual_cosine: Tensor  # (B, K) of x~ with V~
    textual_cosine: Tensor  # (B, K) of x~ with T~
    image: Tensor  # (B, d) x~
    visual: Tensor  # (B, K, d) V~
    textual: Tensor  # (B, K, d) T~


class ClipFT(nn.Module):
    """The paper's model over cached image features, with a frozen text tower.

    Args:
        tower: frozen text tower.
        names: K class names for the prompts.
        visual: (K, d) visual prototypes, fixed.
        textual: (K, d) textual prototypes, fixed.
        n_ctx: s, learned context tokens of each prompt.
        tau_s: temperature of the token weights in Eq. 5, fixed.
        tau_prototype: initial tau_v and tau_t of Eq. 7, learned.
        logit_scale: initial 1 / temperature of Eqs. 4 and 5 in the loss, learned, at most 100.
        heads: attention heads.
        dropout: in the attention block.
        tower_dtype: precision of the text tower under autocast; everything after it is float32.
        seed: of the initial contexts and of the attention weights.
    """

    def __init__(
        self,
        tower: TextTower,
        names: Sequence[str],
        visual: np.ndarray,
        textual: np.ndarray,
        *,
        n_ctx: int = 16,
        tau_s: float = 0.02,
        tau_prototype: float = 0.07,
        logit_scale: float = MAX_LOGIT_SCALE,
        heads: int = 8,
        dropout: float = 0.1,
        tower_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ):
        super().__init__()
        self.tower_dtype = tower_dtype
        self.tower = tower.requires_grad_(False)
        self.tau_s = tau_s
        self.global_prompt = PromptLearner(tower, names, n_ctx, seed)
        self.local_prompt = PromptLearner(tower, names, n_ctx, seed + 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projection = CrossModalProjection(tower.dim, heads, dropout)
        self.register_buffer("visual", torch.as_tensor(visual, dtype=torch.float32))
        self.register_buffer("textual", torch.as_tensor(textual, dtype=torch.float32))
        self.log_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))
        self.log_tau_v = nn.Parameter(torch.tensor(math.log(tau_prototype)))
        self.log_tau_t = nn.Parameter(torch.tensor(math.log(tau_prototype)))
        self.clamp_temperatures()

    def class_embeddings(self) -> tuple[Tensor, Tensor]:
        """G (K, d) and L (K, d), the global and local class embeddings, rows of norm 1 (Eq. 2)."""
        with tower_precision(self.log_scale.device, self.tower_dtype):
            global_emb, local_emb = encode_prompts(self.tower, [self.global_prompt, self.local_prompt])
        return global_emb, local_emb

    def forward(
        self,
        image: Tensor,
        pooled: Tensor,
        tokens: Tensor,
        mask: Tensor,
        class_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Similarities:
        """Similarities of a batch.

        Args:
            image: (B, d) image features.
            pooled: (B, d) global text features h.
            tokens: (B, L, d) token features H (Eq. 3).
            mask: (B, L) bool, true on tokens that count.
            class_emb: G and L where they are known already (no training); None computes them.
        """
        global_emb, local_emb = class_emb or self.class_embeddings()
        x, visual, textual = self.projection(image.float(), self.visual, self.textual)
        return Similarities(
            global_similarity(pooled, global_emb),
            pool_local(tokens, mask, local_emb, self.tau_s),
            prototype_cosine(x, visual),
            prototype_cosine(x, textual),
            x, visual, textual,
        )  # fmt: skip

    def logits(self, out: Similarities) -> dict[str, Tensor]:
        """(B, K) logits of the five classifiers: global, local, visual, textual, averaged (of the last two)."""
        scale = self.log_scale.exp()
        visual, textual = out.visual_cosine / self.log_tau_v.exp(), out.textual_cosine / self.log_tau_t.exp()
        return {
            "global": scale * out.global_cosine, "local": scale * out.local_cosine,
            "visual": visual, "textual": textual, "averaged": (visual + textual) / 2,
        }  # fmt: skip

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


def _identity_linear(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
