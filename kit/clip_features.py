"""What notebook 02 shows and hands on of frozen CLIP: zero-shot accuracy, pictures of shots, and block ``clip``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from kit.clip import local_weights
from kit.clip_ft import zero_shot_classes
from kit.clip_ft_export import reduce_pca
from kit.clip_ft_train import zero_shot_accuracy
from kit.images import decode_image
from kit.prototypes import prompt_names
from kit.run import Block, resolve
from kit.text_tower import TextTower

CELL_PX = 96  # side of a picture on the contact sheet


def weight_files(name: str, pretrained: str, weights_dir: str) -> list[Path]:
    """The files on this computer that the weights of a model come from, so that a step can watch them."""
    if name.startswith("local-dir:"):
        found = resolve(name.removeprefix("local-dir:"))
    else:
        found = local_weights(name, pretrained, weights_dir)
    if found is None or not found.exists():
        return []
    return sorted(path for path in found.iterdir() if path.is_file()) if found.is_dir() else [found]


def zero_shot(
    tower: TextTower, classes: list[str], image_emb: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> float:
    """Share of ``rows`` whose image is nearest to the sentence that names its own class.

    Args:
        tower: text tower of the model that made the embeddings.
        classes: K subcategories.
        image_emb: (n_posts, d) float16, rows of norm 1.
        labels: (n_posts,) int class of each post, -1 where it has none.
        rows: row positions to measure on.
    """
    rows = rows[labels[rows] >= 0]
    if not len(rows):
        return float("nan")
    return zero_shot_accuracy(image_emb, zero_shot_classes(tower, prompt_names(classes)), labels, rows)


def shot_pictures(
    posts: pd.DataFrame, shots: pd.DataFrame, n_classes: int, n_shots: int
) -> dict[str, list[Image.Image]]:
    """Pictures of the first shots of the largest classes: class name -> images of CELL_PX a side."""
    largest = shots["Subcategory"].value_counts().index[:n_classes]
    pictures = {}
    for name in largest:
        rows = shots.loc[shots["Subcategory"] == name, "row"].iloc[:n_shots]
        decoded = [decode_image(posts["image_path"].iloc[row], 2 * CELL_PX)[0] for row in rows]
        pictures[prompt_names([name])[0]] = [image.resize((CELL_PX, CELL_PX)) for image in decoded]
    return pictures


def class_order(posts: pd.DataFrame, classes: list[str]) -> list[int]:
    """Positions of the classes such that those of one category stand together."""
    category = posts.drop_duplicates("Subcategory").set_index("Subcategory")["Category"].astype(str)
    return sorted(range(len(classes)), key=lambda i: (category[classes[i]], classes[i]))


def clip_block(
    image_emb: np.ndarray, text_emb: np.ndarray, image_ok: np.ndarray, train_rows: np.ndarray, components: int,
    cosine: bool = True, name: str = "clip", source: str = "frozen CLIP",
) -> Block:  # fmt: skip
    """Block ``clip``, or that of another encoder: principal components of both embeddings, and their cosine.

    Args:
        image_emb, text_emb: (n_posts, d) float16, rows of norm 1.
        image_ok: (n_posts,) bool; image columns of other posts are NaN.
        train_rows: row positions the PCA is fitted on.
        components: columns per modality; 0 keeps all d.
        cosine: leave it out for a model that was trained on the train posts themselves: it has pulled their images and
            texts together, so their cosines are larger than those of test posts (KS distance 0.3 to 0.4 on the demo).
        name: of the block; its columns begin with it.
        source: whose embeddings these are.
    """
    parts = {}
    for kind, values in (("image", image_emb), ("text", text_emb)):
        fit_rows = train_rows[image_ok[train_rows]] if kind == "image" else train_rows
        reduced = reduce_pca(values, fit_rows, components) if components else np.asarray(values, dtype=np.float32)
        parts[kind] = np.where(image_ok[:, None], reduced, np.nan) if kind == "image" else reduced
    columns = [f"{name}_{kind}_{i:02d}" for kind, values in parts.items() for i in range(values.shape[1])]
    if cosine:
        parts["cosine"] = image_text_cosine(image_emb, text_emb, image_ok)
        columns.append(f"{name}_cosine")
    values = np.column_stack(list(parts.values())).astype(np.float32)
    return Block(name, values, columns, [], f"{source}: both embeddings" + (" and their cosine" if cosine else ""))


def image_text_cosine(image_emb: np.ndarray, text_emb: np.ndarray, image_ok: np.ndarray) -> np.ndarray:
    """(n_posts,) float32, how well image and text of a post agree; NaN without a readable image (arguments as above)."""
    products = np.einsum("nd,nd->n", np.asarray(image_emb, np.float32), np.asarray(text_emb, np.float32))
    return np.where(image_ok, products, np.float32(np.nan)).astype(np.float32)
