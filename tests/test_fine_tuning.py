import functools
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import ROOT, SAMPLE, Result, environment
from test_resnet50_fashion import random_backbone

import common
import resnet50_fashion

FAST = (
    *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32"),
    *("--train-size", 60, "--validation-size", 20, "--test-size", 20, "--epochs", 2),
    *("--fine-tune-blocks", 1, "--fine-tune-epochs", 2, "--fine-tune-batch-size", 20),
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(run_main, cache, monkeypatch, tmp_path):
    """Runs the fine-tuning, each time anew; `--resume` is for the tests of it."""
    monkeypatch.setattr(resnet50_fashion, "CHUNK", 20)
    options = (*FAST, "--wandb", "disabled", "--cache-dir", cache)
    return functools.partial(run_main, resnet50_fashion, *options)


def kernels(layers):
    """Weights by path, without the head's."""
    weights = [weight for layer in layers for weight in layer.weights]
    return {w.path: w.numpy() for w in weights if w.path.startswith("conv")}


@pytest.mark.parametrize("inputs", ["cached", "augmented"])
def test_only_the_unfrozen_kernels_move(inputs, run):
    # A head that has hardly learnt: the best epoch is one of the fine-tuning.
    weak = ("--epochs", 1, "--learning-rate", 1e-7, "--fine-tune-learning-rate", 1e-4)
    weak = (*weak, "--fine-tune-epochs", 4, "--fine-tune-batch-size", 5)
    result = run("--fine-tune-blocks", 2, "--fine-tune-inputs", inputs, *weak)
    assert result.metrics["best_epoch"] > 1
    model = result.model
    backbone = resnet50_fashion.build_backbone("resnet50", 64, "none", seed=0)
    before = kernels(backbone.layers)
    frozen = kernels(resnet50_fashion.freeze("resnet50", backbone, "float32").layers)
    (upper,) = (kernels(layer.layers) for layer in model.layers if isinstance(layer, keras.Model))
    lower = kernels(layer for layer in model.layers if not isinstance(layer, keras.Model))
    statistics = [path for path in upper if "moving_" in path]
    assert len(statistics) == 2 * 6 and any("_bn/gamma" in path for path in upper)
    for path, value in upper.items():
        same = np.array_equal(value, before[path])
        assert same == ("_bn/" in path), path
    assert {path.split("_")[0] for path in lower} == {"conv1", "conv2", "conv3", "conv4", "conv5"}
    assert {"/".join(p.split("_")[:2]) for p in upper} == {"conv5/block2", "conv5/block3"}
    for path, value in lower.items():
        np.testing.assert_array_equal(value, frozen[path])


@pytest.mark.parametrize(
    ("name", "features"),
    [("resnet50", "conv5"), *((name, "conv4") for name in resnet50_fashion.BACKBONES)],
)
def test_network_in_two_parts_is_the_network(name, features, sample):
    """Whatever the cut, before any training: lower and upper part together give what the head
    gives on the extractor's features."""
    kind, names = resnet50_fashion.BACKBONES[name], resnet50_fashion.FEATURES[features]
    backbone = random_backbone(name, 96)
    blocks = resnet50_fashion.blocks_of(backbone, kind.block_starts)
    frozen = resnet50_fashion.freeze(name, backbone, "float32")
    stages = resnet50_fashion.stages_of(backbone, blocks)
    extractor = resnet50_fashion.build_extractor(frozen, stages, features)
    images = sample.test.images[:8]
    extracted = extractor.predict(images, verbose=0)
    values = np.concatenate([extracted[name] for name in names], axis=1)
    # A linear head: standardised, features of random networks would be nothing but rounding errors.
    width = values.shape[1]
    nothing = keras.Sequential([keras.Input((width,)), keras.layers.Identity()])
    linear = keras.Sequential([keras.Input((width,)), keras.layers.Dense(10)])
    head = keras.Sequential([nothing, linear])
    expected = head.predict(values, verbose=0)
    assert expected.std() > 0.01
    for unfreeze in 1, len(blocks) // 2:
        cut = resnet50_fashion.cut_before(backbone, blocks, names, unfreeze)
        network = backbone, frozen, blocks, cut, names, head, "float32"
        lower, upper = resnet50_fashion.split_network(*network)
        assert upper.trainable_weights
        both = upper.predict(lower.predict(images, verbose=0), verbose=0)
        np.testing.assert_allclose(both, expected, atol=0.01 * expected.std())


@pytest.mark.parametrize("name", sorted(resnet50_fashion.BACKBONES.keys() - {"resnet50"}))
def test_each_other_backbone_extracts_trains_fine_tunes_saves_and_loads(name, run):
    result = run("--backbone", name, "--features", "conv4", "--image-size", 96)
    test = common.load_fashion_mnist(SAMPLE, 60, 20, 20).test
    probabilities = result.model.predict(test.images, verbose=0)
    assert probabilities.shape == (20, 10)
    accuracy = np.mean(probabilities.argmax(1) == test.labels)
    assert result.metrics["test"]["accuracy"] == pytest.approx(accuracy, abs=0.051)
    assert len(result.history) == 4


def test_cached_activations_train_as_computed_ones_and_augmented_ones_do_not(run):
    inputs = "cached", "computed", "augmented"
    cached, computed, augmented = (run("--fine-tune-inputs", name) for name in inputs)
    for one, other in zip(cached.history, computed.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
    assert cached.history[-1]["loss"] != cached.history[2]["loss"]
    losses = [[row["loss"] for row in result.history] for result in (computed, augmented)]
    assert losses[0][:2] == losses[1][:2]  # the head's
    assert losses[0][2] != pytest.approx(losses[1][2], rel=0.01)
    assert not any("random" in layer.name for layer in augmented.model.layers)


def test_augmented_images_are_flipped_and_shifted(sample):
    images = sample.train.images[:200]
    identity = keras.Sequential([keras.Input((28, 28), dtype="uint8"), keras.layers.Identity()])
    augmented = resnet50_fashion.augment(identity)(images, training=True).numpy()
    shifts = set()
    for image, result in zip(images, augmented, strict=True):
        padded = [np.pad(version, 3) for version in (image, image[:, ::-1])]
        found = [
            (flipped, y, x)
            for flipped in (0, 1)
            for y in range(7)
            for x in range(7)
            if np.array_equal(padded[flipped][y : y + 28, x : x + 28], result)
        ]
        assert found
        if len(found) == 1:
            shifts.add(found[0])
    assert {flipped for flipped, _, _ in shifts} == {0, 1}
    assert {y for _, y, _ in shifts} == {x for _, _, x in shifts} == {1, 2, 3, 4, 5}
    np.testing.assert_array_equal(
        resnet50_fashion.augment(identity)(images, training=False), images
    )


def command(folder, cache, *options):
    options = (*FAST, "--fine-tune-epochs", 4, "--cache-dir", cache, *options)
    return {
        "args": [sys.executable, ROOT / "resnet50_fashion.py", *map(str, options)],
        "cwd": folder,
        "env": environment(folder),
        "text": True,
    }


def test_killed_run_resumes_to_the_same_figures(tmp_path):
    cache = tmp_path / "cache"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in whole, killed:
        folder.mkdir()
    done = subprocess.run(**command(whole, cache, "--wandb", "disabled"), capture_output=True)
    assert done.returncode == 0, done.stderr
    output = killed / "outputs" / "resnet50_fashion"
    state = output / "checkpoint" / "state.json"
    process = subprocess.Popen(
        **command(killed, cache, "--wandb", "offline"), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not state.exists() or len(json.loads(state.read_text())["rows"]) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = killed.glob("wandb/offline-run-*")

    again = subprocess.run(**command(killed, cache), capture_output=True)
    assert again.returncode == 2
    assert "--resume" in again.stderr.splitlines()[-2]
    other = subprocess.run(
        **command(killed, cache, "--resume", "--dropout", 0.1), capture_output=True
    )
    assert other.returncode == 2
    assert "had another dropout (0.3, not 0.1)" in other.stderr

    resumed = subprocess.run(
        **command(killed, cache, "--resume", "--wandb", "offline"), capture_output=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming after epoch " in resumed.stdout
    expected = Result(whole / "outputs" / "resnet50_fashion")
    assert Result(output).without_time() == expected.without_time()
    runs = sorted(killed.glob("wandb/offline-run-*"))
    assert len(runs) == 2 and {path.name.split("-")[-1] for path in runs} == {
        folder.name.split("-")[-1]
    }
    left = sorted(path.name for path in state.parent.iterdir())
    best = expected.metrics["best_epoch"]
    kept = {f"epoch-{max(best, 2) if best > 2 else best:03}.weights.h5", "epoch-006.weights.h5"}
    assert left == sorted({*kept, "state.json"})


@pytest.mark.parametrize("batch", [20, 60])  # it shows within the epoch, or after its only step
def test_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_epoch(batch, run, tmp_path):
    with pytest.raises(
        common.UserError, match=r"the loss in epoch [34] is (nan|inf): .*--resume and a"
    ):
        run("--fine-tune-batch-size", batch, "--fine-tune-learning-rate", 1e38)
    folder = tmp_path / "outputs" / "resnet50_fashion" / "checkpoint"
    state = json.loads((folder / "state.json").read_text())
    assert (folder / state["last"]).exists() and (folder / state["best"]).exists()
    result = run("--fine-tune-batch-size", batch, "--resume")
    assert np.isfinite(result.history[-1]["loss"]) and len(result.history) == 4


def test_fine_tuning_options_reach_what_they_name(run, cache):
    histories = [
        [row["loss"] for row in run(*options).history]
        for options in (
            (),
            ("--fine-tune-learning-rate", 3e-4),
            ("--fine-tune-batch-size", 30, "--fine-tune-epochs", 3),
        )
    ]
    assert all(losses[:2] == histories[0][:2] for losses in histories)
    assert [len(losses) for losses in histories] == [4, 4, 5]
    assert len({losses[3] for losses in histories}) == 3


def test_disk_without_room_is_an_error_before_the_work(run, monkeypatch, tmp_path):
    monkeypatch.setattr(
        resnet50_fashion.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100_000)
    )
    with pytest.raises(common.UserError, match=r"Features of 100 images take 0.0 GB, but .* left"):
        run("--cache-dir", tmp_path / "small")


TWO_DEVICES = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import common
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
tf.distribute.experimental_set_strategy(two)
import resnet50_fashion
common.run_script(resnet50_fashion.main)
"""


def test_two_devices_compute_what_one_does(tmp_path):
    """Features bit for bit, training curves within float32's noise, where dropout is none."""
    sizes = ("--train-size", 300, "--validation-size", 100, "--test-size", 100)
    # All training images in one batch of the head, since several devices shuffle differently.
    options = (*FAST, *sizes, "--batch-size", 300, "--fine-tune-batch-size", 50, "--dropout", 0)
    scripts = {"one": [ROOT / "resnet50_fashion.py"], "two": ["-c", TWO_DEVICES]}
    for name, script in scripts.items():
        folders = ("--cache-dir", tmp_path / name, "--output-dir", tmp_path / f"{name}-output")
        words = (*script, *options, *folders, "--wandb", "disabled")
        subprocess.run(
            [sys.executable, *map(str, words)], cwd=tmp_path, env=environment(tmp_path), check=True
        )
    caches = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.npz")}
        for name in scripts
    ]
    assert len(caches[0]) == 2 * 5 and caches[0] == caches[1]
    one, two = (Result(tmp_path / f"{name}-output").history for name in scripts)
    for expected, row in zip(one, two, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.01)
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=0.01)


def test_damaged_checkpoint_and_activations_are_named(run, tmp_path):
    cache = tmp_path / "own"
    run("--cache-dir", cache)
    checkpoint = tmp_path / "outputs" / "resnet50_fashion" / "checkpoint"
    weights = checkpoint / "epoch-004.weights.h5"
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(common.UserError, match=rf"{weights.name} is damaged .*: delete its folder"):
        run("--cache-dir", cache, "--resume")
    (checkpoint / "state.json").write_text("{}")
    with pytest.raises(common.UserError, match=r"state.json cannot be read: it has no .*; delete"):
        run("--cache-dir", cache, "--resume")
    (checkpoint / "state.json").unlink()
    resume = []
    for name in "train", "test":
        split = common.load_fashion_mnist(SAMPLE).splits[name]
        (activations,) = cache.glob(f"*/activations-*/{split.digest[:16]}/000000.npz")
        intact = activations.read_bytes()
        content = bytearray(intact)
        content[5000:-5000:1000] = bytes(len(content[5000:-5000:1000]))
        activations.write_bytes(content)
        with pytest.raises(common.UserError, match=r"activations-\d+/.* is damaged .*: delete it"):
            run("--cache-dir", cache, *resume)
        activations.write_bytes(intact)
        resume = ["--resume"] if (checkpoint / "state.json").exists() else []
