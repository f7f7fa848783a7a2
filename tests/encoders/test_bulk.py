"""kit.encoders.bulk: rows equal the plain loop's, each distinct item is encoded once, an interruption costs one shard."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from kit.base import code, tasks
from kit.base.errors import InputError
from kit.base.files import read_json, write_first
from kit.base.paths import PROJECT_ROOT
from kit.encoders import job, precision
from kit.encoders.bulk import encode_images, encode_shard, encode_strings, encode_texts
from kit.encoders.job import Job, Shard
from kit.encoders.precision import probe_precision
from kit.release.images import MISSING, decode_image

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TEXTS = [
    "a cat",
    "",
    "a longer text about two dogs and a boat",
    "a cat",
    "x " * 90,
    "one",
    "two words",
    "",
    "a cat ",
] * 4


class CountingEncoder:
    """Mean colour of an image, or lengths of texts: counts what it is given; can fail at an item or run out of memory."""

    name, fingerprint, made_by, draft_px = "counting", "f1", "kit.encoders.encoders", 0

    def __init__(self, max_batch: int = 10**9):
        self.module, self.max_batch = nn.Linear(3, 4), max_batch
        self.seen, self.fail_at = [], None

    def transform(self, image):
        return np.asarray(image.resize((4, 4)))

    def tokenize(self, texts):
        self.seen += texts
        if self.fail_at in texts:
            raise KeyboardInterrupt
        return torch.tensor([[len(text), 1, 2] + [0] * 5 for text in texts])

    def lengths(self, ids):
        return torch.full((len(ids),), 3)

    def encode_batch(self, module, batch):
        if len(batch) > self.max_batch:
            raise torch.cuda.OutOfMemoryError("out of memory")
        means = batch.float().mean((1, 2)) if batch.ndim == 4 else batch[:, :3].float()
        return module(means.to(module.weight.dtype)).float()


@pytest.fixture(scope="module")
def clip():
    """A small random CLIP (imported here, because the processes of some tests import this file and need no open_clip)."""
    import open_clip

    from kit.encoders.clip import wrap_model

    torch.manual_seed(0)
    model = open_clip.model.CLIP(**CONFIG).eval()
    nn.init.normal_(model.positional_embedding, std=0.5)
    open_clip.model.set_model_preprocess_cfg(model, asdict(open_clip.transform.PreprocessCfg(size=32)))
    return wrap_model(model, open_clip.SimpleTokenizer(context_length=40), CONFIG, "small")


@pytest.fixture
def paths(tmp_path):
    """Image files of several sizes; 3 = copy of 0, 4 missing, 5 empty."""
    rng = np.random.default_rng(0)
    names = [tmp_path / f"{n}.png" for n in range(8)]
    for n in (0, 1, 2, 6, 7):
        Image.fromarray(rng.integers(0, 255, (40 + n, 50, 3), dtype=np.uint8)).save(names[n])
    names[3].write_bytes(names[0].read_bytes())
    names[5].touch()
    return [str(name) for name in names]


def test_texts_equal_the_plain_loop(clip, tmp_path):
    expected = torch.cat([clip.model.encode_text(clip.text.tokenize([text]), normalize=True) for text in TEXTS])
    encoder = clip.text_encoder()
    exact, _ = encode_strings(encoder, encoder.module, TEXTS, 2, "cpu")
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    found = encode_texts(TEXTS, encoder, tmp_path, batch_size=3, shard_size=4)
    assert found.dtype == np.float16 and found.shape == (len(TEXTS), 24)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_images_equal_the_plain_loop(clip, paths, tmp_path):
    images = [clip.preprocess(decode_image(path)[0])[None] for path in paths]
    expected = torch.cat([clip.model.encode_image(image, normalize=True) for image in images])
    found = encode_images(paths, clip.image_encoder(), tmp_path / "out", max_bad_share=0.5, batch_size=2, shard_size=3)
    np.testing.assert_allclose(found.values, expected, atol=1e-3)
    assert found.ok.tolist() == [True] * 4 + [False] * 2 + [True] * 2
    assert found.reasons.tolist() == [""] * 4 + [MISSING, "empty file"] + [""] * 2


def test_each_distinct_item_is_encoded_once(paths, tmp_path, monkeypatch):
    encoder = CountingEncoder()
    values = encode_texts(TEXTS, encoder, tmp_path / "t", shard_size=3)
    assert sorted(encoder.seen) == sorted(set(TEXTS))
    np.testing.assert_array_equal(values[0], values[3])
    calls = []
    monkeypatch.setattr(encoder, "transform", lambda image: calls.append(1) or np.zeros((4, 4, 3), np.uint8))
    encode_images(paths * 3, encoder, tmp_path / "i", max_bad_share=0.5)
    assert len(calls) == 7  # 0 (= 3), 1, 2, 6, 7, one missing and one empty file


def test_too_many_missing_images_fail_before_any_encoding(paths, tmp_path):
    encoder = CountingEncoder()
    encoder.encode_batch = None
    with pytest.raises(InputError, match="2 of 8 images cannot be read"):
        encode_images(paths, encoder, tmp_path / "i", max_bad_share=0.2)


def test_an_interruption_loses_only_its_shard(tmp_path):
    encoder = CountingEncoder()
    texts = [f"{'w' * n}" for n in range(1, 21)]
    encoder.fail_at = texts[13]
    with pytest.raises(KeyboardInterrupt):
        encode_texts(texts, encoder, tmp_path, shard_size=4)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["00000.npz", "00001.npz", "00002.npz"]
    encoder.seen, encoder.fail_at = [], None
    values = encode_texts(texts, encoder, tmp_path, shard_size=4)
    assert encoder.seen == texts[12:]
    np.testing.assert_array_equal(values, encode_texts(texts, encoder, tmp_path / "fresh", shard_size=20))


KILLED = """
import time
import torch
from torch import nn
from kit.encoders.bulk import encode_texts
class Slow:
    name, fingerprint, made_by, module = "slow", "f", "kit.encoders.encoders", nn.Linear(1, 2)
    def tokenize(self, texts): return torch.tensor([[len(text)] for text in texts])
    def lengths(self, ids): return torch.ones(len(ids), dtype=torch.long)
    def encode_batch(self, module, ids):
        time.sleep(0.02)
        return ids.float().repeat(1, 2)
values = encode_texts(["w" * n for n in range(400)], Slow(), FOLDER, batch_size=1, shard_size=20, precision="float32")
print(values.sum(dtype=float))
"""


def test_a_killed_process_is_resumed(tmp_path):
    script = KILLED.replace("FOLDER", repr(str(tmp_path / "shards")))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "shards").glob("[0-9]*.npz"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("[0-9]*.npz")}
    assert 3 <= len(before) < 20
    again = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120
    )
    assert float(again.stdout.split()[-1]) == 2 * sum(range(400))
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


def test_other_weights_or_items_start_over_and_spare_other_files(tmp_path):
    encoder = CountingEncoder()
    (tmp_path / "notes.txt").write_text("mine")
    first = encode_texts(["a", "bb"], encoder, tmp_path)
    encoder.seen = []
    encode_texts(["a", "bb"], encoder, tmp_path)
    assert encoder.seen == []
    encoder.fingerprint, encoder.module = "f2", nn.Linear(3, 4)
    second = encode_texts(["a", "bb"], encoder, tmp_path)
    assert encoder.seen == ["a", "bb"] and not np.array_equal(first, second)
    assert encode_texts(["ccc"], encoder, tmp_path).shape == (1, 4)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_encode_shard_is_idempotent(tmp_path):
    encoder = CountingEncoder()
    one = Job(encoder, encode_strings, 3, ["bb"], tmp_path, 2, "cpu")
    path = encode_shard(one, Shard(1, ["ccc"]))
    when = path.stat().st_mtime_ns
    assert encode_shard(one, Shard(1, ["ccc"])) == path and path.stat().st_mtime_ns == when and encoder.seen == ["ccc"]


@pytest.fixture
def two_cores(monkeypatch):
    """Two tasks of one core side by side."""
    monkeypatch.setattr(tasks, "usable_cores", lambda: 2)


def test_two_workers_give_what_one_gives(tmp_path, two_cores):
    texts, encoder = ["w" * n for n in range(70)], CountingEncoder()
    two = encode_texts(texts, encoder, tmp_path / "two", shard_size=10, cpus=1)
    assert encoder.seen == []  # the work was done elsewhere
    np.testing.assert_array_equal(two, encode_texts(texts, encoder, tmp_path / "one", shard_size=10))


class Dying(CountingEncoder):
    """Its process is killed once, in the middle of a shard."""

    def __init__(self, marker):
        super().__init__()
        self.marker = marker

    def encode_batch(self, module, batch):
        if len(list(self.marker.parent.glob("shards/[0-9]*.npz"))) >= 4 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_batch(module, batch)


def test_a_killed_worker_costs_its_shard(tmp_path, two_cores, capfd):
    texts, encoder = ["w" * n for n in range(120)], Dying(tmp_path / "killed")
    encode_texts(texts, encoder, tmp_path / "shards", shard_size=10, cpus=1)
    assert encoder.marker.exists() and "SIGKILL" in capfd.readouterr().out
    encode_texts(texts, encoder, tmp_path / "plain", shard_size=10)
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert len(names) == 14 and names == {path.name for path in (tmp_path / "shards").iterdir()}  # no temporary is left
    for name in names:
        assert (tmp_path / "shards" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_what_a_worker_raises_reaches_the_caller(tmp_path, two_cores):
    encoder = CountingEncoder()
    encoder.module.weight.data.fill_(1e6)
    with pytest.raises(Exception, match="precision='float32'"):
        encode_texts(["a", "bb", "ccc"], encoder, tmp_path, shard_size=1, cpus=1)


def test_a_batch_too_large_for_memory_is_halved(tmp_path):
    texts = [f"{'w' * n}" for n in range(30)]
    small, large = CountingEncoder(max_batch=4), CountingEncoder()
    small.module = large.module
    np.testing.assert_array_equal(
        encode_texts(texts, small, tmp_path / "a"), encode_texts(texts, large, tmp_path / "b")
    )
    small.max_batch = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        encode_texts(texts, small, tmp_path / "c")


def test_values_beyond_float16_are_an_error(tmp_path):
    encoder = CountingEncoder()
    encoder.module.weight.data.fill_(1e6)
    with pytest.raises(ArithmeticError, match="precision='float32'"):
        encode_texts(["a"], encoder, tmp_path)
    assert not list(tmp_path.glob("*.npz"))


class Timed(CountingEncoder):
    """Sleeps by precision, and turns its features by an angle in half precision."""

    def __init__(self, seconds, angle):
        super().__init__()
        self.seconds, self.angle = seconds, angle

    def encode_batch(self, module, batch):
        half = module.weight.dtype == torch.bfloat16
        time.sleep(self.seconds[half])
        turned = torch.tensor([np.cos(self.angle), np.sin(self.angle)] if half else [1.0, 0.0])
        return turned.repeat(len(batch), 1)


@pytest.mark.parametrize("seconds, angle, chosen", [
    ((0.10, 0.04), 0.01, "bfloat16"),
    ((0.10, 0.04), 0.10, "float32"),  # cosine 0.995
    ((0.04, 0.10), 0.01, "float32"),
    ((0.10, 0.095), 0.0, "float32"),  # within noise
])  # fmt: skip
def test_probe_takes_half_precision_only_where_faster_and_equal(tmp_path, seconds, angle, chosen):
    found, words = probe_precision(Job(Timed(seconds, angle), encode_strings, 3, ["a", "b"], tmp_path, 2, "cpu"))
    assert found == chosen
    assert f"cosine {np.cos(angle):.5f}" in words


def test_half_precision_run_keeps_its_choice_when_resumed(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "MIN_PROBE_ITEMS", 1)
    monkeypatch.setattr(precision, "probe_precision", lambda job: ("bfloat16", "as told"))
    texts = [f"text number {n}" for n in range(20)]
    found = encode_texts(texts, clip.text_encoder(), tmp_path, shard_size=10)
    assert "bfloat16 on cpu (as told)" in capsys.readouterr().out
    exact = encode_texts(texts, clip.text_encoder(), tmp_path / "exact", precision="float32")
    cosine = F.cosine_similarity(torch.tensor(found).float(), torch.tensor(exact).float())
    assert 0.99 < cosine.min() < 1 - 1e-6
    assert next(clip.model.parameters()).dtype == torch.float32  # the model itself is not cast
    monkeypatch.setattr(precision, "probe_precision", lambda job: pytest.fail("probed again"))
    (tmp_path / "00001.npz").unlink()
    again = encode_texts(texts, clip.text_encoder(), tmp_path, shard_size=10)
    np.testing.assert_allclose(again, found, atol=0.02)  # bfloat16 on several threads


def edit_kit(monkeypatch, folder, name, old, new):
    """From here on the kit's code is read from a copy of it in which one file is edited."""
    shutil.copytree(PROJECT_ROOT / "kit", folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    monkeypatch.setattr(code, "PACKAGE", folder)


def test_shards_of_other_code_are_made_again(tmp_path, monkeypatch):
    encoder = CountingEncoder()
    before = encode_texts(["a", "bb"], encoder, tmp_path / "s")
    plain = CountingEncoder.encode_batch
    monkeypatch.setattr(CountingEncoder, "encode_batch", lambda *given: 2 * plain(*given))  # what an edit does
    np.testing.assert_array_equal(encode_texts(["a", "bb"], encoder, tmp_path / "s"), before)  # no file was edited
    edit_kit(monkeypatch, tmp_path / "kit", "encoders/encoders.py", "F.normalize(", "2 * F.normalize(")
    np.testing.assert_allclose(encode_texts(["a", "bb"], encoder, tmp_path / "s"), 2 * before, rtol=1e-3)


def test_float32_shards_of_another_device_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "MIN_PROBE_ITEMS", 1)
    monkeypatch.setattr(precision, "probe_precision", lambda job: (chosen, "as told"))
    for chosen, kept in (("float32", True), ("bfloat16", False)):
        encoder, folder = CountingEncoder(), tmp_path / chosen
        encode_texts(["a", "bb", "ccc", "dddd"], encoder, folder, shard_size=2)
        settled = json.loads((folder / "precision.json").read_text())
        (folder / "precision.json").write_text(json.dumps({**settled, "device": "cuda"}))  # they come from a GPU
        encoder.seen = []
        encode_texts(["a", "bb", "ccc", "dddd"], encoder, folder, shard_size=2)
        assert encoder.seen == []  # complete
        (folder / "00001.npz").unlink()
        encode_texts(["a", "bb", "ccc", "dddd"], encoder, folder, shard_size=2)
        assert sorted(encoder.seen) == (["ccc", "dddd"] if kept else ["a", "bb", "ccc", "dddd"])


def test_the_first_finding_stays(tmp_path):
    for found in ("float16", "float32"):
        write_first(tmp_path / "precision.json", {"precision": found})
    assert [path.name for path in tmp_path.iterdir()] == ["precision.json"]
    assert read_json(tmp_path / "precision.json") == {"precision": "float16"}


def test_a_network_is_cast_once_per_process(clip, tmp_path, monkeypatch):
    casts, cast = [], job.cast_module
    monkeypatch.setattr(job, "cast_module", lambda *given: casts.append(given[1:]) or cast(*given))
    sent = Job(clip.text_encoder(), encode_strings, 6, TEXTS[:2], tmp_path, 2, "cpu", "bfloat16")
    for index in range(3):
        encode_shard(pickle.loads(pickle.dumps(sent)), Shard(index, TEXTS[2 * index : 2 * index + 2]))
    assert casts == [("cpu", "bfloat16")]
    job.forget_networks()


# --- on a card --------------------------------------------------------------------------------------------------------


def on_gpus(n):
    found = torch.cuda.device_count()
    return pytest.mark.skipif(found < n, reason=f"needs {n} CUDA device{'s' * (n > 1)}, {found} found")


@pytest.mark.gpu
@on_gpus(1)
def test_gpus_give_what_the_cpu_gives(clip, paths, tmp_path):
    """All that there are: with two or more, each is given to a process of its own."""
    texts = [f"text number {n}" for n in range(40)]
    for wanted, tolerance in (("float32", 2e-3), ("float16", 1e-2)):
        options = {"shard_size": 5, "precision": wanted}
        found = encode_texts(texts, clip.text_encoder(), tmp_path / wanted / "t", **options)
        exact = encode_texts(texts, clip.text_encoder(), tmp_path / "t", precision="float32", device="cpu")
        np.testing.assert_allclose(found, exact, atol=tolerance)
        options = {"shard_size": 2, "max_bad_share": 0.5, "precision": wanted}
        found = encode_images(paths, clip.image_encoder(), tmp_path / wanted / "i", **options)
        exact = encode_images(paths, clip.image_encoder(), tmp_path / "i", 0.5, precision="float32", device="cpu")
        np.testing.assert_allclose(found.values, exact.values, atol=tolerance)


@pytest.mark.gpu
@on_gpus(1)
def test_probe_on_a_gpu(clip, tmp_path):
    texts = [f"text number {n}" for n in range(300)]
    found, words = probe_precision(Job(clip.text_encoder(), encode_strings, 300, texts[:256], tmp_path, 256, "cuda:0"))
    assert found in ("float32", "float16", "bfloat16") and "float16" in words and "bfloat16" in words


@pytest.mark.gpu
@on_gpus(1)
def test_a_model_whose_tower_is_on_a_gpu_is_saved_as_from_the_cpu(clip, tmp_path):
    from kit.encoders.clip import load_clip, save_clip

    clip.text.to("cuda")
    try:
        save_clip(clip, tmp_path)
    finally:
        clip.text.to("cpu")
    assert load_clip(f"local-dir:{tmp_path}").fingerprint == clip.fingerprint
