"""Fine-tuning of a small ResNet50: trained weights, resuming, early stopping, augmentation."""

import dataclasses
from types import SimpleNamespace
from unittest import mock

from fashion import machine, options
from fashion.backbones import folding
from fashion.backbones.backbone import load_backbone
from fashion.errors import UserError
from fashion.fine_tuning import batch_norm, training
from fashion.fine_tuning.checkpoint import load_checkpoint
from fashion.run import EpochLogger, Run, best_epoch

import keras
import numpy as np
import pytest
from helpers.data import load_sample
from helpers.networks import use_small_resnet
from helpers.results import make_epoch

import resnet50_fashion

NAMES = ("conv4_avg", "conv5_avg")
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


def fine_tune(output_dir, data, *argv):
    """Fine-tune a new head after two epochs of head training, or resume."""
    argv = (
        *("--precision", machine.precision(), "--wandb", "disabled", "--output-dir", output_dir),
        *("--fine-tune-blocks", 2, "--fine-tune-epochs", 3, "--fine-tune-batch-size", 20, *argv),
    )
    parsed = options.parse(resnet50_fashion.Options, None, list(map(str, argv)))
    backbone = load_backbone("resnet50", 64, "random", seed=0)
    checkpoint = load_checkpoint(parsed, data, backbone)
    run = Run(parsed, data, None, epochs=checkpoint.epochs or HEAD_EPOCHS)
    keras.utils.set_random_seed(0)
    extractor = resnet50_fashion.build_feature_extractor(backbone, NAMES)
    outputs = extractor.predict(data.train.images, verbose=0)
    features = np.concatenate([outputs[name] for name in NAMES], axis=1)
    head = resnet50_fashion.build_head(features[:, None], data.num_classes, parsed)
    network = training.train(
        backbone,
        NAMES,
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
        backbone=backbone, network=network, head=head, epochs=epochs, run=run, checkpoint=checkpoint
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


def test_only_the_last_blocks_and_the_head_are_trained(finished, data):
    backbone = load_backbone("resnet50", 64, "random", seed=0)
    before = weights_by_path(backbone.network)
    for path, value in weights_by_path(finished.backbone.network).items():
        np.testing.assert_array_equal(value, before[path])

    folded = folding.copy_network(backbone.network, keras.Input((64, 64, 3)))
    initial = before | weights_by_path(folded)  # frozen layers are folded
    num_trained = sum(x.numpy().size for x in finished.head.trainable_weights)
    for path, value in weights_by_path(finished.network).items():
        is_trained = path.startswith(("conv5_block2", "conv5_block3"))
        if is_trained:
            assert not np.array_equal(value, before[path]), path
            num_trained += 0 if "/moving_" in path else value.size
        else:
            np.testing.assert_array_equal(value, initial[path])
    assert finished.run.metadata["parameters"]["trainable"] == num_trained

    # The loss of the folded model is that of the best epoch of fine-tuning.
    extractor = resnet50_fashion.build_feature_extractor(backbone, NAMES, finished.network)
    model = resnet50_fashion.build_full_model(extractor, NAMES, finished.head, flip=False)
    probabilities = model.predict(data.validation.images, verbose=0)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    value = float(loss(data.validation.one_hot, probabilities))
    assert value == pytest.approx(best_epoch(finished.epochs).val_loss, rel=1e-3)
    for layer in model._flatten_layers():
        assert type(layer).__module__.startswith("keras.")
        assert not isinstance(layer, keras.layers.BatchNormalization)
        assert "random" not in layer.name


def test_optimizer_decays_kernels_and_the_learning_rate(finished):
    """Warm-up for a tenth of the steps, then cosine decay."""
    layers = keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()
    model = keras.Sequential(layers)
    training.compile_model(model, learning_rate=1e-3, num_steps=40)
    optimizer = model.optimizer
    assert type(optimizer) is keras.optimizers.AdamW and optimizer.weight_decay == 0.05
    decayed = [x.name for x in model.trainable_variables if optimizer._use_weight_decay(x)]
    assert decayed == ["kernel"]
    rates = []
    for step in 0, 2, 4, 22, 40:
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    assert rates == pytest.approx([0, 5e-4, 1e-3, 5e-4, 0], abs=1e-9)
    # Three epochs of three steps, too few for warm-up.
    decay = [1, (1 + np.cos(np.pi / 3)) / 2, (1 + np.cos(2 * np.pi / 3)) / 2]
    rates = [epoch.learning_rate for epoch in finished.epochs[2:]]
    np.testing.assert_allclose(rates, 5e-4 * np.array(decay), rtol=1e-4)


@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_resumed_run_equals_an_uninterrupted_one(
    policy, request, data, tmp_path, monkeypatch, capsys
):
    """Order, dropout, augmentation, moments, statistics and loss scale are restored.

    The statistics are recalibrated once, on augmented images.
    """
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

    recalibrate = mock.Mock(wraps=batch_norm.recalibrate)
    monkeypatch.setattr(batch_norm, "recalibrate", recalibrate)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EpochLogger, "on_epoch_begin", begin_or_interrupt)
        fine_tune(tmp_path, data)
    capsys.readouterr()
    resumed = fine_tune(tmp_path, data, "--resume")
    assert "Resuming after epoch 4." in capsys.readouterr().out
    assert resumed.epochs == expected.epochs
    assert [epoch.epoch for epoch in resumed.epochs] == [1, 2, 3, 4, 5]
    assert_equal_weights(resumed, expected)
    assert resumed.run.metadata["fine_tuning"] == {"head_epochs": 2}
    assert resumed.run.metadata["parameters"] == expected.run.metadata["parameters"]
    recalibrate.assert_called_once()
    _, _, images = recalibrate.call_args.args
    assert images.shape == data.train.images.shape and (images != data.train.images).any()


@pytest.mark.slow
def test_nan_loss_raises_and_keeps_the_last_finite_epoch(data, tmp_path):
    hint = "continue with --resume and a lower --fine-tune-learning-rate"
    with pytest.raises(UserError, match=rf"loss is (nan|inf) in epoch [345]; {hint}$"):
        fine_tune(tmp_path, data, "--fine-tune-learning-rate", 1e38)
    result = fine_tune(tmp_path, data, "--resume")
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
    batches = training.Batches(data.train, batch_size=16)
    assert [len(batches), len(batches[3][0])] == [4, 12]
    keys = [image.tobytes() for image in data.train.images]

    def order(seed, epoch):
        batches.shuffle(seed, epoch)
        images, one_hot = map(np.concatenate, zip(*(batches[i] for i in range(4)), strict=True))
        indices = [keys.index(image.tobytes()) for image in images]
        np.testing.assert_array_equal(one_hot, data.train.one_hot[indices])
        return indices

    first = order(0, 3)
    assert sorted(first) == list(range(60))
    assert len({tuple(x) for x in (first, order(0, 4), order(1, 3), range(60))}) == 4
    assert order(0, 3) == first


def test_augmentation_flips_shifts_and_erases_by_seed_and_epoch(sample):
    images = sample.train.images[:200]
    augmentation = training.build_augmentation()

    def augment(seed, epoch):
        training.reseed(augmentation, seed, epoch)
        return np.asarray(augmentation(images, training=True))

    augmented, next_epoch, other_seed = augment(0, 0), augment(0, 1), augment(2**32 - 1, 0)
    np.testing.assert_array_equal(augment(0, 0), augmented)
    assert (next_epoch != augmented).any() and (other_seed != augmented).any()
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
