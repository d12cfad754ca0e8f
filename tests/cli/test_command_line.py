"""Parsing of the command line: spellings, `--help`, error messages."""

import ast
import io
import re
import sys

from fashion.cli.command_line import parse_args
from fashion.errors import UsageError

import pytest
from helpers.options import DEFAULTS, SCRIPTS
from helpers.scripts import ROOT, parse_options

import cnn_basic
import resnet50_fashion

ERRORS = {
    "--epochs 0": "--epochs: expected an integer >= 1, got '0'",
    "--epochs x": "--epochs: expected an integer >= 1, got 'x'",
    "--batch-size -8": "--batch-size: expected an integer >= 1, got '-8'",
    "--learning-rate fast": "--learning-rate: expected a number > 0, got 'fast'",
    "--seed -1": "--seed: expected an integer from 0 to 4294967295, got '-1'",
    "--require-accuracy 90": "--require-accuracy: expected a number > 0 and <= 1, got '90'",
    "--project a/b": r"--project: expected a name without / \ # ? % :, got 'a/b'",
    "--wandb maybe": "--wandb: expected one of auto, online, offline, disabled, got 'maybe'",
    "--dropout 1": "--dropout: expected a number >= 0 and < 1, got '1'",
    "--gpus some": "--gpus: expected \"all\" or an integer >= 0, got 'some'",
    "--backbone vgg16": "--backbone: expected one of resnet50, efficientnetb0, efficientnetv2b0, "
    "inceptionv3, mobilenetv2, convnexttiny, got 'vgg16'",
    "--features conv6": "--features: expected one of conv5, conv4_avg, conv4, conv4_3x3, "
    "conv4_4x4, got 'conv6'",
    "--precision float64": "--precision: expected one of auto, float32, bfloat16, float16, "
    "got 'float64'",
    "--resume": "--resume: only fine-tuning can be resumed; give --fine-tune-blocks",
    # Messages of argparse differ between Python versions; the first line must name the option.
    "--predict": None,
    "--predict --epochs 3": None,
    "--epochs": None,
    "--epoch 3": None,  # no abbreviations
    "--no-resume": None,
    "--resume=2": None,
    "--mirror=2": None,
    "stray": None,
}


@pytest.mark.parametrize("argv", ERRORS)
def test_invalid_arguments_raise_usage_error(argv, command_line):
    done = command_line(resnet50_fashion, *argv.split())
    assert done.code == 2 and done.out == ""
    first, *others = done.err.splitlines()
    prefix, expected = "resnet50_fashion.py: error: ", ERRORS[argv]
    assert first.startswith(prefix)
    if expected:
        assert first == prefix + expected
    else:
        assert re.split("[ =]", argv)[0] in first
    assert others in ([], ["See resnet50_fashion.py --help."])
    assert not re.search(r"[─│╭]|---", done.err)  # not boxed


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "ascii"])
def test_error_message_is_independent_of_the_terminal_encoding(encoding, command_line, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    done = command_line(cnn_basic, "--epochs", "x")
    assert done.err == (
        "cnn_basic.py: error: --epochs: expected an integer >= 1, got 'x'\n"
        "See cnn_basic.py --help.\n"
    )


@pytest.mark.parametrize("arg", ["--no-resume", "--features", "--backbone=resnet50"])
def test_option_of_the_other_script_raises_usage_error(arg, command_line):
    done = command_line(cnn_basic, arg)
    assert done.code == 2
    assert len(done.err.splitlines()) == 2 and arg.split("=")[0] in done.err


def test_parse_args_with_invalid_arguments_raises_usage_error():
    with pytest.raises(UsageError, match=r"^--epochs: .*\nSee cnn_basic.py --help.$"):
        parse_args(cnn_basic.Options(), "About.", ["--epochs", "0"])


def test_parse_args_uses_the_given_defaults():
    defaults = cnn_basic.Options(model=cnn_basic.ModelOptions(hidden_units=7))
    parsed = parse_args(defaults, "About.", ["--epochs", "3"])
    assert (parsed.model.hidden_units, parsed.training.epochs) == (7, 3)
    assert parsed.training.batch_size == defaults.training.batch_size
    assert parse_args(defaults, "About.", []) == defaults


def test_boolean_option_accepts_the_spelling_of_a_sweep():
    for argv, expected in (
        (("--mirror=True",), True),
        (("--mirror=1",), True),
        (("--mirror=0",), False),
        (("--recipe=best", "--mirror=False"), False),
        (("--recipe", "best"), True),
    ):
        assert parse_options(resnet50_fashion, *argv).head.mirror is expected


def test_flag_accepts_the_spelling_of_a_sweep():
    for value in True, False:
        argv = ("--fine_tune_blocks=1", f"--resume={value}")
        assert parse_options(resnet50_fashion, *argv).fine_tuning.resume is value


def test_null_of_a_sweep_is_the_default():
    """`wandb agent` passes YAML's null as None."""
    names = resnet50_fashion.Options().config().keys() - {"model", "recipe"}
    argv = ("--recipe=fast", *(f"--{name}=None" for name in names), "--weights=null")
    expected = parse_options(resnet50_fashion, "--recipe=fast")
    assert parse_options(resnet50_fashion, *argv) == expected
    assert expected.training.epochs == 20
    assert parse_options(resnet50_fashion, "--weights=none").network.weights == "none"


def test_integral_numbers_of_a_sweep_are_integers():
    """A distribution such as q_uniform gives 64.0."""
    config = parse_options(
        resnet50_fashion, "--batch_size=64.0", "--seed=1e3", "--gpus=0.0"
    ).config()
    assert (config["batch_size"], config["seed"], config["gpus"]) == (64, 1000, 0)
    assert type(config["batch_size"]) is int


def test_underscores_in_values_are_kept():
    argv = ("--output_dir", "my_output", "--project=my_project", "--predict", "my_photo.jpg")
    config = parse_options(cnn_basic, *argv).config()
    assert (config["output_dir"], config["project"]) == ("my_output", "my_project")
    assert [path.name for path in config["predict"]] == ["my_photo.jpg"]


def documented(script):
    """Return {option: help text} from the source of a script's option groups."""
    docs = {}
    for path in ROOT.glob("fashion/**/*.py"), [ROOT / f"{script.__name__}.py"]:
        for file in path:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef) and node.name.endswith("Options"):
                    for field, doc in zip(node.body, node.body[1:], strict=False):
                        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                            docs[field.target.id] = doc.value.value
    return docs


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_each_option_with_its_default(script, command_line):
    done = command_line(script, "--help")
    assert done.code == 0 and done.err == ""
    assert "\x1b" not in done.out
    text = re.sub(r"\s", "", done.out)
    assert re.sub(r"\s", "", script.__doc__) in text
    docs = documented(script)
    for name, default in DEFAULTS[script].items():
        if name == "model":
            continue
        option = "--" + name.replace("_", "-")
        assert option in done.out
        doc = re.sub(r"\s", "", docs[name])
        assert doc in text
        if default not in (None, False):
            assert f"{doc}(default:{default})" in text
    assert set(re.findall("--no-[a-z-]+", done.out)) <= {"--no-mirror"}
    assert "None" not in done.out  # the help text describes the default instead


def test_run_script_parses_options_before_main(command_line, monkeypatch):
    calls = []
    monkeypatch.setattr(cnn_basic, "main", calls.append)
    done = command_line(cnn_basic, "--epochs", 3, "--output_dir=here")
    assert done == (0, "", "")
    (options,) = calls
    assert isinstance(options, cnn_basic.Options)
    assert (options.training.epochs, str(options.results.output_dir)) == (3, "here")
    assert command_line(cnn_basic, "--epochs", 0).code == 2
    assert command_line(cnn_basic, "--predict", "a.png").code == 1  # there is no model yet
    assert len(calls) == 1


def test_run_script_without_arguments_uses_defaults(command_line, monkeypatch):
    calls = []
    monkeypatch.setattr(cnn_basic, "main", calls.append)
    assert command_line(cnn_basic) == (0, "", "")
    assert calls == [cnn_basic.Options()]
