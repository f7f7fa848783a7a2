"""Encoding texts: ``kit.encoders.bulk`` against the plain loop at full length, clip-retrieval, and the forward pass alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kit.encoders import bulk
from kit.encoders.encoders import TextEncoder
from tests.bench import encoders
from tests.bench.encoders import BATCH, MODEL, features_task, light_texts, post_texts, random_clip
from tests.bench.measure import Case, NotInstalled, Task


def clip_texts() -> TextEncoder:
    """The text tower of CLIP."""
    return random_clip().text_encoder()


def prepare(folder: Path, n: int) -> None:
    """Texts, and the precision that the kit's probe chooses for CLIP."""
    encoders.probe(folder, clip_texts.__name__, clip_texts(), bulk.encode_strings, post_texts(folder, n))


def prepare_light(folder: Path, n: int) -> None:
    """The same for the packaged network; nothing where that is not there, which the ways then say."""
    with suppress(NotInstalled):
        encoders.probe(folder, light_texts.__name__, light_texts(), bulk.encode_strings, post_texts(folder, n))


def ours(make: Callable[[], TextEncoder], precision: str, folder: Path, n: int) -> Task:
    """``kit.encoders.bulk.encode_texts``: each distinct text once, cut to the batch's longest, written to a shard."""
    encoder, precision = encoders.as_probed(make(), folder, make.__name__, n, precision)
    texts = post_texts(folder, n)

    def work(texts: list[str] = texts) -> np.ndarray:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return bulk.encode_texts(texts, encoder, out, precision=precision, device="cpu")

    return features_task(work, lambda: work(texts[:BATCH]), f"{precision}; {len(set(texts)):,} distinct texts")


def forward_alone(make: Callable[[], TextEncoder], folder: Path, n: int) -> Task:
    """Nothing but the network in ours' precision, over ids that lie ready in memory, sorted and cut as ours."""
    encoder, precision = encoders.as_probed(make(), folder, make.__name__, n)
    distinct, inverse = np.unique(post_texts(folder, n), return_inverse=True)
    ids = encoder.tokenize(distinct.tolist())
    order = encoder.lengths(ids).argsort(stable=True)
    batches = []
    for rows in bulk._token_batches(encoder.lengths(ids)[order], BATCH * ids.shape[1]):
        batches.append(ids[order[rows], : int(encoder.lengths(ids)[order[rows]].max())])

    def work(batches: list[torch.Tensor] = batches) -> np.ndarray:
        values = torch.cat([encoder.module(batch) for batch in batches]).float()
        return values[order.argsort()][inverse].numpy()

    return features_task(work, work, precision)


def full_length(folder: Path, n: int) -> Task:
    """open_clip's usual loop: every text at all 77 tokens, float32."""
    clip, texts = random_clip(), post_texts(folder, n)

    def work(texts: list[str] = texts) -> np.ndarray:
        parts = [clip.text.tokenizer(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        return torch.cat([clip.model.encode_text(ids, normalize=True) for ids in parts]).numpy()

    return features_task(work, lambda: work(texts[:BATCH]), "float32")


def light_loop(folder: Path, n: int) -> Task:
    """The usual loop: texts as they come, each batch padded to its longest, float32."""
    encoder, texts = light_texts(), post_texts(folder, n)

    def work(texts: list[str] = texts) -> np.ndarray:
        parts = [encoder.tokenize(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        return torch.cat([encoder.encode_batch(encoder.module, ids) for ids in parts]).numpy()

    return features_task(work, lambda: work(texts[:BATCH]), "float32")


def clip_retrieval(folder: Path, n: int) -> Task:
    """clip-retrieval's worker over a text file each, float32."""
    worker = encoders.clip_retrieval_worker()
    home = folder / f"texts_{n}"
    home.mkdir(exist_ok=True)
    for i, text in enumerate(post_texts(folder, n)):
        (home / f"{i:06d}.txt").write_text(text, encoding="utf-8")
    return encoders.clip_retrieval_task(worker, home, random_clip(), "text")


WAYS = {
    "ours": partial(ours, clip_texts, ""),
    "forward alone": partial(forward_alone, clip_texts),
    "ours, float32": partial(ours, clip_texts, "float32"),
    "tokenizer, encode_text": full_length,
    "clip-retrieval": clip_retrieval,
}
LIGHT = {
    "ours": partial(ours, light_texts, ""),
    "forward alone": partial(forward_alone, light_texts),
    "tokenizer, batches in order": light_loop,
}
CASES = (
    Case(__name__, f"{MODEL}, random weights", WAYS, prepare, "items", encoders.differing),
    Case(__name__, "MiniLM", LIGHT, prepare_light, "items", encoders.differing),
)
