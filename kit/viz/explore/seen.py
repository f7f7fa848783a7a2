"""What CLIP_FT sees in a post: the words its local prompt looks at, its classes by five heads, and what it has learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.errors import InputError
from kit.run.predictions import read_predictions
from kit.viz.explore import page, towers
from kit.viz.explore.changed import settings_of
from kit.viz.explore.opened import Opened

SPLIT_FILE = "prototypes/split.parquet"
BEST = 5  # classes, prototypes and words shown


@dataclass(frozen=True)
class Words:
    """What the model says of one post.

    Attributes:
        tokens: word, weight (Eq. 5, of the local prompt of the post's class; they sum to 1), cosine.
        classes: head, class, probability: the five likeliest of each of the five heads.
        prototypes: class, cosine: those whose projected visual prototype is nearest to the projected picture.
        temperatures: name -> value.
        context: "global" and "local" -> the vocabulary's word nearest to each learned vector, with its cosine.
        name: the post's class as it stands in the prompt.
        model: which model that is, in words.
    """

    tokens: pd.DataFrame
    classes: pd.DataFrame
    prototypes: pd.DataFrame
    temperatures: dict[str, float]
    context: dict[str, list[tuple[str, float]]]
    name: str
    model: str

    def _repr_html_(self) -> str:
        most = max(self.tokens["weight"].max(), 1e-9) if len(self.tokens) else 1.0
        heads = list(dict.fromkeys(self.classes["head"]))
        by_head = [self.classes[self.classes["head"] == head] for head in heads]
        lines = [[(part["class"].iloc[i], part["probability"].iloc[i], part["class"].iloc[i] == self.name) for part in by_head]
                 for i in range(len(by_head[0]))]  # fmt: skip
        return page.page("words", {
            "name": self.name, "model": self.model, "heads": heads, "classes": lines,
            "tokens": [{"word": one.word, "weight": one.weight, "shade": round(0.7 * one.weight / most, 2)}
                       for one in self.tokens.itertuples()],
            "prototypes": ", ".join(f"{name} {cosine:.3f}" for name, cosine in self.prototypes.itertuples(index=False)),
            "temperatures": ", ".join(f"{name} {value:.4f}" for name, value in self.temperatures.items()),
            "context": {kind: ", ".join(f"{word} {cosine:.2f}" for word, cosine in pairs)
                        for kind, pairs in self.context.items()},
        })  # fmt: skip


def words(opened: Opened, pid: str | int) -> Words:
    """What CLIP_FT sees in a post; of a train post the model of a fold that never met its author, where 03 made such.

    Raises:
        InputError: 03 was left out, or no such post, or one without a class that has a prototype.
    """
    row, run = opened.row(pid), opened.run
    run.input("clip_ft/model.safetensors", made_by="03_clip_ft")
    split = read_predictions(run.input(SPLIT_FILE, made_by="02_prototypes"), opened.posts, made_by="02_prototypes")
    classes = pd.read_csv(run.input("prototypes/classes.csv"), dtype=str, keep_default_na=False)
    own = pd.Index(classes["subcategory"]).get_indexer([str(opened.posts["Subcategory"].iloc[row])])[0]
    if own < 0:
        raise InputError(
            f"post {pid} has no subcategory with a prototype: there is no class whose words could be shown"
        )
    image = np.asarray(run.read_block("clip_image").values[row], np.float32)
    folder = _unmet(run.dir / "clip_ft", row)
    found = towers.run_there(
        _look, run.dir, folder, settings_of(opened, "03_clip_ft"), split["text"].iloc[row], image, own
    )
    which = (
        "the model trained on all fitting posts"
        if folder.name == "clip_ft"
        else f"a model that never met its author ({folder.name})"
    )
    return Words(**found, model=f"By {which}.")


def _unmet(clip_ft: Path, row: int) -> Path:
    """The folder of the model that did not learn from a post: that of its fold, else the one that met all."""
    for path in sorted(clip_ft.glob("cross/fold_*/scores.npz")):
        with np.load(path) as stored:
            if row in stored["rows"]:
                return path.parent
    return clip_ft


def _look(run_dir: Path, folder: Path, asked: dict[str, Any], text: str, image: np.ndarray, own: int) -> dict[str, Any]:
    """In the process of the towers: everything of `Words` but which model it is."""
    import torch

    from kit.clip_ft.alignment import token_weights
    from kit.clip_ft.texts import TextBank
    from kit.clip_ft.train import SHAPE
    from kit.clip_ft.words import word_of

    model, clip = _model(run_dir, folder, tuple((name, asked[name]) for name in SHAPE))
    bank = TextBank(clip.text, [text], mask_sot=asked.get("mask_sot", True))
    with torch.no_grad():
        pooled, tokens, mask = bank.batch(np.array([0]))
        cosine, weights = token_weights(tokens, mask, model.class_embeddings()[1], model.tau_s)
        out = model(torch.from_numpy(image)[None], pooled, tokens, mask)
        heads = {head: values[0].softmax(dim=-1) for head, values in model.logits(out).items()}
        near = out.visual_cosine[0].topk(min(BEST, len(model.names)))
        learned = {kind: _nearest_words(clip.text, prompt.ctx) for kind, prompt in
                   {"global": model.global_prompt, "local": model.local_prompt}.items()}  # fmt: skip
    kept = [i for i in range(mask.shape[1]) if mask[0, i]]
    told = [
        (word_of(clip.text.tokenizer, int(bank.ids[0, i])), float(weights[0, i, own]), float(cosine[0, i, own]))
        for i in kept
    ]
    best = [(head, model.names[i], float(values[i])) for head, values in heads.items()
            for i in values.topk(min(BEST, len(model.names))).indices.tolist()]  # fmt: skip
    return {
        "tokens": pd.DataFrame(told, columns=["word", "weight", "cosine"]),
        "classes": pd.DataFrame(best, columns=["head", "class", "probability"]),
        "prototypes": pd.DataFrame({"class": [model.names[i] for i in near.indices.tolist()], "cosine": near.values.tolist()}),
        "temperatures": model.temperatures(), "context": learned, "name": model.names[own],
    }  # fmt: skip


@towers.once
def _model(run_dir: Path, folder: Path, settings: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    """A trained CLIP_FT, and its CLIP."""
    from kit.clip_ft.prototypes import load_prototypes
    from kit.clip_ft.train import open_trained

    clip = towers.clip_of(run_dir)
    return open_trained(clip, load_prototypes(run_dir / "prototypes"), dict(settings), folder), clip


def _nearest_words(tower: Any, context: Any) -> list[tuple[str, float]]:
    """The word of the vocabulary nearest to each learned vector, by cosine of their embeddings."""
    import torch.nn.functional as F

    from kit.clip_ft.words import word_of

    table = F.normalize(tower.token_embedding.weight.float(), dim=-1)
    cosine, nearest = (F.normalize(context.float(), dim=-1) @ table.T).max(dim=1)
    return [(word_of(tower.tokenizer, int(i)), float(value)) for i, value in zip(nearest, cosine, strict=True)]
