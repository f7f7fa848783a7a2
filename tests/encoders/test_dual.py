"""smp-dual: heads bring what belongs together into one space, the model is one like any other, auto takes the best there is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kit.base.errors import InputError, StepLeftOut
from kit.base.files import read_json, write_json
from kit.encoders import align, weights
from kit.encoders.align import Pairs, align_and_judge, encode_pairs
from kit.encoders.bulk import encode_images, encode_texts
from kit.encoders.clip import load_clip, save_clip, wrap_model
from kit.encoders.model import open_model
from kit.encoders.pairs import agreement, make_pairs, recall
from kit.encoders.precision import PRECISION_FILE, found_precision
from kit.encoders.registry import CLIP, DUAL, DUAL_NETWORKS, NETWORKS
from kit.run.directory import Run
from tests.encoders.test_bulk import edit_kit
from tests.tiny import tiny_posts
from tests.tiny_networks import save_dual, small_dual

TAG = "laion2b_s34b_b79k"


def make_vectors(n=600, n_authors=120, seed=0, noise=0.5) -> Pairs:
    """Images and texts that share 6 of their directions; texts of norm 1, as a text network gives them."""
    rng = np.random.default_rng(seed)
    turn_image, turn_text = (np.random.default_rng(9 + i).standard_normal((20, d)) for i, d in enumerate((40, 30)))
    shared = rng.standard_normal((n, 6))
    image, text = (
        np.hstack([shared, noise * rng.standard_normal((n, 14)) + 3]) @ turn for turn in (turn_image, turn_text)
    )
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return Pairs(image.astype(np.float32), text.astype(np.float32), np.arange(n), rng.integers(0, n_authors, n))


def recall_of(aligned, pairs, k=10):
    return recall(encode_pairs(aligned.image, aligned.text, pairs))[f"recall@{k}"]


# --- the heads --------------------------------------------------------------------------------------------------------


def test_the_closed_form_finds_what_is_shared_and_nothing_in_shuffled_pairs():
    fit, other = make_vectors(), make_vectors(seed=1)
    aligned, shuffled = align.align(fit), align.align(fit.shuffled(0))
    chance = 10 / len(other)
    assert recall_of(aligned, other) > 20 * chance and recall_of(shuffled, other) < 5 * chance
    assert len(aligned.image.adapters) == 0 and aligned.how.startswith("CCA with shrinkage") and aligned.logit_scale > 2


def test_without_shrinkage_the_closed_form_is_cca():
    """Directions of both sides correlate as the canonical correlations of scikit-learn do."""
    from sklearn.cross_decomposition import CCA

    fit = make_vectors(n=2000)
    heads = align._cca(fit, 1e-6, unit_text=True)
    x, y = (head(torch.from_numpy(v)).detach().numpy() for head, v in zip(heads, (fit.image, fit.text), strict=True))
    found = [np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(4)]
    u, v = CCA(4, max_iter=5000).fit(fit.image, fit.text).transform(fit.image, fit.text)
    np.testing.assert_allclose(found, [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(4)], atol=0.01)
    np.testing.assert_allclose(
        x.var(axis=0)[:4], found, atol=0.02
    )  # each side weighted by the root: its variance is the correlation


def test_adapters_start_at_the_closed_form_and_learn_what_no_linear_map_can(monkeypatch):
    monkeypatch.setattr(align, "ADAPTERS_FROM", 1000)

    def make(seed):
        pairs = make_vectors(3000, 900, seed)
        image = pairs.image.copy()
        image[:, :20] = np.abs(image[:, :20])  # folded
        return Pairs(image, pairs.text, pairs.text_id, pairs.author)

    fit, other = make(0), make(1)
    start = align._cca(fit, 0.1, unit_text=True)
    same = align._with_adapter(start[0])
    np.testing.assert_array_equal(same.encode(fit.image[:50]), start[0].encode(fit.image[:50]))
    trained = align.align(fit)
    assert "adapters of step" in trained.how and len(trained.text.adapters) == 1
    monkeypatch.setattr(align, "ADAPTERS_FROM", 10**9)
    assert recall_of(trained, other) > recall_of(align.align(fit), other)


def test_a_batch_holds_no_author_twice_and_shared_texts_are_no_rivals():
    pairs = make_vectors(400, 60)
    draw = align._batches(pairs, np.random.default_rng(0))
    for _ in range(5):
        one, two, share = next(draw)
        assert len(np.unique(pairs.author[np.concatenate([one, two])])) == len(one) + len(two) and 0 <= share <= 1
    heads = tuple(align._with_adapter(head) for head in align._cca(pairs, 0.1, unit_text=True))
    white = [head.whiten(align._input(head, v)) for head, v in zip(heads, (pairs.image, pairs.text), strict=True)]
    one, two, scale = np.arange(0, 20), np.arange(20, 40), torch.tensor(2.0)
    alone = align._mixed_loss(heads, white, np.arange(400), one, two, 0.7, scale)
    text_id = np.arange(400)
    text_id[20:40] = 20  # all share a text: no pair has a rival left
    assert align._mixed_loss(heads, white, text_id, one, two, 0.7, scale).item() == pytest.approx(0, abs=1e-6)
    assert alone.item() > 0.05


def test_the_same_seed_gives_the_same_heads_and_they_are_kept_until_pairs_or_code_change(tmp_path, monkeypatch):
    fit, judged = make_vectors(), make_vectors(seed=1)
    first, shuffled = align_and_judge(fit, judged, tmp_path / "a", seed=1)
    again, _ = align_and_judge(fit, judged, tmp_path / "b", seed=1)
    assert torch.equal(first.image.project.weight, again.image.project.weight) and shuffled["candidates"] == 600
    calls = []
    monkeypatch.setattr(align, "align", lambda *_: calls.append(1) or first)
    kept, found = align_and_judge(fit, judged, tmp_path / "a", seed=1)
    assert calls == [] and found == shuffled
    assert torch.equal(kept.text(torch.from_numpy(fit.text)), first.text(torch.from_numpy(fit.text)))
    align_and_judge(fit, judged, tmp_path / "a", seed=2)
    align_and_judge(fit.take(np.arange(500)), judged, tmp_path / "a", seed=2)
    edit_kit(monkeypatch, tmp_path / "kit", "encoders/align.py", "LEARNING_RATE, WEIGHT_DECAY", "RATE, WEIGHT_DECAY")
    align_and_judge(fit.take(np.arange(500)), judged, tmp_path / "a", seed=2)
    assert len(calls) == 6


def test_too_few_pairs_are_refused():
    with pytest.raises(InputError, match="39 train posts.*needed: take --profile quick"):
        align.align(make_vectors(39, 20))


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_need_an_image_a_letter_and_a_text_of_their_own():
    texts = np.array(["a cat", "", "123 !", *["same"] * 6, "x", "a cat"], dtype=object)
    ok = np.ones(11, dtype=bool)
    ok[9] = False
    pairs = make_pairs(np.eye(11), np.eye(11), ok, texts, pd.Series(list("abcdefghijk")), np.arange(11))
    assert len(pairs) == 2 and pairs.text_id.tolist() == [0, 0] and pairs.image[1, 10] == 1


def test_recall_counts_the_own_text_among_the_nearest():
    n = 40
    image = np.eye(n, dtype=np.float32)
    text = np.roll(image, 1, axis=0) * 0.5 + image  # its own is the nearest, then the next one's
    pairs = Pairs(image, text, np.arange(n), np.arange(n))
    found = recall(pairs)
    assert found == {"candidates": n, "recall@1": 1, "recall@10": 1, "chance@1": 1 / n, "chance@10": 10 / n}
    wrong = recall(Pairs(image, np.roll(image, 1, axis=0), np.arange(n), np.arange(n)))
    assert wrong["recall@1"] == 0
    assert (
        recall(Pairs(image, text, np.zeros(n, int), np.arange(n)))["candidates"] == 1
    )  # equal texts are one candidate


@pytest.mark.parametrize(
    ("recall_at_10", "said"), [(0.06, "agree: .* 6.0 times"), (0.04, "DO NOT agree .*4.0 times.*What follows")]
)
def test_below_five_times_chance_it_is_said_that_image_and_text_do_not_agree(recall_at_10, said):
    found = {"candidates": 1000, "recall@1": 0.01, "recall@10": recall_at_10, "chance@1": 0.001, "chance@10": 0.01}
    table, words = agreement(found, found | {"recall@10": 0.011})
    assert pd.Series([words]).str.contains(said).all()
    assert table.loc["chance", "recall@10"] == 0.01 and table.loc["aligned on shuffled pairs", "recall@10"] == 0.011


def test_without_held_out_authors_nothing_is_claimed():
    none = Pairs(*(np.empty((0, 4), np.float32),) * 2, *(np.empty(0, int),) * 2)
    assert "not measured" in agreement(recall(none))[1]


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reader", "n_start"), [("minilm", 1), ("e5", 7)])  # [CLS]; [CLS] q ##u ##e ##r ##y [UNK]
def test_it_is_saved_and_loaded_like_any_model_and_a_changed_folder_is_refused(tmp_path, reader, n_start):
    clip = small_dual(tmp_path / "w", reader=reader)
    folder = save_clip(clip, tmp_path / "clip")
    loaded = load_clip(f"local-dir:{folder}")
    assert loaded.fingerprint == clip.fingerprint and loaded.config == clip.config
    assert small_dual(tmp_path / "elsewhere", reader=reader).fingerprint == clip.fingerprint
    texts = ["a cat", "", "word " * 90]
    ids = clip.text.tokenize(texts)
    assert ids.shape == (3, 28) and clip.text.can_truncate and not clip.text.is_causal
    assert loaded.text.n_start == clip.text.n_start == n_start
    with torch.no_grad():
        pooled, tokens, mask = loaded.text.encode_ids(ids)
        torch.testing.assert_close(pooled, clip.model.encode_text(ids), atol=1e-5, rtol=1e-5)
        short = loaded.text.encode_ids(ids[:1])  # cut to its own tokens
        torch.testing.assert_close(short[0], pooled[:1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(short[1], tokens[:1, : short[1].shape[1]], atol=1e-5, rtol=1e-5)
    assert mask.sum(dim=1).tolist() == clip.text.lengths(ids).tolist() == [n_start + 5, n_start + 1, 28]
    config = (folder / "open_clip_config.json").read_text()
    (folder / "open_clip_config.json").write_text(config.replace('"bicubic"', '"nearest"'))
    with pytest.raises(InputError, match="is not the model its fingerprint.json tells of"):
        load_clip(f"local-dir:{folder}")
    (folder / "open_clip_config.json").write_text(config)
    (folder / "open_clip_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="smp-dual model clip cannot be loaded"):
        load_clip(f"local-dir:{folder}")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A run of posts whose pictures have the colour that their text names, and the folder of small networks."""
    root = tmp_path_factory.mktemp("dual")
    posts, rng = tiny_posts(150, 40), np.random.default_rng(0)
    colours = {"red": (220, 40, 40), "green": (40, 200, 50), "blue": (30, 60, 220), "white": (240, 240, 240)}
    names = rng.choice(list(colours), len(posts))
    for row, name in enumerate(names):
        pixels = np.clip(rng.normal(colours[name], 30, (40, 52, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{row}.png")
    posts["image_path"] = [str(root / f"{row}.png") for row in range(len(posts))]
    posts.loc[3, "image_path"] = str(root / "gone.png")
    texts = np.array([f"{name} no {row}" for row, name in enumerate(names)], dtype=object)
    torch.manual_seed(0)  # of some random networks a feature is beyond float16
    save_dual(root / "weights")
    Run.open(root / "run", step="01_eda", write=True).write_posts(posts)
    return root, posts, texts


def opened(release, name="auto", weights_dir=None, seed=0, run_dir=None):
    root, posts, texts = release
    run = Run.open(run_dir or root / "run", step="02_prototypes", write=True)
    rows = np.flatnonzero(posts["split"] == "train")
    return open_model(
        run, posts, texts, rows[:120], rows[120:], name=name, pretrained=TAG, seed=seed,
        weights_dir=weights_dir or root / "weights",
    )  # fmt: skip


def test_features_of_a_run_are_those_of_the_saved_model(release, tmp_path):
    root, posts, texts = release
    model = opened(release)
    assert model.clip.name == DUAL and model.trained_here
    told = {"name": DUAL, "trained_here": True, "text_precision": "float32"}  # of so few no precision is looked for
    assert read_json(root / "run" / "clip" / "source.json") == told
    write_json(tmp_path / PRECISION_FILE, {"precision": "bfloat16"})
    assert found_precision(tmp_path) == "bfloat16"
    assert all(NETWORKS[network].model in model.external for network in DUAL_NETWORKS)
    loaded = load_clip(f"local-dir:{root / 'run' / 'clip'}")
    assert loaded.fingerprint == model.clip.fingerprint
    again = encode_images(posts["image_path"].tolist(), loaded.image_encoder(), tmp_path / "i", precision="float32")
    np.testing.assert_allclose(again.values, model.images.values, atol=0.01)
    assert not again.ok[3] and (again.ok == model.images.ok).all()
    np.testing.assert_allclose(
        encode_texts(texts.tolist(), loaded.text_encoder(), tmp_path / "t", precision="float32"), model.texts, atol=0.01
    )
    assert set(model.shuffled) >= {"recall@10", "candidates"}


def test_only_fitting_posts_are_learnt_from(release, monkeypatch):
    """Of held-out authors and test posts nothing reaches the fit."""
    seen, whole = [], align.align
    monkeypatch.setattr(align, "align", lambda pairs, seed: seen.append(pairs) or whole(pairs, seed))
    opened(release, seed=5)
    vectors = np.load(release[0] / "run" / "shards/encoders/minilm_texts/00000.npz")["values"].astype(np.float32)
    texts = sorted(release[2], key=len)  # the order of the shard
    fitted = {tuple(vectors[texts.index(text)]) for text in np.delete(release[2][:120], 3)}
    assert len(seen) == 2 and {tuple(row) for pairs in seen for row in pairs.text} == fitted


def test_auto_takes_a_clip_then_dual_then_says_what_is_missing(release, tmp_path, monkeypatch):
    root = release[0]
    usual = f"{CLIP.model} {TAG}"
    monkeypatch.setattr(weights, "_snapshot", lambda _: None)
    assert weights.choose_clip("auto", TAG, root / "weights") == DUAL
    watched = weights.clip_files("auto", TAG, root / "weights")
    assert {path.parent.name for path in watched} >= {NETWORKS[name].model.rpartition("/")[2] for name in DUAL_NETWORKS}
    by_hand = tmp_path / "ViT-B-32-laion2b_s34b_b79k.safetensors"
    assert root / "weights" / by_hand.name in watched, "a CLIP that is put there makes the step run again"
    assert weights.choose_clip("auto", TAG, root / "weights", download=True) == usual
    assert weights.choose_clip("auto", TAG, tmp_path) == usual
    parameters = {"clip_model": "auto", "pretrained": TAG, "weights_dir": str(tmp_path)}
    (lacking,) = weights.missing_of_step(parameters)
    assert usual in lacking and "python -m kit.encoders.packaged" in lacking and "\n" not in lacking
    assert weights.missing_of_step(parameters | {"weights_dir": str(root / "weights")}) == []
    by_hand.write_bytes(b"")
    assert weights.choose_clip("auto", TAG, tmp_path) == usual and weights.clip_files("auto", TAG, tmp_path) == [
        by_hand
    ]


def test_titles_in_other_letters_are_read_by_e5_where_it_is(release, tmp_path, capsys):
    """Its vectors are those of block `e5`; without its weights MiniLM reads, a line says so, and the step watches for them."""
    root, posts, texts = release
    other = posts.assign(Title=["红色的" if row % 3 else "red" for row in range(len(posts))])
    Run.open(tmp_path / "run", step="01_eda", write=True).write_posts(other)
    save_dual(tmp_path / "w", "minilm")
    before = opened((root, other, texts), weights_dir=tmp_path / "w", run_dir=tmp_path / "run")
    said = capsys.readouterr().out
    assert (
        "of the titles' letters are not Latin, and minilm knows none of them" in said
        and "kit.encoders.packaged e5" in said
    )
    assert NETWORKS["minilm"].model in before.external
    (there,) = weights.files_to_watch("e5", NETWORKS["e5"].model, tmp_path / "w")
    save_dual(tmp_path / "e5", "e5")
    (tmp_path / "e5" / "multilingual-e5-small").rename(there.parent)
    assert there.is_file()
    model = opened((root, other, texts), weights_dir=tmp_path / "w", run_dir=tmp_path / "run")
    assert NETWORKS["e5"].model in model.external and "minilm" not in model.external
    assert "knows none" not in capsys.readouterr().out and model.clip.fingerprint != before.clip.fingerprint
    assert (tmp_path / "run/shards/encoders/e5_texts/00000.npz").is_file()
    loaded = load_clip(f"local-dir:{tmp_path / 'run' / 'clip'}")
    assert loaded.text.n_start == 7
    np.testing.assert_allclose(
        encode_texts(texts.tolist(), loaded.text_encoder(), tmp_path / "t", precision="float32"), model.texts, atol=0.01
    )
    assert NETWORKS["minilm"].model in opened(release, weights_dir=tmp_path / "w").external, "these titles are Latin"


def test_weights_that_float16_holds_are_saved_in_it(tmp_path):
    clip = small_dual(tmp_path / "w")
    table = clip.model.text.transformer.get_input_embeddings().weight
    table.data = table.data.half().float()
    clip = wrap_model(clip.model, clip.text.tokenizer, clip.config["model_cfg"], clip.name)
    folder = save_clip(clip, tmp_path / "clip")
    saved = load_file(folder / "open_clip_model.safetensors")
    kept = {name for name, value in saved.items() if value.dtype == torch.float16}
    assert "text.transformer.embeddings.word_embeddings.weight" in kept and "text.proj.project.weight" not in kept
    loaded = load_clip(f"local-dir:{folder}")
    assert torch.equal(loaded.model.text.transformer.get_input_embeddings().weight, table)
    assert loaded.fingerprint == clip.fingerprint


def test_dual_without_its_networks_is_left_out_and_says_how_to_get_them(release, tmp_path):
    with pytest.raises(StepLeftOut, match="tf_efficientnet_lite0.*kit.encoders.packaged.*all-MiniLM-L6-v2"):
        opened(release, DUAL, weights_dir=tmp_path)
