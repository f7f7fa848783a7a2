"""A block: a named float matrix whose rows are the posts of a run."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from kit.base.files import hash_array


@dataclass(frozen=True)
class Block:
    """A named float matrix whose rows are the posts of a run.

    Attributes:
        name: folder name under ``blocks/``, e.g. ``statistic``.
        values: (n_posts, d) float16 or float32; rows in the order of ``posts.parquet``.
        columns: d unique column names.
        categorical: the columns that hold integer codes (-1 for missing) and no quantity.
        source: where the numbers come from, for the report.
        external: what from outside the release they rest on, in words (pre-trained weights, crawled data); "" for nothing.
        dropped: columns that were made and left out, and why; not kept on disk.
        pca: what embeddings were reduced with ("image", "text"), for the columns of further posts; see ``kit.encoders.pca``.
    """

    name: str
    values: np.ndarray
    columns: list[str]
    categorical: list[str] = field(default_factory=list)
    source: str = ""
    external: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    pca: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.columns):
            raise ValueError(f"block {self.name}: values {self.values.shape} do not fit {len(self.columns)} columns")
        if len(set(self.columns)) != len(self.columns):
            twice = sorted({c for c in self.columns if self.columns.count(c) > 1})
            raise ValueError(f"block {self.name}: column names appear twice: {twice[:5]}")
        if unknown := sorted(set(self.categorical) - set(self.columns)):
            raise ValueError(f"block {self.name}: categorical columns not among its columns: {unknown[:5]}")

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the values."""
        return hash_array(self.values)
