"""report.html: commands, private paths, and contents."""

import base64
import dataclasses
import html
import re
from pathlib import Path

from fashion.options import config, flag
from fashion.results.comparison import Comparison
from fashion.results.evaluation import Evaluation
from fashion.results.figures import FIGURES
from fashion.results.html import public_config, public_source, render_report, training_command

import numpy as np
import pytest
from helpers.results import open_run
from helpers.scripts import parse_options

import cnn_basic
import resnet50_fashion

# Each option that affects the result, with a value that is neither a default nor a recipe's.
SHARED = (
    "--data-dir DATA_DIR --train-size 2000 --validation-size 300 --test-size 4 --epochs 7 "
    "--batch-size 64 --learning-rate 0.25 --seed 4294967295 "
)
COMMANDS = {
    cnn_basic: SHARED + "--hidden-units 10",
    resnet50_fashion: "--recipe fast "
    + SHARED
    + "--backbone mobilenetv2 --weights WEIGHTS --image-size 72 --precision bfloat16 "
    "--features conv4_avg --flip --hidden-units 100 --dropout 0.125 --patience 3 "
    "--fine-tune-blocks 2 --fine-tune-epochs 4 --fine-tune-batch-size 8 "
    "--fine-tune-learning-rate 2e-07",
}
PRIVATE = {"DATA_DIR": "/home/jane/my images & more", "WEIGHTS": "/home/jane/it's $HOME.h5"}
LOCAL_ARGV = (
    *("--output-dir", "/home/jane/out", "--cache-dir", "/home/jane/cache", "--project", "secret"),
    *("--wandb", "offline", "--require-accuracy", 0.5),
)
PARTS = {  # of the metadata, by their heading
    "Options": "config",
    "Data": "data",
    "Weights": "weights",
    "Parameters": "parameters",
    "Temperature scaling": "calibration",
    "Time, in seconds": "seconds",
    "Memory": "memory",
    "Versions and hardware": "versions",
}


def with_paths(command):
    """Split a command at spaces, and replace the names of paths by paths."""
    return [PRIVATE.get(word, word) for word in command.split()]


@pytest.mark.parametrize("script", COMMANDS)
def test_training_command_contains_every_option_that_affects_the_result(script):
    expected, name = COMMANDS[script], script.Options.script_name
    fields = dataclasses.fields(script.Options)
    flags = {word for word in expected.split() if word.startswith("--")}
    assert flags == {flag(field.name) for field in fields if field.metadata["affects_results"]}
    local = LOCAL_ARGV if script == cnn_basic else (*LOCAL_ARGV, "--resume")
    options = parse_options(script, *with_paths(expected), *local)
    assert training_command(options) == f"python {name}.py {expected}"
    for argv in [], LOCAL_ARGV:
        assert training_command(parse_options(script, *argv)) == f"python {name}.py"


def test_training_command_contains_only_what_differs_from_the_recipe():
    for recipe, values in resnet50_fashion.Options.recipes.items():
        given = [f"--{name}={value}" for name, value in values.items()]
        options = parse_options(resnet50_fashion, "--recipe", recipe, *given)
        expected = "" if recipe == "plain" else f" --recipe {recipe}"
        assert training_command(options) == f"python resnet50_fashion.py{expected}"
    defaults = "--recipe best --epochs 30 --no-flip"
    options = parse_options(resnet50_fashion, *defaults.split())
    assert training_command(options) == f"python resnet50_fashion.py {defaults}"


def test_public_config_hides_private_paths_only():
    argv = with_paths(COMMANDS[resnet50_fashion])
    options = parse_options(resnet50_fashion, *argv, *LOCAL_ARGV)
    hidden = {name: name.upper() for name in ("data_dir", "cache_dir", "output_dir", "weights")}
    assert public_config(options) == config(options) | hidden
    for weights in "imagenet", "random":
        options = parse_options(resnet50_fashion, "--weights", weights)
        # The default of --cache-dir is below the home directory.
        assert public_config(options) == config(options) | {"cache_dir": "CACHE_DIR"}


@pytest.mark.parametrize(
    ("data_dir", "source", "expected"),
    [
        (None, "/home/jane/.keras/x (Keras cache)", "~/.keras/x (Keras cache)"),
        (None, "/home/janet/x (Keras cache)", "/home/janet/x (Keras cache)"),
        (None, "/scratch/jane/keras/x (Keras cache)", "KERAS_HOME/x (Keras cache)"),
        ("/home/jane/a b", "/home/jane/a b/raw (--data-dir)", "DATA_DIR/raw (--data-dir)"),
        ("data", "data (--data-dir, 3 classes)", "DATA_DIR (--data-dir, 3 classes)"),
        (".", "v1.0 (--data-dir)", "v1.0 (--data-dir)"),
    ],
)
def test_public_source_hides_private_paths(data_dir, source, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    monkeypatch.setenv("KERAS_HOME", "/scratch/jane/keras")
    argv = ("--data-dir", data_dir) if data_dir else ()
    assert public_source(source, parse_options(cnn_basic, *argv)) == expected


class ParsedPage:
    """The texts, commands and images of a page."""

    def __init__(self, page):
        texts = [html.unescape(part) for part in re.findall(r">([^<]*)<", page)]
        self.texts = [text for text in texts if text.strip()]
        self.text = " ".join("".join(texts).split())
        commands = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
        self.commands = [html.unescape(command) for command in commands]
        self.images = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
        self.num_sources = len(re.findall(r"\b(?:src|href)=|url\(|@import", page))

    def texts_after(self, text):
        return self.texts[self.texts.index(text) + 1 :]


@pytest.fixture(scope="module")
def page(saved_run):
    return ParsedPage((saved_run.options.output_dir / "report.html").read_text(encoding="utf-8"))


def test_report_is_self_contained_with_figures_metrics_and_classes(page, saved_run):
    assert page.num_sources == len(page.images) == len(FIGURES)
    assert {base64.b64decode(image) for image in page.images} == {
        (saved_run.options.output_dir / name).read_bytes() for name in FIGURES
    }
    metrics = saved_run.metadata
    for part in "train", "validation", "test":
        assert f"{metrics[part]['accuracy']:.2%}" in page.texts
    for row in metrics["test"]["per_class"]:
        assert page.texts_after(row["class"])[0] == f"{row['precision']:.1%}"
    low, high = metrics["test"]["accuracy_ci95"]
    assert (
        f"{metrics['test']['accuracy']:.1%} of 400 test images are classified correctly (95% CI "
        f"{low:.1%} to {high:.1%}), with the weights of epoch 2."
    ) in page.text


def test_report_contains_all_metadata_and_both_commands_without_private_paths(page, saved_run):
    elsewhere = {"model", "version", "train", "validation", "test", "best_epoch", "sweep"}
    assert saved_run.metadata.keys() == elsewhere | set(PARTS.values())
    shown = saved_run.metadata | {"config": public_config(saved_run.options)}
    for heading, part in PARTS.items():
        texts = page.texts_after(heading)
        for name, value in shown[part].items():
            if name == "sha256":
                value = ", ".join(f"{file}: {checksum}" for file, checksum in value.items())
            elif name == "source" and part == "data":
                value = "DATA_DIR (--data-dir)"
            elif isinstance(value, list):
                value = ", ".join(value) or "none"
            assert texts[texts.index(name) + 1] == str(value), (heading, name)
    assert page.commands == [
        "python cnn_basic.py --data-dir DATA_DIR",
        "python cnn_basic.py --predict photo.jpg --output-dir OUTPUT_DIR",
    ]
    assert "Replace DATA_DIR, OUTPUT_DIR with your own paths." in page.text
    for path in saved_run.options.data_dir, saved_run.options.output_dir.parent, Path.home():
        assert str(path) not in page.text


def test_report_escapes_names_and_hides_the_path_of_the_weights(tmp_path, sample):
    for name in FIGURES:
        (tmp_path / name).write_bytes(b"an image")
    odd, quoted = "<script>alert('&')</script>", 'a "quoted" & <b>bold</b> name'
    evaluation = Evaluation(np.eye(2), np.arange(2), (odd, quoted))
    run = open_run(dataclasses.replace(sample, name=odd), tmp_path)
    run.options = cnn_basic.Options(project=odd)
    run.metadata |= {"best_epoch": 1, "weights": {"source": "/home/jane/weights of x.h5"}}
    run.metadata |= {part: {"name": [odd, odd]} for part in ("parameters", "calibration", "memory")}
    rendered = render_report(
        run,
        dict.fromkeys(("train", "validation", "test"), evaluation),
        Comparison([["model"], [odd], ["other"]], odd),
        tmp_path,
    )
    assert "<script>" not in rendered and "<b>bold" not in rendered
    page = ParsedPage(rendered)
    # Title, heading, comparison (2), class, option, and three parts of the metadata (2 each).
    assert page.text.count(odd) == 12
    assert page.commands == ["python cnn_basic.py", "python cnn_basic.py --predict photo.jpg"]
    assert "Replace" not in rendered  # no command contains a placeholder
    assert quoted in page.texts
    assert "weights of x.h5" in page.texts and "/home/jane" not in rendered
