"""Pictures of the synthetic release: 77 motifs on coloured grounds, each post's quality drawn into the pixels.

A motif is what a subcategory looks like: the category gives the shape, the subcategory its hue, the texture of the
ground and how many of the shape there are. So a model can learn the 77 classes from pixels, as it could from real
photos.

The qualities, each in [0, 1], as they are rendered: contrast scales the pixels about their mean, clutter counts small
distracting blobs, sharpness undoes a Gaussian blur, subject_size is the radius of the motif.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

SIDE_PX = 96
BATCH = 64
JPEG_QUALITY = 85
N_TEXTURES = 7
GROUND_RGB = (
    (0.80, 0.20, 0.18), (0.95, 0.58, 0.20), (0.95, 0.87, 0.35), (0.35, 0.68, 0.32), (0.15, 0.58, 0.58),
    (0.22, 0.40, 0.80), (0.50, 0.28, 0.68), (0.95, 0.62, 0.74), (0.92, 0.92, 0.90), (0.12, 0.12, 0.14),
)  # fmt: skip
BROKEN_KINDS = ("empty", "truncated", "missing", "palette_png")  # one post in 2500 each, and at least one
MODES = {"L": 0.010, "CMYK": 0.004}  # shares of intact pictures that are greyscale and CMYK
CROPS = (((0, 0, 96, 96), 0.6), ((0, 12, 96, 84), 0.25), ((12, 0, 84, 96), 0.15))  # square, landscape, portrait


def write_pictures(posts: pd.DataFrame, paths: list[Path], motif_style: pd.DataFrame, seed: int) -> Iterator[int]:
    """Write one picture per post, some of them broken on purpose; yields how many are done after each batch.

    Args:
        posts: from kit.demo.posts.make_posts; read are motif, ground and the four qualities.
        paths: where each post's picture goes; folders must exist.
        motif_style: one row per subcategory with the columns shape, texture, layout and hue, see `motif_styles`.
        seed: of the release.
    """
    rng = np.random.default_rng([seed, zlib.crc32(b"pixels")])
    broken = _pick_broken(len(posts), rng)
    mode = rng.choice(["RGB", *MODES], len(posts), p=[1 - sum(MODES.values()), *MODES.values()])
    crop = rng.choice(len(CROPS), len(posts), p=[share for _, share in CROPS])
    n_done = 0
    for motif, members in posts.groupby("motif").indices.items():
        for rows in np.split(members, range(BATCH, len(members), BATCH)):
            batch = posts.iloc[rows]
            pixels = draw_batch(motif_style.iloc[motif], batch, rng)
            for row, array, sharpness in zip(rows, pixels, batch["sharpness"], strict=True):
                image = Image.fromarray(array).filter(ImageFilter.GaussianBlur(2.2 * (1 - sharpness)))
                content = _encode(image.crop(CROPS[crop[row]][0]).convert(mode[row]), broken.get(row))
                if content is not None:
                    paths[row].write_bytes(content)
            n_done += len(rows)
            yield n_done


def motif_styles(taxonomy: pd.DataFrame) -> pd.DataFrame:
    """The look of each subcategory, in taxonomy order: shape, texture, layout (codes) and hue in [0, 1)."""
    style = taxonomy[["category", "subcategory"]].drop_duplicates().reset_index(drop=True)
    member = style.groupby("category", sort=False).cumcount()
    style["shape"] = pd.factorize(style["category"])[0] % len(SHAPES)
    style["texture"], style["layout"] = member % N_TEXTURES, member // N_TEXTURES % len(LAYOUTS)
    style["hue"] = np.arange(len(style)) * 0.618034 % 1  # the golden ratio keeps neighbours apart
    return style


def draw_batch(style: pd.Series, posts: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Unblurred pictures of one motif, (n, 96, 96, 3) uint8."""
    n = len(posts)
    axis = np.linspace(-1, 1, SIDE_PX, dtype=np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    ground = _clip(np.array(GROUND_RGB)[posts["ground"]] + rng.normal(0, 0.035, (n, 3)))
    picture = _draw_ground(style["texture"], ground, x, y, rng)
    _stamp_clutter(picture, np.round(posts["clutter"].to_numpy() * 16).astype(int), rng)

    radius = _column(0.26 + 0.46 * posts["subject_size"])
    reach = np.maximum(0.68 - radius, 0.06)
    shift_x, shift_y = (reach * _column(rng.uniform(-1, 1, n)) for _ in range(2))
    angle = _column(rng.uniform(-0.3, 0.3, n))
    u, v = (x - shift_x) / radius, (y - shift_y) / radius
    u, v = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
    outside = _motif_distance(SHAPES[style["shape"]], LAYOUTS[style["layout"]], u, v)  # (n, 96, 96)
    edge_px = radius * SIDE_PX / 2
    inside, core = _clip(0.5 - outside * edge_px), _clip(0.5 - (outside + 0.14) * edge_px)

    colour = _subject_colour(style["hue"] + rng.normal(0, 0.015, n), ground)[:, None, None, :]  # (n, 1, 1, 3)
    shadow = np.roll(inside, (3, 2), axis=(1, 2))[..., None]
    picture *= 1 - 0.35 * shadow
    picture += (0.55 * colour - picture) * inside[..., None]  # a dark rim
    lit = _clip(colour * (1 - 0.22 * (u + v)[..., None]))
    picture += (lit - picture) * core[..., None]

    picture += (
        rng.standard_normal(picture.shape[:3], dtype=np.float32)[..., None]
        * _column(rng.uniform(0.005, 0.03, n))[..., None]
    )
    mean = picture.mean(axis=(1, 2, 3), keepdims=True)
    gain = _column(0.25 + 0.85 * posts["contrast"])[..., None]
    return (_clip(mean + gain * (picture - mean)) * 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------- shapes: negative is inside


def _star(x, y):
    return np.hypot(x, y) - (0.68 + 0.34 * (2 / np.pi) * np.arcsin(np.cos(5 * np.arctan2(x, -y))))


def _triangle(x, y):
    return np.maximum(0.9 * np.abs(x) - 0.5 * y - 0.45, y - 0.75)


def _heart(x, y):
    return (np.hypot(x, -y + 0.25 - 0.75 * np.sqrt(np.abs(x) + 1e-3)) - 0.92) * 0.8


def _drop(x, y):
    return np.minimum(np.hypot(x, y - 0.28) - 0.64, np.maximum(0.9 * np.abs(x) - 0.43 * (y + 0.98), y - 0.1))


def _plus(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.95, y - 0.32), np.maximum(y - 0.95, x - 0.32))


SHAPES = (
    _heart,
    lambda x, y: np.hypot(x, y) - 0.92,  # disc
    lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.78,  # square
    _star,
    lambda x, y: np.abs(np.hypot(x, y) - 0.70) - 0.25,  # ring
    _drop,
    _triangle,
    lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.72 - np.hypot(x - 0.42, y)),  # crescent
    lambda x, y: 1.25 * np.abs(x) + 0.8 * np.abs(y) - 0.85,  # diamond
    lambda x, y: np.maximum(0.866 * np.abs(x) + 0.5 * np.abs(y), np.abs(y)) - 0.82,  # hexagon
    _plus,
)


# Copies of the shape as (x, y, scale), relative to the radius.
LAYOUTS = (
    ((0.0, 0.0, 1.0),),
    ((-0.62, 0.45, 0.55), (0.62, 0.45, 0.55), (0.0, -0.58, 0.55)),
    (
        (0.0, 0.0, 0.38),
        (0.72, 0.0, 0.36),
        (0.22, 0.68, 0.36),
        (-0.58, 0.42, 0.36),
        (-0.58, -0.42, 0.36),
        (0.22, -0.68, 0.36),
    ),
)


def _motif_distance(shape, layout, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Roughly the distance to the motif's outline in units of its radius; negative inside."""
    distance = None
    for x, y, scale in layout:
        one = scale * shape((u - x) / scale, (v - y) / scale)
        distance = one if distance is None else np.minimum(distance, one)
    return distance


# ---------------------------------------------------------------------------------------------------- ground and colour


def _draw_ground(
    texture: int, ground: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Ground of each picture, (n, 96, 96, 3) float32: its colour, a two-tone texture and a slope of light."""
    n = len(ground)
    frequency, phase = _column(rng.uniform(8, 13, n)), _column(rng.uniform(0, 6.28, n))
    wave = _texture(texture, x, y, frequency, phase)
    tone = np.tanh(2.5 * wave) * _column(rng.uniform(0.07, 0.13, n))
    light = _column(rng.uniform(-0.12, 0.12, n)) * x + _column(rng.uniform(-0.12, 0.12, n)) * y
    bright = ground.mean(axis=1)[:, None, None, None]  # textures darken bright grounds and lighten dark ones
    amount = (tone + light)[..., None].astype(np.float32)
    return (ground[:, None, None, :] * (1 + 0.7 * amount) + 0.5 * amount - 0.1 * (bright - 0.5)).astype(np.float32)


def _texture(code: int, x, y, frequency, phase) -> np.ndarray:
    """One of seven textures, about -1 to 1, (n, 96, 96): plain, stripes in three directions, checks, dots, rings."""
    if code == 0:
        return np.zeros(np.broadcast_shapes(x.shape, y.shape, phase.shape), np.float32)
    if code == 1:
        return np.sin(frequency * y + phase) + 0 * x
    if code == 2:
        return np.sin(frequency * x + phase) + 0 * y
    if code == 3:
        return np.sin(0.75 * frequency * (x + y) + phase)
    if code == 4:
        return np.sin(0.8 * frequency * x + phase) * np.sin(0.8 * frequency * y + phase) * 2
    if code == 5:
        return (np.cos(1.2 * frequency * x + phase) + np.cos(1.2 * frequency * y + phase)) * 1.2 - 1.2
    return np.sin(1.2 * frequency * np.hypot(x, y) + phase)


def _stamp_clutter(picture: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> None:
    """Paint counts[i] small discs and blocks of any colour into picture i, in place."""
    owner = np.repeat(np.arange(len(counts)), counts)
    size = rng.integers(3, 7, len(owner))
    discs = {radius: _disc(radius) for radius in range(3, 7)}
    left, top = rng.integers(0, SIDE_PX - 13, (2, len(owner)))
    colour = rng.random((len(owner), 3))
    is_disc = rng.random(len(owner)) < 0.6
    for i, r, a, b, c, disc in zip(owner, size, top, left, colour, is_disc, strict=True):
        patch = picture[i, a : a + 2 * r + 1, b : b + 2 * r + 1]
        patch[discs[r] if disc else slice(None)] = c


def _disc(radius: int) -> np.ndarray:
    offset = np.arange(-radius, radius + 1)
    return np.hypot(offset[:, None], offset[None, :]) <= radius + 0.3


def _subject_colour(hue: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Saturated colours of the given hues, light or deep, whichever stands out from the ground; (n, 3)."""
    ramp = np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    pure = 1 - 0.85 * (1 - _clip(ramp))
    luma = np.array([0.3, 0.6, 0.1])
    gap_light, gap_deep = (np.abs(value * pure @ luma - ground @ luma) for value in (1.0, 0.45))
    return pure * np.where(gap_light >= gap_deep, 1.0, 0.45)[:, None]


# ---------------------------------------------------------------------------------------------------------------- files


def _pick_broken(n: int, rng: np.random.Generator) -> dict[int, str]:
    """Rows of the broken pictures with what is wrong with each."""
    rows = rng.permutation(n)
    each = max(1, n // 2500)
    return {int(row): BROKEN_KINDS[i // each] for i, row in enumerate(rows[: each * len(BROKEN_KINDS)])}


def _encode(image: Image.Image, broken: str | None) -> bytes | None:
    """The bytes of the file, None for no file at all."""
    if broken == "missing":
        return None
    if broken == "empty":
        return b""
    buffer = io.BytesIO()
    if broken == "palette_png":
        image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=32).save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    content = buffer.getvalue()
    return content[: len(content) // 2] if broken == "truncated" else content


def _column(values) -> np.ndarray:
    """One value per picture, shaped to meet (n, 96, 96)."""
    return np.asarray(values, np.float32)[:, None, None]


def _clip(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 1)
