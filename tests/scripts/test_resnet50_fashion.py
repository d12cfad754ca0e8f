"""The frozen ResNet50 and its head: features, head, whole model, options."""

import functools

from fashion.backbones.feature_cache import FeatureCache, read_copies
from fashion.cli.recipes import RECIPES

import keras
import numpy as np
import pytest
from conftest import (
    SAMPLE,
    Result,
    build_small_resnet,
    load,
    make_files_small,
    make_resnet_small,
    parse,
    train,
)
from PIL import Image
from test_own_pictures import check_photos

import resnet50_fashion

FAST = ("--data-dir", SAMPLE, "--weights", "none", "--epochs", 2, "--image-size", 64)
SMALL = ("--train-size", 40, "--validation-size", 20, "--test-size", 20)  # four files of 20 images
STAGES = {"conv3": "conv3_block4_out", "conv4": "conv4_block6_out", "conv5": "conv5_block3_out"}


@pytest.fixture
def run_real(run_main, shared_cache, small_files):
    """Runs the script with the ResNet50 itself."""
    words = (*FAST, *SMALL, "--cache-dir", shared_cache)
    return functools.partial(run_main, resnet50_fashion, *words)


@pytest.fixture
def run(run_real, small_resnet):
    """Runs the script with a small network of its kind."""
    return run_real


# ----------------------------------------------------------------------------- frozen network


def by_pillow(images):
    """The ResNet50's input, without Keras' layers: float32 (N, 224, 224, 3)."""
    large = [
        Image.fromarray(i.astype("float32")).resize((224, 224), Image.BILINEAR) for i in images
    ]
    return keras.applications.resnet50.preprocess_input(np.stack([large] * 3, axis=-1))


def test_backbone_input_is_what_pillow_and_preprocess_input_make(random_backbone, sample):
    backbone = random_backbone("resnet50", 224, "float32")
    extractor = resnet50_fashion.build_extractor(backbone, ("conv5_avg",))
    start = keras.Model(extractor.input, extractor.get_layer("conv1_pad").input)
    images = sample.test.images[:10]
    np.testing.assert_allclose(start.predict(images, verbose=0), by_pillow(images), atol=1e-3)


def grid(activations, fields):
    """Averages over a grid's fields, row by row; of 28 or 14 positions, the latter's overlap."""
    step = activations.shape[1] // fields
    parts = [slice(i * step, activations.shape[1] - (fields - 1 - i) * step) for i in range(fields)]
    return np.hstack([activations[:, y, x].mean((1, 2)) for y in parts for x in parts])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_features_are_those_of_the_unfolded_backbone(precision, random_backbone, sample):
    images = sample.test.images[:16]
    backbone = random_backbone("resnet50", 224, precision)
    stages = [backbone.network.get_layer(name).output for name in STAGES.values()]
    plain = keras.Model(backbone.network.input, stages).predict(by_pillow(images), verbose=0)
    names = ("conv5_avg", "conv3_4x4", "conv4_4x4", "conv3_3x3")
    extractor = resnet50_fashion.build_extractor(backbone, names)
    assert not any(isinstance(x, keras.layers.BatchNormalization) for x in extractor.layers)
    assert not extractor.trainable_weights
    features = extractor.predict(images, verbose=0)
    assert len(features) == 9
    # float16 keeps 11 bits, bfloat16 8 in each of fifty layers.
    tolerance = {"float32": 2e-3, "float16": 0.02, "bfloat16": 0.1}[precision]
    for stage, activations in zip(STAGES, plain, strict=True):
        for name, pooled in (
            ("avg", activations.mean((1, 2))),
            ("max", activations.max((1, 2))),
            ("3x3", grid(activations, 3)),
            ("4x4", grid(activations, 4)),
        ):
            if f"{stage}_{name}" not in (*names, f"{stage}_avg", f"{stage}_max"):
                assert f"{stage}_{name}" not in features
                continue
            ours = features[f"{stage}_{name}"]
            assert ours.dtype == np.float16
            np.testing.assert_allclose(ours, pooled, rtol=tolerance, atol=tolerance * pooled.mean())


@pytest.mark.parametrize(("precision", "expected"), [("float16", 4e-3), ("bfloat16", 0.03)])
def test_16_bits_are_enough_for_imagenets_weights(precision, expected, imagenet_weights, sample):
    """No activation on the way is too large for float16, and features are close to float32's."""
    features, largest = [], []
    for dtype in "float32", precision:
        words = ("--image-size", 64, "--weights", imagenet_weights, "--precision", dtype)
        backbone = resnet50_fashion.load_backbone(parse(resnet50_fashion, *words))
        extractor = resnet50_fashion.build_extractor(backbone, ("conv5_avg",))
        features.append(extractor.predict_on_batch(sample.test.images[:50]))
        layers = [x.output for x in backbone.folded.layers if x.name.startswith("conv")]
        activations = keras.Model(backbone.folded.input, layers)
        on_the_way = activations.predict_on_batch(sample.test.images[:10])
        largest.append(max(np.abs(x.astype("float32")).max() for x in on_the_way))
    assert largest == pytest.approx([largest[0]] * 2, rel=0.05) and largest[1] < 65504 / 10
    for name, values in features[0].items():
        values, others = values.astype("float32"), features[1][name].astype("float32")
        assert 0 < np.abs(others - values).mean() / values.mean() < expected


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("conv5", {f"{stage}_{kind}" for stage in STAGES for kind in ("avg", "max")}),
        ("conv4", {"conv3_avg", "conv3_max", "conv4_avg", "conv4_max"}),
        (
            "conv4_3x3",
            {f"{stage}_{kind}" for stage in ("conv3", "conv4") for kind in ("avg", "max")}
            | {"conv3_3x3"},
        ),
    ],
)
def test_extractor_goes_as_far_as_its_features_need(features, expected, random_backbone):
    """And of each stage gives what costs nothing, too: another head may see it."""
    names = resnet50_fashion.FEATURES[features]
    extractor = resnet50_fashion.build_extractor(random_backbone("resnet50", 64, "float32"), names)
    assert extractor.output.keys() == expected
    last = "conv5" if features == "conv5" else "conv4"
    assert max(x.name[:5] for x in extractor.layers if x.name.startswith("conv")) == last


def test_cache_is_of_the_weights_the_seed_and_the_size(tmp_path, small_resnet):
    small = build_small_resnet(False, None, (64, 64, 3))
    small.save_weights(path := tmp_path / "other.weights.h5")
    words = (*FAST, "--precision", "float32")
    names = [
        resnet50_fashion.load_backbone(parse(resnet50_fashion, *words, *more)).cache_name
        for more in ((), (), ("--seed", 1), ("--weights", path), ("--image-size", 96))
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 4


# -------------------------------------------------------------------------------------- head


def test_standardised_are_logarithms_without_mean_and_deviation():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(1000, 4)) * [1, 10, 1000, 1] + [0, 5, 0, 0]).astype("float16")
    features[:, 3] = 2  # constant
    ours = resnet50_fashion.build_standardiser(features).predict(features, verbose=0)
    logarithms = np.sign(features) * np.log1p(np.abs(features.astype("float64")))
    expected = (logarithms - logarithms.mean(0))[:, :3] / logarithms[:, :3].std(0)
    np.testing.assert_allclose(ours[:, :3], expected.clip(-10, 10), rtol=1e-2, atol=1e-3)
    assert np.abs(ours).max() <= 10
    # What is constant in training may be anything in other images.
    features[0] = 60_000
    assert np.abs(resnet50_fashion.build_standardiser(features[1:]).predict(features)).max() <= 10


def test_head_is_dense_512_dropout_softmax_on_the_features():
    options = parse(resnet50_fashion, "--dropout", 0.25)
    features = np.random.default_rng(0).normal(size=(100, 7)).astype("float16")
    head = resnet50_fashion.build_head(features, 4, options, "float32")
    dense, dropout, softmax = head.get_layer("classifier").layers
    assert (dense.units, dense.activation) == (512, keras.activations.relu)
    assert dropout.rate == 0.25
    assert (softmax.units, softmax.activation) == (4, keras.activations.softmax)
    again, other = (
        resnet50_fashion.build_head(features, 4, options, "float32")
        for options in (parse(resnet50_fashion, "--seed", seed) for seed in (0, 1))
    )
    first = head.predict(features, verbose=0)
    np.testing.assert_array_equal(again.predict(features, verbose=0), first)
    assert not np.array_equal(other.predict(features, verbose=0), first)


def test_too_large_images_for_the_memory_are_an_error_in_a_line(
    command_line, small_resnet, tmp_path
):
    """125 of them would take 5 TB."""
    words = (*FAST, "--image-size", 100_000, "--cache-dir", tmp_path, "--wandb", "disabled")
    done = command_line(resnet50_fashion, *words)
    expected = "out of memory during extraction: try it with a lower --image-size"
    assert done.code == 1
    assert done.err == f"resnet50_fashion.py: error: {expected}\n"


# -------------------------------------------------------------------------------- whole runs


def digest_of(result):
    return result.metrics["weights"]["sha256"][:16]


@pytest.mark.parametrize(
    ("precision", "images"),
    [
        ("float32", 40),
        pytest.param("bfloat16", 420, marks=pytest.mark.slow),
        pytest.param("float16", 420, marks=pytest.mark.slow),
    ],
)
def test_saved_model_is_the_head_on_the_cached_features(precision, images, run_real, shared_cache):
    sizes = ("--train-size", images, "--validation-size", 40, "--test-size", 40)
    result = run_real("--features", "conv4", "--precision", precision, *sizes)
    data = load(train_size=images, validation_size=40, test_size=40)
    (folder,) = shared_cache.glob(f"resnet50-64-bilinear-{precision}-{digest_of(result)}")
    names = resnet50_fashion.FEATURES["conv4"]
    backbone = resnet50_fashion.load_backbone(parse(resnet50_fashion, *FAST))
    cache = FeatureCache(folder, resnet50_fashion.build_extractor(backbone, names))
    head, by_head, by_model = result.model.get_layer("head"), [], []
    for split in data.train, data.validation, data.test:
        by_head.append(head.predict(read_copies({"": cache}, split, names), verbose=0))
        by_model.append(result.model.predict(split.images, batch_size=50, verbose=0))
    test = np.mean(by_model[2].argmax(1) == data.test.labels)
    assert result.metrics["test"]["accuracy"] == pytest.approx(test, abs=0.03)
    by_head, by_model = np.concatenate(by_head), np.concatenate(by_model)
    assert by_model.shape == (images + 80, 10)
    if precision == "float32":
        assert np.abs(by_head - by_model).max() < 1e-4
    assert np.mean(by_head.argmax(1) == by_model.argmax(1)) >= 0.99


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of a run of the small ResNet50 by default, in it `output` and `cache`."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        make_resnet_small(patch)
        make_files_small(patch)
        folders = ("--output-dir", folder / "output", "--cache-dir", folder / "cache")
        train(resnet50_fashion, *FAST, *SMALL, *folders)
    return folder


def test_figures_are_the_same_whether_or_not_the_features_were_cached(run, plain, tmp_path, capsys):
    """A pass stops at the last stage that is used. One to conv5 holds for it, and adds to it."""
    first, second = tmp_path / "first", plain / "cache"
    conv4 = run("--cache-dir", first, "--features", "conv4")
    expected, layers = conv4.without_time(), [layer.name for layer in conv4.model.layers]
    assert "conv4_block1_out" in layers
    assert not any(name.startswith("conv5") for name in layers)
    conv5 = Result(plain / "output")
    assert conv5.metrics["extraction"]["images_per_second"] > 0

    capsys.readouterr()
    cached = run("--cache-dir", second, "--features", "conv4")
    assert "Features: all in" in capsys.readouterr().out
    assert cached.metrics["extraction"]["images_per_second"] is None
    assert cached.without_time() == expected
    added = run("--cache-dir", first)
    assert "extracting 80 images" in capsys.readouterr().out
    assert added.without_time() == conv5.without_time() != expected
    files = [
        {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*.npz")}
        for cache in (first, second)
    ]
    assert len(files[0]) == 4 and files[0] == files[1]


def test_mirrored_copies_are_trained_on_and_averaged_in_the_answer(run, sample, tmp_path, capsys):
    words = ("--recipe", "best", "--precision", "float32", "--cache-dir", tmp_path / "own")
    result = run(*words, "--image-size", 64, "--batch-size", 20)
    out = capsys.readouterr().out
    assert "Features: extracting 80 images" in out and "Mirrored: extracting 80 images" in out
    assert "\n4/4 - " in out  # 40 images and 40 copies, in steps of 20
    images = sample.test.images[:20]
    answers = result.model.predict(images, verbose=0)
    assert result.metrics["test"]["accuracy"] == np.mean(
        answers.argmax(1) == sample.test.labels[:20]
    )
    # To an image and to its mirror image it gives the same answer.
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    np.testing.assert_allclose(result.model.predict(mirrored, verbose=0), answers, atol=1e-5)
    plain = run(*words, "--image-size", 64, "--batch-size", 20, "--no-mirror")
    assert "Features: all in" in capsys.readouterr().out
    answers = plain.model.predict(images, verbose=0)
    assert np.abs(plain.model.predict(mirrored, verbose=0) - answers).max() > 1e-3


def test_fine_tuned_model_averages_mirror_images_too(run, sample):
    words = ("--mirror", "--precision", "float32", "--fine-tune-blocks", 1)
    result = run(*words, "--fine-tune-epochs", 1, "--fine-tune-batch-size", 20)
    images = sample.test.images[:20]
    answers = result.model.predict(images, verbose=0)
    assert result.metrics["test"]["accuracy"] == np.mean(
        answers.argmax(1) == sample.test.labels[:20]
    )
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    np.testing.assert_allclose(result.model.predict(mirrored, verbose=0), answers, atol=1e-5)


# One row for each option of this script alone: its words, and what only a run that heeds them
# shows. A run has the words of all rows of one of the two tables.
OPTIONS = {
    "features": (
        ("--features", "conv4"),
        lambda r: r.model.get_layer("head").input_shape == (None, 512 + 1024 + 1024),
    ),
    "image_size": (
        ("--image-size", 96),
        lambda r: r.model.get_layer("conv1_conv").output.shape[1] == 48,
    ),
    "dropout": (("--dropout", 0.25), lambda r: classifier_layer(r, "dropout").rate == 0.25),
    "precision": (
        ("--precision=bfloat16",),
        lambda r: r.model.get_layer("conv1_conv").compute_dtype == "bfloat16",
    ),
    "epochs": (("--epochs", 3), lambda r: len(r.history) == 3),
    "learning_rate": (
        ("--learning-rate", 2e-3),
        lambda r: (
            np.isclose(r.history[0]["learning_rate"], 2e-3)
            and r.history[-1]["learning_rate"] < 1.1e-3
        ),
    ),
}
MORE_OPTIONS = {
    "backbone": (
        ("--backbone", "mobilenetv2"),
        lambda r: r.model.get_layer("head").input_shape == (None, 1280),
    ),
    "patience": (
        ("--patience", 1, "--epochs", 30),
        lambda r: len(r.history) < r.metrics["config"]["epochs"],
    ),
    "mirror": (
        ("--mirror",),
        lambda r: any(isinstance(x, keras.layers.Average) for x in r.model.layers),
    ),
}


def classifier_layer(result, start):
    """The layer of the classifier whose name starts so."""
    classifier = result.model.get_layer("head").get_layer("classifier")
    return next(layer for layer in classifier.layers if layer.name.startswith(start))


@pytest.fixture(scope="module")
def results(tmp_path_factory, shared_cache):
    """Of the words of no table, of `OPTIONS`, and of `MORE_OPTIONS`."""
    found = []
    for table in {}, OPTIONS, MORE_OPTIONS:
        more = [word for words, _ in table.values() for word in words]
        words = (*FAST, *SMALL, "--precision", "float32", "--dropout", 0.5)
        folders = ("--cache-dir", shared_cache, "--output-dir", tmp_path_factory.mktemp("output"))
        with pytest.MonkeyPatch.context() as patch:
            make_files_small(patch)
            found.append(train(resnet50_fashion, *words, *more, *folders))
    return found


@pytest.mark.parametrize("option", [*OPTIONS, *MORE_OPTIONS])
def test_option_reaches_what_it_names(option, results):
    plain, of_options, of_more = results
    _, shows = (OPTIONS | MORE_OPTIONS)[option]
    assert shows(of_options if option in OPTIONS else of_more)
    assert not shows(plain), "the default would have passed as well"


def test_batch_size_and_seed_change_the_training(run, plain):
    results = Result(plain / "output"), run("--batch_size=10"), run("--seed", 1)
    losses = [[row["loss"] for row in result.history] for result in results]
    assert losses[0] != losses[1] and losses[0] != losses[2]


def test_every_option_has_a_test():
    options = resnet50_fashion.Options().config().keys()
    elsewhere = {
        "batch_size",
        "weights",
        "cache_dir",
        "seed",
        "train_size",
        "validation_size",
        "test_size",
        "gpus",
        "predict",
        "recipe",
    }
    fine_tuning = {name for name in options if name.startswith("fine_tune_")} | {"resume"}
    as_in_the_baseline = {"model", "data_dir", "output_dir", "require_accuracy", "wandb", "project"}
    here = OPTIONS.keys() | MORE_OPTIONS.keys()
    assert options == here | elsewhere | as_in_the_baseline | fine_tuning


def test_recipes_name_features_of_this_script():
    for values in RECIPES.values():
        assert values.get("features", "conv5") in resnet50_fashion.FEATURES


MINIMAL = ("--data-dir", SAMPLE, "--weights", "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "99"), "--gpus 99: TensorFlow sees"),
        ((*MINIMAL, "--image-size", "31"), "--image-size 31: Input size must be at least 32"),
        (
            (*MINIMAL, "--image-size", 32, "--fine-tune-blocks", "17"),
            "--fine-tune-blocks 17: only 16 blocks",
        ),
        (
            (*MINIMAL, "--image-size", 32, "--features", "conv4", "--fine-tune-blocks", "14"),
            "--fine-tune-blocks 14: only 13 blocks",
        ),
    ],
)
def test_what_turns_out_to_be_unusable_is_a_usage_error(words, message, command_line):
    done = command_line(resnet50_fashion, *words)
    assert done.code == 2
    assert done.err.startswith(f"resnet50_fashion.py: error: {message}")
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_subset_reaches_what_is_promised(subset_run):
    # With seeds 0, 1, 2: validation 92.1, 91.9, 91.7 %, test 91.6, 90.8, 89.9 %. Asked for is
    # clearly less, of validation by --require-accuracy, since another machine rounds otherwise.
    assert subset_run.metrics["config"]["require_accuracy"] == 0.905
    assert subset_run.metrics["test"]["accuracy"] >= 0.88


@pytest.mark.slow
def test_subset_knows_photos(subset_run, command_line, sample, tmp_path_factory):
    photos = tmp_path_factory.mktemp("photos")
    check_photos(command_line, resnet50_fashion, subset_run.folder, photos, sample.test)
