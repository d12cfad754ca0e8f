"""The log of a run's epochs."""

import dataclasses

from fashion.errors import UserError
from fashion.tracking.history import Epoch, EpochLog

import keras
import numpy as np
import pytest


@pytest.fixture
def logged(open_run, monkeypatch):
    """What goes to W&B, a row for each call."""
    rows = []
    monkeypatch.setattr(open_run.wandb_run, "log", rows.append)
    return rows


@pytest.fixture
def log(open_run):
    return EpochLog(open_run.wandb_run)


def fit(sample, log, **more):
    """Trains a small model, 20 steps an epoch, 7 at a time: Keras' own history of it."""
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
        callbacks=[log],
        verbose=0,
        **more,
    )


def test_epochs_are_as_keras_has_them_and_go_to_wandb(sample, log, logged, open_run):
    history = fit(sample, log, epochs=3).history
    assert [row.epoch for row in log.epochs] == [1, 2, 3]
    for metric in "accuracy", "loss", "val_accuracy", "val_loss":
        assert [getattr(row, metric) for row in log.epochs] == history[metric]
    # Of the schedule, at the epoch's first step, whatever number of steps is done at once.
    expected = [1e-2 * (1 + np.cos(np.pi * step / 60)) / 2 for step in (0, 20, 40)]
    assert [row.learning_rate for row in log.epochs] == pytest.approx(expected, rel=1e-4)
    assert all(0 < row.seconds < 60 for row in log.epochs)

    for row, sent in zip(log.epochs, logged, strict=True):
        best = sent.pop("best/val_accuracy")
        assert best == max(history["val_accuracy"][: row.epoch])
        assert sent == {f"epoch/{k}": v for k, v in dataclasses.asdict(row).items()}
    assert open_run.wandb_run.summary["best/epoch"] == log.best.epoch


def epoch(number, val_accuracy):
    return Epoch(
        epoch=number,
        accuracy=0.5,
        loss=1.0,
        val_accuracy=val_accuracy,
        val_loss=1.0,
        learning_rate=1e-3,
        seconds=1.0,
    )


def test_best_is_the_first_of_the_best(open_run):
    log = EpochLog(open_run.wandb_run, [epoch(1, 0.5), epoch(2, 0.75), epoch(3, 0.75)])
    assert log.best.epoch == 2


def test_resumed_log_goes_on_after_its_epochs(sample, open_run, logged):
    log = EpochLog(open_run.wandb_run, [epoch(1, 0.5), epoch(2, 0.99)])
    fit(sample, log, initial_epoch=2, epochs=4)
    assert [row.epoch for row in log.epochs] == [1, 2, 3, 4]
    assert log.best.epoch == 2
    assert [row["best/val_accuracy"] for row in logged] == [0.99, 0.99]


@pytest.mark.parametrize("of", ["loss", "val_loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_no_number_is_an_error_and_no_epoch(of, value, log, logged):
    log.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    log.model.compile("adam", "mse")
    good = {"accuracy": 0.5, "loss": 1.0, "val_accuracy": 0.5, "val_loss": 1.0}
    log.on_epoch_begin(0)
    log.on_epoch_end(0, good)
    log.on_epoch_begin(1)
    with pytest.raises(UserError, match=f"^the loss in epoch 2 is {value}: try a lower --learning"):
        log.on_epoch_end(1, good | {of: value})
    assert len(log.epochs) == len(logged) == 1
