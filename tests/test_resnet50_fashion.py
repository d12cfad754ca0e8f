import functools
import subprocess
import sys
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, SAMPLE, Result, environment, run_script
from PIL import Image

import common
import resnet50_fashion

FAST = ("--data-dir", SAMPLE, "--wandb", "disabled", "--weights", "none", "--epochs", 2)
FAST = (*FAST, "--image-size", 64)
STAGES = {"conv3": "conv3_block4_out", "conv4": "conv4_block6_out", "conv5": "conv5_block3_out"}
SMALL = ("--train-size", 40, "--validation-size", 20, "--test-size", 20)  # four files of 20 images


def random_backbone(name, image_size):
    """A network of random weights, those of its BatchNormalizations included."""
    backbone = resnet50_fashion.build_backbone(name, image_size, "none", seed=0)
    rng = np.random.default_rng(0)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.beta.shape[0]
            gamma = [rng.uniform(0.5, 1.5, n)] if layer.scale else []
            means = rng.normal(0, 0.3, n), rng.normal(0, 0.3, n)
            layer.set_weights([*gamma, *means, rng.uniform(0.5, 2, n)])
    return backbone


def extractor_of(backbone, precision):
    """The extractor of a ResNet50 to its end."""
    blocks = resnet50_fashion.blocks_of(
        backbone, resnet50_fashion.BACKBONES["resnet50"].block_starts
    )
    stages = resnet50_fashion.stages_of(backbone, blocks)
    frozen = resnet50_fashion.freeze("resnet50", backbone, precision)
    return resnet50_fashion.build_extractor(frozen, stages, "conv5")


@pytest.fixture(scope="session")
def backbone():
    """A random ResNet50 whose BatchNormalization layers do something."""
    return random_backbone("resnet50", 224)


@pytest.fixture(scope="session")
def weights(backbone, tmp_path_factory):
    """Files of the same weights in both of Keras' layouts."""
    folder = tmp_path_factory.mktemp("weights")
    backbone.save_weights(folder / "current.weights.h5")
    write_legacy(backbone, folder / "legacy.h5")
    return folder


def write_legacy(model, path):
    """The layout of Keras 1 and 2, in which keras.applications' own downloads are."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value


MINIMAL = ("--data-dir", str(SAMPLE), "--weights", "none")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """A cache for the tests that are not about it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(run_main, shared_cache, monkeypatch):
    monkeypatch.setattr(resnet50_fashion, "CHUNK", 20)
    options = (*FAST, *SMALL, "--cache-dir", shared_cache)
    return functools.partial(run_main, resnet50_fashion, *options)


def files(cache: Path) -> dict[Path, bytes]:
    """What is in a cache."""
    return {p.relative_to(cache): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


def by_pillow(images):
    """The ResNet50's input, without Keras' layers: float32 (N, 224, 224, 3)."""
    large = [
        Image.fromarray(i.astype("float32")).resize((224, 224), Image.BILINEAR) for i in images
    ]
    return keras.applications.resnet50.preprocess_input(np.stack([large] * 3, axis=-1))


def test_backbone_input_is_what_pillow_and_preprocess_input_make(backbone, sample):
    extractor = extractor_of(backbone, "float32")
    start = keras.Model(extractor.input, extractor.get_layer("conv1_pad").input)
    images = sample.test.images[:10]
    np.testing.assert_allclose(start.predict(images, verbose=0), by_pillow(images), atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_are_those_of_the_unfolded_backbone(precision, backbone, sample):
    images = sample.test.images[:16]
    stages = [backbone.get_layer(name).output for name in STAGES.values()]
    plain = keras.Model(backbone.input, stages).predict(by_pillow(images), verbose=0)
    extractor = extractor_of(backbone, precision)
    assert not any(isinstance(x, keras.layers.BatchNormalization) for x in extractor.layers)
    assert not extractor.trainable_weights
    features = extractor.predict(images, verbose=0)
    assert len(features) == 6
    # float16 keeps 11 bits, bfloat16 8 in each of fifty layers.
    tolerance = 2e-3 if precision == "float32" else 0.1
    for stage, activations in zip(STAGES, plain, strict=True):
        for name, pooled in ("avg", activations.mean((1, 2))), ("max", activations.max((1, 2))):
            ours = features[f"{stage}_{name}"]
            assert ours.dtype == np.float16
            np.testing.assert_allclose(ours, pooled, rtol=tolerance, atol=tolerance * pooled.mean())


@pytest.mark.parametrize("name", resnet50_fashion.BACKBONES)
def test_folded_backbone_agrees_to_float32_precision(name, sample):
    backbone = random_backbone(name, 96)
    rgb = keras.random.uniform((4, 96, 96, 3), 0, 255, seed=0)
    expected = backbone.predict(rgb, verbose=0)
    assert expected.std() > 0.01
    folded = resnet50_fashion.fold_batch_norm(backbone, backbone.input, "float32")
    # InceptionV3's and ConvNeXt's have none to begin with, or none that is a layer of its own.
    assert not any(isinstance(x, keras.layers.BatchNormalization) for x in folded.layers)
    np.testing.assert_allclose(folded.predict(rgb, verbose=0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "conv3", "conv4", "conv5", "blocks"),
    [
        ("resnet50", (28, 512), (14, 1024), (7, 2048), 16),
        ("efficientnetb0", (28, 40), (14, 112), (7, 1280), 16),
        ("efficientnetv2b0", (28, 48), (14, 112), (7, 1280), 21),
        ("inceptionv3", (35, 288), (17, 768), (8, 2048), 13),
        ("mobilenetv2", (28, 32), (14, 96), (7, 1280), 17),
        ("convnexttiny", (28, 192), (14, 384), (7, 768), 18),
    ],
)
def test_stages_and_blocks_are_the_papers(name, conv3, conv4, conv5, blocks):
    kind = resnet50_fashion.BACKBONES[name]
    backbone = resnet50_fashion.build_backbone(name, kind.image_size, "none", seed=0)
    starts = resnet50_fashion.blocks_of(backbone, kind.block_starts)
    assert len(starts) == blocks + 1
    stages = resnet50_fashion.stages_of(backbone, starts)
    shapes = [
        resnet50_fashion.activations_at(backbone, stages[stage]).shape[2:]
        for stage in ("conv3", "conv4", "conv5")
    ]
    assert shapes == [conv3, conv4, conv5]


@pytest.mark.parametrize(("precision", "images"), [("float32", 40), ("bfloat16", 420)])
def test_saved_model_is_the_head_on_the_cached_features(precision, images, run, shared_cache):
    sizes = ("--train-size", images, "--validation-size", 40, "--test-size", 40)
    result = run("--features", "conv4", "--precision", precision, *sizes)
    data = common.load_fashion_mnist(SAMPLE, images, 40, 40)
    (cache,) = shared_cache.glob(f"resnet50-64-bilinear-{precision}-*")
    head, by_head, by_model = result.model.get_layer("head"), [], []
    for split in data.train, data.validation, data.test:
        cached = resnet50_fashion.read_features(split, cache, resnet50_fashion.FEATURES["conv4"])
        by_head.append(head.predict(cached, verbose=0))
        by_model.append(result.model.predict(split.images, batch_size=50, verbose=0))
    test = np.mean(by_model[2].argmax(1) == data.test.labels)
    assert result.metrics["test"]["accuracy"] == pytest.approx(test, abs=0.03)
    by_head, by_model = np.concatenate(by_head), np.concatenate(by_model)
    assert by_model.shape == (images + 80, 10)
    if precision == "float32":
        assert np.abs(by_head - by_model).max() < 1e-4
    assert np.mean(by_head.argmax(1) == by_model.argmax(1)) >= 0.99


def test_same_figures_whether_or_not_the_features_were_cached(run, tmp_path):
    options = ("--cache-dir", tmp_path / "own")
    first, second = run(*options), run(*options)
    assert first.metrics["extraction"]["images_per_second"] > 0
    assert second.metrics["extraction"]["images_per_second"] is None
    assert first.without_time() == second.without_time()
    assert run(*options, "--seed", 1).without_time() != first.without_time()


def test_cache_holds_for_subsets_and_grows(run, tmp_path, capsys):
    cache = tmp_path / "own"
    run("--cache-dir", cache)
    before = files(cache)
    assert len(before) == 4
    capsys.readouterr()
    run("--cache-dir", cache, "--train-size", 30, "--validation-size", 20, "--test-size", 10)
    assert "Features: all in" in capsys.readouterr().out
    run("--cache-dir", cache, "--train-size", 50)
    assert "extracting 20 images" in capsys.readouterr().out
    after = files(cache)
    assert len(after) == 5 and before.items() <= after.items()


def test_pass_stops_at_the_last_stage_that_is_used(run, tmp_path, capsys):
    """A pass as far as conv4 makes files that conv5 replaces; those of conv5 hold for conv4."""
    first, second = tmp_path / "first", tmp_path / "second"
    by_short_pass = run("--cache-dir", first, "--features", "conv4")
    layers = [layer.name for layer in by_short_pass.model.layers]
    assert "conv4_block6_out" in layers
    assert not any(name.startswith("conv5") for name in layers)
    run("--cache-dir", second)
    capsys.readouterr()
    by_long_pass = run("--cache-dir", second, "--features", "conv4")
    assert "Features: all in" in capsys.readouterr().out
    assert by_short_pass.without_time() == by_long_pass.without_time()
    run("--cache-dir", first)
    assert "extracting 80 images" in capsys.readouterr().out
    assert files(first) == files(second)


def test_damaged_cache_is_mended_or_named(run, tmp_path, capsys):
    cache = tmp_path / "own"
    run("--cache-dir", cache)
    intact = files(cache)
    truncated, flipped = sorted(cache.rglob("*.npz"))[:2]
    truncated.write_bytes(truncated.read_bytes()[:-1000])
    run("--cache-dir", cache)
    assert "extracting 20 images" in capsys.readouterr().out
    assert files(cache) == intact
    content = bytearray(flipped.read_bytes())
    content[500::1000] = bytes(len(content[500::1000]))
    flipped.write_bytes(content)
    with pytest.raises(common.UserError, match=f"{flipped} is damaged .*: delete it"):
        run("--cache-dir", cache, "--features", "conv4")


def test_other_weights_and_other_images_get_other_features(run, weights, tmp_path):
    cache = tmp_path / "own"
    for options in ((), ("--seed", 1), ("--weights", weights / "legacy.h5")):
        run("--cache-dir", cache, *options, "--train-size", 20)
    assert len(list(cache.iterdir())) == 3


def test_killed_and_concurrent_extractions_end_in_the_same_bytes(tmp_path):
    def command(cache):
        sizes = ("--train-size", 250, "--validation-size", 10, "--test-size", 10)
        folders = ("--cache-dir", tmp_path / cache, "--output-dir", f"output-{cache}")
        options = map(str, (*FAST, *sizes, *folders))
        return [sys.executable, ROOT / "resnet50_fashion.py", *options]

    def start(cache):
        return subprocess.Popen(
            command(cache), cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.DEVNULL
        )

    assert start("undisturbed").wait(300) == 0
    killed = start("disturbed")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "disturbed").rglob("0*.npz")):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    left = files(tmp_path / "disturbed")
    both = [start("disturbed"), start("disturbed")]
    assert [process.wait(300) for process in both] == [0, 0]
    expected = files(tmp_path / "undisturbed")
    assert len(expected) == 4
    ended = files(tmp_path / "disturbed")
    # The killed run may have left its temporary folder, which nothing reads.
    assert {k: v for k, v in ended.items() if ".incomplete-" not in str(k)} == expected
    assert {k: v for k, v in left.items() if ".incomplete-" not in str(k)}.items() <= ended.items()


# One row for each option of this script alone: arguments, what only a run that heeds them shows.
OPTIONS = {
    "features": (
        ("--features", "conv4"),
        lambda r: r.model.get_layer("head").input_shape == (None, 512 + 1024 + 1024),
    ),
    "backbone": (
        ("--backbone", "mobilenetv2"),
        lambda r: r.model.get_layer("head").input_shape == (None, 1280),
    ),
    "image_size": (
        ("--image-size", 96),
        lambda r: r.model.get_layer("conv1_conv").output.shape[1] == 48,
    ),
    "dropout": (("--dropout", 0.25), lambda r: classifier_layer(r, "dropout").rate == 0.25),
    "patience": (
        ("--patience", 1, "--epochs", 30),
        lambda r: len(r.history) < r.metrics["config"]["epochs"],
    ),
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


def classifier_layer(result, start):
    """The layer of the classifier whose name starts so."""
    classifier = result.model.get_layer("head").get_layer("classifier")
    return next(layer for layer in classifier.layers if layer.name.startswith(start))


BASE = ("--precision", "float32", "--dropout", 0.5)


@pytest.fixture(scope="module")
def base_results():
    """The result of `BASE` alone, once there is one."""
    return []


@pytest.mark.parametrize("option", OPTIONS)
def test_option_reaches_what_it_names(option, run, base_results):
    arguments, shows = OPTIONS[option]
    if not base_results:
        base_results.append(run(*BASE))
    assert shows(run(*BASE, *arguments))
    assert not shows(base_results[0])


def test_batch_size_changes_the_training(run):
    losses = [[row["loss"] for row in run(*size).history] for size in ((), ("--batch_size=10",))]
    assert losses[0] != losses[1]


def test_every_option_has_a_test(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["resnet50_fashion.py"])
    options = vars(resnet50_fashion.parse_options()).keys()
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
    }
    fine_tuning = {name for name in options if name.startswith("fine_tune_")} | {"resume"}
    as_in_the_baseline = {"model", "data_dir", "output_dir", "require_accuracy", "wandb", "project"}
    assert options == OPTIONS.keys() | elsewhere | as_in_the_baseline | fine_tuning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--features", "conv6"), "argument --features: invalid choice: 'conv6'"),
        (("--dropout", "1"), "argument --dropout: expected a number from 0 to below 1"),
        (("--gpus", "some"), "argument --gpus: expected a whole number from 0"),
        (("--gpus", "99"), "error: --gpus 99: TensorFlow sees"),
        (("--backbone", "vgg16"), "argument --backbone: invalid choice: 'vgg16'"),
        (("--resume",), "--resume: only fine-tuning can be resumed"),
        (
            (*MINIMAL, "--image-size", "31"),
            "error: --image-size 31: Input size must be at least 32",
        ),
        ((*MINIMAL, "--fine-tune-blocks", "17"), "--fine-tune-blocks 17: only 16 blocks"),
        (
            (*MINIMAL, "--features", "conv4", "--fine-tune-blocks", "14"),
            "--fine-tune-blocks 14: only 13 blocks",
        ),
        (("--patience", "0"), "argument --patience: expected a whole number from 1"),
        (("--precision", "float64"), "argument --precision: invalid choice: 'float64'"),
    ],
)
def test_unusable_value_is_a_usage_error(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["resnet50_fashion.py", *arguments])
    with pytest.raises(SystemExit) as end:
        common.run_script(resnet50_fashion.main)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_both_layouts_load_whatever_the_file_is_called(backbone, weights, tmp_path):
    expected = resnet50_fashion.weights_digest(backbone)
    for name, other in ("current.weights.h5", "some.h5"), ("legacy.h5", "some.weights.h5"):
        (tmp_path / other).write_bytes((weights / name).read_bytes())
        for path in weights / name, tmp_path / other:
            loaded = resnet50_fashion.build_backbone("resnet50", 224, str(path), seed=1)
            assert resnet50_fashion.weights_digest(loaded) == expected


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("layout", ["current.weights.h5", "legacy.h5"])
def test_weights_that_do_not_fit_are_an_error_that_names_a_layer(layout, tmp_path):
    other = keras.applications.ResNet101(include_top=False, weights=None, input_shape=(64, 64, 3))
    path = tmp_path / layout
    write_legacy(other, path) if layout == "legacy.h5" else other.save_weights(path)
    with pytest.raises(
        common.UserError, match=r"not the weights of .*conv[45]_block\d+_1_(conv|bn)"
    ) as e:
        resnet50_fashion.build_backbone("resnet50", 224, str(path), seed=0)
    assert len(str(e.value).splitlines()) == 1


def test_unreadable_weights_are_an_error(tmp_path):
    (tmp_path / "junk.h5").write_bytes(b"junk")
    for path in tmp_path / "junk.h5", tmp_path / "none.h5", tmp_path:
        with pytest.raises(common.UserError, match=f"--weights {path}: cannot be read"):
            resnet50_fashion.build_backbone("resnet50", 224, str(path), seed=0)


def test_random_weights_are_said_loudly(capsys):
    resnet50_fashion.build_backbone("resnet50", 224, "none", seed=0)
    assert "WARNING: --weights none: the resnet50 is RANDOM" in capsys.readouterr().out


def test_imagenet_weights_without_network_are_an_error_with_the_way_out(tmp_path):
    nowhere = {"KERAS_HOME": str(tmp_path / "keras"), "https_proxy": "http://127.0.0.1:9"}
    start = time.monotonic()
    done = run_script(tmp_path, "resnet50_fashion.py", "--data-dir", SAMPLE, **nowhere)
    assert done.returncode == 1
    assert time.monotonic() - start < 30
    error = done.stderr[done.stderr.index("resnet50_fashion.py: error: ") :]
    assert "Connection refused" in error and "--weights PATH" in error
    assert len(error.splitlines()) == 2
    assert not list((tmp_path / "outputs" / "resnet50_fashion").iterdir())


def test_subset_reaches_what_is_promised(subset_run):
    # Over seeds 0 to 4, validation was 90.3 ± 0.4 %, test 90.3 ± 0.3 %. Asked for are four standard
    # deviations less, of validation by --require-accuracy, since another machine rounds otherwise.
    metrics = Result(subset_run / "outputs" / "resnet50_fashion").metrics
    assert metrics["config"]["require_accuracy"] == 0.885
    assert metrics["test"]["accuracy"] >= 0.885
