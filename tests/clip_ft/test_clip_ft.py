"""kit.clip_ft.model*: every equation against a slow re-writing, limits, training, resuming, two processes, export."""

import dataclasses
import math
import shutil

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from safetensors.torch import load_file

from kit.base import code
from kit.base.errors import InputError
from kit.clip_ft import cross_fit as cross_fitting
from kit.clip_ft import train as train_module
from kit.clip_ft.alignment import global_similarity, pool_local
from kit.clip_ft.cross_fit import cross_fit, score_shift, without_posts
from kit.clip_ft.export import PARTS, SCORES, compact_block, export_posts, full_columns, losses_table
from kit.clip_ft.jobs import Job, as_files, fit, open_job
from kit.clip_ft.model import ClipFT, class_losses
from kit.clip_ft.projection import CrossModalProjection, prototype_cosine
from kit.clip_ft.prompts import PromptLearner, encode_prompts
from kit.clip_ft.prototypes import Prototypes
from kit.clip_ft.texts import TextBank
from kit.clip_ft.train import (
    Settings,
    TrainingData,
    _Trainer,
    batch_and_rate,
    batches,
    build_model,
    evaluate,
    model_inputs,
    step_seconds,
    tower_dtype,
    train,
    training_key,
)
from kit.clip_ft.words import attended_words
from kit.clip_ft.zero_shot import probe_accuracy, zero_shot_accuracy, zero_shot_classes
from kit.encoders.clip import save_clip, wrap_model
from kit.encoders.pca import apply_pca, fit_pca
from kit.pipeline.stamps import code_hashes
from kit.pipeline.steps import notebooks
from tests.tiny_networks import small_dual

DIM, K = 16, 5
NAMES = ["cats", "san francisco 49ers", "new year", "party", "outfit of the day"]
TEXT_CFG = {"context_length": 28, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION_CFG = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
SMALL = Settings(epochs=2, batch_size=16, n_ctx=4, heads=4, dropout=0.0, lr=1e-3)


def make_clip(model_class=CLIP, **text_cfg):
    torch.manual_seed(0)
    config = {"embed_dim": DIM, "vision_cfg": VISION_CFG, "text_cfg": TEXT_CFG | text_cfg}
    model = model_class(**config)
    set_model_preprocess_cfg(model, {
        "size": (16, 16), "mode": "RGB", "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic",
        "resize_mode": "shortest", "fill_color": 0,
    })  # fmt: skip
    length = config["text_cfg"]["context_length"]
    return wrap_model(model, open_clip.SimpleTokenizer(context_length=length), config, "small")


@pytest.fixture(scope="module", params=["open_clip", "minilm", "e5"])
def clip(request, tmp_path_factory):
    """What has to hold of CLIP_FT holds over all: e5 of smp-dual reads a prefix before each text."""
    if request.param == "open_clip":
        return make_clip()
    return small_dual(tmp_path_factory.mktemp("dual"), DIM, request.param)


def make_posts(clip, n=120, seed=0, noise=0.4):
    """Bank, prototypes and data of n posts: images near their class's direction, texts that name their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % K
    centres = rng.standard_normal((K, DIM))
    image = (centres[labels] / 4 + noise * rng.standard_normal((n, DIM)) / 4).astype(np.float16)
    words = ["sea", "red", "old", "big", "light", "photo"]
    texts = [" ".join([NAMES[k], *rng.choice(words, rng.integers(0, 6))]) for k in labels]
    texts[3], texts[8] = "", "word " * 60
    shots = pd.DataFrame({"row": np.arange(40), "Subcategory": [f"c{k}" for k in labels[:40]]})
    unit = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    prototypes = Prototypes([f"c{k}" for k in range(K)], NAMES, unit.astype(np.float32), unit.astype(np.float32), shots)
    data = TrainingData(image, labels, np.arange(0, n - 40), np.arange(n - 40, n - 20))
    return TextBank(clip.text, texts), prototypes, data


@pytest.fixture
def posts(clip):
    return make_posts(clip)


def cosine(a, b):
    dot = sum(float(x * y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x * x) for x in a) * sum(float(y * y) for y in b))


# --- Eqs. 1-3: prompts and towers -------------------------------------------------------------------------------------

TOWERS = {
    "built-in": {}, "custom text": {"model_class": CustomTextCLIP},
    "no projection": {"proj_type": "none", "width": DIM},
    "linear projection": {"model_class": CustomTextCLIP, "proj_bias": True},
    "eos": {"model_class": CustomTextCLIP, "pool_type": "eos", "eos_id": 49407},
    "bidirectional": {"model_class": CustomTextCLIP, "no_causal_mask": True, "pool_type": "last"},
}  # fmt: skip


@pytest.mark.parametrize("options", TOWERS.values(), ids=TOWERS)
def test_class_embeddings_equal_one_prompt_at_a_time(options):
    tower = make_clip(**options).text
    assert tower.can_truncate == ("no_causal_mask" not in options)
    learners = [PromptLearner(tower, NAMES, n_ctx=6, seed=seed) for seed in (0, 1)]
    found = encode_prompts(tower, learners)
    for learner, class_emb in zip(learners, found, strict=True):
        for i, name in enumerate(NAMES):
            ids = tower.tokenize([f"X X X X X X {name}."])  # at full length, alone
            embeds = tower.embed(ids).clone()
            embeds[0, 1:7] = learner.ctx
            alone = tower.encode_embeds(embeds, ids)[0][0]
            torch.testing.assert_close(class_emb[i], alone / alone.norm(), atol=1e-5, rtol=0)
    assert not torch.allclose(*found)


def test_context_has_its_stated_distribution_and_seed(clip):
    first, same, other = (PromptLearner(clip.text, NAMES, 16, seed).ctx for seed in (0, 0, 1))
    assert first.shape == (16, 32) and first.std().item() == pytest.approx(0.02, rel=0.15)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_context_too_long_is_refused(clip):
    room = 28 - clip.text.n_start - 3
    PromptLearner(clip.text, NAMES, n_ctx=room)
    with pytest.raises(InputError, match=f"choose at most {room}"):
        PromptLearner(clip.text, NAMES, n_ctx=room + 1)


def test_zero_shot_classes_are_the_encoded_template(clip):
    found = zero_shot_classes(clip.text, NAMES)
    expected = clip.model.encode_text(clip.text.tokenize([f"a photo of a {name}." for name in NAMES]), normalize=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    labels = np.arange(K)
    assert zero_shot_accuracy(found.numpy(), found, labels, labels) == 1
    assert zero_shot_accuracy(-found.numpy(), found, labels, labels) == 0


def test_a_linear_probe_learns_from_other_folds_alone():
    rng = np.random.default_rng(0)
    labels, folds = np.arange(300) % 3, np.repeat([0, 1, 2, -1, -2], 60)
    features = np.eye(3)[labels] + 0.2 * rng.standard_normal((300, 3))
    rows = np.arange(0, 180, 2)
    assert probe_accuracy(features, labels, rows, folds) > 0.95
    turned = np.where(
        folds == 0, (labels + 1) % 3, np.where(folds == 2, -1, labels)
    )  # fold 1 can learn from fold 0 alone
    assert probe_accuracy(features, turned, np.arange(60, 120), folds) < 0.1
    assert np.isnan(probe_accuracy(features, labels, rows[:0], folds))


# --- Eqs. 4-5: similarities -------------------------------------------------------------------------------------------


def random_text(seed=0, batch=4, length=7):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, length, DIM, generator=generator)
    mask = torch.arange(length) < torch.tensor([7, 3, 1, 5])[:batch, None]
    return tokens, mask, torch.randn(K, DIM, generator=generator)


def test_global_similarity_is_the_cosine():
    pooled, _, class_emb = random_text()
    found = global_similarity(pooled[:, 0], class_emb)
    for b in range(4):
        for i in range(K):
            assert found[b, i].item() == pytest.approx(cosine(pooled[b, 0], class_emb[i]), abs=1e-5)


@pytest.mark.parametrize("tau_s", [0.02, 0.25, 3.0])
def test_pool_local_is_eq_5(tau_s):
    tokens, mask, class_emb = random_text()
    found = pool_local(tokens, mask, class_emb, tau_s)
    for b in range(4):
        for i in range(K):
            row = [cosine(tokens[b, j], class_emb[i]) for j in range(7) if mask[b, j]]
            weights = [math.exp(p / tau_s) for p in row]
            expected = sum(w * p for w, p in zip(weights, row, strict=True)) / sum(weights)
            assert found[b, i].item() == pytest.approx(expected, abs=1e-5)


def test_pool_local_limits_masking_and_permutation():
    tokens, mask, class_emb = random_text()
    p = (F.normalize(tokens, dim=-1) @ F.normalize(class_emb, dim=-1).T).masked_fill(~mask[..., None], -torch.inf)
    torch.testing.assert_close(pool_local(tokens, mask, class_emb, 1e-4), p.amax(dim=1), atol=1e-5, rtol=0)
    mean = p.masked_fill(~mask[..., None], 0).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(pool_local(tokens, mask, class_emb, 1e5), mean, atol=1e-5, rtol=0)

    found = pool_local(tokens, mask, class_emb)
    changed = torch.where(mask[..., None], tokens, 100 * torch.randn_like(tokens))
    torch.testing.assert_close(pool_local(changed, mask, class_emb), found)
    order = torch.randperm(7)
    torch.testing.assert_close(pool_local(tokens[:, order], mask[:, order], class_emb), found, atol=1e-6, rtol=0)
    assert pool_local(tokens.half(), torch.zeros_like(mask), class_emb).isfinite().all()


def test_text_bank_equals_the_tower_cached_or_not(clip):
    texts = np.array(["a red cat", "", "word " * 60, "a red cat", "sea"], dtype=object)
    for mask_sot in (True, False):
        first = clip.text.n_start if mask_sot else 0
        cached = TextBank(clip.text, texts, mask_sot=mask_sot, batch_size=2)
        fresh = TextBank(clip.text, texts, mask_sot=mask_sot, cache_share=0)
        assert cached.place == torch.device("cpu") and fresh.place is None and cached.n_distinct == 4
        assert cached.fingerprint == fresh.fingerprint
        assert list(cached.texts) == list(texts)
        for rows in (np.array([1]), np.array([4, 2, 1, 0, 3])):
            pooled, tokens, mask = cached.batch(rows)
            ids = clip.text.tokenize(list(texts[rows]))
            expected, all_tokens = clip.text.encode_embeds(clip.text.embed(ids), ids)
            torch.testing.assert_close(pooled.float(), F.normalize(expected, dim=-1), atol=1e-3, rtol=0)
            torch.testing.assert_close(fresh.batch(rows)[0], pooled, atol=1e-3, rtol=0)
            for b in range(len(rows)):
                end = int(clip.text.lengths(ids)[b]) - 1
                assert mask[b].nonzero().flatten().tolist() == list(range(first, end + 1))
                true_tokens = F.normalize(all_tokens[b, : end + 1], dim=-1)[first:]
                torch.testing.assert_close(tokens[b][mask[b]].float(), true_tokens, atol=1e-3, rtol=0)
                torch.testing.assert_close(fresh.batch(rows)[2][b], mask[b])


# --- Eqs. 6-7: cross-modal projection ---------------------------------------------------------------------------------


def random_sets(batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, DIM, generator=generator) for n in (batch, K, K))


def both(found):
    """x~, and V~ and T~ apart."""
    x, bank = found
    return x, bank.chunk(2, dim=1)


def attend_slowly(module, image, visual, textual):
    """Eq. 6 as written: per sample the 2K + 1 tokens through one ordinary multi-head self-attention layer."""
    attention = torch.nn.MultiheadAttention(DIM, module.heads, batch_first=True)
    attention.load_state_dict({
        "in_proj_weight": module.qkv.weight, "in_proj_bias": torch.zeros(3 * DIM),
        "out_proj.weight": module.out.weight, "out_proj.bias": module.out.bias,
    })  # fmt: skip
    results = []
    for x in image:
        tokens = torch.cat([
            module.visual_proj(F.normalize(x[None], dim=-1)), module.visual_proj(F.normalize(visual, dim=-1)),
            module.textual_proj(F.normalize(textual, dim=-1)),
        ])[None]  # fmt: skip
        attended = attention(tokens, tokens, tokens)[0]
        results.append(module.norm(tokens + attended)[0])
    out = torch.stack(results)
    return out[:, 0], out[:, 1:]


@pytest.mark.parametrize("options", [{}, {"share_projection": True}], ids=str)
def test_projection_equals_full_self_attention(options):
    torch.manual_seed(1)
    module = CrossModalProjection(DIM, heads=4, **options).eval()
    for parameter in module.parameters():  # away from the identity, so that every part shows
        torch.nn.init.normal_(parameter, std=0.6)
    sets = random_sets()
    for found, expected in zip(module(*sets), attend_slowly(module, *sets), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert [tuple(part.shape) for part in module(*sets)] == [(3, DIM), (3, 2 * K, DIM)]
    assert (module.visual_proj is module.textual_proj) == ("share_projection" in options)


def test_projection_is_permutation_equivariant_and_independent_per_sample():
    torch.manual_seed(0)
    module = CrossModalProjection(DIM, heads=2).eval()
    image, visual, textual = random_sets()
    x, (v, t) = both(module(image, visual, textual))
    order = torch.randperm(K)
    x2, (v2, t2) = both(module(image, visual[order], textual[order]))
    torch.testing.assert_close(x2, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(v2, v[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(t2, t[:, order], atol=1e-5, rtol=0)
    (alone, _) = both(module(image[1:2], visual, textual))[1]
    torch.testing.assert_close(alone[0], v[1], atol=1e-5, rtol=0)
    assert not torch.allclose(v[0], v[1]), "prototypes must see the sample's image"


def test_projection_is_scale_free_and_drops_only_in_training():
    module = CrossModalProjection(DIM, heads=2, dropout=0.5)
    image, visual, textual = random_sets()
    first, second = module(image, visual, textual)[0], module(image, visual, textual)[0]
    assert not torch.equal(first, second)
    module.eval()
    torch.testing.assert_close(module(3 * image, visual / 2, textual)[0], module(image, visual, textual)[0])
    with pytest.raises(InputError, match="choose one of 1, 2, 4, 8, 16"):
        CrossModalProjection(DIM, heads=3)


def test_prototype_cosines_of_shared_and_of_own_prototypes_agree():
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(3, DIM, generator=generator), torch.randn(3, K, DIM, generator=generator)
    assert prototype_cosine(x, v)[1, 2].item() == pytest.approx(cosine(x[1], v[1, 2]), abs=1e-5)
    torch.testing.assert_close(prototype_cosine(x, v[0]), prototype_cosine(x, v[:1].expand(3, -1, -1)))


# --- Eq. 8: the model and its loss ------------------------------------------------------------------------------------


def test_forward_is_the_equations_put_together(clip, posts):
    bank, prototypes, data = posts
    model = build_model(clip, prototypes, SMALL).eval()
    model.log_tau_t.data.fill_(math.log(0.2))
    image, pooled, tokens, mask = model_inputs(bank, data.image, np.arange(6))
    out = model(image, pooled, tokens, mask)
    global_emb, local_emb = model.class_embeddings()
    torch.testing.assert_close(out.global_cosine, global_similarity(pooled, global_emb))
    torch.testing.assert_close(out.local_cosine, pool_local(tokens, mask, local_emb, 0.02))
    x, (v, t) = both(attend_slowly(model.projection, image, model.visual, model.textual))
    logits = model.logits(out)
    for b in range(6):  # Eq. 7 with averaged logits, temperatures apart
        for i in range(K):
            expected = (cosine(x[b], v[b, i]) / 0.07 + cosine(x[b], t[b, i]) / 0.2) / 2
            assert logits["averaged"][b, i].item() == pytest.approx(expected, rel=1e-3, abs=1e-3)
    torch.testing.assert_close(logits["global"], clip.logit_scale * out.global_cosine, atol=1e-4, rtol=1e-5)

    labels = torch.as_tensor(data.labels[:6])
    losses = class_losses(logits, labels)
    for term, head in {"L_g": "global", "L_o": "local", "L_c": "averaged"}.items():
        for b, y in enumerate(labels):
            row = logits[head][b].double().exp()
            assert losses[term][b].item() == pytest.approx(-math.log((row[y] / row.sum()).item()), abs=1e-4)


def test_gradients_reach_exactly_what_should_learn(clip, posts):
    bank, prototypes, data = posts
    model = build_model(clip, prototypes, SMALL).train()
    rows = np.arange(12)
    logits = model.logits(model(*model_inputs(bank, data.image, rows)))
    torch.stack(list(class_losses(logits, torch.as_tensor(data.labels[rows])).values())).sum().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learned == {
        "global_prompt.ctx", "local_prompt.ctx", "log_scale", "log_tau_v", "log_tau_t",
        *(f"projection.{part}.weight" for part in ("visual_proj", "textual_proj", "qkv", "out", "norm")),
        *(f"projection.{part}.bias" for part in ("visual_proj", "textual_proj", "out", "norm")),
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == (name in learned), name
    assert not model.tower.training and model.projection.training


def test_each_loss_term_reaches_only_its_own_part(clip, posts):
    bank, prototypes, data = posts
    parts = {"L_g": "global_prompt", "L_o": "local_prompt", "L_c": "projection"}
    for term, own in parts.items():
        model = build_model(clip, prototypes, SMALL)
        logits = model.logits(model(*model_inputs(bank, data.image, np.arange(6))))
        class_losses(logits, torch.as_tensor(data.labels[:6]))[term].sum().backward()
        reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached & set(parts.values()) == {own}


def test_identity_start_knows_separable_classes(clip):
    """At step 0 the prototypes classify already: cross-entropy below ln 77 on 77 separable classes."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((77, DIM)).astype(np.float32)
    names = [f"class {i}" for i in range(77)]
    model = ClipFT(clip, Prototypes(names, names, centres, centres, pd.DataFrame()), SMALL).eval()
    image = torch.from_numpy(centres + 0.2 * rng.standard_normal(centres.shape).astype(np.float32))
    x, (v, t) = both(model.projection(image, model.visual, model.textual))
    logits = (prototype_cosine(x, v) + prototype_cosine(x, t)) / 2 / 0.07
    loss = F.cross_entropy(logits, torch.arange(77))
    assert loss.item() < 0.5 * math.log(77)


def test_temperatures_stay_in_range(clip, posts):
    model = build_model(clip, posts[1], SMALL)
    for name, value in {"log_scale": 9.0, "log_tau_v": -9.0, "log_tau_t": -2.0}.items():
        getattr(model, name).data.fill_(value)
    model.clamp_temperatures()
    assert model.log_scale.exp().item() == pytest.approx(100)
    assert model.log_tau_v.exp().item() == pytest.approx(0.01)
    assert model.log_tau_t.item() == -2


def test_half_precision_tower_keeps_float32_similarities(clip, posts):
    bank, prototypes, data = posts
    plain = build_model(clip, prototypes, SMALL)
    half = build_model(clip, prototypes, dataclasses.replace(SMALL, precision="bf16"))
    full_emb, half_emb = plain.class_embeddings()[0], half.class_embeddings()[0]
    assert half_emb.dtype == torch.float32 and not torch.equal(full_emb, half_emb)
    torch.testing.assert_close(half_emb, full_emb, atol=0.03, rtol=0)
    half_emb.sum().backward()
    assert half.global_prompt.ctx.grad.abs().sum() > 0
    out = half(*model_inputs(bank, data.image, np.arange(3)))
    torch.testing.assert_close(out.global_cosine, global_similarity(bank.batch(np.arange(3))[0], half_emb))


@pytest.mark.parametrize(("wanted", "device", "dtype"), [
    ("auto", "cpu", torch.float32), ("bf16", "cpu", torch.bfloat16), ("fp16", "cuda", torch.float16),
])  # fmt: skip
def test_precision(wanted, device, dtype):
    assert tower_dtype(wanted, torch.device(device)) == dtype


def test_unknown_precision_is_refused():
    with pytest.raises(InputError, match="choose auto, fp32, bf16, fp16"):
        tower_dtype("half", torch.device("cpu"))


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_learns_what_it_is_shown(clip, posts, tmp_path):
    bank, prototypes, data = posts
    epochs = 8 if clip.text.n_start == 1 else 14
    settings = dataclasses.replace(SMALL, epochs=epochs, lr=5e-3 if clip.name == "small" else 2e-2)
    trained = train(clip, bank, prototypes, data, settings, tmp_path)
    history = trained.history
    assert list(history["epoch"]) == list(range(epochs + 1))
    for term in ("L_g", "L_o", "L_c"):
        assert history[f"train_{term}"].iloc[-1] < 0.8 * history[f"train_{term}"].iloc[1]
    first, best = history.iloc[0], history.iloc[trained.best_epoch]
    assert trained.best_epoch == history["valid_loss"].idxmin() > 0
    assert best["valid_accuracy_averaged"] >= first["valid_accuracy_averaged"]
    assert best["valid_accuracy_local"] > first["valid_accuracy_local"]
    scores = evaluate(trained.model, bank, data, data.valid_rows)
    assert scores["loss"] == pytest.approx(best["valid_loss"], rel=1e-5)
    again = train(clip, bank, prototypes, data, settings, tmp_path).model  # a finished one is read
    assert evaluate(again, bank, data, data.valid_rows) == pytest.approx(scores)
    own = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(own[name], value) for name, value in trained.model.own_state().items())
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), history)


def test_evaluate_equals_the_obvious_mean(clip, posts):
    bank, prototypes, data = posts
    model = build_model(clip, prototypes, SMALL)
    found = evaluate(model, bank, data, np.arange(30))
    losses, hits = [], []
    for row in range(30):
        logits = model.logits(model(*model_inputs(bank, data.image, np.array([row]))))
        losses.append(class_losses(logits, torch.tensor([data.labels[row]]))["L_o"].item())
        hits.append(int(logits["visual"].argmax()) == data.labels[row])
    assert found["L_o"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["accuracy_visual"] == pytest.approx(np.mean(hits))


def test_a_killed_training_goes_on_from_its_last_epoch(clip, posts, tmp_path, monkeypatch):
    bank, prototypes, data = posts
    settings = dataclasses.replace(SMALL, epochs=3, dropout=0.2)
    whole = train(clip, bank, prototypes, data, settings, tmp_path / "whole")
    run_epoch = _Trainer.run_epoch

    def die_in_epoch_3(trainer, epoch):
        if epoch == 3:
            trainer.step(trainer.fit_rows[:16])
            raise KeyboardInterrupt
        run_epoch(trainer, epoch)

    monkeypatch.setattr(_Trainer, "run_epoch", die_in_epoch_3)
    with pytest.raises(KeyboardInterrupt):
        train(clip, bank, prototypes, data, settings, tmp_path / "cut")
    epochs_run = []

    def note_epoch(trainer, epoch):
        epochs_run.append(epoch)
        run_epoch(trainer, epoch)

    monkeypatch.setattr(_Trainer, "run_epoch", note_epoch)
    torch.manual_seed(99)  # whatever the process did before must not matter
    resumed = train(clip, bank, prototypes, data, settings, tmp_path / "cut")
    assert epochs_run == [3]
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    for name, value in whole.model.own_state().items():
        torch.testing.assert_close(resumed.model.own_state()[name], value, atol=0, rtol=0)
    train(clip, bank, prototypes, data, settings, tmp_path / "cut")
    assert epochs_run == [3], "a finished training is not run again"
    train(clip, bank, prototypes, data, dataclasses.replace(settings, lr=1e-2), tmp_path / "cut")
    assert epochs_run == [3, 1, 2, 3], "other settings start anew"


def test_an_edited_loss_trains_anew(clip, posts, tmp_path, monkeypatch):
    """A checkpoint of other code is not handed out; 03 is stale then, and 02 is not."""
    bank, prototypes, data = posts
    stale = {name: code_hashes(path) for path in notebooks() if (name := path.stem[:2]) in ("02", "03")}
    before = train(clip, bank, prototypes, data, SMALL, tmp_path).history
    shutil.copytree(code.PACKAGE, tmp_path / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    source = (tmp_path / "kit" / "clip_ft" / "model.py").read_text()
    edited = source.replace('reduction="none")', 'reduction="none", label_smoothing=0.2)')
    assert edited != source
    (tmp_path / "kit" / "clip_ft" / "model.py").write_text(edited)
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "kit")
    exec(edited, module := {"__name__": ClipFT.__module__})  # where its dataclass looks for names
    monkeypatch.setattr(train_module, "class_losses", module["class_losses"])
    after = train(clip, bank, prototypes, data, SMALL, tmp_path).history
    assert (after["train_loss"].dropna() > before["train_loss"].dropna() + 0.01).all()
    now = {name: code_hashes(path) for path in notebooks() if (name := path.stem[:2]) in ("02", "03")}
    assert now["02"] == stale["02"] and now["03"] != stale["03"]


def test_a_checkpoint_of_other_features_is_not_read(clip, posts, tmp_path):
    """Every row of the image features is in the key."""
    bank, prototypes, data = posts
    keys = {training_key(clip, bank, prototypes, data, SMALL)}
    for row in range(0, 120, 7):
        image = data.image.copy()
        image[row, 3] += 0.5
        keys.add(training_key(clip, bank, prototypes, dataclasses.replace(data, image=image), SMALL))
    assert len(keys) == 1 + len(range(0, 120, 7))


def test_training_leaves_the_global_generator_alone(clip, posts, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train(clip, *posts, dataclasses.replace(SMALL, epochs=1, dropout=0.3), tmp_path)
    assert torch.rand(1) == expected


def test_unusable_rows_are_not_trained_on(clip, posts, tmp_path):
    bank, prototypes, data = posts
    labels, ok = data.labels.copy(), np.ones(len(data.labels), bool)
    labels[:10], ok[10:20] = -1, False
    spoilt = dataclasses.replace(data, labels=labels, image_ok=ok)
    assert list(spoilt.usable(np.arange(30))) == list(range(20, 30))
    without = dataclasses.replace(spoilt, fit_rows=data.fit_rows[data.fit_rows >= 20])
    first = train(clip, bank, prototypes, spoilt, SMALL, tmp_path / "a").history
    pd.testing.assert_frame_equal(first, train(clip, bank, prototypes, without, SMALL, tmp_path / "b").history)
    with pytest.raises(InputError, match="too few to train"):
        train(clip, bank, prototypes, dataclasses.replace(data, labels=labels * 0 - 1), SMALL, tmp_path / "c")


def test_without_validation_rows_the_last_epoch_counts(clip, posts, tmp_path):
    bank, prototypes, data = posts
    data = dataclasses.replace(data, valid_rows=data.valid_rows[:0])
    assert train(clip, bank, prototypes, data, SMALL, tmp_path).best_epoch == 2


def test_the_best_epoch_is_kept_when_validation_gets_worse(clip, posts, tmp_path):
    """Validation classes contradict training: every epoch makes it worse, so the first state is the best one."""
    bank, prototypes, data = posts
    labels = data.labels.copy()
    labels[data.valid_rows] = (labels[data.valid_rows] + 1) % K
    data = dataclasses.replace(data, labels=labels)
    trained = train(clip, bank, prototypes, data, dataclasses.replace(SMALL, epochs=4, lr=1e-2), tmp_path)
    loss = trained.history["valid_loss"]
    assert trained.best_epoch == loss.idxmin() < 4
    assert evaluate(trained.model, bank, data, data.valid_rows)["loss"] == pytest.approx(loss.min(), rel=1e-5)


def test_each_epoch_shuffles_anew(clip, posts, tmp_path, monkeypatch):
    bank, prototypes, data = posts
    orders, step = [], _Trainer.step
    monkeypatch.setattr(_Trainer, "step", lambda self, rows: (orders.append(rows), step(self, rows))[1])
    train(clip, bank, prototypes, data, SMALL, tmp_path)
    first, second = (np.concatenate(part) for part in (orders[: len(orders) // 2], orders[len(orders) // 2 :]))
    assert sorted(first) == sorted(second) == list(data.fit_rows) and not np.array_equal(first, second)


def test_a_step_leaves_the_temperatures_in_range(clip, posts):
    bank, prototypes, data = posts
    trainer = _Trainer(build_model(clip, prototypes, SMALL), bank, data, SMALL)
    trainer.model.log_scale.data.fill_(9)
    trainer.step(np.arange(8))
    assert trainer.model.log_scale.item() == pytest.approx(math.log(100))


def test_batches_cover_all_rows_once():
    for n in (1, 15, 16, 17, 100):
        parts = batches(np.arange(n), 16)
        assert np.array_equal(np.concatenate(parts), np.arange(n)) and max(map(len, parts)) <= 16
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_two_processes_see_the_loss_of_one(tmp_path):
    """torchrun with two gloo processes: same losses, same parameters; odd batches included (16 of 80 rows, then 27)."""
    clip = make_clip()
    bank, prototypes, data = make_posts(clip)
    settings = dataclasses.replace(SMALL, batch_size=27)
    one = train(clip, bank, prototypes, data, settings, tmp_path / "one")
    job = Job(clip, bank, prototypes, data, settings)
    save_clip(clip, tmp_path / "clip")
    again = fit(job, tmp_path / "one", tmp_path / "nowhere", processes=2)
    pd.testing.assert_frame_equal(again.history, one.history)  # finished already: no process is started
    two = fit(job, tmp_path / "two", tmp_path / "clip", processes=2)
    pd.testing.assert_frame_equal(two.history, one.history, rtol=1e-4)
    for name, value in one.model.own_state().items():
        torch.testing.assert_close(two.model.own_state()[name], value, atol=2e-4, rtol=0)
    assert not (tmp_path / "two" / "job").exists()


# --- Eq. 11: export ---------------------------------------------------------------------------------------------------


def test_scores_equal_the_obvious_ones(clip, posts):
    bank, prototypes, data = posts
    model = build_model(clip, prototypes, SMALL).eval()
    full = np.full((120, 7 * DIM), np.nan, np.float16)
    export = export_posts(model, bank, data, full=full)
    global_emb, local_emb = model.class_embeddings()
    for row in (0, 3, 8, 50):
        y = data.labels[row]
        image, pooled, tokens, mask = model_inputs(bank, data.image, np.array([row]))
        out = model(image, pooled, tokens, mask)
        logits = {head: value[0].double() for head, value in model.logits(out).items()}
        expected = [out.global_cosine[0, y], out.local_cosine[0, y]]
        expected += [logits[head][y] - sum(logits[head]) / K for head in ("visual", "textual")]
        expected += [1 + sum(value > values[y] for value in values) for values in logits.values()]
        expected += [-sum(p * p.log() for p in values.softmax(0)) for values in logits.values()]
        expected += [cosine(image[0].double(), pooled[0].double())]
        expected = [float(torch.as_tensor(value).detach()) for value in expected]
        np.testing.assert_allclose(export.scores[row], expected, rtol=1e-4, atol=1e-4)
        losses = class_losses({head: value[None] for head, value in logits.items()}, torch.tensor([y]))
        np.testing.assert_allclose(export.losses[row], [v.item() for v in losses.values()], rtol=1e-4, atol=1e-4)
        parts = [F.normalize(image[0], dim=0), F.normalize(pooled[0].float(), dim=0), global_emb[y], local_emb[y]]
        parts += [out.image[0], out.visual[0, y], out.textual[0, y]]
        np.testing.assert_allclose(full[row], torch.cat(parts).detach().numpy(), atol=2e-3)
        np.testing.assert_allclose(export.image[row], out.image[0].detach().numpy(), atol=2e-3)
    assert len(full_columns(DIM)) == 7 * DIM and full_columns(DIM)[0] == "image_0" and len(PARTS) == 7


def test_export_says_nan_where_nothing_is_known(clip, posts):
    bank, prototypes, data = posts
    labels, ok = data.labels.copy(), np.ones(len(data.labels), bool)
    labels[5], ok[6] = -1, False
    model = build_model(clip, prototypes, SMALL)
    known = export_posts(model, bank, data)
    data = dataclasses.replace(data, labels=labels, image_ok=ok)
    full = np.empty((120, 7 * DIM), np.float16)
    export = export_posts(model, bank, data, full=full)
    nan = [{SCORES[i] for i in np.flatnonzero(np.isnan(line))} for line in export.scores[:8]]
    assert nan[4] == set() and nan[7] == set()
    assert nan[5] == {name for name in SCORES if name.endswith("_y") or name.startswith("rank_")}
    assert {name for name in SCORES if name not in nan[6]} == {
        "p_y", "p_local_y", "rank_global", "rank_local", "entropy_global", "entropy_local",
    }  # fmt: skip
    assert np.isnan(export.losses[5]).all() and list(np.isnan(export.losses[6])) == [False, False, True]
    full = full.reshape(-1, 7, DIM)
    assert list(np.isnan(full[5]).all(axis=1)) == [False, False, True, True, False, True, True]
    assert list(np.isnan(full[6]).all(axis=1)) == [True, False, False, False, True, True, True]
    np.testing.assert_array_equal(np.delete(export.scores, [5, 6], 0), np.delete(known.scores, [5, 6], 0))
    block = compact_block(export, np.arange(80), 6)
    assert np.isnan(block.values[6, [block.columns.index("image_pc_00")]]).all()
    assert np.isfinite(block.values[[0, 1, 100]]).all()


def test_compact_block_and_losses_table(clip, posts):
    bank, prototypes, data = posts
    export = export_posts(build_model(clip, prototypes, SMALL), bank, data)
    block = compact_block(export, np.arange(80), 6)
    assert block.name == "clip_ft" and block.values.shape == (120, len(SCORES) + 12)
    assert block.columns[: len(SCORES)] == list(SCORES) and block.columns[-1] == "text_pc_05"
    np.testing.assert_array_equal(block.values[:, : len(SCORES)], export.scores)
    table = losses_table(export, pd.DataFrame({"Pid": np.arange(120).astype(str), "split": ["train"] * 120}))
    assert list(table) == ["Pid", "split", "out_of_fold", "tower_seen", "L_g", "L_o", "L_c", "L"]
    assert not table["tower_seen"].any()
    assert table["out_of_fold"].tolist() == [False] * 80 + [True] * 40
    np.testing.assert_allclose(table["L"], table[["L_g", "L_o", "L_c"]].sum(axis=1))


def test_pca_equals_sklearn_and_is_fitted_on_the_given_rows():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    values = (rng.standard_normal((200, 6)) * [5, 3, 2, 1, 0.5, 0.1] + 3).astype(np.float32)
    found = apply_pca(values, fit_pca(values, np.arange(150), 3, chunk=64), chunk=64)
    expected = PCA(3, svd_solver="full").fit(values[:150]).transform(values)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)
    changed = values.copy()
    changed[150:] *= 10
    again = apply_pca(changed, fit_pca(changed, np.arange(150), 3, chunk=64), chunk=64)
    np.testing.assert_array_equal(again[:150], found[:150])
    assert apply_pca(values, fit_pca(values, np.arange(150), 32)).shape == (200, 6)


def test_cross_fitted_scores_come_from_models_that_never_met_the_author(clip, posts, tmp_path):
    bank, prototypes, data = posts
    text = np.random.default_rng(1).standard_normal((120, DIM))
    folds = np.full(120, -1)
    folds[:100] = np.arange(100) % 2
    settings = dataclasses.replace(SMALL, epochs=1)
    main = train(clip, bank, prototypes, data, settings, tmp_path / "main")
    export = export_posts(main.model, bank, data)
    crossed = cross_fit(Job(clip, bank, prototypes, data, settings, text, folds), export, tmp_path, tmp_path)
    np.testing.assert_array_equal(crossed.scores[100:], export.scores[100:])
    np.testing.assert_array_equal(crossed.image, export.image)
    assert crossed.out_of_fold.all() and not export.out_of_fold[:80].any()
    for fold in (0, 1):  # each fold by a model of its own, from the other fold alone
        rows = np.flatnonzero(folds == fold)
        alone = dataclasses.replace(data, fit_rows=np.flatnonzero(folds == 1 - fold), valid_rows=rows[:0])
        kept = without_posts(prototypes, data, text, rows)
        assert not set(kept.shots["row"]) & set(rows) and not np.allclose(kept.visual, prototypes.visual)
        model = train(clip, bank, kept, alone, settings, tmp_path / f"alone_{fold}").model
        np.testing.assert_array_equal(export_posts(model, bank, data, rows).losses[rows], crossed.losses[rows])

    image = data.image.copy()
    image[folds == 1] = -image[folds == 1]  # what fold 1 looks like must not matter to how fold 1's own scores are made
    labels = np.where(folds == 1, (data.labels + 1) % K, data.labels)
    spoilt = dataclasses.replace(data, image=image, labels=labels)
    spoilt_job = Job(clip, bank, prototypes, spoilt, settings, text, folds)
    from_spoilt = cross_fit(spoilt_job, export, tmp_path / "spoilt", tmp_path)
    model_paths = [tmp_path / "fold_1" / "model.safetensors", tmp_path / "spoilt" / "fold_1" / "model.safetensors"]
    assert model_paths[0].read_bytes() == model_paths[1].read_bytes()
    model_paths = [tmp_path / "fold_0" / "model.safetensors", tmp_path / "spoilt" / "fold_0" / "model.safetensors"]
    assert model_paths[0].read_bytes() != model_paths[1].read_bytes()
    assert not np.allclose(from_spoilt.scores[:100], crossed.scores[:100])


def _cross_fit_arguments(clip, posts):
    """A job of three folds over 100 of the posts, one epoch each, and the export of an untrained model."""
    bank, prototypes, data = posts
    text = np.random.default_rng(1).standard_normal((120, DIM))
    folds = np.where(np.arange(120) < 100, np.arange(120) % 3, -1)
    settings = dataclasses.replace(SMALL, epochs=1)
    export = export_posts(build_model(clip, prototypes, settings), bank, data)
    return Job(clip, bank, prototypes, data, settings, text, folds), export


def test_a_cut_cross_fit_goes_on_at_its_fold(clip, posts, tmp_path, monkeypatch):
    arguments = _cross_fit_arguments(clip, posts)
    whole = cross_fit(*arguments, tmp_path / "whole", tmp_path)
    trained, run_epoch = [], _Trainer.run_epoch

    def die_in_the_second_fold(trainer, epoch):
        trained.append(epoch)
        if len(trained) == 2:
            raise KeyboardInterrupt
        run_epoch(trainer, epoch)

    monkeypatch.setattr(_Trainer, "run_epoch", die_in_the_second_fold)
    with pytest.raises(KeyboardInterrupt):
        cross_fit(*arguments, tmp_path / "cut", tmp_path)
    resumed = cross_fit(*arguments, tmp_path / "cut", tmp_path)
    assert len(trained) == 4, "the finished fold is not trained again"
    np.testing.assert_array_equal(resumed.scores, whole.scores)
    cross_fit(*arguments, tmp_path / "cut", tmp_path)
    assert len(trained) == 4


def test_folds_in_workers_are_those_of_this_process(clip, posts, tmp_path, monkeypatch):
    arguments = _cross_fit_arguments(clip, posts)
    save_clip(clip, tmp_path / "clip")
    alone = cross_fit(*arguments, tmp_path / "alone", tmp_path / "clip")
    monkeypatch.setattr(_Trainer, "run_epoch", None)  # this process only reads what the workers left
    spread = cross_fit(*arguments, tmp_path / "spread", tmp_path / "clip", workers=2)
    np.testing.assert_allclose(spread.losses, alone.losses, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "spread" / "job").exists() and spread.out_of_fold.all()


def test_workers_share_the_word_features_of_this_process(clip, posts, tmp_path):
    bank = posts[0]
    bank.save(tmp_path)
    kept = TextBank(clip.text, bank.texts, cache_share=0.0, kept=tmp_path)
    assert kept.place == torch.device("cpu") and not kept._tokens.equal(torch.zeros_like(kept._tokens))
    for mine, theirs in zip(bank.batch(np.arange(9)), kept.batch(np.arange(9)), strict=True):
        assert mine.equal(theirs)


def test_a_transformer_on_a_cpu_may_read_and_learn_in_bfloat16(tmp_path):
    """Word features and gradients of the prompts stay nearly what they were; other processes read as this one does."""
    found, posts = {}, ["a red cat", "blue sky over the sea", "red"]
    for precision in ("float32", "bfloat16"):
        one = small_dual(tmp_path / "networks", DIM)
        folder = save_clip(one, tmp_path / "clip")
        one.text.place("cpu", precision)
        bank = TextBank(one.text, posts)
        assert bank.precision == precision
        names, centres = ["red", "blue"], np.eye(2, DIM, dtype=np.float32)
        model = ClipFT(one, Prototypes(names, names, centres, centres, pd.DataFrame()), SMALL)
        model(torch.eye(3, DIM), *bank.batch(np.arange(3))).global_cosine[:, 0].sum().backward()
        found[precision] = bank._tokens.float(), model.global_prompt.ctx.grad.flatten(), bank.fingerprint
        data = TrainingData(np.eye(3, DIM, dtype=np.float32), np.zeros(3, int), np.arange(3))
        shots, unit = pd.DataFrame({"row": [0], "Subcategory": ["red"]}), np.eye(1, DIM, dtype=np.float32)
        made = Prototypes(["red"], ["red"], unit, unit, shots)
        with as_files(Job(one, bank, made, data, SMALL), tmp_path / "job", folder) as written:
            there = open_job(written, torch.device("cpu"), 1)
        assert there.bank.fingerprint == bank.fingerprint and there.bank._tokens.equal(bank._tokens)
    (tokens, grad, key), (low_tokens, low_grad, low_key) = found.values()
    assert torch.cosine_similarity(tokens, low_tokens).min() > 0.999 and not tokens.equal(low_tokens)
    assert torch.cosine_similarity(grad, low_grad, dim=0) > 0.98 and key != low_key


def test_folds_are_trained_side_by_side_as_far_as_cores_and_memory_go(clip, monkeypatch):
    shape, total_gb = [8, 0], 100.0
    monkeypatch.setattr(cross_fitting, "machine_shape", lambda: tuple(shape))
    monkeypatch.setattr(cross_fitting, "memory_gb", lambda: (total_gb, 0.0))
    folds, few = np.arange(5000) % 5, np.arange(4999) % 5
    assert cross_fitting.side_by_side(clip, folds) == 5 and cross_fitting.side_by_side(clip, np.arange(5000) % 9) == 8
    assert cross_fitting.side_by_side(clip, few) == 0, "not worth the start of a process"
    total_gb = 5.0
    assert cross_fitting.side_by_side(clip, folds) == 2
    total_gb = 2.0
    assert cross_fitting.side_by_side(clip, folds) == 0, "one after the other in this process"
    total_gb, shape[1] = 100.0, 1
    assert cross_fitting.side_by_side(clip, folds) == 0, "a GPU is not shared"


def test_steps_are_larger_where_each_reads_all_prompts(clip):
    more = 1 if clip.text.is_causal else 4
    assert batch_and_rate(clip.text, 0, 1e-4) == (128 * more, pytest.approx(1e-4 * more))
    assert batch_and_rate(clip.text, 64, 1e-4) == (64, 1e-4), "what is asked for is done"


def test_a_step_is_timed_without_a_trace(clip, posts):
    seconds = step_seconds(clip, posts[0], ["red", "blue"], dataclasses.replace(SMALL, batch_size=200), 1)
    assert seconds > 0 and clip.text.training is False


def test_score_shift_sees_a_shift():
    scores = np.random.default_rng(0).standard_normal((400, len(SCORES))).astype(np.float32)
    scores[:200, 0] += 1
    scores[7] = np.nan
    table = score_shift(scores, np.arange(200), np.arange(200, 400)).set_index("score")
    assert table.loc["p_y", "ks"] > 0.3 and table.loc["p_local_y", "ks"] < 0.2
    assert table.loc["p_y", "first"] - table.loc["p_y", "second"] == pytest.approx(1, abs=0.3)


def test_attended_words_are_the_weights_of_eq_5(clip, posts):
    bank, prototypes, data = posts
    model = build_model(clip, prototypes, SMALL)
    rows = np.array([3, 10])  # an empty text, and one of several words
    table = attended_words(model, bank, rows, data.labels, n_words=100)
    assert table["text"].tolist() == list(bank.texts[rows]) and table["prompt"].tolist() == [NAMES[3], NAMES[0]]
    end = {"small": "<end_of_text>", "smp-dual": "[SEP]"}[clip.name]
    assert table["words"][0] == f"{end} 1.00"
    class_emb = model.class_embeddings()[1]
    pooled = pool_local(*bank.batch(rows)[1:], class_emb, model.tau_s)
    np.testing.assert_allclose(table["p_local"], pooled[[0, 1], data.labels[rows]].detach(), atol=1e-6)
    words, weights = zip(*(part.rsplit(" ", 1) for part in table["words"][1].split(", ")), strict=True)
    if clip.name == "small":  # whose tokens are words; the other's are letters
        assert set(words) == {*bank.texts[10].split(), end}
    assert sum(map(float, weights)) == pytest.approx(1, abs=0.05) and sorted(weights, reverse=True) == list(weights)
