"""Any image file as RGB pixels, or a grey stand-in and the reason why it could not be read.

Releases of this size always hold missing, empty and broken files. None of them stops a run: the post keeps its row, its
image becomes grey, and the reason is listed. Only when more than a stated share of the images is bad does the run stop,
because then the folder is at fault and not single files.

An image file is data from strangers: only plain files are opened, only common picture formats are decoded (no format that
needs another program, as EPS does), and nothing larger than stated here is read or decoded.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from kit.base.errors import InputError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_BYTES = 300_000_000  # of a file; Flickr takes photographs of up to 200 MB
MAX_PIXELS = 100_000_000  # after JPEG draft mode; a larger picture is taken for a decompression bomb
MAX_ASPECT = 20  # of a longer strip only the middle is kept: resizing its short side would make it huge
GREY = Image.new("RGB", (224, 224), (128, 128, 128))
NO_PATH, MISSING, EMPTY = "no image path", "missing file", "empty file"
NO_FILE, NO_IMAGE, TOO_LARGE = "not a plain file", "not an image", "too large a file"


def decode_image(path: str | os.PathLike, draft_px: int = 0) -> tuple[Image.Image, str]:
    """An image file as upright RGB and ``""``, or a grey image and the reason why the file cannot be used.

    Alpha is laid on white, 16 bits become 8, CMYK and palettes become RGB, the EXIF orientation is applied, of an animation
    the first frame is taken.

    Args:
        path: the file; ``""`` for a post without an image.
        draft_px: JPEG files larger than this on both sides may be decoded at 1/2, 1/4 or 1/8 of their size, but never below
            it (about three times faster for photographs; 0 decodes in full).
    """
    size = file_size(str(path))
    if isinstance(size, str):
        return GREY, size
    try:
        with open(path, "rb") as handle:
            content = handle.read()
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return _crop_strip(_upright_rgb(image, draft_px)), ""
    except FileNotFoundError:
        return GREY, MISSING
    except Exception as error:  # decoders raise nearly anything on broken files: OSError, SyntaxError, struct.error ...
        return GREY, _reason(error)


class ImageDataset:
    """Image files as fixed-size uint8 pixels: ``dataset[i]`` is ``(pixels (H, W, 3) uint8, reason)``.

    Args:
        paths: image files, in order.
        transform: makes pixels of one fixed shape (H, W, 3) uint8 out of an RGB image.
        draft_px: see ``decode_image``.
    """

    def __init__(self, paths: Sequence[str], transform: Callable[[Image.Image], np.ndarray], draft_px: int = 0):
        self.paths, self.transform, self.draft_px = paths, transform, draft_px

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        image, reason = decode_image(self.paths[index], self.draft_px)
        return self.transform(image), reason

    def batches(self, batch_size: int, n_threads: int = 1, ahead: int = 0) -> Iterator[tuple[np.ndarray, list[str]]]:
        """Pixels ``(B, H, W, 3)`` uint8 and reasons, in order.

        Threads suffice because Pillow and numpy work outside the interpreter lock; nothing is forked or pickled.

        Args:
            batch_size: images per batch, B (the last batch may be short).
            n_threads: images decoded at once.
            ahead: batches decoded while the caller works on an earlier one; 0 where the caller needs all cores itself.
        """
        with ThreadPoolExecutor(n_threads) as pool:
            waiting: deque = deque()
            for start in range(0, len(self), batch_size):
                rows = range(start, min(start + batch_size, len(self)))
                waiting.append([pool.submit(self.__getitem__, row) for row in rows])
                if len(waiting) > ahead:
                    yield _gather(waiting.popleft())
            while waiting:
                yield _gather(waiting.popleft())


def group_by_content(paths: Sequence[str], n_threads: int = 8) -> np.ndarray:
    """(n,) int64: for each file the index of the first file with the same bytes; unusable files group by their reason.

    Size and last 4 KiB settle nearly all files; only those that still look alike are read in full.
    """
    keys: list = [file_size(path) for path in paths]
    for read in (partial(_hash, last=4096), _hash):
        count = Counter(keys)
        alike = [row for row, key in enumerate(keys) if count[key] > 1 and not isinstance(key, str)]
        with ThreadPoolExecutor(n_threads) as pool:
            for row, more in zip(alike, pool.map(read, [paths[row] for row in alike]), strict=True):
                keys[row] = (keys[row], more)
    first: dict = {}
    return np.array([first.setdefault(key, row) for row, key in enumerate(keys)], dtype=np.int64)


def file_size(path: str) -> int | str:
    """Bytes of a file, or the reason why there is nothing to read (a pipe or a folder would never end, or never begin)."""
    if not path:
        return NO_PATH
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return MISSING
    if not stat.S_ISREG(found.st_mode):
        return NO_FILE
    return TOO_LARGE if found.st_size > MAX_BYTES else found.st_size or EMPTY


def file_state(path: str) -> str:
    """Why an image file cannot be used, as far as its first bytes tell ("" if they look well); nothing is decoded."""
    size = file_size(path)
    if isinstance(size, str):
        return size
    try:
        with open(path, "rb") as handle:
            return "" if handle.read(8).startswith(SIGNATURES) else NO_IMAGE
    except OSError as error:
        return _reason(error)


def check_bad_share(paths: Sequence[str], reasons: Sequence[str], max_share: float) -> None:
    """Stop when more than ``max_share`` of the images could not be read.

    Raises:
        InputError: with the number of bad files, their reasons and an example of each.
    """
    bad = [row for row, reason in enumerate(reasons) if reason]
    if len(bad) <= max_share * len(paths):
        return
    count = Counter(reasons[row] for row in bad)
    example = {reasons[row]: paths[row] for row in reversed(bad)}
    listing = "; ".join(f"{n:,} x {reason} (first: {example[reason] or '-'})" for reason, n in count.most_common(5))
    raise InputError(
        f"{len(bad):,} of {len(paths):,} images cannot be read, more than the {max_share:.0%} allowed: {listing}. "
        "Check that the image folder is complete and lies where the file list says, or allow a larger share."
    )


def bad_images(posts: pd.DataFrame, reasons: Sequence[str]) -> pd.DataFrame:
    """The posts whose image was replaced by grey: Uid, Pid, image_path, reason (for ``tables/bad_images.csv``)."""
    table = posts[["Uid", "Pid", "image_path"]].assign(reason=list(reasons))
    return table[table["reason"] != ""].reset_index(drop=True)


def _upright_rgb(image: Image.Image, draft_px: int) -> Image.Image:
    if draft_px:
        image.draft(None, (draft_px, draft_px))
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # an unreadable orientation tag is no reason to lose the picture
        pass
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit and float greys as 8 bits: Pillow's own conversion would clip everything above 255 to white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = values.max(initial=0)
    scale = 255 / 65535 if top > 255 else 1 if top > 1 or image.mode != "F" else 255
    return Image.fromarray(np.clip(values * scale, 0, 255).round().astype(np.uint8))


def _crop_strip(image: Image.Image) -> Image.Image:
    limit = MAX_ASPECT * min(image.size)
    if max(image.size) <= limit:
        return image
    left, top = ((side - min(side, limit)) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def _reason(error: Exception) -> str:
    """The reason in a few words, the same for all files that fail in the same way."""
    if isinstance(error, Image.UnidentifiedImageError):
        return NO_IMAGE
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return "too many pixels"
    if isinstance(error, OSError) and error.errno is not None:
        return f"unreadable ({error.strerror})"
    return "truncated or broken" if isinstance(error, OSError) else f"broken ({type(error).__name__})"


def _gather(pending: list) -> tuple[np.ndarray, list[str]]:
    pixels, reasons = zip(*(future.result() for future in pending), strict=True)
    return np.stack(pixels), list(reasons)


def _hash(path: str, last: int | None = None) -> bytes:
    """Of a file, or of its last bytes alone."""
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, os.path.getsize(path) - last) if last else 0)
            return hashlib.blake2b(handle.read(), digest_size=16).digest()
    except OSError:
        return path.encode()  # stands alone; decoding will tell why
