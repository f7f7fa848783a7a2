"""Dual-grained alignment of an image with class prompts: global and local similarity (Eqs. 3 to 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def global_similarity(pooled: Tensor, class_emb: Tensor) -> Tensor:
    """(B, K) cosines p between texts (B, d) and class embeddings (K, d) (Eq. 4)."""
    return F.normalize(pooled.float(), dim=-1) @ F.normalize(class_emb.float(), dim=-1).T


def pool_local(tokens: Tensor, mask: Tensor, class_emb: Tensor, tau_s: float = 0.02) -> Tensor:
    """(B, K) local similarity p': the cosines of a text's tokens, averaged with softmax weights over them (Eq. 5).

    The limit of ``tau_s`` towards 0 is the best token's cosine, towards infinity the mean over tokens. Arguments as for
    ``token_weights``.
    """
    cosine, weights = token_weights(tokens, mask, class_emb, tau_s)
    return (weights * cosine).sum(dim=1)


def token_weights(tokens: Tensor, mask: Tensor, class_emb: Tensor, tau_s: float = 0.02) -> tuple[Tensor, Tensor]:
    """Cosines P (B, L, K) of tokens with classes, and the weight of each token in its text, summing to 1 over L (Eq. 5).

    Args:
        tokens: (B, L, d) token features.
        mask: (B, L) bool, true on tokens that count; the others get weight 0.
        class_emb: (K, d) class embeddings.
        tau_s: temperature of the weights.
    Source: Eq. 5 with TaI-DPT's weights; as printed, the fraction is 1.
    """
    cosine = F.normalize(tokens.float(), dim=-1) @ F.normalize(class_emb.float(), dim=-1).T  # (B, L, K)
    scores = (cosine / tau_s).masked_fill(~mask[..., None], torch.finfo(cosine.dtype).min)
    return cosine, scores.softmax(dim=1)
