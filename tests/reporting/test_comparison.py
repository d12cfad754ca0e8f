"""Comparison of a run with another model's run."""

import csv
import json
import math
import os
import shutil
from dataclasses import replace

from fashion.reporting.comparison import (
    HEADER,
    RunSummary,
    compare,
    find_sibling_runs,
    load_run_summary,
)

import numpy as np
import pytest


def make_summary(model, correct, indices=None, **changes):
    """Return the summary of a run with `correct` test predictions (0 or 1 each)."""
    correct = np.array(correct, bool)
    indices = np.arange(len(correct)) if indices is None else indices
    summary = RunSummary(
        model=model,
        data_sha256={"a file": "a checksum"},
        train_images=1760,
        validation_accuracy=0.8125,
        test_accuracy=float(correct.mean()),
        test_accuracy_ci95=(0.25, 0.5),
        seconds=12.3,
        finished=100.0,
        load_test_results=lambda: (indices, correct),
    )
    return replace(summary, **changes)


ALL_CORRECT = np.ones(400, int)
HALF_CORRECT = np.tile([1, 0], 200)


def test_compare_without_other_model_has_one_row():
    this = make_summary("cnn_basic", HALF_CORRECT)
    expected = ["cnn_basic", "1,760", "81.2%", "50.0% (25.0% to 50.0%)", "12 s"]
    for others in [], [make_summary("cnn_basic", ALL_CORRECT)]:  # the same model
        compared = compare(this, others)
        assert compared.rows == [list(HEADER), expected]
        assert compared.difference == ""


def test_difference_is_the_paired_difference():
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 400)) < [[0.9], [0.8]]
    compared = compare(make_summary("this", one), [make_summary("that", other)])
    assert [row[0] for row in compared.rows] == ["model", "that", "this"]
    differences = one.astype(int) - other.astype(int)
    mean = differences.mean()
    half = 1.96 * math.sqrt(np.mean((differences - mean) ** 2) / 399)
    assert compared.difference == (
        f"On the same 400 test images, this is {100 * mean:.1f} percentage points better than that "
        f"(difference, 95 % interval: {100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})."
    )
    reversed_ = compare(make_summary("that", other), [make_summary("this", one)])
    assert f"that is {100 * mean:.1f} percentage points worse than this" in reversed_.difference


def test_compare_ignores_runs_on_other_data():
    other = make_summary("other", ALL_CORRECT, data_sha256={"a file": "another checksum"})
    assert len(compare(make_summary("this", HALF_CORRECT), [other]).rows) == 2


def test_compare_uses_the_latest_run_of_another_model():
    others = [
        make_summary("first", ALL_CORRECT, finished=1.0),
        make_summary("last", ALL_CORRECT, finished=3.0),
        make_summary("second", ALL_CORRECT, finished=2.0),
        make_summary("this", ALL_CORRECT, finished=4.0),
        make_summary("elsewhere", ALL_CORRECT, finished=5.0, data_sha256={}),
    ]
    compared = compare(make_summary("this", HALF_CORRECT), iter(others))
    assert [row[0] for row in compared.rows[1:]] == ["last", "this"]
    assert "than last" in compared.difference


@pytest.mark.parametrize(
    "indices", [np.arange(400)[::-1], np.arange(401), np.arange(1, 401)], ids=str
)
def test_compare_on_other_test_images_reports_no_difference(indices):
    other = make_summary("other", ALL_CORRECT, indices=indices)
    compared = compare(make_summary("this", HALF_CORRECT), [other])
    assert len(compared.rows) == 3 and compared.difference == ""


def test_difference_needs_ten_disagreements():
    for num_different, is_reported in (9, False), (10, True):
        other = ALL_CORRECT.copy()
        other[:num_different] = 0
        compared = compare(make_summary("this", ALL_CORRECT), [make_summary("other", other)])
        assert bool(compared.difference) == is_reported


@pytest.mark.parametrize("error", [OSError, ValueError, IndexError])
def test_compare_ignores_unreadable_test_results(error):
    def fail():
        raise error

    other = make_summary("other", ALL_CORRECT, load_test_results=fail)
    compared = compare(make_summary("this", HALF_CORRECT), [other])
    assert len(compared.rows) == 3 and compared.difference == ""


def test_second_script_is_compared_with_the_first(offline_runs):
    """Compute the paired difference and its interval from the runs' files."""
    first, second = (
        np.loadtxt(
            offline_runs[s].result.directory / "predictions.csv", delimiter=",", skiprows=1
        ).T
        for s in ("resnet50_fashion", "cnn_basic")
    )
    assert first[:2].tolist() == second[:2].tolist()
    differences = (second[2] == second[1]).astype(int) - (first[2] == first[1]).astype(int)
    count, mean = len(differences), np.mean(differences)
    half = 1.96 * math.sqrt(np.mean((differences - mean) ** 2) / (count - 1))
    sentence = (
        f"On the same 400 test images, cnn_basic is {100 * mean:.1f} percentage points better than "
        f"resnet50_fashion (difference, 95 % interval: {100 * (mean - half):+.1f} to "
        f"{100 * (mean + half):+.1f})."
    )
    out = offline_runs["cnn_basic"].out
    assert sentence in out
    assert "resnet50_fashion" in out
    assert sentence in (offline_runs["cnn_basic"].result.directory / "report.html").read_text()
    assert "On the same" not in offline_runs["resnet50_fashion"].out


def test_load_run_summary_equals_metrics_json(offline_run):
    metrics, directory = offline_run.result.metrics, offline_run.result.directory
    summary = load_run_summary(directory)
    assert summary.model == metrics["model"]
    assert summary.data_sha256 == metrics["data"]["sha256"]
    assert summary.train_images == metrics["data"]["train"]
    assert summary.validation_accuracy == metrics["validation"]["accuracy"]
    assert summary.test_accuracy == metrics["test"]["accuracy"]
    assert list(summary.test_accuracy_ci95) == metrics["test"]["interval95"]
    assert summary.seconds == metrics["seconds"]["total"]
    assert summary.finished == os.stat(directory / "metrics.json").st_mtime
    indices, correct = summary.load_test_results()
    with open(directory / "predictions.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert indices.tolist() == [int(row["index"]) for row in written]
    assert correct.tolist() == [row["label"] == row["predicted"] for row in written]
    assert correct.mean() == summary.test_accuracy


@pytest.fixture
def output_dir(tmp_path, offline_runs):
    """An output directory next to a complete run of the other script."""
    other = tmp_path / "resnet50_fashion"
    shutil.copytree(offline_runs["resnet50_fashion"].result.directory, other)
    (tmp_path / "cnn_basic").mkdir()
    return tmp_path / "cnn_basic"


def test_find_sibling_runs_finds_other_models(output_dir):
    assert [run.model for run in find_sibling_runs(output_dir)] == ["resnet50_fashion"]
    # A fine-tuned model counts as another model.
    path = output_dir.parent / "resnet50_fashion" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["config"]["fine_tune_blocks"] = 2
    path.write_text(json.dumps(metrics))
    assert [run.model for run in find_sibling_runs(output_dir)] == ["resnet50_fashion, fine-tuned"]


@pytest.mark.parametrize(
    "garbage",
    ['{"model": ["q"]}', 100_000 * "[", "\x00", "[1]", "", "null", '{"test": {"interval95": 1}}'],
    ids=range(7),
)
def test_find_sibling_runs_ignores_unreadable_files(garbage, output_dir):
    shutil.copytree(output_dir.parent / "resnet50_fashion", output_dir.parent / "complete")
    (output_dir.parent / "resnet50_fashion" / "metrics.json").write_text(garbage)
    (output_dir.parent / "a folder" / "metrics.json").mkdir(parents=True)
    assert len(list(find_sibling_runs(output_dir))) == 1
