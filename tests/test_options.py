"""The command line of both scripts: values, defaults, recipes, sweeps, errors, --help."""

import dataclasses
import getpass
import pwd
import re
from pathlib import Path

from fashion import options
from fashion.errors import UsageError

import pytest
from helpers.scripts import parse_options

import cnn_basic
import resnet50_fashion

DEFAULTS = {
    cnn_basic: "--epochs 10 --batch-size 32 --learning-rate 0.001 --seed 0 --hidden-units 32 "
    "--output-dir outputs/cnn_basic --wandb auto",
    resnet50_fashion: "--epochs 30 --batch-size 512 --learning-rate 0.001 --seed 0 --recipe plain "
    "--backbone resnet50 --weights imagenet --precision auto --features conv5_avg --no-flip "
    "--hidden-units 512 --dropout 0.3 --patience 10 --fine-tune-blocks 0 --fine-tune-epochs 12 "
    "--fine-tune-batch-size 128 --fine-tune-learning-rate 0.0005 --no-resume "
    "--output-dir outputs/resnet50_fashion --wandb auto",
}
RECIPES = {
    "plain": "",
    "fast": "--image-size 112 --features conv3_3x3+conv4 --dropout 0.5 --epochs 20",
    "best": "--image-size 112 --features conv3_4x4+conv4 --dropout 0.5 --epochs 20 --flip",
    "tuned": "--image-size 80 --features conv4_avg --flip --hidden-units 0 --dropout 0 "
    "--epochs 20 --patience 100 --fine-tune-blocks 13",
}


def config_of(script, *argv):
    """Parse a command line to its configuration."""
    return options.config(parse_options(script, *argv))


def usage_error(script, *argv):
    """Return the first line of the error of a command line."""
    with pytest.raises(UsageError) as error:
        parse_options(script, *argv)
    first, *others = str(error.value).splitlines()
    assert others in ([], [f"See {script.__name__}.py --help."])
    return first


@pytest.mark.parametrize("script", DEFAULTS)
def test_defaults(script):
    config = config_of(script)
    assert config == options.config(script.Options())
    assert config == config_of(script, *DEFAULTS[script].split())
    unset = {options.flag(name) for name, value in config.items() if value is None}
    others = {"--model", "--cache-dir", "--flip", "--resume"}
    assert unset | others | {*DEFAULTS[script].split()} >= {options.flag(name) for name in config}
    assert next(iter(config.items())) == ("model", script.__name__)


COUNT = ["1", "2147483647"], ["0", "-8", "2.5", "x", "nan", "", "2147483648"]
RATE = ["1e-5", "7"], ["0", "-1", "nan", "inf", "fast"]
# Valid and invalid values of each option, except of those that take a path.
VALUES = {
    **dict.fromkeys(["--train-size", "--validation-size", "--test-size", "--epochs"], COUNT),
    **dict.fromkeys(["--batch-size", "--image-size", "--patience"], COUNT),
    **dict.fromkeys(["--fine-tune-epochs", "--fine-tune-batch-size"], COUNT),
    "--fine-tune-blocks": (["0", "2147483647"], ["-1", "2.5", "x", "2147483648"]),
    **dict.fromkeys(["--learning-rate", "--fine-tune-learning-rate"], RATE),
    "--seed": (["0", "4294967295"], ["-1", "4294967296", "1.5", "x"]),
    "--dropout": (["0", "0.999"], ["1", "-0.1", "nan", "x"]),
    "--require-accuracy": (["0.9", "1"], ["0", "90", "-1", "nan", "x"]),
    "--project": (["my-project_2"], ["", "a/b", "a\\b", "a#b", "a?b", "a%b", "a:b"]),
    "--wandb": (["auto", "online", "offline", "disabled"], ["maybe", ""]),
    "--hidden-units": (["0", "512"], ["-1", "x"]),
    "--backbone": (["resnet50", "mobilenetv2"], ["vgg16", ""]),
    "--features": (resnet50_fashion.FEATURE_SETS, ["conv6", ""]),
    "--recipe": (["plain"], ["slow", ""]),
    "--precision": (["auto", "float32", "bfloat16", "float16"], ["float64"]),
    "--weights": (["random", "my_weights.h5"], []),
    "--export": ([], ["pickle", ""]),
}
PATHS = ["--data-dir", "--output-dir", "--cache-dir", "--predict"]


def test_each_option_is_tested():
    fields = {options.flag(field.name) for field in dataclasses.fields(resnet50_fashion.Options)}
    assert {*VALUES, *PATHS, "--flip", "--resume"} == fields


@pytest.mark.parametrize("flag", VALUES)
def test_option_sets_its_field_and_rejects_invalid_values(flag):
    """Also in the spelling of a sweep."""
    valid, invalid = VALUES[flag]
    name = flag[2:].replace("-", "_")
    for text in valid:
        config = config_of(resnet50_fashion, flag, text)
        value = config[name]
        assert value == type(value)(text)
        assert config == config_of(resnet50_fashion) | {name: value}
        assert config_of(resnet50_fashion, f"--{name}={text}") == config
    for text in invalid:
        line = usage_error(resnet50_fashion, f"{flag}={text}")
        assert line.startswith(f"{flag}: expected ") and line.endswith(f", got {text!r}")


@pytest.mark.parametrize("flag", PATHS)
def test_paths(flag, monkeypatch, tmp_path):
    """A shell leaves the "~" of `--output-dir=~/run` alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    user = getpass.getuser()
    for text, expected in (
        ("~", tmp_path),
        ("~/my_run/", tmp_path / "my_run"),
        (f"~{user}/x", Path(pwd.getpwnam(user).pw_dir) / "x"),
        ("./~/x", Path("~/x")),
        ("Größe/~", Path("Größe/~")),
    ):
        value = getattr(parse_options(cnn_basic, f"{flag}={text}"), flag[2:].replace("-", "_"))
        assert value == ([expected] if flag == "--predict" else expected)
    for text, reason in (
        ("", "expected a path, got an empty string"),
        ("gs://bucket/run", "expected a local path, got the URL 'gs://bucket/run'"),
        ("~nobody-of-that-name/x", "there is no user of '~nobody-of-that-name/x'"),
    ):
        assert usage_error(cnn_basic, flag, text) == f"{flag}: {reason}"


def test_weights_below_home_and_repeated_values(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_options(resnet50_fashion, "--weights=~/w.h5").weights == f"{tmp_path}/w.h5"
    parsed = parse_options(cnn_basic, "--predict", "a_1", "b", "--epochs", 3, "--predict=c")
    assert (parsed.predict, parsed.epochs) == ([Path("a_1"), Path("b"), Path("c")], 3)
    assert parse_options(cnn_basic, "--export", "onnx", "litert").export == ["onnx", "litert"]


@pytest.mark.parametrize(
    ("value", "parent"), [("/xdg", "/xdg"), ("", "/home/.cache"), ("relative", "/home/.cache")]
)
def test_default_cache_dir_follows_xdg_cache_home(value, parent, monkeypatch):
    monkeypatch.setenv("HOME", "/home")
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert options.default_cache_dir() == Path(parent, "fashion-mnist-features")


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        (resnet50_fashion, "--predict"),
        (resnet50_fashion, "--predict --epochs 3"),
        (resnet50_fashion, "--epoch 3"),  # no abbreviations
        (resnet50_fashion, "--flip=2"),
        (resnet50_fashion, "--recipe"),
        (resnet50_fashion, "stray"),
        (cnn_basic, "--no-resume"),  # options of the other script
        (cnn_basic, "--backbone=resnet50"),
    ],
)
def test_usage_errors_name_the_option(script, argv):
    """Messages of argparse differ between Python versions."""
    assert re.split("[ =]", argv)[0] in usage_error(script, *argv.split())


def test_resume_needs_fine_tuning():
    expected = "--resume: only fine-tuning can be resumed; give --fine-tune-blocks"
    assert usage_error(resnet50_fashion, "--resume") == expected
    assert parse_options(resnet50_fashion, "--resume", "--recipe", "tuned").resume


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_sets_its_options(name):
    config = config_of(resnet50_fashion, "--recipe", name)
    assert config == config_of(resnet50_fashion, *RECIPES[name].split()) | {"recipe": name}
    assert config == config_of(resnet50_fashion, "--recipe=best", f"--recipe={name}")
    assert RECIPES.keys() == resnet50_fashion.RECIPES.keys()


def test_given_options_win_over_the_recipe():
    """In any order, also if the given value is the default without a recipe."""
    given = "--image-size 64 --features conv5_avg --no-flip --seed 3 --dropout 0.3 --epochs 30"
    changed = {"recipe": "best", "image_size": 64, "seed": 3}
    for argv in f"--recipe best {given}", f"{given} --recipe best":
        config = config_of(resnet50_fashion, *argv.split())
        assert config == config_of(resnet50_fashion) | changed


def test_booleans_and_numbers_of_a_sweep():
    for value, expected in ("True", True), ("1", True), ("False", False), ("0", False):
        argv = (f"--flip={value}", f"--resume={value}", "--recipe=best", "--fine_tune_blocks=1")
        parsed = parse_options(resnet50_fashion, *argv)
        assert parsed.flip is parsed.resume is expected
    # A distribution such as q_uniform gives 64.0.
    parsed = parse_options(resnet50_fashion, "--batch_size=64.0", "--seed=1e3")
    assert (repr(parsed.batch_size), repr(parsed.seed)) == ("64", "1000")


def test_null_of_a_sweep_is_the_default():
    """`wandb agent` passes YAML's null as None."""
    names = [field.name for field in dataclasses.fields(resnet50_fashion.Options)]
    nulls = [f"--{name}={value}" for name in names for value in ("None", "null")]
    expected = parse_options(resnet50_fashion, "--recipe=fast")
    assert parse_options(resnet50_fashion, "--recipe=fast", *nulls) == expected


def help_of(script, capsys, *argv):
    """Return the text of --help without white space."""
    with pytest.raises(SystemExit) as end:
        parse_options(script, *argv, "--help")
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    assert "\x1b" not in out
    return re.sub(r"\s", "", out)


@pytest.mark.parametrize("script", DEFAULTS)
def test_help_explains_each_option_with_its_default(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    text = help_of(script, capsys)
    assert re.sub(r"\s", "", script.__doc__) in text
    for field in dataclasses.fields(script.Options):
        assert options.flag(field.name) in text
        doc = re.sub(r"\s", "", field.metadata["help"])
        if field.default not in (None, False):
            doc = f"{doc}(default:{field.default})"
        assert doc in text
    assert "None" not in text  # the help text describes the default instead
    if script is cnn_basic:
        assert not re.search("backbone|head|recipe|fine-tun", text)


def test_help_after_a_recipe_shows_its_values(capsys):
    text = help_of(resnet50_fashion, capsys, "--recipe", "best")
    for value in "112", "conv3_4x4+conv4", "True":
        assert text.count(f"(default:{value})") == 1
