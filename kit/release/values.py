"""Values of a release as columns of one type each: what cannot be used becomes "missing", and a fault says so.

One value that is wrong does not stop a run of half a million posts, and is not repaired by a guess either: it is replaced,
and column ``faults`` of its post names the column and what was done. ``kit.release.quality`` counts these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from kit.release.columns import Column, free_memory, missing_column, object_array

CATEGORIES = ("Category", "Subcategory", "Concept", "Mediatype", "Mediastatus", "timezone_id")
TEXTS = ("Title", "Alltags", "Pathalias")
NUMBERS = ("Latitude", "Longitude", "Geoaccuracy", "Ispublic", "photo_count", "ispro", "canbuypro")
DATES = ("Postdate", "photo_firstdate", "photo_firstdatetaken")
DESCRIPTIONS = ("user_description", "location_description")
MISSING = {"", "none", "null", "nan"}
LONGEST_MISSING = max(map(len, MISSING))
EARLIEST, LATEST = pd.Timestamp("1826-01-01", tz="UTC"), pd.Timestamp("2100-01-01", tz="UTC")  # the first photograph
NO_WEB = pd.Timestamp("1990-01-01", tz="UTC")  # an earlier post is odd, but other data than a web site's may have some
POSSIBLE = {"Latitude": (-90, 90), "Longitude": (-180, 180), "photo_count": (0, 1e9)}
LARGEST = 1e9  # of any other number; far beyond all that is counted, far below what float32 can hold
LARGEST_COUNT = 1e15  # of views and the like, labels included
MOST_HOURS = 14  # between a time zone and UTC
FLAGS = ("Ispublic", "ispro", "canbuypro")  # may be true or false
LONGEST_TEXT = 10_000  # characters; Flickr allows 255 in a title and 75 tags
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")  # no text, and no white space either
TAKEN = "(taken as missing)"


def type_columns(columns: dict[str, Column]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Typed columns, and fault -> (n,) bool, from columns of anything, which are taken out of the dict one by one."""
    typed: dict[str, Any] = {}
    faults: dict[str, np.ndarray] = {}
    for name in DESCRIPTIONS:
        vectors = _number_lists(columns[name])
        if vectors is not None:
            typed[f"{name}_vector"], faults[f"{name} is no list of numbers as the others {TAKEN}"] = vectors
            columns[name] = missing_column(len(columns[name]))
    for name in (*TEXTS, *CATEGORIES, *DESCRIPTIONS):
        column = columns.pop(name)
        texts, found = _as_text(column.distinct)
        faults |= {f"{name} {fault}": odd[column.codes] for fault, odd in found.items()}
        typed[name] = object_array(texts)[column.codes] if name in TEXTS else _as_category(texts, column.codes)
        del column
        free_memory()
    for name in NUMBERS:
        low, high = POSSIBLE.get(name, (-LARGEST, LARGEST))
        fault = f"{name} is no number from {low:,.0f} to {high:,.0f} {TAKEN}"
        typed[name], faults[fault] = _typed(columns.pop(name), as_number, low, high, name in FLAGS)
    for name in DATES:
        fault = f"{name} is no date from {EARLIEST.year} to {LATEST.year - 1} {TAKEN}"
        typed[name], faults[fault] = _typed(columns.pop(name), _as_date)
    faults[f"Postdate lies before {NO_WEB.year} (kept)"] = np.asarray(typed["Postdate"] < NO_WEB)
    fault = f'timezone_offset is nothing like "+01:00" {TAKEN}'
    typed["timezone_offset"], faults[fault] = _typed(columns.pop("timezone_offset"), _as_minutes)
    return typed, faults


def _typed(column: Column, as_type: Callable[..., pd.Series], *options: Any) -> tuple[Any, np.ndarray]:
    """Values of one type, and (n,) bool: whether a value was given and none is left."""
    given = pd.Series(column.distinct)
    values = as_type(given, *options)
    return values.array.take(column.codes), is_lost(given, values)[column.codes]


def add_faults(known: pd.Series, faults: dict[str, np.ndarray]) -> pd.Series:
    """The faults of every post in words, joined by "; "."""
    texts = known.to_numpy(dtype=object, copy=True)
    for fault, rows in faults.items():
        for row in np.flatnonzero(rows):
            texts[row] = f"{texts[row]}; {fault}" if texts[row] else fault
    return pd.Series(texts, index=known.index)


def is_lost(given: pd.Series, typed: pd.Series) -> np.ndarray:
    """(n,) bool: whether a value was given and none is left."""
    lost = typed.isna().to_numpy(copy=True)
    rows = np.flatnonzero(lost)
    lost[rows] = [not _is_missing(value) for value in given.to_numpy()[rows]]
    return lost


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in MISSING)


def _as_text(values: np.ndarray) -> tuple[list[str], dict[str, np.ndarray]]:
    """Trimmed text, one space between words, "" where missing, a list of words joined; and fault -> (m,) bool."""
    texts = [_one_spaced(value) if type(value) is str else _plain_text(value) for value in values]
    faults = {fault: np.zeros(len(texts), dtype=bool) for fault in _text_faults("", "")}
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        if isinstance(value, str) and text.isprintable() and len(text) <= LONGEST_TEXT:
            continue  # nearly every text: no control character and nothing broken is printable
        found = _text_faults(value, text)
        for fault, has_it in found.items():
            faults[fault][row] = has_it
        if any(found.values()):
            texts[row] = _clean_text(text)
    return texts, {fault: rows for fault, rows in faults.items() if rows.any()}


def _text_faults(value: Any, text: str) -> dict[str, bool]:
    return {
        f"is no text {TAKEN}": _is_no_text(value),
        "has control characters (taken out)": bool(CONTROL.search(text)),
        f"has more than {LONGEST_TEXT:,} characters (cut there)": len(text) > LONGEST_TEXT,
        'has broken characters (now "?")': not _is_unicode(text),
    }


def _as_category(texts: list[str], codes: np.ndarray) -> pd.Categorical:
    kinds = pd.Series(texts, dtype=object).astype("category")
    return kinds.array.take(codes).remove_unused_categories()


def _plain_text(value: Any) -> str:
    if isinstance(value, list):
        value = " ".join(_plain_text(item) for item in value)
    if not isinstance(value, str):
        value = "" if value is None or value != value or _is_no_text(value) else id_text(value)
    return _one_spaced(value)


def _one_spaced(text: str) -> str:
    text = " ".join(text.split())
    return "" if len(text) <= LONGEST_MISSING and text.lower() in MISSING else text


def _is_no_text(value: Any) -> bool:
    """Tables and yes/no are no text; nor is a list that holds anything but words."""
    if isinstance(value, list):
        return any(isinstance(item, list) or _is_no_text(item) for item in value)
    return isinstance(value, (dict, bool))


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:  # one half of a pair of surrogates
        return False


def _clean_text(text: str) -> str:
    text = " ".join(CONTROL.sub(" ", text).split()).encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST_TEXT else (text[:LONGEST_TEXT].rpartition(" ")[0] or text[:LONGEST_TEXT])


def to_floats(values: Iterable) -> np.ndarray:
    """(n,) float64 of texts and numbers, NaN for anything else.

    ``pandas.to_numeric`` does the same faster, and takes the whole process down at "1e99999999999".
    """
    values = list(values)
    if set(map(type, values)) == {str} and "_" not in "".join(values):  # Python reads 1_000 as 1000
        try:
            return np.fromiter(map(float, values), np.float64, len(values))
        except ValueError:
            pass  # some are no numbers
    return np.array([_to_float(value) for value in values], dtype=np.float64)


def _to_float(value: Any) -> float:
    if isinstance(value, (int, float)) or (isinstance(value, str) and "_" not in value):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    return np.nan


def as_number(values: pd.Series, low: float = -np.inf, high: float = np.inf, flag: bool = False) -> pd.Series:
    """Float64; NaN for what is no number or lies outside low to high, and for true and false unless they are a flag."""
    if not flag and bool in set(map(type, values)):  # Python takes true for 1
        values = values.map(lambda value: None if isinstance(value, bool) else value).astype(object)
    numbers = pd.Series(to_floats(values), index=values.index)
    return numbers.where(np.isfinite(numbers) & (numbers >= low) & (numbers <= high))


def _as_date(values: pd.Series) -> pd.Series:
    """UTC times to the second from ISO 8601 or epoch seconds; from milliseconds, as pandas and JavaScript write them, where
    most numbers are too large for seconds. NaT unless between EARLIEST and LATEST."""
    seconds = as_number(values)
    if (seconds.dropna() >= LATEST.timestamp()).mean() > 0.5:
        seconds /= 1000
    possible = seconds.between(EARLIEST.timestamp(), LATEST.timestamp(), inclusive="left")
    epochs = seconds.where(possible, 0).astype(np.int64).to_numpy().astype("datetime64[s]")
    dates = pd.Series(epochs, index=values.index).dt.tz_localize("UTC").where(possible)
    rest = seconds.isna().to_numpy(copy=True)
    rest[rest] = [isinstance(value, str) and value.strip().lower() not in MISSING for value in values[rest]]
    if rest.any():
        parsed = pd.to_datetime(values[rest].str.strip(), format="ISO8601", errors="coerce", utc=True)
        dates[rest] = parsed.where(parsed.between(EARLIEST, LATEST, inclusive="left")).dt.as_unit("s")
    return dates


def _as_minutes(values: pd.Series) -> pd.Series:
    """Offsets in minutes: "+01:00" -> 60; bare numbers are hours where none is larger than an hour can be, as in 2020."""
    minutes = as_number(values, -LARGEST, LARGEST)
    if minutes.between(-MOST_HOURS, MOST_HOURS).sum() == minutes.notna().sum():
        minutes = 60 * minutes
    clock = values.astype(str).str.extract(r"^\s*(?P<sign>[+-])(?P<h>\d{1,2}(?=:)|\d{2}):?(?P<m>[0-5]\d)\s*$")
    from_clock = clock["h"].astype(float) * 60 + clock["m"].astype(float)
    return minutes.where(clock["h"].isna(), from_clock * np.where(clock["sign"] == "-", -1, 1))


def _number_lists(column: Column) -> tuple[np.ndarray, np.ndarray] | None:
    """Float32 arrays of one length, None where there is no such list, and (n,) bool where another text stands instead.

    None if the column holds texts and no comma-separated number lists.
    """
    values = pd.Series(column.distinct)
    codes, distinct = pd.factorize(values.where(values.notna(), "").astype(str).str.strip())
    codes = codes[column.codes]
    filled = [text for text in distinct if text.lower() not in MISSING]
    number_list = re.compile(r"(?:[-+.\deE]+\s*,\s*){7,}[-+.\deE]*")
    if not filled or not all(number_list.fullmatch(text) for text in filled[:50]):
        return None
    arrays = [_parse_number_list(text) for text in distinct]
    lengths = np.array([0 if array is None else len(array) for array in arrays])
    usual = np.bincount(lengths[codes][lengths[codes] > 0], minlength=1).argmax()
    arrays = [array if array is not None and len(array) == usual else None for array in arrays]
    lost = np.array(
        [array is None and text.lower() not in MISSING for array, text in zip(arrays, distinct, strict=True)]
    )
    return object_array(arrays)[codes], lost[codes]


def _parse_number_list(text: str) -> np.ndarray | None:
    try:
        with np.errstate(over="ignore"):
            array = np.array([item for item in text.split(",") if item.strip()], dtype=np.float32)
    except ValueError:
        return None
    return array if "," in text and np.isfinite(array).all() else None


def id_text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
