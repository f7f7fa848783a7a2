"""What CLIP_FT hands to the regression models, for every post of train and test: block ``clip_ft``, and all of Eq. 11.

Row y of the class-wise quantities is the post's own subcategory, which is metadata given for test posts too. Where it
is missing or unknown to the prototypes, what depends on y is NaN; where the image could not be read, what depends on
the image is NaN. Both regression libraries of this kit take NaN as it is.

A model has seen the subcategories of the posts it was fitted to, so their scores come out higher and their losses lower
than those of other posts. ``kit.clip_ft.cross_fit`` replaces them by those of models that never met their authors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.base.progress import progress
from kit.clip_ft.model import ClipFT, Similarities, class_losses
from kit.clip_ft.texts import TextBank
from kit.clip_ft.train import EVAL_BATCH, HEADS, TERMS, TrainingData, batches, model_inputs
from kit.encoders.pca import apply_pca, fit_pca
from kit.run.block import Block

OWN = ("p_y", "p_local_y", "logit_visual_y", "logit_textual_y")
SCORES = (*OWN, *(f"rank_{head}" for head in HEADS), *(f"entropy_{head}" for head in HEADS), "image_text_cosine")
NEEDS_IMAGE = [i for i, name in enumerate(SCORES) if not name.endswith(("p_y", "p_local_y", "global", "local"))]
PARTS = ("image", "text", "global_prompt", "local_prompt", "image_tilde", "visual_tilde", "textual_tilde")  # Eq. 11
OWN_PARTS = [i for i, name in enumerate(PARTS) if name not in ("image", "text", "image_tilde")]
IMAGE_PARTS = [i for i, name in enumerate(PARTS) if name == "image" or name.endswith("tilde")]


@dataclass(frozen=True)
class Export:
    """Per-post results of a trained model.

    Attributes:
        scores: (n_posts, len(SCORES)) float32, columns as in ``SCORES``.
        losses: (n_posts, 3) float32, L_g, L_o and L_c of Eq. 8.
        image: (n_posts, d) float16, x~ of Eq. 6.
        text: (n_posts, d) float16, h of Eq. 3, rows of norm 1.
        out_of_fold: (n_posts,) bool, true where the model that gave scores and losses was not fitted to the post.
    """

    scores: np.ndarray
    losses: np.ndarray
    image: np.ndarray
    text: np.ndarray
    out_of_fold: np.ndarray


@torch.no_grad()
def export_posts(
    model: ClipFT, bank: TextBank, data: TrainingData, rows: np.ndarray | None = None, full: np.ndarray | None = None
) -> Export:
    """Scores, losses and features of ``rows`` (default: all posts; other rows stay NaN), in batches.

    Args:
        model: as ``train`` returns it.
        bank: text features of all posts.
        data: image features and classes of all posts, and the rows the model was fitted to.
        rows: positions to compute.
        full: (n_posts, 7 d) float16 matrix to be filled with all of Eq. 11 but the user features s; None leaves it out.
    """
    model.eval()
    n_posts, dim = len(data.labels), model.visual.shape[1]
    result = Export(
        np.full((n_posts, len(SCORES)), np.nan, np.float32), np.full((n_posts, len(TERMS)), np.nan, np.float32),
        np.full((n_posts, dim), np.nan, np.float16), np.full((n_posts, dim), np.nan, np.float16),
        ~np.isin(np.arange(n_posts), data.fit_rows),
    )  # fmt: skip
    class_emb = model.class_embeddings()
    parts = batches(np.arange(n_posts) if rows is None else rows, EVAL_BATCH)
    for part in progress(parts, label="CLIP_FT export", unit="batches"):
        image, pooled, tokens, mask = model_inputs(bank, data.image, part)
        out = model(image, pooled, tokens, mask, class_emb)
        labels = torch.as_tensor(data.labels[part], device=bank.device)
        image, pooled = F.normalize(image, dim=-1), F.normalize(pooled.float(), dim=-1)
        result.scores[part] = _own_scores(model.logits(out), out, labels, (image * pooled).sum(dim=1))
        result.losses[part] = _own_losses(model.logits(out), labels)
        result.image[part], result.text[part] = _half(out.image), _half(pooled)
        if full is not None:
            full[part] = _own_features(image, pooled, class_emb, out, labels)
        if data.image_ok is not None:
            _blank_images(result, full, part[~data.image_ok[part]])
    return result


# --- blocks -----------------------------------------------------------------------------------------------------------


def compact_block(
    export: Export, train_rows: np.ndarray, n_components: int = 32, cosine: bool = True, external: str = "",
    pca: Mapping[str, np.ndarray] | None = None,
) -> Block:  # fmt: skip
    """Block ``clip_ft``: the scores, and x~ and the text features reduced by PCA fitted on training rows.

    Without ``cosine`` the image-text cosine stays out, as it should for towers trained on the training rows themselves.
    ``external`` is that of the towers, ``pca`` that of an earlier block, for further posts; None fits it.
    """
    features = {"image": export.image, "text": export.text}
    pca = dict(pca or {kind: fit_pca(values, train_rows, n_components) for kind, values in features.items()})
    image, text = (apply_pca(values, pca[kind]) for kind, values in features.items())
    kept = [i for i, name in enumerate(SCORES) if cosine or name != "image_text_cosine"]
    columns = [*(SCORES[i] for i in kept), *(f"image_pc_{i:02d}" for i in range(image.shape[1]))]
    columns += [f"text_pc_{i:02d}" for i in range(text.shape[1])]
    source = (
        "CLIP_FT, compact (not Eq. 11): own-class similarities, ranks, entropies; PCA of x~ and of the text feature"
    )
    values = np.hstack([export.scores[:, kept], image, text])
    return Block("clip_ft", values, columns, source=source, external=external, pca=pca)


def full_columns(dim: int) -> list[str]:
    """Names of the 7 d columns of Eq. 11 without s, for a model of width ``dim``."""
    return [f"{part}_{i}" for part in PARTS for i in range(dim)]


def losses_table(export: Export, posts: pd.DataFrame, tower_rows: np.ndarray | None = None) -> pd.DataFrame:
    """Per post Pid, split, out_of_fold, tower_seen, L_g, L_o, L_c and their sum L, for loss-based selection.

    Losses are NaN without a class or an image.

    Args:
        export: scores and losses of all posts.
        posts: the posts table.
        tower_rows: posts that the CLIP towers themselves were trained on, which makes their losses low; None for none.
    """
    table = pd.DataFrame({"Pid": posts["Pid"].to_numpy(), "split": posts["split"].astype(str).to_numpy()})
    table["out_of_fold"] = export.out_of_fold
    table["tower_seen"] = np.isin(np.arange(len(posts)), [] if tower_rows is None else tower_rows)
    table[list(TERMS)] = export.losses
    table["L"] = export.losses.sum(axis=1)
    return table


# --- one batch --------------------------------------------------------------------------------------------------------


def _own_scores(logits: dict[str, Tensor], out: Similarities, labels: Tensor, cosine: Tensor) -> np.ndarray:
    """(B, len(SCORES)) float32; own-class columns NaN where the label is -1.

    Prototype logits are given over the mean of all classes: what all classes share cancels in the loss, so it is left
    to chance and differs from one training to the next.
    """
    own = labels.clamp_min(0)[:, None]  # a class to index with; what it gives is blanked out below
    of_own = {name: values.gather(1, own) for name, values in logits.items()}
    columns = [out.global_cosine.gather(1, own), out.local_cosine.gather(1, own)]
    columns += [of_own[head] - logits[head].mean(dim=1, keepdim=True) for head in ("visual", "textual")]
    columns += [1 + (logits[head] > of_own[head]).sum(dim=1, keepdim=True) for head in HEADS]
    columns += [torch.special.entr(logits[head].softmax(dim=1)).sum(dim=1, keepdim=True) for head in HEADS]
    scores = torch.cat([*columns, cosine[:, None]], dim=1)
    scores[labels < 0, : len(OWN) + len(HEADS)] = torch.nan
    return scores.cpu().numpy()


def _own_losses(logits: dict[str, Tensor], labels: Tensor) -> np.ndarray:
    """(B, 3) float32 L_g, L_o, L_c; NaN where the label is -1."""
    losses = torch.stack(list(class_losses(logits, labels.clamp_min(0)).values()), dim=1)
    losses[labels < 0] = torch.nan
    return losses.cpu().numpy()


def _own_features(
    image: Tensor, pooled: Tensor, class_emb: tuple[Tensor, Tensor], out: Similarities, labels: Tensor
) -> np.ndarray:
    """(B, 7 d) float16 in the order of ``PARTS``; own-class parts NaN where the label is -1."""
    every, own = torch.arange(len(labels), device=labels.device), labels.clamp_min(0)
    parts = [image, pooled, class_emb[0][own], class_emb[1][own]]
    parts += [out.image, out.visual[every, own], out.textual[every, own]]
    features = _half(torch.stack(parts, dim=1))  # (B, 7, d)
    features[np.ix_((labels < 0).cpu().numpy(), OWN_PARTS)] = np.nan
    return features.reshape(len(labels), -1)


def _half(values: Tensor) -> np.ndarray:
    return values.half().cpu().numpy()


def _blank_images(result: Export, full: np.ndarray | None, rows: np.ndarray) -> None:
    """NaN where something depends on an image that could not be read."""
    result.scores[np.ix_(rows, NEEDS_IMAGE)] = np.nan
    result.losses[rows, TERMS.index("L_c")] = np.nan
    result.image[rows] = np.nan
    if full is not None:
        by_part = full.reshape(len(full), len(PARTS), -1)
        by_part[np.ix_(rows, IMAGE_PARTS)] = np.nan
