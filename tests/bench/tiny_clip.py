"""What the bundled tiny CLIP learns in its minute: zero-shot subcategory accuracy on the test posts of a release.

    python -m tests.bench.tiny_clip --data inputs/demo

Prints the training time and how many times more often than chance (1 / number of subcategories) the class whose name is
nearest to the image is the right one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from kit.clip_ft.zero_shot import zero_shot_classes
from kit.encoders.bulk import encode_images, encode_texts
from kit.encoders.tiny import train_tiny
from kit.release.smpd import read_release
from kit.release.taxonomy import prompt_names
from kit.release.texts import post_texts


def main() -> None:
    """Train, encode and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.tiny_clip",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="folder of a release")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    posts = read_release(arguments.data)
    texts = post_texts(posts)
    is_test = (posts["split"] == "test").to_numpy()
    subcategories = sorted(posts["Subcategory"].astype(str).unique())
    target = np.array([subcategories.index(name) for name in posts["Subcategory"].astype(str)])[is_test]
    with tempfile.TemporaryDirectory() as folder:
        started, started_cpu = time.perf_counter(), time.process_time()
        train = posts[~is_test]
        clip = train_tiny(train["image_path"].tolist(), texts[~is_test].tolist(), Path(folder) / "tiny", arguments.seed)
        print(f"trained on {len(train):,} posts in {time.perf_counter() - started:.0f} s "
              f"({time.process_time() - started_cpu:.0f} s of processor time)")  # fmt: skip
        images = encode_images(
            posts["image_path"][is_test].tolist(), clip.image_encoder(), Path(folder) / "images"
        ).values
        captions = encode_texts(texts[is_test].tolist(), clip.text_encoder(), Path(folder) / "texts")
    for template in ("{}", "a photo of a {}."):
        classes = zero_shot_classes(clip.text, prompt_names(subcategories), template).numpy()
        for what, values in (("image", images), ("text", captions)):
            accuracy = float(((values.astype(np.float32) @ classes.T).argmax(1) == target).mean())
            print(
                f"zero-shot by {what}, template '{template}': {accuracy:.3f} = {accuracy * len(subcategories):.1f} x chance"
            )


if __name__ == "__main__":
    main()
