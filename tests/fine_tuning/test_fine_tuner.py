"""Fine-tuning: trained weights, inputs, options, early stopping, damaged files."""

import json
import shutil

from fashion.backbones import architectures
from fashion.reporting import results
from fashion.tracking.history import EpochLogger

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.data import load_sample
from helpers.networks import build_small_resnet, use_small_chunks, use_small_resnet
from helpers.scripts import SAMPLE, Result, parse_options, train_in_process

import common
import resnet50_fashion

FAST = (
    *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32"),
    *("--train-size", 60, "--validation-size", 20, "--test-size", 20, "--epochs", 2),
    *("--fine-tune-blocks", 1, "--fine-tune-epochs", 2, "--fine-tune-batch-size", 20),
)


@pytest.fixture
def run_real(run_main, shared_cache_dir, small_chunks):
    """Fine-tune a network of `keras.applications`."""
    argv = (*FAST, "--cache-dir", shared_cache_dir)
    return lambda *more_argv: run_main(resnet50_fashion, *argv, *more_argv)


@pytest.fixture
def run(run_real, small_resnet):
    """Fine-tune a small ResNet50."""
    return run_real


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a finished run of the small ResNet50, with `output` and `cache`."""
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        use_small_resnet(patch)
        use_small_chunks(patch)
        folders = ("--output-dir", directory / "output", "--cache-dir", directory / "cache")
        train_in_process(resnet50_fashion, *FAST, *folders)
    return directory


# ----------------------------------------------------------------------------- complete runs


def kernels(layers):
    """Return the weights of the backbone by path."""
    weights = [weight for layer in layers for weight in layer.weights]
    return {w.path: w.numpy() for w in weights if w.path.startswith("conv")}


def check_only_unfrozen_kernels_are_trained(run, inputs):
    # The head is hardly trained, so the best epoch is one of fine-tuning.
    weak = ("--epochs", 1, "--learning-rate", 1e-7, "--fine-tune-learning-rate", 1e-4)
    weak = (*weak, "--fine-tune-epochs", 4, "--fine-tune-batch-size", 5)
    result = run("--fine-tune-blocks", 2, "--fine-tune-inputs", inputs, *weak)
    assert result.metrics["best_epoch"] > 1
    model = result.model
    backbone = resnet50_fashion.load_backbone(parse_options(resnet50_fashion, *FAST))
    before = kernels(backbone.model.layers)
    folded = kernels(backbone.inference_model.layers)
    (trainable,) = (
        kernels(layer.layers) for layer in model.layers if isinstance(layer, keras.Model)
    )
    frozen = kernels(layer for layer in model.layers if not isinstance(layer, keras.Model))
    statistics = [path for path in trainable if "moving_" in path]
    assert len(statistics) == 2 * 6 and any("_bn/gamma" in path for path in trainable)
    for path, value in trainable.items():
        is_unchanged = np.array_equal(value, before[path])
        assert is_unchanged == ("_bn/" in path), path
    assert {path.split("_")[0] for path in frozen} == {"conv1", "conv2", "conv3", "conv4", "conv5"}
    assert {"/".join(p.split("_")[:2]) for p in trainable} == {"conv5/block2", "conv5/block3"}
    for path, value in frozen.items():
        np.testing.assert_array_equal(value, folded[path])


def test_only_unfrozen_kernels_are_trained(run):
    check_only_unfrozen_kernels_are_trained(run, "cached")


@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["cached", "augmented"])
def test_only_unfrozen_kernels_of_resnet50_are_trained(inputs, run_real):
    check_only_unfrozen_kernels_are_trained(run_real, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(architectures.ARCHITECTURES.keys() - {"resnet50"}))
def test_each_other_backbone_can_be_fine_tuned_saved_and_loaded(name, run_real):
    result = run_real("--backbone", name, "--features", "conv4", "--image-size", 96)
    test = load_sample(train_size=60, validation_size=20, test_size=20).test
    probabilities = result.model.predict(test.images, verbose=0)
    assert probabilities.shape == (20, 10)
    accuracy = np.mean(probabilities.argmax(1) == test.labels)
    assert result.metrics["test"]["accuracy"] == pytest.approx(accuracy, abs=0.051)
    assert len(result.history) == 4


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("inputs", ["cached", "computed"])
def test_predictions_equal_the_saved_models(inputs, run, monkeypatch):
    saved = {}

    def record_and_save(run, model, predictions):
        saved.update(predictions)
        return save(run, model, predictions)

    save = results.save
    monkeypatch.setattr(results, "save", record_and_save)
    model = run("--fine-tune-inputs", inputs).model
    (trainable,) = (layer for layer in model.layers if isinstance(layer, keras.Model))
    kernel, bias = trainable.layers[-1].get_weights()
    data = load_sample(train_size=60, validation_size=20, test_size=20)
    for name, split in data.splits.items():
        probabilities, embeddings = saved[name]
        expected = model.predict(split.images, verbose=0)
        np.testing.assert_allclose(probabilities, expected, atol=1e-3)
        recomputed = keras.ops.softmax(embeddings.astype("float32") @ kernel + bias)
        np.testing.assert_allclose(recomputed, expected, atol=5e-3)


@pytest.mark.slow
@pytest.mark.versions
def test_cached_activations_equal_computed_ones_and_differ_from_augmented_ones(run, finished):
    cached = Result(finished / "output")
    computed, augmented = (run("--fine-tune-inputs", name) for name in ("computed", "augmented"))
    names = [result.metrics["config"]["fine_tune_inputs"] for result in (cached, computed)]
    assert names == ["cached", "computed"]
    for one, other in zip(cached.history, computed.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
    assert cached.history[-1]["loss"] != cached.history[2]["loss"]
    losses = [[row["loss"] for row in result.history] for result in (computed, augmented)]
    assert losses[0][:2] == losses[1][:2]  # head training
    assert losses[0][2] != pytest.approx(losses[1][2], rel=0.01)
    assert not any("random" in layer.name for layer in augmented.model.layers)


@pytest.mark.slow
def test_float16_trains_like_float32(run, monkeypatch):
    """Small gradients would underflow without loss scaling."""
    scaled, scale = [], keras.optimizers.LossScaleOptimizer

    def create_and_record(optimizer):
        scaled.append(scale(optimizer))
        return scaled[-1]

    monkeypatch.setattr(keras.optimizers, "LossScaleOptimizer", create_and_record)
    argv = ("--dropout", 0, "--fine-tune-inputs", "computed", "--precision")
    expected, result = (run(*argv, precision) for precision in ("float32", "float16"))
    dtypes = {x.compute_dtype for x in result.model.layers if x.name.startswith("conv1")}
    assert dtypes == {"float16"}
    assert len(scaled) == 2  # for the head and for fine-tuning
    for one, other in zip(expected.history, result.history, strict=True):
        for name in "loss", "val_loss", "learning_rate", "val_accuracy":
            assert one[name] == pytest.approx(other[name], rel=0.03)
    assert result.history[-1]["loss"] < result.history[2]["loss"] < result.history[0]["loss"]


@pytest.mark.slow
def test_out_of_memory_can_be_resumed_with_smaller_batches(run, tmp_path, monkeypatch):
    """The first step of fine-tuning has a batch that does not fit."""
    begin = EpochLogger.on_epoch_begin

    def run_out_of_memory(logger, epoch, logs=None):
        begin(logger, epoch, logs)
        if epoch == 2:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    with monkeypatch.context() as patch:
        patch.setattr(EpochLogger, "on_epoch_begin", run_out_of_memory)
        with pytest.raises(
            common.UserError, match=r"^out of memory \(stage: fine-tuning\); .*"
        ) as error:
            run()
    hint = "try a smaller --fine-tune-batch-size, then continue with --resume"
    assert str(error.value).endswith(hint)
    resumed = run("--fine-tune-batch-size", 10, "--resume")
    expected = run("--fine-tune-batch-size", 10, "--output-dir", tmp_path / "new")
    assert resumed.deterministic_metrics() == expected.deterministic_metrics()


@pytest.mark.any_version
def test_fine_tuning_options_take_effect(run, finished):
    results = [
        Result(finished / "output"),
        run("--fine-tune-learning-rate", 3e-4),
        run("--fine-tune-batch-size", 3, "--fine-tune-epochs", 3),
    ]
    histories = [[row["loss"] for row in result.history] for result in results]
    assert all(losses[:2] == histories[0][:2] for losses in histories)
    assert [len(losses) for losses in histories] == [4, 4, 5]
    assert len({losses[3] for losses in histories}) == 3
    # Cosine decay: the second epoch starts after 3 of 6 steps.
    rates = [[row["learning_rate"] for row in result.history[2:]] for result in results]
    assert rates[0] == pytest.approx([1e-4, 1e-4 / 2], rel=1e-3)
    assert rates[1] == pytest.approx([3e-4, 3e-4 / 2], rel=1e-3)
    # Warm-up for a tenth of 60 steps; the later epochs start after 20 and 40 steps.
    decayed = [1e-4 * (1 + np.cos(np.pi * (step - 6) / 54)) / 2 for step in (20, 40)]
    assert rates[2] == pytest.approx([0, *decayed], rel=1e-3)


def all_layers(model):
    """Yield the layers of a model and of the models inside it."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)


def test_tuned_recipe_trains_and_folds_batch_norm_below_a_linear_head(run):
    """Its whole schedule: the learning rate is too low for an improvement in each epoch."""
    argv = ("--recipe", "tuned", "--fine-tune-blocks", 3, "--fine-tune-epochs", 12)
    result = run(*argv, "--fine-tune-learning-rate", 1e-9)
    assert len(result.history) == 2 + 12
    model, split = result.model, load_sample(train_size=60, validation_size=20, test_size=20).test
    layers = list(all_layers(model))
    assert not [x for x in layers if isinstance(x, keras.layers.BatchNormalization)]
    (linear,) = {id(x): x for x in layers if isinstance(x, keras.layers.Dense)}.values()
    assert linear.kernel.shape == (32, 10)  # channels of conv4
    probabilities, flipped = (
        model.predict(images, verbose=0) for images in (split.images, split.images[:, :, ::-1])
    )
    np.testing.assert_allclose(probabilities, flipped, atol=1e-5)
    accuracy = np.mean(probabilities.argmax(axis=1) == split.labels)
    assert result.metrics["test"]["accuracy"] == pytest.approx(accuracy)


def test_saved_model_contains_no_optimizer(finished):
    assert Result(finished / "output").optimizer_variables() == []


@pytest.mark.any_version
def test_early_stopping_may_restore_an_epoch_of_head_training(run):
    # This rate destroys the network without making the loss NaN.
    argv = ("--fine-tune-learning-rate", 10, "--fine-tune-epochs", 9, "--patience", 2)
    result = run(*argv, "--epochs", 20, "--seed", 1)
    accuracies = [row["val_accuracy"] for row in result.history]
    head_epochs = result.metrics["fine_tuning"]["head_epochs"]
    best = result.metrics["best_epoch"]
    assert best == 1 + np.argmax(accuracies) <= head_epochs
    assert len(accuracies) == head_epochs + 2
    assert result.metrics["validation"]["accuracy"] == pytest.approx(max(accuracies))


# The divergence shows within the epoch, or after its only step.
@pytest.mark.parametrize("batch", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_nan_loss_raises_and_keeps_the_last_finite_epoch(batch, run, tmp_path):
    with pytest.raises(
        common.UserError, match=r"loss is (nan|inf) in epoch [34]; .*--resume and a"
    ):
        run("--fine-tune-batch-size", batch, "--fine-tune-learning-rate", 1e38)
    directory = tmp_path / "outputs" / "resnet50_fashion" / "checkpoint"
    state = json.loads((directory / "state.json").read_text())
    assert (directory / state["last"]).exists() and (directory / state["best"]).exists()
    result = run("--fine-tune-batch-size", batch, "--resume")
    assert np.isfinite(result.history[-1]["loss"]) and len(result.history) == 4


@pytest.mark.any_version
def test_damaged_checkpoint_raises_and_damaged_activations_are_recomputed(
    run, finished, tmp_path, capfd
):
    expected = Result(finished / "output").deterministic_metrics()
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    argv = ("--output-dir", tmp_path / "output", "--cache-dir", tmp_path / "cache")
    checkpoint = tmp_path / "output" / "checkpoint"
    weights = checkpoint / "epoch-004.weights.h5"
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(
        common.UserError, match=rf"{weights.name} is damaged .*; delete its directory"
    ):
        run(*argv, "--resume")
    (checkpoint / "state.json").write_text("{}")
    with pytest.raises(common.UserError, match=r"state.json cannot be read: it lacks .*; delete"):
        run(*argv, "--resume")
    (checkpoint / "state.json").unlink()
    damaged = []
    for name in "train", "test":
        directory = load_sample().splits[name].images_sha256[:16]
        damaged += tmp_path.glob(f"cache/*/activations-*/{directory}/000000.npz")
    assert len(damaged) == 2
    for path in damaged:
        content = bytearray(path.read_bytes())
        for i in range(len(content) // 3, len(content) * 2 // 3, 100):
            content[i] ^= 1
        path.write_bytes(content)
    capfd.readouterr()
    assert run(*argv).deterministic_metrics() == expected
    lines = capfd.readouterr().err.splitlines()
    assert sorted(line.split(" is damaged ")[0] for line in lines) == sorted(map(str, damaged))


@pytest.mark.any_version
def test_too_many_blocks_raise_usage_error(command_line, small_resnet):
    argv = ("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64)
    done = command_line(resnet50_fashion, *argv, "--fine-tune-blocks", 7)
    assert done.code == 2
    expected = "--fine-tune-blocks 7: with these --features, at most 6 blocks can be fine-tuned"
    assert done.err == f"resnet50_fashion.py: error: {expected}\n"


def test_too_little_memory_is_a_warning_before_the_extraction(command_line, small_resnet):
    argv = ("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64)
    argv += ("--fine-tune-blocks", 2, "--fine-tune-batch-size", 100_000_000, "--wandb", "offline")
    done = command_line(resnet50_fashion, *argv, "--cache-dir", "/dev/null/absent")
    assert done.code == 1  # the extraction fails
    assert "WARNING: training needs about " in done.err
    assert "; a smaller --fine-tune-batch-size needs less\n" in done.err


def test_small_resnet_is_a_subset_of_resnet50():
    """The tests above rely on equal layer names and types."""
    small = build_small_resnet(include_top=False, weights=None, input_shape=(64, 64, 3))
    real = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3))
    small_layers, real_layers = (
        {(layer.name, type(layer)) for layer in network.layers[1:]} for network in (small, real)
    )
    assert small_layers < real_layers
