"""From words to options: underscores, `--help`, and how it refuses."""

import ast
import io
import re
import sys

from fashion.cli import command_line as bridge
from fashion.errors import UsageError

import pytest
from conftest import ROOT, parse
from test_options import DEFAULTS, SCRIPTS

import cnn_basic
import resnet50_fashion

REFUSALS = {
    "--epochs 0": "--epochs: expected a whole number from 1, got '0'",
    "--epochs x": "--epochs: expected a whole number from 1, got 'x'",
    "--batch-size -8": "--batch-size: expected a whole number from 1, got '-8'",
    "--learning-rate fast": "--learning-rate: expected a number above 0, got 'fast'",
    "--seed -1": "--seed: expected a whole number from 0 to 4294967295, got '-1'",
    "--require-accuracy 90": "--require-accuracy: expected an accuracy between 0 and 1, such as "
    "0.9, got '90'",
    "--project a/b": r"--project: expected a name without / \ # ? % :, got 'a/b'",
    "--wandb maybe": "--wandb: expected one of auto, online, offline, disabled, got 'maybe'",
    "--dropout 1": "--dropout: expected a number from 0 to below 1, got '1'",
    "--gpus some": "--gpus: expected a whole number from 0, or \"all\", got 'some'",
    "--backbone vgg16": "--backbone: expected one of resnet50, efficientnetb0, efficientnetv2b0, "
    "inceptionv3, mobilenetv2, convnexttiny, got 'vgg16'",
    "--features conv6": "--features: expected one of conv5, conv4, conv4_3x3, conv4_4x4, "
    "got 'conv6'",
    "--precision float64": "--precision: expected one of auto, float32, bfloat16, float16, "
    "got 'float64'",
    "--resume": "--resume: only fine-tuning can be resumed, by the same --fine-tune-blocks",
    # In argparse's words, which differ between versions of Python: what the first line names.
    "--predict": None,
    "--predict --epochs 3": None,
    "--epochs": None,
    "--epoch 3": None,  # no abbreviations
    "--no-resume": None,
    "--resume=1": None,
    "--mirror=1": None,
    "stray": None,
}


@pytest.mark.parametrize("words", REFUSALS)
def test_unusable_words_are_a_usage_error_in_a_line_or_two(words, command_line):
    done = command_line(resnet50_fashion, *words.split())
    assert done.code == 2 and done.out == ""
    first, *more = done.err.splitlines()
    prefix, expected = "resnet50_fashion.py: error: ", REFUSALS[words]
    assert first.startswith(prefix)
    if expected:
        assert first == prefix + expected
    else:
        assert re.split("[ =]", words)[0] in first
    assert more in ([], ["See resnet50_fashion.py --help."])
    assert not re.search(r"[─│╭]|---", done.err)  # no frame


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "ascii"])
def test_message_is_the_same_whatever_the_terminal_can_show(encoding, command_line, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    done = command_line(cnn_basic, "--epochs", "x")
    assert done.err == (
        "cnn_basic.py: error: --epochs: expected a whole number from 1, got 'x'\n"
        "See cnn_basic.py --help.\n"
    )


@pytest.mark.parametrize("word", ["--no-resume", "--features", "--backbone=resnet50"])
def test_an_option_of_the_other_script_is_a_usage_error(word, command_line):
    done = command_line(cnn_basic, word)
    assert done.code == 2
    assert len(done.err.splitlines()) == 2 and word.split("=")[0] in done.err


def test_refusal_is_an_exception_for_others_to_print():
    with pytest.raises(UsageError, match=r"^--epochs: .*\nSee cnn_basic.py --help.$"):
        bridge.parse(cnn_basic.Options(), "About.", ["--epochs", "0"])


def test_defaults_are_those_of_the_options_given():
    mine = cnn_basic.Options(model=cnn_basic.ModelOptions(hidden_units=7))
    parsed = bridge.parse(mine, "About.", ["--epochs", "3"])
    assert (parsed.model.hidden_units, parsed.training.epochs) == (7, 3)
    assert parsed.training.batch_size == mine.training.batch_size
    assert bridge.parse(mine, "About.", []) == mine


def test_switch_may_be_written_as_a_sweep_does():
    for words, expected in (
        (("--mirror=True",), True),
        (("--recipe=best", "--mirror=False"), False),
        (("--recipe", "best"), True),
    ):
        assert parse(resnet50_fashion, *words).head.mirror is expected


def test_underscores_of_values_stay():
    words = ("--output_dir", "my_output", "--project=my_project", "--predict", "my_photo.jpg")
    config = parse(cnn_basic, *words).config()
    assert (config["output_dir"], config["project"]) == ("my_output", "my_project")
    assert [path.name for path in config["predict"]] == ["my_photo.jpg"]


def documented(script):
    """{option: its sentence} of a script's groups of options, as their source has it."""
    sentences = {}
    for path in ROOT.glob("fashion/*.py"), [ROOT / f"{script.__name__}.py"]:
        for file in path:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef) and node.name.endswith("Options"):
                    for field, doc in zip(node.body, node.body[1:], strict=False):
                        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                            sentences[field.target.id] = doc.value.value
    return sentences


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_explains_and_gives_the_default_of_each_option(script, command_line):
    done = command_line(script, "--help")
    assert done.code == 0 and done.err == ""
    assert "\x1b" not in done.out
    text = re.sub(r"\s", "", done.out)
    assert re.sub(r"\s", "", script.__doc__) in text
    sentences = documented(script)
    for name, default in DEFAULTS[script].items():
        if name == "model":
            continue
        option = "--" + name.replace("_", "-")
        assert option in done.out
        sentence = re.sub(r"\s", "", sentences[name])
        assert sentence in text
        if default not in (None, False):
            assert f"{sentence}(default:{default})" in text
    assert set(re.findall("--no-[a-z-]+", done.out)) <= {"--no-mirror"}
    assert "None" not in done.out  # where nothing is given, the sentence says what happens
