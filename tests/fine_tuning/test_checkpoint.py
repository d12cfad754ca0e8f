"""Checkpoints: what is resumed, and which options must match."""

import dataclasses
import os
from types import SimpleNamespace

from fashion import options
from fashion.errors import UsageError, UserError
from fashion.fine_tuning.checkpoint import load_checkpoint

import keras
import numpy as np
import pytest
from helpers.results import make_epoch
from helpers.scripts import directory_contents, file_size_limit

import resnet50_fashion


@pytest.fixture
def load(sample, tmp_path):
    """Load or create the checkpoint of a run with the given arguments."""

    def load(*argv, data=sample, weights_sha256="1234"):
        argv = ("--fine-tune-blocks", 1, "--precision", "float32", "--output-dir", tmp_path, *argv)
        parsed = options.parse(resnet50_fashion.Options, None, list(map(str, argv)))
        return load_checkpoint(parsed, data, SimpleNamespace(weights_sha256=weights_sha256))

    return load


@pytest.fixture(scope="module")
def model():
    """A model after one step of Adam."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    return model


HEAD_EPOCHS = [make_epoch(1, 0.5), make_epoch(2, 0.75), make_epoch(3, 0.625)]


@pytest.fixture
def started(load, model):
    """The checkpoint of a run that was interrupted in the first epoch of fine-tuning."""
    checkpoint = load()
    checkpoint.start(model, HEAD_EPOCHS, "abcd1234")
    return checkpoint


@pytest.fixture
def unfinished(started, model):
    """The checkpoint of a run that was interrupted after one epoch of fine-tuning."""
    started.save(model, [*HEAD_EPOCHS, make_epoch(4, 0.625)])
    return started


def test_new_checkpoint_is_empty(load, tmp_path, capsys):
    new = load()
    assert not new.is_started and not new.epochs
    assert capsys.readouterr().out == ""
    assert load("--resume") == new
    path = tmp_path / "checkpoint" / "state.json"
    assert f"No checkpoint at {path}; starting from scratch.\n" in capsys.readouterr().out
    new.mark_finished()
    assert not new.directory.exists()


def test_saved_checkpoint_is_resumed(unfinished, load, model):
    resumed = load("--resume")
    assert resumed == unfinished and resumed.is_started
    assert (resumed.head_epochs, resumed.wandb_id) == (3, "abcd1234")
    assert resumed.epochs == [*HEAD_EPOCHS, make_epoch(4, 0.625)]
    variables = [*model.variables, *model.optimizer.variables]
    expected = [variable.numpy() for variable in variables]
    model.train_on_batch(np.ones((4, 3)), np.zeros((4, 2)))
    resumed.load(model, resumed.last_weights)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_last_and_best_weights_are_kept_and_patience_counts_epochs_since_the_best(started, model):
    """The first file contains the weights of the best epoch of head training."""
    assert set(os.listdir(started.directory)) == {"epoch-002.weights.h5", "state.json"}
    assert not started.is_patience_exhausted(1)
    epochs = list(HEAD_EPOCHS)
    for epoch, accuracy, kept_epochs, num_since_best in (
        (4, 0.7, [2, 4], 1),
        (5, 0.875, [5], 0),
        (6, 0.875, [5, 6], 1),
        (7, 0.5, [5, 7], 2),
    ):
        epochs.append(make_epoch(epoch, accuracy))
        started.save(model, epochs)
        expected = {f"epoch-00{n}.weights.h5" for n in kept_epochs} | {"state.json"}
        assert set(os.listdir(started.directory)) == expected
        assert started.last_weights == f"epoch-00{epoch}.weights.h5"
        assert started.best_weights == f"epoch-00{kept_epochs[0]}.weights.h5"
        exhausted = [patience for patience in (1, 2) if started.is_patience_exhausted(patience)]
        assert exhausted == list(range(1, num_since_best + 1))


def test_unfinished_run_is_neither_overwritten_by_a_new_nor_by_a_frozen_run(unfinished, load):
    before = directory_contents(unfinished.directory)
    message = r"contains an unfinished run \(epoch 4\). Use --resume to continue it,\nor delete"
    with pytest.raises(UsageError, match=message):
        load()
    frozen = load("--fine-tune-blocks", 0)
    assert not frozen.is_started
    frozen.mark_finished()
    assert directory_contents(unfinished.directory) == before


def test_finished_run_is_resumed_unchanged_or_replaced(unfinished, load):
    unfinished.mark_finished()
    assert load("--resume").finished
    difference = r": --fine-tune-learning-rate \(0.0005, now 1e-05\)"
    with pytest.raises(UsageError, match=difference + ADVICE):
        load("--resume", "--fine-tune-learning-rate", 1e-5)
    assert not load().is_started
    assert not load("--resume").is_started  # must not continue the old run


ADVICE = "; use the same options, or another --output-dir to start over$"
COMPARED = (
    "train_size=1000 validation_size=100 test_size=100 epochs=3 batch_size=7 learning_rate=0.5 "
    "seed=1 backbone=mobilenetv2 image_size=64 features=conv4_avg flip=True hidden_units=64 "
    "dropout=0.1 patience=3 fine_tune_blocks=2 fine_tune_epochs=3 fine_tune_batch_size=7"
)


def test_resume_with_another_option_raises_usage_error(unfinished, load):
    before = options.config(resnet50_fashion.Options(fine_tune_blocks=1))
    for argument in COMPARED.split():
        name, value = argument.split("=")
        with pytest.raises(UsageError) as error:
            load("--resume", f"--{argument}")
        assert str(error.value) == (
            f"--resume: options differ from the checkpoint in {unfinished.directory}: "
            f"{options.flag(name)} ({before[name]}, now {value}); use the same options, or "
            "another --output-dir to start over"
        )


def test_resume_compares_the_options_of_a_recipe_not_its_name(load, model):
    checkpoint = load("--recipe", "fast")
    checkpoint.start(model, HEAD_EPOCHS, None)
    argv = [f"--{name}={value}" for name, value in resnet50_fashion.RECIPES["fast"].items()]
    for arguments in ("--recipe", "fast"), argv:
        assert load("--resume", *arguments) == checkpoint
    changes = r": --epochs \(20, now 30\), --image-size \(112, now None\), --features .*, --dropout"
    with pytest.raises(UsageError, match=changes + r" \(0.5, now 0.3\)" + ADVICE):
        load("--resume")


def test_resume_with_other_ignored_options(unfinished, load):
    resumed = load(
        *("--resume", "--data-dir=elsewhere", "--cache-dir=elsewhere", "--wandb=offline"),
        *("--project=mine", "--require-accuracy=0.5", "--weights=some.h5"),
        "--fine-tune-learning-rate=1e-05",
    )
    assert resumed.config["fine_tune_learning_rate"] == 1e-5
    assert dataclasses.replace(resumed, config=unfinished.config) == unfinished


def test_resume_with_other_data_weights_or_precision_raises(unfinished, load, sample):
    with pytest.raises(UsageError, match=": --weights" + ADVICE):
        load("--resume", weights_sha256="5678")
    sha256 = sample.sha256 | {"train-images-idx3-ubyte": 64 * "0"}
    with pytest.raises(UsageError, match=r": the data \(--data-dir\)" + ADVICE):
        load("--resume", data=dataclasses.replace(sample, sha256=sha256))
    keras.config.set_dtype_policy("mixed_bfloat16")
    with pytest.raises(UsageError, match=r": --precision \(float32, now bfloat16\)" + ADVICE):
        load("--resume")


def test_batch_size_may_change_only_before_the_first_epoch(started, load, model):
    """The first batch may be too large for the memory of a GPU."""
    resumed = load("--resume", "--fine-tune-batch-size", 16)
    assert resumed.epochs == HEAD_EPOCHS
    assert resumed.config["fine_tune_batch_size"] == 16
    resumed.save(model, [*HEAD_EPOCHS, make_epoch(4, 0.625)])
    assert load("--resume", "--fine-tune-batch-size", 16) == resumed
    with pytest.raises(UsageError, match=r": --fine-tune-batch-size \(16, now 128\)" + ADVICE):
        load("--resume")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"config": {}, "epochs": [{"epoch": 1}]}'])
def test_damaged_state_json_raises(content, unfinished, load):
    (unfinished.directory / "state.json").write_text(content)
    message = rf"state.json is damaged \(.*\); delete {unfinished.directory} to start over$"
    for argv in ("--resume",), ():
        with pytest.raises(UserError, match=message):
            load(*argv)


def test_damaged_and_missing_weights_raise_with_their_path(unfinished, model):
    path = unfinished.directory / unfinished.last_weights
    advice = f"; delete {unfinished.directory} to start over$"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"^{path} is damaged \(.*\)" + advice):
        unfinished.load(model, unfinished.last_weights)
    path.unlink()
    with pytest.raises(UserError, match=f"^{path} is missing" + advice):
        unfinished.load(model, unfinished.last_weights)


def test_full_disk_raises_and_keeps_the_last_checkpoint(unfinished, model, monkeypatch):
    """The space is checked before weights are saved, since h5py could crash the process."""
    before = directory_contents(unfinished.directory)
    monkeypatch.setattr(model, "save_weights", None)
    message = r"^could not write the checkpoint: --output-dir: .*too large.*; then continue with --"
    with file_size_limit(10_000), pytest.raises(UserError, match=message + "resume$"):
        unfinished.save(model, [*unfinished.epochs, make_epoch(5, 0.875)])
    assert directory_contents(unfinished.directory) == before


@pytest.mark.usefixtures("only_warn")
def test_full_disk_at_the_end_costs_a_warning(unfinished, capsys):
    before = directory_contents(unfinished.directory)
    with file_size_limit(100):
        unfinished.mark_finished()
    assert capsys.readouterr().err.startswith("WARNING: could not make checkpoint/state.json (")
    assert directory_contents(unfinished.directory) == before
