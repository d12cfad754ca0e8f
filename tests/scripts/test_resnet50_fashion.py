"""The frozen ResNet50 and its head: features, head, full model, options, complete runs."""

import contextlib
import functools
import io
import json
import re
import sys

from fashion import errors
from fashion.backbones.backbone import ARCHITECTURES, STAGES, load_backbone
from fashion.errors import UserError

import keras
import numpy as np
import pytest
from helpers.data import load_sample
from helpers.networks import BACKBONES, use_small_chunks, use_small_resnet
from helpers.photos import check_photos
from helpers.scripts import SAMPLE, Result, check_calibration, parse_options, train_in_process
from PIL import Image

import resnet50_fashion

FAST = ("--data-dir", SAMPLE, "--weights", "random", "--image-size", 64, "--precision", "float32")
# Four files of 20 images.
SMALL = ("--epochs", 2, "--train-size", 40, "--validation-size", 20, "--test-size", 20)
# The layers of each backbone at which its stages end.
STAGE_LAYERS = {
    "resnet50": ("conv3_block4_out", "conv4_block6_out", "conv5_block3_out"),
    "efficientnetv2b0": (
        "block4a_expand_activation",
        "block6a_expand_activation",
        "top_activation",
    ),
    "inceptionv3": ("mixed2", "mixed7", "mixed10"),
    "mobilenetv2": ("block_6_expand_relu", "block_13_expand_relu", "out_relu"),
}


def train_small(*argv):
    """Run the script with a small ResNet50, for a module; the result has its output as `out`."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        use_small_resnet(patch)
        use_small_chunks(patch)
        result = train_in_process(resnet50_fashion, *FAST, *SMALL, *argv)
    result.out = out.getvalue()
    return result


@pytest.fixture
def run(run_main, shared_cache_dir, small_resnet, small_chunks):
    """Run the script with a small ResNet50, in a directory of the test."""
    argv = (*FAST, *SMALL, "--cache-dir", shared_cache_dir)
    return functools.partial(run_main, resnet50_fashion, *argv)


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """A run with defaults and a cache of its own, next to its output directory."""
    directory = tmp_path_factory.mktemp("default")
    return train_small("--output-dir", directory / "output", "--cache-dir", directory / "cache")


# ------------------------------------------------------------------------------------ features


def pool_on_grid(activations, grid_size):
    """Average over the cells of a grid, row by row; cells may overlap."""
    step = activations.shape[1] // grid_size
    cells = [
        slice(i * step, activations.shape[1] - (grid_size - 1 - i) * step) for i in range(grid_size)
    ]
    return np.hstack([activations[:, y, x].mean((1, 2)) for y in cells for x in cells])


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_logarithms_of_pooled_activations_of_keras_applications(
    name, sample, tmp_path
):
    """On real images, with the preprocessing that Keras has for each network."""
    build, images = ARCHITECTURES[name].build, sample.test.images[:16]
    network = build(include_top=False, weights=None, input_shape=(96, 96, 3))
    upscaled = [
        Image.fromarray(i.astype("float32")).resize((96, 96), Image.BILINEAR) for i in images
    ]
    inputs = sys.modules[build.__module__].preprocess_input(np.stack([upscaled] * 3, axis=-1))
    # Statistics of these images, without which random networks are hardly sensitive to the input.
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0
    network(inputs, training=True)
    network.save_weights(path := tmp_path / "random.weights.h5")
    outputs = [network.get_layer(layer).output for layer in STAGE_LAYERS[name]]
    activations = keras.Model(network.input, outputs).predict(inputs, verbose=0)

    backbone = load_backbone(name, 96, str(path), seed=0)
    names = ("conv5_avg", "conv3_3x3", "conv4_4x4")
    extractor = resnet50_fashion.build_feature_extractor(backbone, names)
    assert not any(isinstance(x, keras.layers.BatchNormalization) for x in extractor.layers)
    assert not extractor.trainable_weights
    features = extractor.predict(images, verbose=0)
    assert features.keys() == {*names, *(f"{stage}_avg" for stage in STAGES)}
    for feature, values in features.items():
        stage, kind = feature.split("_")
        maps = activations[STAGES.index(stage)]
        pooled = maps.mean(axis=(1, 2)) if kind == "avg" else pool_on_grid(maps, int(kind[0]))
        expected = np.sign(pooled) * np.log1p(np.abs(pooled))
        size = np.abs(expected).mean()
        assert values.dtype == np.float16
        assert expected.std(axis=0).mean() > 0.05 * size  # differs between images
        np.testing.assert_allclose(values, expected, rtol=0.01, atol=0.01 * size)


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize(
    ("policy", "expected"), [("mixed_float16", 4e-3), ("mixed_bfloat16", 0.03)]
)
def test_16_bits_suffice_for_imagenet_weights(policy, expected, imagenet_weights, sample):
    """No activation exceeds float16, and the features are close to those in float32."""
    features, largest = [], []
    for each in "float32", policy:
        keras.config.set_dtype_policy(each)
        backbone = load_backbone("resnet50", 64, imagenet_weights, seed=0)
        extractor = resnet50_fashion.build_feature_extractor(backbone, ("conv5_avg",))
        features.append(extractor.predict_on_batch(sample.test.images[:50]))
        layers = [x.output for x in extractor.layers if x.name.startswith("conv")]
        activations = keras.Model(extractor.input, layers)
        values = activations.predict_on_batch(sample.test.images[:10])
        largest.append(max(np.abs(x.astype("float32")).max() for x in values))
    assert largest == pytest.approx([largest[0]] * 2, rel=0.05) and largest[1] < 65504 / 10
    for name, values in features[0].items():
        values, others = values.astype("float32"), features[1][name].astype("float32")
        assert 0 < np.abs(others - values).mean() / values.mean() < expected


# ---------------------------------------------------------------------------------------- head


def build_head(features, *argv):
    """Build a head with four classes."""
    keras.utils.set_random_seed(0)
    options = parse_options(resnet50_fashion, *argv)
    return resnet50_fashion.build_head(features[:, None], 4, options)


def test_head_standardizes_and_clips():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(1000, 4)) * [1, 0.1, 10, 1] + [0, 5, 0, 0]).astype("float16")
    features[:, 3] = 2  # constant
    head = build_head(features)
    standardized = keras.Model(head.input, head.layers[2].input)
    values = standardized.predict(features, verbose=0)
    expected = features[:, :3].astype("float64")
    expected = (expected - expected.mean(0)) / expected.std(0)
    np.testing.assert_allclose(values[:, :3], expected.clip(-10, 10), rtol=1e-2, atol=1e-3)
    # A channel that is constant in training may have any value in other images.
    features[0] = 60_000
    assert np.abs(standardized.predict(features, verbose=0)).max() <= 10


@pytest.mark.parametrize("hidden_units", [0, 5])
def test_head_equals_numpy(hidden_units):
    """Without hidden units, it is a linear classifier that starts from zero."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 7)).astype("float16")
    head = build_head(features, "--hidden-units", hidden_units)
    is_uniform = np.allclose(head.predict(features, verbose=0), 0.25)
    assert is_uniform == (hidden_units == 0)
    dense = [layer for layer in head.layers if isinstance(layer, keras.layers.Dense)]
    values = (features - features.mean(0, "float64")) / features.std(0, "float64")
    for layer in dense:
        layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
        kernel, bias = layer.get_weights()
        values = (np.maximum(0, values) if layer is not dense[0] else values) @ kernel + bias
    expected = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.predict(features, verbose=0), expected, atol=5e-3)


# ------------------------------------------------------------------------------- complete runs


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_saved_model_predicts_as_the_head_on_cached_features(precision, run, sample):
    sizes = ("--train-size", 420, "--test-size", 400)
    result = run("--features", "conv3+conv4", "--precision", precision, *sizes)
    rows = np.loadtxt(result.directory / "predictions.csv", delimiter=",", skiprows=1)
    probabilities = result.model.predict(sample.test.images, batch_size=50, verbose=0)
    assert np.mean(probabilities.argmax(axis=1) == rows[:, 2]) >= 0.99
    if precision == "float32":
        np.testing.assert_allclose(probabilities, rows[:, 4:], atol=1e-4, rtol=6e-4)


def get_layer(model, name):
    """Return the first layer, of a model or of a model in it, whose name starts with `name`."""
    for layer in model.layers:
        if layer.name.startswith(name):
            return layer
        if isinstance(layer, keras.Model) and (found := get_layer(layer, name)):
            return found
    return None


def is_flip_invariant(model, images):
    """Return whether the predictions for images and their flips are equal."""
    views = [images, np.ascontiguousarray(images[:, :, ::-1])]
    predictions = [model.predict(view, verbose=0) for view in views]
    return bool(np.abs(predictions[0] - predictions[1]).max() < 1e-5)


@pytest.mark.any_version
def test_metrics_do_not_depend_on_the_cache(run, default_run, tmp_path, capsys):
    """Extraction stops at the last needed stage; the cache serves and extends other features."""
    first, second = tmp_path / "first", default_run.directory.parent / "cache"
    conv4 = run("--cache-dir", first, "--features", "conv3+conv4")
    expected = conv4.deterministic_metrics()
    assert get_layer(conv4.model, "conv4_block1_out")
    assert not get_layer(conv4.model, "conv5_block1_out")
    assert not list(first.rglob("*conv5*"))

    capsys.readouterr()
    cached = run("--cache-dir", second, "--features", "conv3+conv4")
    assert capsys.readouterr().out.count("Features: all cached in") == 3
    assert cached.deterministic_metrics() == expected
    added = run("--cache-dir", first)
    assert "extracting 40 images" in capsys.readouterr().out
    assert added.deterministic_metrics() == default_run.deterministic_metrics() != expected
    contents = [
        {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*.npy")}
        for cache in (first, second)
    ]
    assert len(contents[0]) == 4 * 3 and contents[0] == contents[1]


@pytest.fixture(scope="module")
def recipe_runs(tmp_path_factory):
    """A run of `fast` and, next to it, one of `best`."""
    root, runs = tmp_path_factory.mktemp("recipes"), {}
    for recipe in "fast", "best":
        directories = ("--output-dir", root / recipe, "--cache-dir", root / "cache")
        runs[recipe] = train_small("--recipe", recipe, "--batch-size", 20, *directories)
    return runs


def test_flip_adds_flipped_images_and_averages_predictions(recipe_runs, sample):
    images = sample.test.images[:20]
    for recipe, num_steps in ("fast", 2), ("best", 4):
        result = recipe_runs[recipe]
        assert f"\n{num_steps}/{num_steps} - " in result.out  # of 20 images
        assert is_flip_invariant(result.model, images) == (recipe == "best")
        predicted = result.model.predict(images, verbose=0).argmax(axis=1)
        assert result.metrics["test"]["accuracy"] == np.mean(predicted == sample.test.labels[:20])


def test_recipes_are_compared(recipe_runs):
    """`best` is compared with the run of `fast` next to it."""
    result = recipe_runs["best"]
    page = (result.directory / "report.html").read_text()
    for name in "fast", "best":
        assert re.search(rf"^resnet50_fashion {name} .*%", result.out, re.MULTILINE)
        assert f"resnet50_fashion {name}" in page
    assert "resnet50_fashion best" not in recipe_runs["fast"].out


def test_temperature_of_validation_images_calibrates_model_and_predictions(run, sample):
    check_calibration(functools.partial(run, "--test-size", 30, "--flip"), sample)


@pytest.mark.any_version
def test_seed_and_required_accuracy_take_effect(run, default_run, tmp_path):
    with pytest.raises(UserError) as error:
        run("--seed", 1, "--require-accuracy", 1)
    default, other = default_run, Result(tmp_path / "outputs" / "resnet50_fashion")
    assert default.metrics["weights"]["sha256"] != other.metrics["weights"]["sha256"]
    losses = [[row["loss"] for row in result.history] for result in (default, other)]
    assert losses[0] != losses[1]
    accuracies = [other.metrics[split]["accuracy"] for split in ("validation", "test")]
    assert accuracies[0] != accuracies[1]
    assert str(error.value).startswith(f"validation accuracy {accuracies[0]:.4f} is below")


# ------------------------------------------------------------------------------------- options

# Arguments of each option of this script, and a check that only a run with them passes. A run has
# the arguments of all rows of one of the two tables.
OPTIONS = {
    "features": (
        ("--features", "conv3+conv4"),
        lambda r: get_layer(r.model, "head").input_shape == (None, 24 + 32),
    ),
    "flip": (("--flip",), lambda r: is_flip_invariant(r.model, load_sample().test.images[:20])),
    "image_size": (
        ("--image-size", 96),
        lambda r: get_layer(r.model, "conv1_conv").output.shape[1] == 48,
    ),
    "hidden_units": (("--hidden-units", 48), lambda r: get_layer(r.model, "dense").units == 48),
    "dropout": (("--dropout", 0.25), lambda r: get_layer(r.model, "dropout").rate == 0.25),
    "epochs": (("--epochs", 3), lambda r: "\nEpoch 3/3\n" in r.out),
    "batch_size": (("--batch_size=10",), lambda r: "\n8/8 - " in r.out),  # of two views
    "learning_rate": (
        ("--learning-rate", 2e-3),
        lambda r: np.isclose(r.history[0]["learning_rate"], 2e-3),
    ),
    "fine_tune_blocks": (("--fine-tune-blocks", 1), lambda r: "fine_tuning" in r.metrics),
    "fine_tune_epochs": (("--fine-tune-epochs", 2), lambda r: "\nEpoch 5/5\n" in r.out),
    "fine_tune_batch_size": (("--fine-tune-batch-size", 8), lambda r: "\n5/5 - " in r.out),
    "fine_tune_learning_rate": (
        ("--fine-tune-learning-rate", 3e-4),
        # After warm-up for one of ten steps, half of them before the last epoch.
        lambda r: 1e-4 < r.history[-1]["learning_rate"] < 2e-4,
    ),
}
MORE_OPTIONS = {
    "backbone": (
        ("--backbone", "mobilenetv2"),
        lambda r: get_layer(r.model, "head").input_shape == (None, 1280),
    ),
    "precision": (
        ("--precision=bfloat16",),
        lambda r: (
            r.metrics["weights"]["precision"] == "bfloat16"
            and get_layer(r.model, "Conv1").compute_dtype == "bfloat16"
            and get_layer(r.model, "dense").compute_dtype == "bfloat16"
        ),
    ),
    "patience": (
        ("--patience", 1, "--epochs", 30),
        lambda r: len(r.history) < r.metrics["config"]["epochs"],
    ),
}


@pytest.fixture(scope="module")
def option_runs(tmp_path_factory, shared_cache_dir):
    """Runs with `OPTIONS` and with `MORE_OPTIONS`."""
    runs = []
    for table in OPTIONS, MORE_OPTIONS:
        argv = [arg for option_argv, _ in table.values() for arg in option_argv]
        output_dir = tmp_path_factory.mktemp("output")
        runs.append(train_small(*argv, "--cache-dir", shared_cache_dir, "--output-dir", output_dir))
    return runs


@pytest.mark.parametrize("option", [*OPTIONS, *MORE_OPTIONS])
def test_option_takes_effect(option, option_runs, default_run):
    with_options, with_more_options = option_runs
    _, check = (OPTIONS | MORE_OPTIONS)[option]
    assert check(with_options if option in OPTIONS else with_more_options)
    assert not check(default_run), "the check passes without the option"


def test_laps_are_those_with_an_option_to_reduce(option_runs):
    assert option_runs[0].metrics["seconds"].keys() >= errors.OPTIONS_TO_REDUCE.keys()


def test_fine_tuned_model_has_the_accuracy_of_the_run_which_is_finished(option_runs, sample):
    model, metrics = option_runs[0].model, option_runs[0].metrics
    state = (option_runs[0].directory / "checkpoint" / "state.json").read_text()
    assert json.loads(state)["finished"]  # else the next run would be refused
    predicted = model.predict(sample.test.images[:20], verbose=0).argmax(axis=1)
    assert metrics["test"]["accuracy"] == np.mean(predicted == sample.test.labels[:20])


# ------------------------------------------------------------------------------------ accuracy


@pytest.mark.slow
def test_subset_reaches_documented_accuracy(subset_run):
    # With weights of 8 bits, seeds 0, 1, 2 gave validation 92.2, 91.9, 91.7%, test 90.8, 90.0,
    # 91.1%. The limits are lower, because rounding differs between machines; --require-accuracy
    # checks validation.
    assert subset_run.metrics["config"]["require_accuracy"] == 0.905
    assert subset_run.metrics["test"]["accuracy"] >= 0.88


@pytest.mark.slow
def test_subset_model_classifies_photos(subset_run, command_line, sample, tmp_path_factory):
    photos = tmp_path_factory.mktemp("photos")
    check_photos(command_line, resnet50_fashion, subset_run.directory, photos, sample.test)
