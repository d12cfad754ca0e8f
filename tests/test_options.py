"""The options: their names, defaults, and the values that they take."""

import dataclasses
from pathlib import Path

from fashion import options

import pytest
from conftest import SAMPLE, parse

import cnn_basic
import resnet50_fashion

SCRIPTS = [cnn_basic, resnet50_fashion]
BOTH = {
    "data_dir": None,
    "cache_dir": str(options.default_cache_dir()),
    "train_size": None,
    "validation_size": None,
    "test_size": None,
    "learning_rate": 1e-3,
    "seed": 0,
    "predict": None,
    "require_accuracy": None,
    "wandb": "auto",
    "project": "fashion-mnist",
}
DEFAULTS = {
    cnn_basic: BOTH
    | {
        "model": "cnn_basic",
        "epochs": 10,
        "batch_size": 32,
        "hidden_units": 32,
        "output_dir": "outputs/cnn_basic",
    },
    resnet50_fashion: BOTH
    | {
        "model": "resnet50_fashion",
        "epochs": 30,
        "batch_size": 512,
        "output_dir": "outputs/resnet50_fashion",
        "backbone": "resnet50",
        "weights": "imagenet",
        "image_size": None,
        "features": "conv5",
        "mirror": False,
        "recipe": "published",
        "precision": "auto",
        "dropout": 0.3,
        "patience": 10,
        "gpus": "all",
        "fine_tune_blocks": 0,
        "fine_tune_epochs": 5,
        "fine_tune_batch_size": 32,
        "fine_tune_learning_rate": 1e-4,
        "fine_tune_inputs": "cached",
        "resume": False,
    },
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_defaults(script):
    assert parse(script).config() == DEFAULTS[script]
    assert script.Options().config() == DEFAULTS[script]


def test_config_has_every_option_as_given_and_paths_as_text():
    given = {
        "data_dir": "some/data",
        "train_size": 5,
        "validation_size": 6,
        "test_size": 7,
        "epochs": 8,
        "batch_size": 9,
        "learning_rate": 0.25,
        "seed": 10,
        "output_dir": "some/output",
        "require_accuracy": 0.5,
        "wandb": "disabled",
        "project": "mine",
        "backbone": "mobilenetv2",
        "weights": "some.h5",
        "image_size": 64,
        "features": "conv4",
        "precision": "bfloat16",
        "dropout": 0.125,
        "patience": 11,
        "cache_dir": "some/cache",
        "gpus": 0,
        "fine_tune_blocks": 12,
        "fine_tune_epochs": 13,
        "fine_tune_batch_size": 14,
        "fine_tune_learning_rate": 0.75,
        "fine_tune_inputs": "augmented",
        "recipe": "fast",
    }
    defaults = DEFAULTS[resnet50_fashion]
    assert all(value != defaults[name] for name, value in given.items())
    flags = {"resume": True, "mirror": True}
    assert given.keys() | flags.keys() | {"model", "predict"} == defaults.keys()
    words = ["--resume", "--mirror", *(f"--{k.replace('_', '-')}={v}" for k, v in given.items())]
    config = parse(resnet50_fashion, *words).config()
    assert config == given | flags | {"model": "resnet50_fashion", "predict": None}
    # As a W&B sweep writes them.
    words = ["--resume", "--mirror", *(f"--{name}={value}" for name, value in given.items())]
    assert parse(resnet50_fashion, *words).config() == config


def test_pictures_to_classify_are_paths():
    parsed = parse(cnn_basic, "--predict", "a.png", "b", "--epochs", 3)
    assert parsed.use_of_the_model.predict == [Path("a.png"), Path("b")]
    assert parsed.training.epochs == 3


def test_options_cannot_be_changed():
    parsed = parse(cnn_basic)
    for group in parsed, parsed.training, parsed.results, parsed.data, parsed.model:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(group, dataclasses.fields(group)[0].name, 1)


COUNT = ["1", "2147483647"], ["0", "-8", "2.5", "x", "nan", "", "2147483648"]
RATE = ["1e-5", "7"], ["0", "-1", "nan", "inf", "fast"]
# Of each option: values that it takes, values that it refuses.
VALUES = {
    "--train-size": COUNT,
    "--validation-size": COUNT,
    "--test-size": COUNT,
    "--epochs": COUNT,
    "--batch-size": COUNT,
    "--image-size": COUNT,
    "--patience": COUNT,
    "--fine-tune-epochs": COUNT,
    "--fine-tune-batch-size": COUNT,
    "--fine-tune-blocks": (["0", "2147483647"], ["-1", "2.5", "x", "2147483648"]),
    "--learning-rate": RATE,
    "--fine-tune-learning-rate": RATE,
    "--seed": (["0", "4294967295"], ["-1", "4294967296", "1.5", "x"]),
    "--dropout": (["0", "0.999"], ["1", "-0.1", "nan", "x"]),
    "--require-accuracy": (["0.9", "1"], ["0", "90", "-1", "nan", "x"]),
    "--gpus": (["all", "0", "8"], ["some", "-1", "1.5"]),
    "--project": (["my-project_2"], ["", "a/b", "a\\b", "a#b", "a?b", "a%b", "a:b"]),
    "--wandb": (["auto", "online", "offline", "disabled"], ["maybe", ""]),
    "--backbone": (["resnet50", "convnexttiny"], ["vgg16", ""]),
    "--features": (["conv5", "conv4", "conv4_3x3", "conv4_4x4"], ["conv6", ""]),
    "--recipe": (["published"], ["slow", ""]),
    "--precision": (["auto", "float32", "bfloat16", "float16"], ["float64"]),
    "--fine-tune-inputs": (["cached", "computed", "augmented"], ["none"]),
}


@pytest.mark.parametrize("option", VALUES)
def test_values_that_an_option_takes_and_refuses(option, command_line):
    takes, refuses = VALUES[option]
    name = option[2:].replace("-", "_")
    for value in takes:
        parsed = parse(resnet50_fashion, option, value).config()[name]
        assert parsed == type(parsed)(value)
    for value in refuses:
        done = command_line(resnet50_fashion, f"{option}={value}")
        assert done.code == 2 and done.out == ""
        first, second = done.err.splitlines()
        assert first.startswith(f"resnet50_fashion.py: error: {option}: expected ")
        assert first.endswith(f", got {value!r}")
        assert second == "See resnet50_fashion.py --help."


@pytest.mark.parametrize("option", ["--data-dir", "--output-dir", "--cache-dir", "--predict"])
def test_path_is_not_empty(option, command_line):
    done = command_line(resnet50_fashion, option, "")
    assert done.code == 2
    expected = f"resnet50_fashion.py: error: {option}: expected a path, got nothing"
    assert done.err.splitlines()[0] == expected


def test_size_beyond_the_data_is_a_usage_error(command_line):
    done = command_line(cnn_basic, "--data-dir", SAMPLE, "--train-size", "1761")
    assert done.code == 2
    expected = "cnn_basic.py: error: --train-size 1761: there are 1760 train images"
    assert done.err.splitlines()[0] == expected


def test_default_cache_is_among_the_users_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert options.default_cache_dir() == tmp_path / "xdg" / "fashion-mnist-features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert options.default_cache_dir() == tmp_path / ".cache" / "fashion-mnist-features"
