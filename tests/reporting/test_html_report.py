"""report.html: its contents, parsed by Python's HTML parser."""

import base64
import html.parser

from fashion.evaluation.metrics import Evaluation, SplitEvaluations
from fashion.reporting.comparison import Comparison
from fashion.reporting.figures import FIGURE_FILES
from fashion.reporting.html_report import Report

import numpy as np
import pytest


class ParsedPage(html.parser.HTMLParser):
    """The references and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.texts, self.tags, self.commands = [], [], [], []
        self.is_in_command = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "pre":
            self.is_in_command = True
            self.commands.append("")
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.is_in_command = self.is_in_command and tag != "pre"

    def handle_data(self, data):
        self.texts.append(data)
        if self.is_in_command:
            self.commands[-1] += data

    def texts_after(self, text):
        return self.texts[self.texts.index(text) :]


def public_values(metrics, part):
    """Return a part of metrics.json, with placeholders for the absolute paths of `offline_runs`."""
    values, config = dict(metrics[part]), metrics["config"]
    if part == "config":
        return values | {
            f"{kind}_dir": f"{kind.upper()}_DIR" for kind in ("data", "cache", "output")
        }
    if part == "data":
        values["source"] = values["source"].replace(config["data_dir"], "DATA_DIR")
    return values


@pytest.fixture
def page(offline_run):
    return ParsedPage((offline_run.result.directory / "report.html").read_text(encoding="utf-8"))


def test_report_is_self_contained_with_all_figures(page, offline_run):
    directory = offline_run.result.directory
    assert len(page.sources) == len(FIGURE_FILES)
    images = {base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in page.sources}
    assert images == {(directory / name).read_bytes() for name in FIGURE_FILES}


def test_report_contains_metrics_options_and_classes(page, metrics):
    for part in "train", "validation", "test":
        assert f"{metrics[part]['accuracy']:.2%}" in page.texts
    options = page.texts_after("Options")
    for name, value in public_values(metrics, "config").items():
        assert options[options.index(name) + 1] == str(value)
    for row in metrics["test"]["per_class"]:
        assert page.texts_after(row["class"])[1] == f"{row['precision']:.1%}"


def test_report_contains_each_part_of_the_metadata(page, metrics):
    for heading, part in (
        ("Data", "data"),
        ("Weights", "weights"),
        ("Parameters", "parameters"),
        ("Time, in seconds", "seconds"),
        ("Memory", "memory"),
        ("Versions and hardware", "versions"),
    ):
        texts = page.texts_after(heading)
        for name, value in public_values(metrics, part).items():
            shown = texts[texts.index(name) + 1]
            if isinstance(value, dict):
                assert shown == ", ".join(f"{key}: {part}" for key, part in value.items())
            elif isinstance(value, list):
                assert shown == (", ".join(value) or "none")
            else:
                assert shown == str(value), (heading, name)
    low, high = metrics["test"]["interval95"]
    text = " ".join("".join(page.texts).split())
    accuracy = f"{metrics['test']['accuracy']:.1%}"
    assert (
        f"{accuracy} of 400 test images are classified correctly (95 % interval {low:.1%} to "
        f"{high:.1%}), with the weights of epoch {metrics['best_epoch']}."
    ) in text


TRAINING_COMMANDS = {
    "cnn_basic": "python cnn_basic.py --data-dir DATA_DIR --epochs 3",
    "resnet50_fashion": "python resnet50_fashion.py --data-dir DATA_DIR --train-size 125 "
    "--validation-size 125 --epochs 3 --weights none --image-size 64",
}


def test_report_states_both_commands_without_private_paths(page, offline_run, metrics):
    name, config = metrics["model"], metrics["config"]
    assert page.commands == [
        TRAINING_COMMANDS[name],
        f"python {name}.py --predict photo.jpg --output-dir OUTPUT_DIR",
    ]
    text = "".join(page.texts)
    assert "Words in capitals stand for your own paths: DATA_DIR, OUTPUT_DIR." in text
    for path in config["data_dir"], config["output_dir"], str(offline_run.directory):
        assert path not in text


def test_report_escapes_names_of_classes_data_and_options(tmp_path):
    for name in FIGURE_FILES:
        (tmp_path / name).write_bytes(b"an image")
    names = ("<script>alert('&')</script>", 'a "quoted" & <b>bold</b> name')
    evaluation = Evaluation(np.eye(2), np.arange(2), names)
    odd = names[0]
    rendered = Report(
        model_name="cnn_basic",
        data_name=odd,
        evaluations=SplitEvaluations(evaluation, evaluation, evaluation),
        best_epoch=1,
        comparison=Comparison([["model"], [odd], ["other"]], odd),
        figures_dir=tmp_path,
        training_command=f"python x.py --data-dir '{odd}' --seed 1",
        prediction_command=f"python x.py --predict '{names[1]}'",
        details={"Options": {"data_dir": odd, "predict": (odd, odd)}},
    ).render()
    assert "<script>" not in rendered and "<b>bold" not in rendered
    page = ParsedPage(rendered)
    assert "".join(page.texts).count(odd) == 9
    assert page.commands == [
        f"python x.py --data-dir '{odd}' --seed 1",
        f"python x.py --predict '{names[1]}'",
    ]
    assert "Words in capitals" not in rendered  # no command contains a placeholder
    assert names[1] in page.texts
    assert page.tags.count("b") == 1 and "script" not in page.tags
