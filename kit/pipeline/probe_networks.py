"""What the networks of a run will take on this machine: seconds, by a few images, texts and steps of training.

Nothing is told of a machine with a GPU: what its processor takes would say nothing of it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base.machine import usable_cores
from kit.base.tasks import machine_shape
from kit.encoders.registry import DUAL, DUAL_NETWORKS, ENCODERS, NETWORKS, TINY, chosen_models, wanted_blocks
from kit.encoders.weights import choose_clip, dual_reader, find_weights, missing_network
from kit.release.taxonomy import prompt_names
from kit.release.texts import other_letters, post_texts

IMAGES, TEXTS = 32, 128  # that are encoded
TINY_STEPS = 5, 10  # of texts and of images: in proportion as the training has them
STEPS = 2  # of CLIP_FT
WIDTHS = 256, 128  # of the heads of smp-dual
ALIGN_S = 40.0  # of one core: both alignments of smp-dual, which hardly grow with the posts
STARTS_S = 12.0  # of 02 and of 03, beside their networks: to load open_clip, figures, tables
LEARNT_S = 6.0  # beside CLIP_FT in 03: linear classifiers, to start processes
WITHOUT_GRADIENT = 0.3  # of a step: the same posts scored


class Networks:
    """The networks of a run's steps, asked in their order: what one step has encoded, a later one finds.

    Args:
        posts: the posts table.
    """

    def __init__(self, posts: pd.DataFrame):
        self.posts = posts
        self.cores, self.has_gpu = usable_cores(), machine_shape()[1] > 0
        self._clip: Any = None
        self._precision = "float32"  # of its texts
        self._knows = not self.has_gpu  # what 03 will have
        self._encoded: set[str] = set()

    @cached_property
    def texts(self) -> np.ndarray:
        """(n_posts,) the text of each post."""
        return post_texts(self.posts)

    def clip_s(self, asked: Mapping[str, Any]) -> float | None:
        """Of notebook 02; 0 where it will be left out, None where nothing tells."""
        from kit.encoders.clip import load_clip

        download = asked["without_weights"] == "download"
        model = choose_clip(asked["clip_model"], asked["pretrained"], asked["weights_dir"], download)
        if missing_network("clip", model, asked["weights_dir"]):
            self._knows = self._knows and not download
            return None if download else 0.0
        if not any(map(os.path.isfile, self.posts["image_path"].iloc[:IMAGES])):
            return 0.0
        if self.has_gpu:
            return None
        if model == DUAL:
            reader = dual_reader(other_letters(self.posts["Title"]), asked["weights_dir"])[0]
            networks = DUAL_NETWORKS[0], reader
            found = [self._network_s(name, NETWORKS[name].model, asked["weights_dir"]) for name in networks]
            self._clip = _untrained_dual(*(encoder for encoder, _ in found))
            self._precision = self._precision_of(found[1][0])
            return STARTS_S + sum(seconds for _, seconds in found) / self.cores + ALIGN_S / self.cores**0.5
        trained_s = 0.0
        if model == TINY:
            self._clip, trained_s = self._tiny(asked["tiny_effort"])
        else:
            self._clip = load_clip(*model.split(" "), weights_dir=asked["weights_dir"])
        encoded_s = self._images_s(self._clip.image_encoder()) + self._texts_s(self._clip.text_encoder())
        return STARTS_S + trained_s / self.cores**0.5 + encoded_s / self.cores

    def clip_ft_s(self, asked: Mapping[str, Any]) -> float | None:
        """Of notebook 03, after ``clip_s``; 0 where it will be left out, None where nothing tells."""
        if self._clip is None:
            return 0.0 if self._knows else None
        fill_s, step_s = self._step_s(asked["batch_size"])
        n_train, n_folds, epochs = int((self.posts["split"] == "train").sum()), asked["cross_folds"], asked["epochs"]
        own, crossed = epochs * n_train, epochs * max(0, n_folds - 1) * n_train  # posts in steps
        scored = WITHOUT_GRADIENT * (len(self.posts) + bool(n_folds) * n_train)
        return (
            STARTS_S
            + LEARNT_S
            + fill_s / self.cores
            + step_s * ((own + scored) / self.cores**0.5 + crossed / self.cores)
        )

    def lacking(self, asked: Mapping[str, Any]) -> set[str]:
        """Blocks of encoders that notebook 04 will not make: nobody asks for them, or their weights are not there."""
        wanted = wanted_blocks(asked["baselines"], other_letters(self.posts["Title"]))
        there = {name for name in wanted if asked["without_weights"] == "download" or not any(
            missing_network(network, model, asked["weights_dir"]) for network, model in chosen_models(name).items()
        )}  # fmt: skip
        return ENCODERS.keys() - there

    def encoders_s(self, asked: Mapping[str, Any]) -> float:
        """Of the encoders of notebook 04 that have their weights and have not encoded these posts before."""
        if self.has_gpu:
            return 0.0
        total = 0.0
        for name in wanted_blocks(asked["baselines"], other_letters(self.posts["Title"])):
            for network, model in chosen_models(name).items():
                total += self._network_s(network, model, asked["weights_dir"], ENCODERS[name])[1]
        return total / self.cores

    def _network_s(self, network: str, model: str, weights_dir: str, block: Any = None) -> tuple[Any, float]:
        """A network, and seconds of one core for what it sees of all posts; nothing where it has seen them or has no weights."""
        from kit.encoders import networks

        path, encoder, total = find_weights(network, model, weights_dir), None, 0.0
        sees = block or next(one for one in ENCODERS.values() if network in (one.image, one.text))
        for kind, load, measure in (
            (sees.image, networks.load_image_encoder, self._images_s), (sees.text, networks.load_text_encoder, self._texts_s)
        ):  # fmt: skip
            key = f"{network} {model} {load.__name__}"
            if path and kind == network and key not in self._encoded:
                self._encoded.add(key)
                encoder = load(network, model, path)
                total += measure(encoder)
        return encoder, total

    def _images_s(self, encoder: Any) -> float:
        import torch

        from kit.encoders.bulk import IMAGES_CPU
        from kit.release.images import ImageDataset

        paths = self.posts["image_path"].iloc[:IMAGES].tolist()
        images = ImageDataset(paths, encoder.transform, encoder.draft_px)
        return self._encoded_s(encoder, lambda: torch.from_numpy(next(images.batches(len(paths)))[0]), IMAGES_CPU)

    def _texts_s(self, encoder: Any) -> float:
        texts = self.texts[:TEXTS].tolist()
        return self._encoded_s(encoder, lambda: (ids := encoder.tokenize(texts))[:, : int(encoder.lengths(ids).max())])

    def _encoded_s(self, encoder: Any, make: Callable[[], Any], size: int = TEXTS) -> float:
        import torch

        with torch.inference_mode():
            encoder.encode_batch(encoder.module, make()[:2])  # the first pass takes longer
            started = time.perf_counter()
            batch = make()
            for part in batch.split(size):
                encoder.encode_batch(encoder.module, part)
        return (time.perf_counter() - started) / len(batch) * len(self.posts)

    def _tiny(self, effort: float) -> tuple[Any, float]:
        """smp-tiny after hardly any training, and seconds of the whole of it."""
        from kit.encoders import tiny

        paths, texts = self.posts["image_path"].iloc[:TEXTS].tolist(), self.texts[:TEXTS].tolist()
        times = []
        for text_steps, image_steps in ((1, 1), (1, 1), (1 + TINY_STEPS[0], 1 + TINY_STEPS[1])):
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                clip = tiny.train_tiny(paths, texts, folder, 0, text_steps, image_steps)
            times.append(time.perf_counter() - started)
        return clip, max(0.0, times[2] - times[1]) * effort * tiny.IMAGE_STEPS / TINY_STEPS[1]

    def _precision_of(self, encoder: Any) -> str:
        """What 02 will find for a text network."""
        from kit.encoders.bulk import TEXTS_CPU, encode_strings
        from kit.encoders.job import Job
        from kit.encoders.precision import MIN_PROBE_ITEMS, probe_precision

        if len(self.posts) < MIN_PROBE_ITEMS:
            return "float32"
        some = self.texts[:TEXTS_CPU].tolist()
        return probe_precision(Job(encoder, encode_strings, len(self.posts), some, Path(), TEXTS_CPU, "cpu"))[0]

    def _step_s(self, batch_size: int) -> tuple[float, float]:
        """Seconds for the word features of all texts, and for a post in a step of CLIP_FT."""
        from kit.clip_ft.texts import TextBank
        from kit.clip_ft.train import Settings, batch_and_rate, step_seconds

        batch_size, _ = batch_and_rate(self._clip.text, batch_size, 0.0)
        self._clip.text.place("cpu", self._precision)
        started, n = time.perf_counter(), min(TEXTS, len(self.texts))
        bank = TextBank(self._clip.text, self.texts[:n])
        fill_s = (time.perf_counter() - started) / n * len(set(self.texts))
        classes = self.posts.loc[self.posts["split"] == "train", "Subcategory"].astype(str)
        names = prompt_names(sorted(set(classes) - {""}))
        return fill_s, step_seconds(self._clip, bank, names, Settings(batch_size=batch_size), STEPS) / batch_size


def _untrained_dual(image_encoder: Any, text_encoder: Any) -> Any:
    """smp-dual with heads that have learnt nothing."""
    from kit.encoders import dual
    from kit.encoders.clip import wrap_model

    widths = image_encoder.module.num_features, text_encoder.module.pool.model.config.hidden_size
    heads = tuple(dual.Head((width, *WIDTHS)) for width in widths)
    return wrap_model(*dual.assemble(image_encoder, text_encoder, heads, 1.0), DUAL)
