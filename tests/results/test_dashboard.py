"""Charts and tables of the W&B dashboard, read from the files of an offline run."""

import collections
import json
from types import SimpleNamespace

from fashion.datasets.splits import CLASS_NAMES
from fashion.results import dashboard
from fashion.results.evaluation import Evaluation
from fashion.results.figures import FIGURES

import numpy as np
import pytest
from helpers.results import EPOCHS
from helpers.wandb_runs import read_wandb_run
from PIL import Image


@pytest.fixture(scope="module")
def recorded(saved_run):
    """Return the contents of the W&B run."""
    return read_wandb_run(saved_run.options.output_dir.parent)


@pytest.fixture(scope="module")
def history(recorded):
    """Return the last value of each key."""
    return {key: value for row in recorded.rows for key, value in row.items()}


@pytest.fixture(scope="module")
def tables(saved_run, history):
    """Return the rows, as dictionaries, of each table."""
    (files,) = saved_run.options.output_dir.parent.glob("wandb/offline-run-*/files")
    tables = {}
    for key, path in history.items():
        if key.endswith(".path") and path.endswith(".table.json"):
            table = json.loads((files / path).read_text())
            rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
            tables[key.removesuffix(".path")] = rows
    return tables


def test_confusion_matrix_and_class_scores(tables, evaluations):
    matrix = np.zeros((10, 10), int)
    for row in tables["test/confusion_matrix_table"]:
        i, j = (CLASS_NAMES.index(row[name]) for name in ("Actual", "Predicted"))
        matrix[i, j] = row["nPredictions"]
    np.testing.assert_array_equal(matrix, evaluations["test"].confusion_matrix)
    assert tables["test/per_class"] == evaluations["test"].per_class


@pytest.mark.parametrize(("num_classes", "is_logged"), [(100, True), (101, False)])
def test_confusion_matrix_that_wandb_cannot_draw_is_left_out(num_classes, is_logged):
    labels = np.arange(num_classes)
    evaluation = Evaluation(np.eye(num_classes), labels, tuple(map(str, labels)))
    charts = dashboard.evaluation_charts(dict.fromkeys(("validation", "test"), evaluation))
    assert ("test/confusion_matrix" in charts) == is_logged


def test_mistakes_and_examples_with_upscaled_images(tables, evaluations, recorded, sample):
    test = evaluations["test"]
    mistakes, examples = tables["test/mistakes"], tables["test/examples"]
    indices = sample.test.indices[test.most_confident_errors(100)]
    assert [row["index"] for row in mistakes] == indices.tolist()
    assert collections.Counter(row["true"] for row in examples) == dict.fromkeys(CLASS_NAMES, 10)
    for row in mistakes + examples:
        (i,) = np.flatnonzero(sample.test.indices == row["index"])
        assert row["true"] == CLASS_NAMES[test.labels[i]]
        assert row["predicted"] == CLASS_NAMES[test.predicted[i]]
        assert row["confidence"] == pytest.approx(test.confidence[i])
        assert row["correct"] == test.correct[i]
        assert row["top three"] == test.format_top3(i)
    (artifact,) = (a for a in recorded.artifacts("run_table") if "mistakes" in a["name"])
    files = [entry for entry in artifact["manifest"]["contents"] if entry["path"].endswith(".png")]
    shown = {Image.open(entry["local_path"]).tobytes() for entry in files}
    images = sample.test.images[test.most_confident_errors(100)]
    assert shown == {image.repeat(4, axis=0).repeat(4, axis=1).tobytes() for image in images}


def test_curves_of_epochs_calibration_and_coverage(tables, evaluations):
    def line(chart, name):
        rows = tables[f"{chart}_table"]
        return {row["step"]: row["lineVal"] for row in rows if row["lineKey"] == name}

    for metric in "accuracy", "loss":
        for name, field in ("train", metric), ("validation", f"val_{metric}"):
            expected = {row.epoch: getattr(row, field) for row in EPOCHS}
            assert line(f"report/{metric}", name) == pytest.approx(expected)
    for name in "validation", "test":
        bins = evaluations[name].calibration_bins
        reliability = {bin.confidence: bin.accuracy for bin in bins}
        assert line("test/reliability", name) == pytest.approx(reliability)
        coverage = evaluations[name].coverage_curve
        assert line("test/coverage", name) == pytest.approx(coverage)


def test_nearest_training_images(tables, evaluations, neighbors, sample):
    rows, train = tables["test/nearest_neighbors"], sample.train
    mistakes = sample.test.indices[evaluations["test"].most_confident_errors(12)]
    for row, mistake, indices, distances in zip(rows, mistakes, *neighbors, strict=True):
        assert row["index"] == mistake
        for k in range(4):
            assert row[f"distance {k + 1}"] == pytest.approx(distances[k])
            assert row[f"neighbor index {k + 1}"] == train.indices[indices[k]]
            assert row[f"label {k + 1}"] == CLASS_NAMES[train.labels[indices[k]]]


def test_summary_report_and_model(saved_run, recorded, history):
    summary, metrics = recorded.summary["summary"], saved_run.metadata
    for part in "train", "validation", "test":
        for name in "accuracy", "loss", "expected_calibration_error", "accuracy_ci95":
            assert summary[f"{part}/{name}"] == pytest.approx(metrics[part][name])
    assert summary["parameters/trainable"] == 40
    assert {"memory/peak_gb", "seconds/total"} <= summary.keys()
    for name in (*FIGURES, "page.html"):
        assert f"report/{name.split('.')[0]}.path" in history
    (artifact,) = recorded.artifacts("model")
    assert artifact["name"] == "cnn_basic"
    assert [entry["path"] for entry in artifact["manifest"]["contents"]] == ["model.keras"]


def test_sweeps_trials_log_no_neighbors_and_no_model(saved_run, evaluations, neighbors):
    """With three other classes."""
    names, labels = ("bag", "boot", "scarf"), evaluations["test"].labels % 3
    evaluation = Evaluation(np.eye(3)[(labels + 1) % 3], labels, names)  # all are wrong
    logged = {}
    trial = SimpleNamespace(sweep_id="a sweep", log=logged.update, summary={})
    args = dict.fromkeys(("validation", "test"), evaluation), neighbors
    assert dashboard.log_results(trial, saved_run.options.output_dir, saved_run, *args) is None
    assert "report/page" in logged and "test/nearest_neighbors" not in logged
    assert set(logged["test/confusion_matrix"].table.get_column("Actual")) == set(names)
    assert logged["test/per_class"].get_column("class") == list(names)
    for name in "test/mistakes", "test/examples":
        assert set(logged[name].get_column("true")) == set(names)
