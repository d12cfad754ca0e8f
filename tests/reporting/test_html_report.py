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
        self.sources, self.texts, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)

    def texts_after(self, text):
        return self.texts[self.texts.index(text) :]


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
    for name, value in metrics["config"].items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        assert options[options.index(name) + 1] == shown
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
        for name, value in metrics[part].items():
            if not isinstance(value, list | dict):
                assert texts[texts.index(name) + 1] == str(value), (heading, name)
    low, high = metrics["test"]["interval95"]
    text = " ".join("".join(page.texts).split())
    accuracy = f"{metrics['test']['accuracy']:.1%}"
    assert (
        f"{accuracy} of 400 test images are classified correctly (95 % interval {low:.1%} to "
        f"{high:.1%}), with the weights of epoch {metrics['best_epoch']}."
    ) in text


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
        details={"Options": {"data_dir": odd, "predict": (odd, odd)}},
    ).render()
    assert "<script>" not in rendered and "<b>bold" not in rendered
    page = ParsedPage(rendered)
    assert "".join(page.texts).count(odd) == 8
    assert names[1] in page.texts
    assert page.tags.count("b") == 1 and "script" not in page.tags
