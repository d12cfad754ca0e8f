"""report.html."""

import base64
import html.parser

from fashion.reporting import figures


class Parsed(html.parser.HTMLParser):
    """What a page refers to, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_page_is_self_contained_and_has_the_figures(offline_run):
    metrics, output = offline_run.result.metrics, offline_run.result.folder
    page = Parsed((output / "report.html").read_text())
    assert len(page.sources) == len(figures.NAMES)
    contents = {base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in page.sources}
    assert contents == {(output / name).read_bytes() for name in figures.NAMES}
    for part in "train", "validation", "test":
        assert f"{metrics[part]['accuracy']:.2%}" in page.texts
    options = page.texts[page.texts.index("Options") :]
    for name, value in metrics["config"].items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        assert options[options.index(name) + 1] == shown
    for row in metrics["test"]["per_class"]:
        cells = page.texts[page.texts.index(row["class"]) :]
        assert cells[1] == f"{row['precision']:.1%}"


def test_page_has_each_part_of_the_record(offline_run):
    metrics = offline_run.result.metrics
    page = Parsed((offline_run.result.folder / "report.html").read_text())
    for heading, part in (
        ("Data", "data"),
        ("Weights", "weights"),
        ("Parameters", "parameters"),
        ("Time, in seconds", "seconds"),
        ("Memory", "memory"),
        ("Computed with", "versions"),
    ):
        texts = page.texts[page.texts.index(heading) :]
        for name, value in metrics[part].items():
            if not isinstance(value, list | dict):
                assert texts[texts.index(name) + 1] == str(value), (heading, name)
    low, high = metrics["test"]["interval95"]
    text = "".join(page.texts)
    assert f"{metrics['test']['accuracy']:.1%} of 400 test images right" in text
    assert f"{low:.1%} to {high:.1%}), with the weights of epoch {metrics['best_epoch']}." in text


def test_values_are_text_and_no_html(tmp_path, offline_run):
    """Whatever is in an option, such as a folder's name."""
    from fashion.datasets.dataset import CLASS_NAMES
    from fashion.evaluation.metrics import Evaluation, Evaluations
    from fashion.reporting.comparison import Comparison
    from fashion.reporting.html_report import Page

    import numpy as np

    right = Evaluation(np.eye(10), np.arange(10), CLASS_NAMES)
    odd = "<script>alert('&')</script>"
    page = Page(
        model="cnn_basic",
        data=odd,
        evaluations=Evaluations(right, right, right),
        best_epoch=1,
        comparison=Comparison([["model"], [odd]], odd),
        pictures=offline_run.result.folder,
        settings={"Options": {"data_dir": odd, "predict": (odd, odd)}},
    ).render()
    assert "<script>" not in page
    texts = "".join(Parsed(page).texts)
    assert texts.count(odd) == 7
