"""The baseline: its network, its options, and a process of it from start to end."""

import functools
import re

from fashion.tracking.run import OUTPUT_FILES

import numpy as np
import pytest
from conftest import SAMPLE, Result, train

import cnn_basic
import common

FAST = ("--data-dir", SAMPLE, "--epochs", 2)


@pytest.fixture
def run(run_main):
    return functools.partial(run_main, cnn_basic, *FAST)


def width(result, split):
    """Of the 95 % interval, which tells from how many images the accuracy is."""
    low, high = result.metrics[split]["interval95"]
    return high - low


# One row for each option: its words, and what only a run that heeds them can show, also if it is
# given the words of the other rows, too. In epochs of 10 steps, whatever their number.
OPTIONS = {
    "train_size": (("--train-size", 320), lambda r: steps_per_epoch(r) == 10),
    "validation_size": (("--validation-size", 20), lambda r: width(r, "validation") > 0.2),
    "test_size": (("--test-size", 10), lambda r: width(r, "test") > 0.3),
    "epochs": (("--epochs", 3), lambda r: [row["epoch"] for row in r.history] == [1, 2, 3]),
    "learning_rate": (
        ("--learning-rate", "5e-4"),
        lambda r: (
            np.isclose(r.model.optimizer.learning_rate, 5e-4)
            and np.isclose(r.history[0]["learning_rate"], 5e-4)
        ),
    ),
    "hidden_units": (
        ("--hidden_units=7",),
        lambda r: [w.shape for w in r.model.weights] == [(784, 7), (7,), (7, 10), (10,)],
    ),
}
BATCH_SIZE = ("--batch_size=176",), lambda r: steps_per_epoch(r) == 10


def steps_per_epoch(result):
    return int(result.model.optimizer.iterations) / len(result.history)


@pytest.fixture(scope="module")
def by_default(tmp_path_factory):
    """The result of `FAST` alone."""
    return train(cnn_basic, *FAST, "--output-dir", tmp_path_factory.mktemp("default"))


@pytest.fixture(scope="module")
def by_all_options(tmp_path_factory):
    """The result of the words of all rows of `OPTIONS`."""
    words = [word for words, _ in OPTIONS.values() for word in words]
    return train(cnn_basic, *FAST, *words, "--output-dir", tmp_path_factory.mktemp("all"))


@pytest.mark.parametrize("option", OPTIONS)
def test_option_reaches_what_it_names(option, by_all_options, by_default):
    _, shows = OPTIONS[option]
    assert shows(by_all_options)
    assert not shows(by_default), "the default would have passed as well"


def test_data_dir_and_batch_size_reach_what_they_name(run, by_default):
    words, shows = BATCH_SIZE
    result = run(*words)
    assert shows(result) and not shows(by_default)
    assert result.metrics["data"]["source"].startswith(str(SAMPLE))


def test_every_option_has_a_test():
    here = OPTIONS.keys() | {"data_dir", "batch_size"}
    elsewhere = {"model", "seed", "output_dir", "require_accuracy", "wandb", "project", "predict"}
    elsewhere |= {"cache_dir"}  # of one's own pictures
    assert cnn_basic.Options().config().keys() == here | elsewhere


def test_network_is_flatten_dense_dense():
    model = cnn_basic.build_model(7, classes=10)
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=w.shape) for w in model.weights]
    model.set_weights(weights)
    images = rng.integers(0, 256, (5, 28, 28)).astype("uint8")
    hidden = np.maximum(0, images.reshape(5, 784) / 255 @ weights[0] + weights[1])
    logits = hidden @ weights[2] + weights[3]
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-3, atol=1e-6)


def test_seed_decides_the_figures_to_the_last_digit(run, by_default):
    assert run("--seed", 0).without_time() == by_default.without_time()
    assert run("--seed", 1).without_time() != by_default.without_time()


def test_saved_model_is_the_best_epoch_and_takes_raw_images(run, sample):
    # So high a rate makes the last epoch a bad one.
    result = run("--epochs", 8, "--learning-rate", 0.05)
    by_epoch = [row["val_accuracy"] for row in result.history]
    assert result.metrics["best_epoch"] == 1 + np.argmax(by_epoch)
    for name, split in sample.splits.items():
        assert split.images.dtype == np.uint8
        predicted = result.model.predict(split.images, verbose=0).argmax(axis=1)
        assert result.metrics[name]["accuracy"] == np.mean(predicted == split.labels)
    assert result.metrics["validation"]["accuracy"] == pytest.approx(max(by_epoch))


def test_diverging_training_is_an_error_that_writes_nothing(run, tmp_path):
    with pytest.raises(common.UserError, match=r"loss in epoch 1 is .*--learning-rate"):
        run("--learning-rate", 1e30)
    assert not list((tmp_path / "outputs" / "cnn_basic").iterdir())


def test_disabled_wandb_leaves_no_folder_and_output_goes_where_it_is_told(command_line, tmp_path):
    words = (*FAST, "--wandb", "disabled", "--output_dir=here", "--require-accuracy")
    done = command_line(cnn_basic, *words, 0.99)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["here"]  # and no wandb
    # The promise was broken: said so at the end, with nothing lost.
    assert done.code == 1
    assert re.fullmatch(
        r"cnn_basic.py: error: validation accuracy 0\.\d+ is below the required 0.99\n", done.err
    )
    assert Result(tmp_path / "here").metrics["validation"]["accuracy"] < 0.99
    again = command_line(cnn_basic, *words, 0.1)
    assert again.code == 0
    assert f"replaces {', '.join(OUTPUT_FILES)} in here" in again.out


def test_whole_run_reaches_what_is_promised(whole_folder, run_main):
    result = run_main(cnn_basic, "--data-dir", whole_folder)
    assert result.metrics["test"]["accuracy"] >= 0.865
