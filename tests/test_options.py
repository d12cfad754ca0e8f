"""Options: names, defaults and valid values."""

import dataclasses
import getpass
import pwd
from pathlib import Path

from fashion import options

import pytest
from helpers.options import DEFAULTS, SCRIPTS
from helpers.scripts import SAMPLE, parse_options

import cnn_basic
import resnet50_fashion


@pytest.mark.parametrize("script", SCRIPTS)
def test_defaults(script):
    assert parse_options(script).config() == DEFAULTS[script]
    assert script.Options().config() == DEFAULTS[script]


def test_config_returns_every_option_with_paths_as_strings():
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
        "hidden_units": 64,
        "precision": "bfloat16",
        "dropout": 0.125,
        "patience": 11,
        "cache_dir": "some/cache",
        "gpus": 0,
        "fine_tune_blocks": 12,
        "fine_tune_epochs": 13,
        "fine_tune_batch_size": 14,
        "fine_tune_learning_rate": 0.75,
        "fine_tune_weight_decay": 0.25,
        "fine_tune_batch_norm": "trained",
        "fine_tune_inputs": "augmented",
        "recipe": "fast",
    }
    defaults = DEFAULTS[resnet50_fashion]
    assert all(value != defaults[name] for name, value in given.items())
    flags = {"resume": True, "mirror": True}
    assert given.keys() | flags.keys() | {"model", "predict", "export"} == defaults.keys()
    argv = ["--resume", "--mirror", *(f"--{k.replace('_', '-')}={v}" for k, v in given.items())]
    config = parse_options(resnet50_fashion, *argv).config()
    assert config == given | flags | {
        "model": "resnet50_fashion",
        "predict": None,
        "export": None,
    }
    # The spelling of a W&B sweep.
    argv = ["--resume", "--mirror", *(f"--{name}={value}" for name, value in given.items())]
    assert parse_options(resnet50_fashion, *argv).config() == config


def test_predict_takes_several_paths():
    parsed = parse_options(cnn_basic, "--predict", "a.png", "b", "--epochs", 3)
    assert parsed.actions.predict == [Path("a.png"), Path("b")]
    assert parsed.training.epochs == 3


def test_options_are_frozen():
    parsed = parse_options(cnn_basic)
    for group in parsed, parsed.training, parsed.results, parsed.data, parsed.model:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(group, dataclasses.fields(group)[0].name, 1)


COUNT = ["1", "2147483647"], ["0", "-8", "2.5", "x", "nan", "", "2147483648"]
RATE = ["1e-5", "7"], ["0", "-1", "nan", "inf", "fast"]
# Valid and invalid values of each option.
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
    "--hidden-units": (["0", "512"], ["-1", "x"]),
    "--backbone": (["resnet50", "convnexttiny"], ["vgg16", ""]),
    "--features": (["conv5", "conv4_avg", "conv4", "conv4_3x3", "conv4_4x4"], ["conv6", ""]),
    "--recipe": (["published"], ["slow", ""]),
    "--precision": (["auto", "float32", "bfloat16", "float16"], ["float64"]),
    "--fine-tune-weight-decay": (["0", "0.05"], ["-0.1", "1", "x"]),
    "--fine-tune-batch-norm": (["frozen", "trained"], ["on"]),
    "--fine-tune-inputs": (["cached", "computed", "augmented"], ["none"]),
}


@pytest.mark.parametrize("option", VALUES)
def test_option_accepts_valid_and_rejects_invalid_values(option, command_line):
    valid, invalid = VALUES[option]
    name = option[2:].replace("-", "_")
    for value in valid:
        parsed = parse_options(resnet50_fashion, option, value).config()[name]
        assert parsed == type(parsed)(value)
    for value in invalid:
        done = command_line(resnet50_fashion, f"{option}={value}")
        assert done.code == 2 and done.out == ""
        first, second = done.err.splitlines()
        assert first.startswith(f"resnet50_fashion.py: error: {option}: expected ")
        assert first.endswith(f", got {value!r}" if value else (", got ''", "got an empty string"))
        assert second == "See resnet50_fashion.py --help."


@pytest.mark.parametrize(
    "option", ["--data-dir", "--output-dir", "--cache-dir", "--predict", "--weights"]
)
def test_home_directory_in_path_is_expanded(option, monkeypatch, tmp_path, command_line):
    """A shell leaves the "~" of `--output-dir=~/run` alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    name, user = option[2:].replace("-", "_"), getpass.getuser()
    for text, expected in (
        ("~", tmp_path),
        ("~/my run/", tmp_path / "my run"),
        (f"~{user}/x", Path(pwd.getpwnam(user).pw_dir) / "x"),
        ("./~/x", "~/x"),
        ("Größe/~", "Größe/~"),
    ):
        value = parse_options(resnet50_fashion, f"{option}={text}").config()[name]
        (value,) = value if isinstance(value, list) else (value,)
        assert Path(value) == Path(expected)
    done = command_line(resnet50_fashion, f"{option}=~nobody-of-this-name/x")
    assert done.code == 2
    assert "names a user who does not exist (write './~nobody" in done.err


@pytest.mark.parametrize("option", ["--data-dir", "--output-dir", "--cache-dir", "--predict"])
def test_empty_path_raises_usage_error(option, command_line):
    done = command_line(resnet50_fashion, option, "")
    assert done.code == 2
    expected = f"resnet50_fashion.py: error: {option}: expected a path, got an empty string"
    assert done.err.splitlines()[0] == expected


def test_size_larger_than_split_raises_usage_error(command_line):
    done = command_line(cnn_basic, "--data-dir", SAMPLE, "--train-size", "1761")
    assert done.code == 2
    expected = "cnn_basic.py: error: --train-size 1761: there are only 1760 train images"
    assert done.err.splitlines()[0] == expected


def test_default_cache_dir_follows_xdg_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert options.default_cache_dir() == tmp_path / "xdg" / "fashion-mnist-features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert options.default_cache_dir() == tmp_path / ".cache" / "fashion-mnist-features"


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run"])
def test_urls_are_no_paths(url, command_line):
    done = command_line(cnn_basic, "--output-dir", url)
    assert done.code == 2
    assert f"--output-dir: expected a local path, got the URL '{url}'" in done.err


def test_repeated_paths_add_up():
    options = parse_options(cnn_basic, "--predict", "a.png", "b.png", "--predict=c.png")
    assert [str(path) for path in options.actions.predict] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("value", ["", "relative", "~nobody-of-that-name/x"])
def test_unusable_cache_home_is_ignored(value, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert options.default_cache_dir() == Path.home() / ".cache" / "fashion-mnist-features"
