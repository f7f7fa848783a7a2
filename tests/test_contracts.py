"""What every entry of a registry must do. A new family, encoder, learner or way of fusion is tested here by being registered."""

import inspect

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kit.base.errors import InputError
from kit.base.metrics import src
from kit.boosting.fit import Machine, Training, fit_folds, kept_teaching, load_fold
from kit.boosting.learners import LEARNERS, learner_of, parse_params
from kit.boosting.taught import TAUGHT
from kit.encoders.baselines import baseline_block, why_not
from kit.encoders.registry import ENCODERS, NETWORKS, chosen_models
from kit.encoders.weights import missing_weights
from kit.evaluation.blend import compare_methods
from kit.evaluation.fusion import METHODS
from kit.features import behaviour, statistic
from kit.run.folds import TEST, make_folds
from kit.viz.paper_figures import MODEL_MARKS
from tests.tiny import tiny_block, tiny_posts

# --- feature families: statistic.FAMILIES and behaviour.FAMILIES -----------------------------------------------------

FAMILIES = [(statistic, name) for name in statistic.FAMILIES] + [(behaviour, name) for name in behaviour.FAMILIES]
each_family = pytest.mark.parametrize(
    ("module", "family"), FAMILIES, ids=lambda value: getattr(value, "__name__", value)
)


def social_posts() -> pd.DataFrame:
    """Posts in which every family finds something that varies: places, albums, texts, dates."""
    posts, rng = tiny_posts(120, 40), np.random.default_rng(4)
    placed = rng.random(len(posts)) < 0.6
    for column, spread in (("Latitude", 60), ("Longitude", 170), ("Geoaccuracy", 1)):
        posts[column] = np.where(placed, rng.uniform(1, spread, len(posts)).round(2), 0.0)
    posts["Geoaccuracy"] = np.where(placed, 16.0, 0.0)
    words = ["painter of boats", "street cook", "walker, painter", "cook of boats"]
    posts["user_description"] = pd.Categorical(rng.choice(words, size=len(posts)))
    posts["Title"] = [f"{title} album {i % 9}" if i % 3 else title for i, title in enumerate(posts["Title"])]
    return posts


POSTS = social_posts()


def family_block(module, family: str, posts: pd.DataFrame = POSTS, seed: int = 0):
    if module is statistic:
        return statistic.statistic_block(posts, [family], svd_dim=3, n_top_tags=6, seed=seed)
    return behaviour.behaviour_block(posts, [family], dim=3, n_top_tags=6, seed=seed)


@each_family
def test_a_family_gives_numbers_for_every_post(module, family):
    block = family_block(module, family)
    assert block.values.shape == (len(POSTS), len(block.columns)) and block.values.dtype == np.float32
    assert not np.isinf(block.values).any() and family in block.source and not block.external
    assert set(block.categorical) == {name for name in block.columns if name.endswith("_code")}
    assert inspect.getdoc(module.FAMILIES[family]), "notebook 04 shows the first line of its docstring"


@each_family
def test_a_family_reads_no_label_and_no_pid(module, family):
    rng, other = np.random.default_rng(0), POSTS.copy()
    other["label"] = np.where(POSTS["label"].notna(), rng.permutation(len(POSTS)).astype(float), np.nan)
    other["Pid"] = [str(number) for number in rng.permutation(10**6)[: len(POSTS)]]
    one, two = family_block(module, family), family_block(module, family, other)
    assert one.columns == two.columns
    np.testing.assert_array_equal(one.values, two.values)


@each_family
def test_a_family_gives_the_same_numbers_again(module, family):
    np.testing.assert_array_equal(
        family_block(module, family).values, family_block(module, family, POSTS.copy()).values
    )


# --- encoders: baselines.ENCODERS ------------------------------------------------------------------------------------

TEXTS = ["a photo of two dogs", "", "a cat!", "dog " * 200, "unheard of, a photo"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Network -> the model's name: a folder in which a small one is saved as its library saves it."""
    import torch

    from tests.tiny_networks import SAVE

    root = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in NETWORKS:
            SAVE[name](root / name)
    return {name: f"local-dir:{root / name}" for name in NETWORKS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five posts, the last without its image."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (60 + i, 80, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return pd.DataFrame({"image_path": [str(root / f"{i}.png") for i in range(5)]})


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_makes_its_block_and_names_what_it_used(name, networks, pictures, tmp_path):
    models = {network: networks[network] for network in chosen_models(name)}
    block = baseline_block(
        name, pictures, TEXTS, tmp_path, train_rows=np.arange(4), models=models, components=2, max_bad_share=0.5
    )
    assert block.name == name and all(column.startswith(f"{name}_") for column in block.columns)
    assert len(block.values) == 5 and block.values.dtype == np.float32
    image = np.array([column.startswith(f"{name}_image") for column in block.columns])
    text = np.array([column.startswith(f"{name}_text") for column in block.columns])
    assert (image.sum(), text.sum()) == tuple(2 * bool(side) for side in (ENCODERS[name].image, ENCODERS[name].text))
    assert np.isfinite(block.values[:, text]).all() and np.isfinite(block.values[:4, image]).all()
    assert np.isnan(block.values[4, image]).all() and np.ptp(block.values[:4], axis=0).min() > 0
    assert all(model in block.external for model in models.values()), "the submission must declare these weights"


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_says_what_it_lacks(name, pictures, tmp_path):
    models = {network: f"local-dir:{tmp_path / network}" for network in chosen_models(name)}
    lacking = missing_weights(name, models, tmp_path)
    assert all(str(tmp_path / network) in lacking for network in models)
    assert why_not([name], pictures, models, tmp_path)[name] == f"needs {lacking}"


# --- learners: learners.LEARNERS -------------------------------------------------------------------------------------

TINY = tiny_posts(360, 60, n_authors=60)
TARGET, BLOCK, FOLDS = TINY["label"].to_numpy(), tiny_block(TINY), make_folds(TINY, 3, "user")
SCORED = FOLDS >= 0
TREES = "sklearn.ensemble.ExtraTreesRegressor"
MODELS = (*LEARNERS, TREES, "sklearn.linear_model.HuberRegressor", "sklearn.neighbors.KNeighborsRegressor")
each_learner = pytest.mark.parametrize("model", MODELS)
each_booster = pytest.mark.parametrize("model", [model for model in MODELS if learner_of(model).has_rounds])


def fit(model: str, target: np.ndarray = TARGET, **options):
    own = {name: options.pop(name) for name in ("weight", "out_dir") if name in options}
    learner = learner_of(model)
    common = {"rounds": 40, "patience": 10, "taught": learner.needs_taught}
    training = Training(model, {"learning_rate": 0.2} if learner.has_rounds else {}, **common | options)
    return fit_folds(BLOCK, target, FOLDS, TINY, training, Machine(threads=1), **own)


@each_learner
def test_a_learner_learns_and_is_kept(model, tmp_path):
    result = fit(model, out_dir=tmp_path)
    assert result.model == model and np.isnan(result.oof[~SCORED]).all() and np.isfinite(result.oof[SCORED]).all()
    assert result.test.shape == ((FOLDS == TEST).sum(),) and np.isfinite(result.test).all()
    assert src(TARGET[SCORED], result.oof[SCORED]) > 0.4
    assert {"fold", "n", "src", "mae", "rounds", "seconds"} <= set(result.scores) and result.scores["rounds"].between(
        1, 40
    ).all()
    learner = learner_of(model)
    assert set(result.importance["column"]) == {*BLOCK.columns, *(TAUGHT if learner.needs_taught else ())}
    assert result.importance["gain"].sum() == pytest.approx(0 if "Neighbors" in model else 1)
    saved = {path.stem for path in tmp_path.iterdir() if path.suffix == learner.suffix and path.stat().st_size}
    assert saved >= {"fold_0", "fold_1", "fold_2", "final"}
    teaching = kept_teaching(tmp_path)
    again = load_fold(BLOCK, tmp_path, taught=teaching and teaching["columns"])
    np.testing.assert_array_equal(again.predict(np.flatnonzero(FOLDS == TEST)), result.test)
    assert model in MODEL_MARKS or model not in LEARNERS, "Table 1's figure needs a mark for it"
    rows = np.flatnonzero(FOLDS == TEST)[:7]
    parts = again.contributions(rows)
    assert parts.shape == (7, len(result.importance) + 1)
    np.testing.assert_allclose(parts.sum(axis=1), result.test[:7], rtol=1e-6)
    assert np.ptp(parts[:, -1]) < 1e-9 or model not in LEARNERS, "what is there without any column is the same for all"


@each_booster
def test_parameters_of_a_booster_are_named(model):
    learner = LEARNERS[model]
    assert set(learner.settings({}, 10)) <= learner.names() - learner.fixed
    assert learner.fixed <= learner.names()
    given = parse_params(model, ["learning_rate=0.2", "max_depth = 4", "boost_from_average=False"])
    assert given == {"learning_rate": 0.2, "max_depth": 4, "boost_from_average": False}
    with pytest.raises(InputError, match="'learning_rat' is unknown.* learning_rate"):
        parse_params(model, ["learning_rat=1"])
    with pytest.raises(InputError, match="set by this kit"):
        parse_params(model, [f"{min(learner.fixed)}=1"])
    with pytest.raises(InputError, match="expected name=value"):
        parse_params(model, ["learning_rate"])


@each_learner
def test_a_learner_repeats_itself_by_seed(model):
    one, two, other = fit(model), fit(model), fit(model, seed=1)
    np.testing.assert_array_equal(one.oof, two.oof)
    np.testing.assert_array_equal(one.test, two.test)
    if model in (*LEARNERS, TREES):  # the others draw nothing
        assert not np.array_equal(one.test, other.test)


def test_parameters_and_names_of_other_learners_are_checked():
    assert parse_params(TREES, ["n_estimators=7", "criterion=absolute_error"]) == {
        "n_estimators": 7,
        "criterion": "absolute_error",
    }
    for model, pair, message in [
        (TREES, "n_estimator=7", "unknown to the library; .* n_estimators"),
        (TREES, "n_jobs=2", "set by this kit"),
        ("author_ridge", "alpha=1", "'alpha' is unknown"),
        ("sklearn.ensemble.ExtraTreRegressor", "a=1", "no regressor of scikit-learn; most like it: ExtraTree"),
        ("sklearn.linear_model.LogisticRegression", "a=1", "no regressor"),
        ("sklearn.nothing.Ridge", "a=1", "no regressor.* Ridge"),
    ]:
        with pytest.raises(InputError, match=message):
            parse_params(model, [pair])
    with pytest.raises(InputError, match="KNeighborsRegressor takes no weights"):
        fit("sklearn.neighbors.KNeighborsRegressor", weight=1.0 + np.arange(len(TINY)) % 2)
    with pytest.raises(InputError, match="author_ridge needs columns taught by labels"):
        fit("author_ridge", taught=False)


@each_booster
def test_early_stopping_works_with_weights(model):
    """Weights of one size are as good as none, and uneven ones do not end the training at the first tree."""
    ones = np.ones(len(TINY))
    plain, doubled, uneven = (fit(model, weight=weight) for weight in (ones, 2 * ones, 1 + np.arange(len(TINY)) % 2))
    score = src(TARGET[SCORED], plain.oof[SCORED])
    for result in (doubled, uneven):
        assert src(TARGET[SCORED], result.oof[SCORED]) > score - 0.1 and result.scores["rounds"].min() > 5


@each_learner
def test_a_post_of_weight_zero_teaches_nothing(model):
    weight = np.where(np.arange(len(TINY)) % 4 == 0, 0.0, 1.0)
    nonsense = np.where(SCORED & (weight == 0), 1e4, TARGET)
    one, two = (fit(model, target, weight=weight, stop_share=0.0) for target in (TARGET, nonsense))
    np.testing.assert_array_equal(one.oof, two.oof)
    np.testing.assert_array_equal(one.test, two.test)


@each_learner
def test_labels_of_the_scored_fold_have_no_say(model):
    changed = np.where(FOLDS == 1, 100 - TARGET, TARGET)
    one, two = fit(model, final=False), fit(model, changed, final=False)
    np.testing.assert_array_equal(one.oof[FOLDS == 1], two.oof[FOLDS == 1])
    assert not np.array_equal(one.oof[FOLDS == 0], two.oof[FOLDS == 0])


# --- ways of fusion: fusion.METHODS ----------------------------------------------------------------------------------

LABEL = np.random.default_rng(0).normal(8, 2, size=900)
NOISE = np.random.default_rng(1).normal(size=(900, 3))
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
def test_a_way_of_fusion_weighs_models_and_mixes_new_posts(method):
    matrix = LABEL[:, None] + NOISE * [1.0, 1.5, 4.0]
    mix = METHODS[method](matrix[:600], LABEL[:600])
    assert mix.weights.shape == (3,) and (mix.weights >= 0).all() and mix.weights.sum() > 0
    assert mix.weights[0] >= mix.weights[1] >= mix.weights[2]
    new = mix(matrix[600:])
    assert new.shape == (300,) and np.isfinite(new).all()
    assert src(LABEL[600:], new) > max(src(LABEL[600:], column) for column in matrix[600:].T[1:])
    np.testing.assert_array_equal(new, METHODS[method](matrix[:600], LABEL[:600])(matrix[600:]))


@each_method
def test_a_perfect_model_gets_all_weight(method):
    matrix = np.column_stack([LABEL + NOISE[:, 0], LABEL, LABEL + NOISE[:, 1]])
    mix = METHODS[method](matrix, LABEL)
    assert mix.weights[1] > 0.97 * mix.weights.sum()
    assert np.abs(mix(matrix) - LABEL).mean() < 0.05


@each_method
def test_a_way_of_fusion_is_tried_and_can_work_with_one_model(method):
    folds = (np.arange(900) % 3).astype(np.int8)
    assert method in compare_methods({"one": LABEL + NOISE[:, 0], "two": LABEL + NOISE[:, 1]}, LABEL, folds)
    assert METHODS[method](LABEL[:, None], LABEL).weights[0] == pytest.approx(1, abs=0.02)
