"""Cross-modal projection and prototype classification (Eqs. 6 and 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.base.errors import InputError


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
        share_projection: send textual prototypes through the visual projection, as Eq. 6 is printed.
    Source: Eq. 6; the tokens added to the attention's output and the norm as in FEAT* (Sha-Lab/FEAT,
        model/models/featstar.py).
    """

    def __init__(self, dim: int, heads: int = 8, dropout: float = 0.1, share_projection: bool = False):
        super().__init__()
        if dim % heads:
            divisors = ", ".join(str(h) for h in range(1, 17) if dim % h == 0)
            raise InputError(f"heads = {heads} does not divide the feature width {dim}; choose one of {divisors}")
        self.heads = heads
        self.visual_proj = _identity_linear(dim)
        self.textual_proj = self.visual_proj if share_projection else _identity_linear(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.xavier_uniform_(self.out.weight, gain=0.1)
        nn.init.zeros_(self.out.bias)

    def forward(self, image: Tensor, visual: Tensor, textual: Tensor) -> tuple[Tensor, Tensor]:
        """x~ (B, d), and V~ and T~ one after the other (B, 2K, d), from image (B, d), visual and textual (K, d) features."""
        x = self.visual_proj(_unit(image))  # (B, d)
        bank = torch.cat([self.visual_proj(_unit(visual)), self.textual_proj(_unit(textual))])  # (2K, d)
        attended_x, attended_bank = self._attend(x, bank)
        return self._finish(x, attended_x), self._finish(bank, attended_bank)

    def _attend(self, x: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        """Attention output of images (B, d) and prototypes (B, 2K, d); i, j run over prototypes, h over heads."""
        q_x, k_x, v_x = self._split(x)  # (B, h, e)
        q_p, k_p, v_p = self._split(bank)  # (2K, h, e)
        scale = q_x.shape[-1] ** -0.5
        out = self.out.weight.view(-1, *q_x.shape[1:])  # (d, h, e): the output projection, head by head
        bias = self.out.bias / self.heads  # once in the sum over heads, where it costs no pass over (B, 2K, d)
        x_out = torch.einsum("bhe,dhe->bhd", v_x, out) + bias  # what the image contributes wherever it is attended to

        among = torch.einsum("ihe,jhe->hij", q_p, k_p) * scale  # prototypes among themselves: the same for all samples
        among_out = torch.einsum("hij,jhe,dhe->ihd", among.softmax(dim=-1), v_p, out) + bias
        to_x = torch.einsum("ihe,bhe->bhi", q_p, k_x) * scale
        gate = torch.sigmoid(to_x - among.logsumexp(dim=-1))  # (B, h, 2K): weight of the image in a prototype's softmax
        attended_bank = torch.einsum("bhi,ihd->bid", 1 - gate, among_out) + torch.einsum("bhi,bhd->bid", gate, x_out)

        from_x = torch.einsum("bhe,jhe->bhj", q_x, k_p) * scale
        itself = (q_x * k_x).sum(dim=-1, keepdim=True) * scale
        weights = torch.cat([from_x, itself], dim=-1).softmax(dim=-1)  # (B, h, 2K + 1)
        attended_x = torch.einsum("bhj,jhe->bhe", weights[..., :-1], v_p) + weights[..., -1:] * v_x
        return self.out(attended_x.flatten(1)), attended_bank

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (n, heads, d / heads) of (n, d)."""
        return self.qkv(tokens).view(len(tokens), 3, self.heads, -1).unbind(dim=1)

    def _finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        return self.norm(tokens + self.dropout(attended))


def prototype_cosine(image: Tensor, prototypes: Tensor) -> Tensor:
    """(B, K) cosines between images (B, d) and their prototypes (B, K, d), or (K, d) shared ones."""
    dots = (prototypes @ image[..., None]).squeeze(-1)
    norms = torch.linalg.vector_norm(prototypes, dim=-1) * torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    return dots / norms.clamp_min(1e-12)


def _identity_linear(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
