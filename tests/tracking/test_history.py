"""The epoch logger."""

import dataclasses

from fashion.errors import UserError
from fashion.tracking.history import EpochLogger

import keras
import numpy as np
import pytest
from helpers.epochs import make_epoch


@pytest.fixture
def logged(open_run, monkeypatch):
    """The metrics that are sent to W&B, one row per call."""
    rows = []
    monkeypatch.setattr(open_run.wandb_run, "log", rows.append)
    return rows


@pytest.fixture
def logger(open_run):
    return EpochLogger(open_run.wandb_run)


def fit(sample, logger, **kwargs):
    """Train a small model, 20 steps per epoch, 7 per execution; return Keras' history."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 60)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=7,
    )
    return model.fit(
        sample.train.images[:400],
        sample.train.labels[:400],
        batch_size=20,
        validation_data=(sample.validation.images, sample.validation.labels),
        callbacks=[logger],
        verbose=0,
        **kwargs,
    )


def test_epochs_equal_keras_history_and_are_logged(sample, logger, logged, open_run):
    history = fit(sample, logger, epochs=3).history
    assert [row.epoch for row in logger.epochs] == [1, 2, 3]
    for metric in "accuracy", "loss", "val_accuracy", "val_loss":
        assert [getattr(row, metric) for row in logger.epochs] == history[metric]
    # The learning rate at the epoch's first step, independent of steps per execution.
    expected = [1e-2 * (1 + np.cos(np.pi * step / 60)) / 2 for step in (0, 20, 40)]
    assert [row.learning_rate for row in logger.epochs] == pytest.approx(expected, rel=1e-4)
    assert all(0 < row.seconds < 60 for row in logger.epochs)

    for row, sent in zip(logger.epochs, logged, strict=True):
        best = sent.pop("best/val_accuracy")
        assert best == max(history["val_accuracy"][: row.epoch])
        assert sent == {f"epoch/{k}": v for k, v in dataclasses.asdict(row).items()}
    assert open_run.wandb_run.summary["best/epoch"] == logger.best.epoch


def test_best_is_the_first_epoch_with_highest_validation_accuracy(open_run):
    logger = EpochLogger(
        open_run.wandb_run, [make_epoch(1, 0.5), make_epoch(2, 0.75), make_epoch(3, 0.75)]
    )
    assert logger.best.epoch == 2


def test_resumed_logger_continues_after_previous_epochs(sample, open_run, logged):
    logger = EpochLogger(open_run.wandb_run, [make_epoch(1, 0.5), make_epoch(2, 0.99)])
    fit(sample, logger, initial_epoch=2, epochs=4)
    assert [row.epoch for row in logger.epochs] == [1, 2, 3, 4]
    assert logger.best.epoch == 2
    assert [row["best/val_accuracy"] for row in logged] == [0.99, 0.99]


@pytest.mark.parametrize("name", ["loss", "val_loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_loss_raises_and_is_not_logged(name, value, logger, logged):
    logger.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    logger.model.compile("adam", "mse")
    finite = {"accuracy": 0.5, "loss": 1.0, "val_accuracy": 0.5, "val_loss": 1.0}
    logger.on_epoch_begin(0)
    logger.on_epoch_end(0, finite)
    logger.on_epoch_begin(1)
    with pytest.raises(
        UserError, match=f"^training diverged: loss is {value} in epoch 2; try a lower --l"
    ):
        logger.on_epoch_end(1, finite | {name: value})
    assert len(logger.epochs) == len(logged) == 1
