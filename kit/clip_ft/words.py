"""Which words the local prompts look at (Eq. 5), for people to read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from kit.clip_ft.alignment import token_weights
from kit.clip_ft.model import ClipFT
from kit.clip_ft.texts import TextBank


@torch.no_grad()
def attended_words(
    model: ClipFT, bank: TextBank, rows: np.ndarray, labels: np.ndarray, n_words: int = 5
) -> pd.DataFrame:
    """Per post its text, its class, and the words with most weight in its class's local similarity p'_y.

    Args:
        model: a trained model.
        bank: text features of all posts.
        rows: (m,) posts that have a class.
        labels: (n_posts,) int class of each post.
        n_words: tokens shown per post; a token is a word or a part of one.
    Returns:
        m rows of text, prompt (the class name), p_local (p'_y) and words ("sunset 0.61, beach 0.20").
    """
    _, tokens, mask = bank.batch(rows)
    own = torch.as_tensor(labels[rows], device=bank.device)
    cosine, weights = token_weights(tokens, mask, model.class_embeddings()[1], model.tau_s)  # (m, L, K)
    every = torch.arange(len(rows), device=bank.device)
    cosine, weights = cosine[every, :, own], weights[every, :, own]  # (m, L)
    lines = []
    for row, line, total in zip(rows, weights.cpu(), (weights * cosine).sum(dim=1).tolist(), strict=True):
        best = line.argsort(descending=True)[: min(n_words, int((line > 0).sum()))]
        ids = bank.ids[bank.text_idx[row]]
        words = ", ".join(f"{word_of(bank.tower.tokenizer, int(ids[i]))} {line[i]:.2f}" for i in best)
        lines.append((bank.texts[row], model.names[labels[row]], total, words))
    return pd.DataFrame(lines, columns=["text", "prompt", "p_local", "words"])


def word_of(tokenizer, token: int) -> str:
    """The text of a token, of open_clip's own tokenizer or of a Hugging Face one."""
    return getattr(tokenizer, "tokenizer", tokenizer).decode([token]).strip()
