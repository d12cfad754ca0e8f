"""history.csv, predictions.csv and metrics.json, written and read."""

import csv
import dataclasses
import json
import os
import shutil

from fashion.evaluation.metrics import Evaluation
from fashion.reporting import result_files

import numpy as np
import pytest
from test_epochs import epoch


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_history_has_a_row_for_each_epoch(tmp_path):
    epochs = [epoch(1, 0.5), epoch(2, 1 / 3)]
    result_files.write_history(tmp_path, epochs)
    written = rows(tmp_path / "history.csv")
    assert list(written[0]) == [
        *("epoch", "accuracy", "loss", "val_accuracy", "val_loss", "learning_rate", "seconds")
    ]
    for row, expected in zip(written, epochs, strict=True):
        assert {k: float(v) for k, v in row.items()} == dataclasses.asdict(expected)


def test_predictions_have_a_row_for_each_test_image(tmp_path, sample):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), 400).astype("float32")
    evaluation = Evaluation(probabilities, sample.test.labels, sample.class_names)
    result_files.write_predictions(tmp_path, sample.test, evaluation)
    written = rows(tmp_path / "predictions.csv")
    assert [int(row["position"]) for row in written] == sample.test.positions.tolist()
    assert [int(row["label"]) for row in written] == sample.test.labels.tolist()
    assert [int(row["predicted"]) for row in written] == probabilities.argmax(1).tolist()
    confidence = np.array([row["confidence"] for row in written]).astype("float32")
    np.testing.assert_array_equal(confidence, probabilities.max(1))


def test_run_is_read_as_it_was(offline_run):
    metrics, folder = offline_run.result.metrics, offline_run.result.folder
    read = result_files.read(folder)
    assert read.model == metrics["model"]
    assert read.data_sha256 == metrics["data"]["sha256"]
    assert read.train_images == metrics["data"]["train"]
    assert read.validation_accuracy == metrics["validation"]["accuracy"]
    assert read.test_accuracy == metrics["test"]["accuracy"]
    assert list(read.test_interval95) == metrics["test"]["interval95"]
    assert read.seconds == metrics["seconds"]["total"]
    assert read.finished == os.stat(folder / "metrics.json").st_mtime
    positions, correct = read.read_answers()
    written = rows(folder / "predictions.csv")
    assert positions.tolist() == [int(row["position"]) for row in written]
    assert correct.tolist() == [row["label"] == row["predicted"] for row in written]
    assert correct.mean() == read.test_accuracy


@pytest.fixture
def folder(tmp_path, offline_runs):
    """An output folder, and beside it a whole run of the other script."""
    other = tmp_path / "resnet50_fashion"
    shutil.copytree(offline_runs["resnet50_fashion"].result.folder, other)
    (tmp_path / "cnn_basic").mkdir()
    return tmp_path / "cnn_basic"


def test_runs_beside_a_folder_are_found(folder):
    assert [run.model for run in result_files.read_beside(folder)] == ["resnet50_fashion"]
    # A fine-tuned model is another one.
    path = folder.parent / "resnet50_fashion" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["config"]["fine_tune_blocks"] = 2
    path.write_text(json.dumps(metrics))
    assert [run.model for run in result_files.read_beside(folder)] == [
        "resnet50_fashion, fine-tuned"
    ]


@pytest.mark.parametrize(
    "garbage",
    ['{"model": ["q"]}', 100_000 * "[", "\x00", "[1]", "", "null", '{"test": {"interval95": 1}}'],
    ids=range(7),
)
def test_whatever_else_lies_there_is_passed_over(garbage, folder):
    shutil.copytree(folder.parent / "resnet50_fashion", folder.parent / "whole")
    (folder.parent / "resnet50_fashion" / "metrics.json").write_text(garbage)
    (folder.parent / "a folder" / "metrics.json").mkdir(parents=True)
    assert len(list(result_files.read_beside(folder))) == 1
