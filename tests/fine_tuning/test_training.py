"""Fine-tuning of a small ResNet50: trained weights, resuming, early stopping, augmentation."""

import dataclasses
from types import SimpleNamespace

from fashion import machine, options
from fashion.backbones import folding
from fashion.backbones.backbone import ARCHITECTURES, load_backbone
from fashion.errors import UserError
from fashion.fine_tuning import batch_norm, training
from fashion.fine_tuning.checkpoint import load_checkpoint
from fashion.run import EpochLogger, Run, best_epoch

import keras
import numpy as np
import pytest
from helpers.data import load_sample
from helpers.epochs import make_epoch
from helpers.networks import random_backbone, use_small_resnet

import resnet50_fashion

NAMES = ("conv4_avg", "conv5_avg")
RESNET50 = ARCHITECTURES["resnet50"]
HEAD_EPOCHS = [make_epoch(1, -0.2), make_epoch(2, -0.1)]  # worse than any epoch of fine-tuning


@pytest.fixture(scope="module", autouse=True)
def small_resnet():
    """`use_small_resnet` for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_resnet(patch)
        yield


@pytest.fixture(scope="module")
def data():
    return load_sample(train_size=60, validation_size=20)


def fine_tune(output_dir, data, *argv, backbone=None, names=NAMES):
    """Fine-tune a new head after two epochs of head training, or resume."""
    argv = (
        *("--precision", machine.precision(), "--wandb", "disabled", "--output-dir", output_dir),
        *("--fine-tune-blocks", 2, "--fine-tune-epochs", 3, "--fine-tune-batch-size", 20, *argv),
    )
    parsed = options.parse(resnet50_fashion.Options, None, list(map(str, argv)))
    backbone = backbone or load_backbone("resnet50", 64, "random", seed=0)
    checkpoint = load_checkpoint(parsed, data, backbone)
    run = Run(parsed, data, None, epochs=checkpoint.epochs or HEAD_EPOCHS)
    keras.utils.set_random_seed(0)
    extractor = resnet50_fashion.build_feature_extractor(backbone, names)
    outputs = extractor.predict(data.train.images, verbose=0)
    features = np.concatenate([outputs[name] for name in names], axis=1)
    head = resnet50_fashion.build_head(features[:, None], data.num_classes, parsed)
    network = training.train(
        backbone,
        names,
        resnet50_fashion.compute_features,
        head,
        run,
        checkpoint,
        num_blocks=parsed.fine_tune_blocks,
        epochs=parsed.fine_tune_epochs,
        batch_size=parsed.fine_tune_batch_size,
        learning_rate=parsed.fine_tune_learning_rate,
        patience=parsed.patience,
    )
    epochs = [dataclasses.replace(metrics, seconds=0) for metrics in run.epoch_logger.epochs]
    return SimpleNamespace(
        network=network, head=head, epochs=epochs, metadata=run.metadata, checkpoint=checkpoint
    )


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished run with the arguments of `fine_tune`."""
    return fine_tune(tmp_path_factory.mktemp("finished"), data)


def assert_equal_weights(one, other):
    """Check that all weights of the networks and heads of two runs are equal."""
    for name in "network", "head":
        values = zip(getattr(one, name).weights, getattr(other, name).weights, strict=True)
        assert all(np.array_equal(a, b) for a, b in values)


def weights_by_path(model):
    return {variable.path: variable.numpy() for variable in model.weights}


def check_folded_model(backbone, tuned, names, data):
    """Check and return the folded model: its loss is that of the best epoch of fine-tuning."""
    images = keras.Input((28, 28), dtype="uint8")
    rgb = backbone.preprocess(images)
    network = folding.copy_network(backbone.network, rgb, source=tuned.network)
    features = resnet50_fashion.compute_features(backbone, network, names).values()
    model = keras.Model(images, tuned.head(keras.ops.concatenate(list(features), axis=1)))
    probabilities = model.predict(data.validation.images, verbose=0)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    best = best_epoch(tuned.epochs)
    assert best.epoch > len(HEAD_EPOCHS)
    value = float(loss(data.validation.one_hot, probabilities))
    assert value == pytest.approx(best.val_loss, rel=1e-3)
    return model


def test_only_the_last_blocks_and_the_head_are_trained(tmp_path, data):
    backbone = load_backbone("resnet50", 64, "random", seed=0)
    before = weights_by_path(backbone.network)
    argv = ("--fine-tune-learning-rate", 3e-3, "--fine-tune-epochs", 9)
    tuned = fine_tune(tmp_path, data, *argv, backbone=backbone)
    assert [metrics.epoch for metrics in tuned.epochs] == list(range(1, 12))
    for path, value in weights_by_path(backbone.network).items():
        np.testing.assert_array_equal(value, before[path])

    folded = folding.copy_network(backbone.network, keras.Input((64, 64, 3)))
    initial = before | weights_by_path(folded)  # frozen layers are folded
    num_trained = sum(x.numpy().size for x in tuned.head.trainable_weights)
    for path, value in weights_by_path(tuned.network).items():
        is_trained = path.startswith(("conv5_block2", "conv5_block3"))
        if is_trained:
            assert not np.array_equal(value, before[path]), path
            num_trained += 0 if "/moving_" in path else value.size
        else:
            np.testing.assert_array_equal(value, initial[path])
    assert tuned.metadata["parameters"]["trainable"] == num_trained

    model = check_folded_model(backbone, tuned, NAMES, data)
    for layer in model._flatten_layers():
        assert type(layer).__module__.startswith("keras.")
        assert not isinstance(layer, keras.layers.BatchNormalization)
        assert "random" not in layer.name


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("name", ["resnet50", "efficientnetv2b0", "inceptionv3", "mobilenetv2"])
def test_each_backbone_can_be_fine_tuned(name, data, tmp_path, monkeypatch):
    def build_head(features, num_classes, options):
        """Build a head without standardization, which would amplify rounding errors."""
        outputs = keras.layers.Dense(num_classes, activation="softmax")
        return keras.Sequential([keras.Input(features.shape[2:]), outputs])

    monkeypatch.setattr(resnet50_fashion, "build_head", build_head)
    monkeypatch.setitem(ARCHITECTURES, "resnet50", RESNET50)
    backbone = random_backbone(name, 96)
    names, argv = ("conv3_avg", "conv4_max"), ("--backbone", name, "--fine-tune-epochs", 1)
    tuned = fine_tune(tmp_path, data, *argv, backbone=backbone, names=names)
    check_folded_model(backbone, tuned, names, data)


@pytest.mark.slow
def test_options_take_effect(finished, data, tmp_path):
    other_rate = ("--fine-tune-learning-rate", 3e-4, "--fine-tune-blocks", 1)
    small_batches = ("--fine-tune-batch-size", 3, "--fine-tune-epochs", 2, "--seed", 1)
    rate = fine_tune(tmp_path / "rate", data, *other_rate)
    batches = fine_tune(tmp_path / "batches", data, *small_batches)
    runs = [result.epochs[2:] for result in (finished, rate, batches)]
    assert len({epochs[0].loss for epochs in runs}) == 3
    rates = [[epoch.learning_rate for epoch in epochs] for epochs in runs]
    # 9 steps without warm-up, then cosine decay.
    decay = np.array([1, (1 + np.cos(np.pi / 3)) / 2, (1 + np.cos(2 * np.pi / 3)) / 2])
    np.testing.assert_allclose(rates[0], 5e-4 * decay, rtol=1e-4)
    np.testing.assert_allclose(rates[1], 3e-4 * decay, rtol=1e-4)
    # Warm-up for a tenth of 40 steps; the second epoch starts after 20.
    expected = [0, 5e-4 * (1 + np.cos(np.pi * 16 / 36)) / 2]
    np.testing.assert_allclose(rates[2], expected, rtol=1e-4)


def test_optimizer_decays_kernels_only():
    layers = keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()
    model = keras.Sequential(layers)
    training.compile_model(model, learning_rate=1e-3, num_steps=5)
    optimizer = model.optimizer
    assert type(optimizer) is keras.optimizers.AdamW and optimizer.weight_decay == 0.05
    decayed = [x.name for x in model.trainable_variables if optimizer._use_weight_decay(x)]
    assert decayed == ["kernel"]


@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_resumed_run_equals_an_uninterrupted_one(
    policy, request, data, tmp_path, monkeypatch, capsys
):
    """Order, dropout, augmentation, moments, statistics and loss scale are restored."""
    keras.config.set_dtype_policy(policy)
    if policy == "float32":
        expected = request.getfixturevalue("finished")
    else:
        expected = fine_tune(tmp_path / "expected", data)
    begin = EpochLogger.on_epoch_begin

    def begin_or_interrupt(logger, epoch, logs=None):
        if epoch == 4:  # the last one
            raise KeyboardInterrupt
        begin(logger, epoch, logs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EpochLogger, "on_epoch_begin", begin_or_interrupt)
        fine_tune(tmp_path, data)
    monkeypatch.setattr(batch_norm, "recalibrate", None)  # the statistics are loaded
    capsys.readouterr()
    resumed = fine_tune(tmp_path, data, "--resume")
    assert "Resuming after epoch 4." in capsys.readouterr().out
    assert resumed.epochs == expected.epochs and len(resumed.epochs) == 5
    assert_equal_weights(resumed, expected)
    assert resumed.metadata["fine_tuning"] == {"head_epochs": 2}
    assert resumed.metadata["parameters"] == expected.metadata["parameters"]


# The divergence shows within the epoch, or after its only step.
@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [20, 60])
def test_nan_loss_raises_and_keeps_the_last_finite_epoch(batch_size, data, tmp_path):
    argv = ("--fine-tune-batch-size", batch_size)
    hint = "continue with --resume and a lower --fine-tune-learning-rate"
    with pytest.raises(UserError, match=rf"loss is (nan|inf) in epoch [345]; {hint}$"):
        fine_tune(tmp_path, data, *argv, "--fine-tune-learning-rate", 1e38)
    result = fine_tune(tmp_path, data, *argv, "--resume")
    assert np.isfinite([x.loss for x in result.epochs]).all() and len(result.epochs) == 5


@pytest.mark.slow
def test_early_stopping_may_restore_an_epoch_of_head_training(data, tmp_path, monkeypatch):
    end = EpochLogger.on_epoch_end

    def set_accuracy(logger, epoch, logs=None):
        end(logger, epoch, logs)
        logger.epochs[-1] = dataclasses.replace(logger.epochs[-1], val_accuracy=-1.0)

    monkeypatch.setattr(EpochLogger, "on_epoch_end", set_accuracy)
    argv = ("--fine-tune-epochs", 9, "--patience", 2)
    tuned = fine_tune(tmp_path, data, *argv)
    assert len(tuned.epochs) == 2 + 2  # two epochs were not better than the second one of the head
    assert tuned.checkpoint.best_weights == "epoch-002.weights.h5"
    resumed = fine_tune(tmp_path, data, *argv, "--resume")  # patience stays exhausted
    assert resumed.epochs == tuned.epochs
    assert_equal_weights(resumed, tuned)


def test_order_of_batches_depends_on_seed_and_epoch_alone(data):
    keys = [image.tobytes() for image in data.train.images]

    def order(seed, *epochs):
        batches = training.Batches(data.train, batch_size=16)
        for epoch in epochs:
            batches.shuffle(seed, epoch)
        images, one_hot = map(np.concatenate, zip(*(batches[i] for i in range(4)), strict=True))
        assert [len(batches), len(batches[3][0])] == [4, 12]
        indices = [keys.index(image.tobytes()) for image in images]
        np.testing.assert_array_equal(one_hot, data.train.one_hot[indices])
        return indices

    shuffled = order(0, 3)
    assert sorted(shuffled) == order(0) == list(range(60))
    assert order(0, 1, 2, 3) == shuffled
    assert len({tuple(order(*x)) for x in ((0, 3), (0, 4), (1, 3), (0,))}) == 4


def test_dropout_depends_on_seed_and_epoch_alone():
    model = keras.Sequential([keras.Input((50,)), keras.layers.Dropout(0.5)])

    def outputs(seed, epoch):
        training.reseed(model, seed, epoch)
        return [np.asarray(model(np.ones((4, 50)), training=True)).tobytes() for _ in range(2)]

    assert outputs(2**32 - 1, 7) == outputs(2**32 - 1, 7)
    different = [*outputs(2**32 - 1, 7), *outputs(2**32 - 1, 8), *outputs(3, 7)]
    assert len(set(different)) == 6


def test_augmentation_flips_shifts_and_erases(sample):
    images = sample.train.images[:200]
    augmentation = training.build_augmentation()
    training.reseed(augmentation, seed=0, epoch=0)
    augmented = np.asarray(augmentation(images, training=True))
    shifts, num_erased = set(), 0
    for image, result in zip(images, augmented, strict=True):
        padded = [np.pad(version, 2) for version in (image, image[:, ::-1])]
        changes = {
            (flipped, y - 2, x - 2): padded[flipped][y : y + 28, x : x + 28] != result
            for flipped, y, x in np.ndindex(2, 5, 5)
        }
        found = [shift for shift, changed in changes.items() if not changed.any()]
        if len(found) == 1:  # more if the image is symmetric
            shifts.add(found[0])
        if not found:
            fewest = min(changes.values(), key=np.count_nonzero)
            rows, columns = (np.flatnonzero(fewest.any(axis=axis)) for axis in (1, 0))
            sides = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert all(3 <= side <= 17 for side in sides)  # 0.14 to 0.57 of 28 pixels, rounded
            assert fewest.sum() > 0.3 * np.prod(sides)  # noise may equal the pixels it replaces
            num_erased += 1
    assert 30 <= num_erased <= 70  # of 200; the expectation is 50, its standard deviation 6
    assert shifts == {(flipped, y, x) for flipped in (0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    np.testing.assert_array_equal(augmentation(images, training=False), images)


def test_statistics_are_recalibrated_on_augmented_images(data, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(batch_norm, "recalibrate", lambda *args: calls.append(args))
    fine_tune(tmp_path, data, "--fine-tune-epochs", 1)
    ((_, _, images),) = calls
    assert images.shape == data.train.images.shape and (images != data.train.images).any()
