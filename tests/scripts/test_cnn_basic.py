"""The baseline: options, training, errors."""

import functools

import keras
import numpy as np
import pytest
from helpers.scripts import SAMPLE, Result, check_calibration, skip_figures, train_in_process

import cnn_basic

FAST = ("--data-dir", SAMPLE, "--epochs", 2)


@pytest.fixture
def run(run_main):
    return functools.partial(run_main, cnn_basic, *FAST)


def width(result, split):
    """Return the width of the 95% confidence interval, which depends on the number of images."""
    low, high = result.metrics[split]["accuracy_ci95"]
    return high - low


# Arguments of each option, and a check that only a run with them passes, alone or with the
# arguments of all rows.
OPTIONS = {
    "train_size": (("--train-size", 320), lambda r: width(r, "train") > 0.08),
    "validation_size": (("--validation-size", 20), lambda r: width(r, "validation") > 0.2),
    "test_size": (("--test-size", 10), lambda r: width(r, "test") > 0.3),
    "epochs": (("--epochs", 3), lambda r: [row["epoch"] for row in r.history] == [1, 2, 3]),
    "learning_rate": (
        ("--learning-rate", "5e-4"),
        lambda r: np.isclose(r.history[0]["learning_rate"], 5e-4),
    ),
    "hidden_units": (
        ("--hidden_units=7",),
        lambda r: [w.shape for w in r.model.weights] == [(784, 7), (7,), (7, 10), (10,)],
    ),
}


@pytest.fixture(scope="module")
def by_default(tmp_path_factory):
    """The result of `FAST`."""
    return train_in_process(cnn_basic, *FAST, "--output-dir", tmp_path_factory.mktemp("default"))


@pytest.fixture(scope="module")
def by_all_options(tmp_path_factory):
    """The result with the arguments of all rows of `OPTIONS`, and an accuracy that is reached."""
    argv = [arg for option_argv, _ in OPTIONS.values() for arg in option_argv]
    argv += ["--require-accuracy", 0.05, "--output-dir", tmp_path_factory.mktemp("all")]
    return train_in_process(cnn_basic, *FAST, *argv)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_takes_effect(option, by_all_options, by_default):
    _, check = OPTIONS[option]
    assert check(by_all_options)
    assert not check(by_default), "the check passes without the option"


def test_batch_size_takes_effect(run, by_default):
    # 10 steps an epoch instead of 55.
    assert run("--batch_size=176").history[0]["loss"] > 1.2 * by_default.history[0]["loss"]


def test_metrics_depend_on_the_seed_only(run, by_default):
    """In a notebook, another script may have set its precision before."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert run("--seed", 0).deterministic_metrics() == by_default.deterministic_metrics()
    assert run("--seed", 1).deterministic_metrics() != by_default.deterministic_metrics()


def test_saved_model_has_best_weights_and_takes_raw_images(run, sample):
    # A high learning rate makes the last epoch worse than the best.
    result = run("--epochs", 7, "--learning-rate", 0.05)
    by_epoch = [row["val_accuracy"] for row in result.history]
    assert by_epoch[-1] < max(by_epoch)
    assert result.metrics["best_epoch"] == 1 + np.argmax(by_epoch)
    for name, split in sample.splits.items():
        assert split.images.dtype == np.uint8
        predicted = result.model.predict(split.images, verbose=0).argmax(axis=1)
        assert result.metrics[name]["accuracy"] == np.mean(predicted == split.labels)
    assert result.metrics["validation"]["accuracy"] == pytest.approx(max(by_epoch))


def test_temperature_of_validation_images_calibrates_model_and_predictions(run, sample):
    check_calibration(run, sample)


def test_output_dir_require_accuracy_and_disabled_wandb(command_line, tmp_path, monkeypatch):
    skip_figures(monkeypatch)
    argv = (*FAST, "--wandb", "disabled", "--output_dir=here", "--require-accuracy", 0.99)
    done = command_line(cnn_basic, *argv)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["here"]  # no wandb directory
    # All files are written although the accuracy is too low.
    assert done.code == 1
    metrics = Result(tmp_path / "here").metrics
    assert metrics["validation"]["accuracy"] != metrics["test"]["accuracy"]
    accuracy = metrics["validation"]["accuracy"]
    message = f"validation accuracy {accuracy:.4f} is below the required 0.99"
    assert done.err == f"cnn_basic.py: error: {message}\n"
