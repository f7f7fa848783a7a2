"""The category tree of SMPD: 11 categories, 77 subcategories, 668 concepts."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

TAXONOMY_PATH = Path(__file__).with_name("taxonomy.csv")


def clean_name(name: str) -> str:
    """A class name in lower case, words separated by single spaces: how two spellings of one class compare."""
    for mark in ",&_":
        name = name.replace(mark, " ")
    return " ".join(name.lower().split())


@functools.cache
def taxonomy_names() -> dict[str, str]:
    """Cleaned subcategory -> prompt name, from ``taxonomy.csv``."""
    table = pd.read_csv(TAXONOMY_PATH, dtype=str, keep_default_na=False)
    return {clean_name(name): prompt for name, prompt in zip(table["subcategory"], table["prompt_name"], strict=True)}


def read_taxonomy() -> pd.DataFrame:
    """The 668 concepts of SMPD in their 77 subcategories and 11 categories, one row per concept.

    Source: the chart data of the challenge site's dataset page, which gives train counts of categories, subcategories
    and concepts. Which concept belongs to which subcategory is not published; the column `subcategory` is our
    reconstruction. Concepts were placed by the meaning of their names, and where names leave a choice so that the
    counts of a subcategory's concepts add up to its own published count, which they do in every subcategory.
    `category_test_count` is the published number of test posts of the category. `prompt_name` spells the cut name out
    ("San" -> "san francisco 49ers"); `prompt_name_inferred` marks where that is a guess from the concepts.
    """
    with TAXONOMY_PATH.open(newline="", encoding="utf-8") as file:
        taxonomy = pd.DataFrame(list(csv.DictReader(file)))
    counts = ["train_count", "category_test_count", "prompt_name_inferred"]
    return taxonomy.astype(dict.fromkeys(counts, int))


def prompt_names(subcategories: Iterable[str]) -> list[str]:
    """Class names as they stand in a prompt: SMPD's own list where it knows the name, else generic cleaning.

    SMPD cuts names to their first word ("San", "New") or joins them by commas ("High,Heels"); ``taxonomy.csv`` says
    what they mean. Any other name is lower-cased, and ``, & _`` become spaces.
    """
    known = taxonomy_names()
    cleaned = [clean_name(name) for name in subcategories]
    return [known.get(name, name) for name in cleaned]
