"""What the ways work on: synthetic releases of any size, made once per folder, with as many different words as real ones.

The demo's own tags are some 750 words. Real ones are 10^5 and more, most of them seen once or twice, which is what tag sequences,
word counts and the ridge spend time and memory on. So half as many tags again and two words of the title are drawn from a
vocabulary of VOCABULARY made-up words whose frequencies follow Zipf's law; posts of an author with the same tags share them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pandas as pd

from kit.base.files import atomic_path
from kit.demo.make import make_release
from kit.release.smpd import read_release

SEED = 0
VOCABULARY, OFFSET = (
    400_000,
    10,
)  # words, and what is added to the rank of each: frequency goes with 1 / (rank + OFFSET)
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
TITLE_WORDS = 2


def release(folder: Path, n: int, images: bool = False) -> Path:
    """Folder of a synthetic release of n posts."""
    path = folder / f"release_{n}{'_images' if images else ''}"
    if not path.is_dir():
        rng, made = np.random.default_rng(SEED), make_release(folder / "partial", n, SEED, images)
        for part in ("train", "test"):
            _add_words(made / f"{part}_allmetadata_json" / f"{part}_text.json", rng)
        made.rename(path)
    return path


def _add_words(path: Path, rng: np.random.Generator) -> None:
    """Rewrite the texts of a part with more tags and longer titles."""
    rows = orjson.loads(path.read_bytes())
    album = pd.factorize(pd.Series([f"{row['Uid']} {row['Alltags']}" for row in rows]))[0]
    first = np.unique(album, return_index=True)[1]
    n_tags = np.array([(rows[i]["Alltags"].count(" ") + 2) // 2 if rows[i]["Alltags"] else 0 for i in first])
    tags, titles = _draw(n_tags, rng), _draw(np.full(len(rows), TITLE_WORDS), rng)
    for row, group, more in zip(rows, album, titles, strict=True):
        row["Alltags"] = f"{row['Alltags']} {tags[group]}".strip()
        row["Title"] = f"{row['Title']} {more}" if row["Title"] else row["Title"]
    path.write_bytes(orjson.dumps(rows))


def _draw(counts: np.ndarray, rng: np.random.Generator) -> list[str]:
    """As many words for each count, joined by blanks."""
    share = np.cumsum(1 / (np.arange(VOCABULARY) + OFFSET))
    rank = np.searchsorted(share, rng.random(counts.sum()) * share[-1])
    words, ends = [_word(int(k)) for k in rank], np.cumsum(counts)
    return [" ".join(words[end - count : end]) for end, count in zip(ends, counts, strict=True)]


def _word(rank: int) -> str:
    """A pronounceable word of its own for each rank, the longer the rarer."""
    word = ""
    while True:
        rank, syllable = divmod(rank, len(SYLLABLES))
        word += SYLLABLES[syllable]
        if not rank:
            return word


def posts_table(folder: Path, n: int, images: bool = False) -> pd.DataFrame:
    """The posts table of such a release, from a parquet file as a run keeps it."""
    path = folder / f"posts_{n}{'_images' if images else ''}.parquet"
    if not path.is_file():
        with atomic_path(path) as temporary:
            read_release(release(folder, n, images)).to_parquet(temporary, index=False)
    return pd.read_parquet(path)
