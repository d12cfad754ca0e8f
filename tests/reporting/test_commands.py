"""Commands of the report: parsed again, they give the run's options, without private paths."""

import dataclasses
import shlex
from pathlib import Path

from fashion.recipes import RECIPES
from fashion.reporting.commands import (
    LOCAL_OPTIONS,
    prediction_command,
    public_config,
    public_metadata,
    training_command,
)

import pytest
from helpers.options import DEFAULTS, SCRIPTS
from helpers.scripts import parse_options

import cnn_basic
import resnet50_fashion

# A value of each option that is neither a default nor a recipe's value.
VALUES = {
    cnn_basic: {
        "data_dir": "/home/jane/my images & more",
        "train_size": 2000,
        "validation_size": 300,
        "test_size": 4,
        "epochs": 7,
        "batch_size": 64,
        "learning_rate": 1.5e-05,
        "seed": 4294967295,
        "hidden_units": 10,
    },
    resnet50_fashion: {
        "recipe": "best",
        "data_dir": "/home/jane/my images & more",
        "train_size": 2000,
        "validation_size": 300,
        "test_size": 4,
        "epochs": 7,
        "batch_size": 64,
        "learning_rate": 1 / 3,
        "seed": 1,
        "backbone": "mobilenetv2",
        "weights": "/home/jane/it's $HOME.h5",
        "image_size": 72,
        "precision": "bfloat16",
        "features": "conv4",
        "mirror": True,
        "hidden_units": 100,
        "dropout": 0.125,
        "patience": 3,
        "fine_tune_blocks": 2,
        "fine_tune_epochs": 4,
        "fine_tune_batch_size": 8,
        "fine_tune_learning_rate": 2e-7,
        "fine_tune_weight_decay": 0.25,
        "fine_tune_batch_norm": "trained",
        "fine_tune_inputs": "computed",
    },
}
LOCAL_ARGV = (
    *("--output-dir", "/home/jane/out", "--cache-dir", "/home/jane/cache", "--project", "secret"),
    *("--wandb", "offline", "--require-accuracy", 0.5),
)
PLACEHOLDERS = {"data_dir": "DATA_DIR", "weights": "WEIGHTS"}


def to_argv(values):
    """Return the values in the spelling of a W&B sweep."""
    return [f"--{name}={value}" for name, value in values.items()]


def parse_command(script, command):
    """Parse a command like a shell and the script."""
    python, name, *argv = shlex.split(command)
    assert (python, name) == ("python", f"{script.Options.script_name}.py")
    return parse_options(script, *argv).config()


def model_options(config):
    """Return the options that a command contains, with placeholders for paths."""
    return {
        name: PLACEHOLDERS[name] if name in PLACEHOLDERS and str(value).startswith("/") else value
        for name, value in config.items()
        if name not in LOCAL_OPTIONS
    }


def check_round_trip(script, argv):
    options = parse_options(script, *argv)
    command = training_command(options)
    config = parse_command(script, command)
    assert model_options(config) == model_options(options.config())
    local = {name: value for name, value in config.items() if name in LOCAL_OPTIONS}
    assert local == {name: DEFAULTS[script][name] for name in local}
    assert "jane" not in command and "secret" not in command
    return command


def test_values_cover_all_options_that_are_not_local():
    """A new option must be listed here or in `LOCAL_OPTIONS`."""
    for script in SCRIPTS:
        names = DEFAULTS[script].keys() - {"model"}
        assert VALUES[script].keys() == names - LOCAL_OPTIONS
        assert names >= LOCAL_OPTIONS - {"gpus", "resume"}
        for name, value in VALUES[script].items():
            assert value != DEFAULTS[script][name]


@pytest.mark.parametrize("script", SCRIPTS)
def test_training_command_contains_every_option_that_is_not_local(script):
    local = LOCAL_ARGV if script == cnn_basic else (*LOCAL_ARGV, "--gpus", 0, "--resume")
    command = check_round_trip(script, [*to_argv(VALUES[script]), *local])
    assert not any(f"--{name.replace('_', '-')}" in command for name in LOCAL_OPTIONS)


@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script in SCRIPTS for name in VALUES[script]]
)
def test_training_command_contains_only_the_option_that_differs(script, name):
    command = check_round_trip(script, to_argv({name: VALUES[script][name]}))
    flag, value = f"--{name.replace('_', '-')}", VALUES[script][name]
    shown = [] if value is True else [PLACEHOLDERS.get(name, str(value))]
    assert shlex.split(command)[2:] == [flag, *shown]


@pytest.mark.parametrize("script", SCRIPTS)
def test_training_command_of_defaults_has_no_options(script):
    command = check_round_trip(script, [])
    assert command == f"python {script.Options.script_name}.py"
    assert check_round_trip(script, LOCAL_ARGV) == command


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_command_omits_values_of_the_recipe(recipe):
    expected = "python resnet50_fashion.py"
    if recipe != "published":
        expected += f" --recipe {recipe}"
    argv = ["--recipe", recipe]
    assert check_round_trip(resnet50_fashion, argv) == expected
    given = to_argv(RECIPES[recipe])
    assert check_round_trip(resnet50_fashion, [*argv, *given]) == expected
    # A default of the script that differs from the recipe's value.
    changed = [*argv, "--epochs", 30, "--no-mirror"]
    expected += "" if recipe == "published" else " --epochs 30"
    expected += " --no-mirror" if RECIPES[recipe].get("mirror") else ""
    assert check_round_trip(resnet50_fashion, changed) == expected
    check_round_trip(
        resnet50_fashion, [*argv, *to_argv(VALUES[resnet50_fashion] | {"recipe": recipe})]
    )


def test_training_command_of_options_in_python_matches_the_command_line():
    options = resnet50_fashion.Options(head=resnet50_fashion.HeadOptions(mirror=True, dropout=0.0))
    assert training_command(options) == "python resnet50_fashion.py --mirror --dropout 0.0"
    assert parse_command(resnet50_fashion, training_command(options)) == options.config()


@pytest.mark.parametrize("script", SCRIPTS)
def test_prediction_command_has_a_placeholder_for_another_output_dir(script):
    name = script.Options.script_name
    argv = ["--epochs", 3, "--data-dir", "/home/jane/data"]
    expected = f"python {name}.py --predict photo.jpg"
    assert prediction_command(parse_options(script, *argv)) == expected
    command = prediction_command(parse_options(script, *argv, "--output-dir", "my runs/1"))
    assert command == f"{expected} --output-dir OUTPUT_DIR"
    assert parse_command(script, command) == DEFAULTS[script] | {
        "predict": [Path("photo.jpg")],
        "output_dir": "OUTPUT_DIR",
    }


def test_public_config_hides_private_paths_only():
    argv = to_argv(VALUES[resnet50_fashion])
    options = parse_options(resnet50_fashion, *argv, *LOCAL_ARGV)
    hidden = {name: name.upper() for name in ("data_dir", "cache_dir", "output_dir", "weights")}
    assert public_config(options) == options.config() | hidden
    for weights in "imagenet", "none":
        options = parse_options(resnet50_fashion, "--weights", weights)
        # The default of --cache-dir is below the home directory.
        assert public_config(options) == options.config() | {"cache_dir": "CACHE_DIR"}


@pytest.mark.parametrize(
    ("data_dir", "source", "expected"),
    [
        (None, "/usr/share/x (Debian package)", "/usr/share/x (Debian package)"),
        (None, "/home/jane/.keras/x (Keras' cache)", "~/.keras/x (Keras' cache)"),
        (None, "/home/janet/x (Keras' cache)", "/home/janet/x (Keras' cache)"),
        (None, "/scratch/jane/keras/x (Keras' cache)", "KERAS_HOME/x (Keras' cache)"),
        ("/home/jane/a b", "/home/jane/a b/raw (--data-dir)", "DATA_DIR/raw (--data-dir)"),
        ("data", "data (--data-dir, 3 classes)", "DATA_DIR (--data-dir, 3 classes)"),
    ],
)
def test_public_metadata_hides_paths_of_data_and_weights(data_dir, source, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    monkeypatch.setenv("KERAS_HOME", "/scratch/jane/keras")
    options = parse_options(resnet50_fashion, "--weights", "/home/jane/weights of x.h5")
    options = dataclasses.replace(
        options, data=dataclasses.replace(options.data, data_dir=data_dir and Path(data_dir))
    )
    metadata = {
        "config": options.config(),
        "data": {"source": source, "train": 5},
        "weights": {"source": "/home/jane/weights of x.h5", "precision": "float32"},
        "seconds": {"total": 3},
    }
    public = public_metadata(metadata, options)
    assert public == {
        "config": public_config(options),
        "data": {"source": expected, "train": 5},
        "weights": {"source": "weights of x.h5", "precision": "float32"},
        "seconds": {"total": 3},
    }
    assert metadata["data"]["source"] == source
