"""The files that a run writes, completely or not at all, and its last lines."""

import csv
import dataclasses
import json
import re
import time
from pathlib import Path

from fashion.errors import UserError
from fashion.evaluation.embeddings import Predictions
from fashion.evaluation.metrics import Evaluation
from fashion.reporting import figures, results
from fashion.tracking import wandb_session
from fashion.tracking.run import OUTPUT_FILES

import keras
import numpy as np
import pytest
import wandb
from helpers.epochs import make_epoch
from helpers.networks import build_small_resnet
from helpers.scripts import ROOT, Result, parse_options
from sklearn.metrics import log_loss

import cnn_basic


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_write_history_writes_a_row_per_epoch(tmp_path):
    epochs = [make_epoch(1, 0.5), make_epoch(2, 1 / 3)]
    results.write_history(tmp_path, epochs)
    written = read_rows(tmp_path / "history.csv")
    assert list(written[0]) == [
        *("epoch", "accuracy", "loss", "val_accuracy", "val_loss", "learning_rate", "seconds")
    ]
    for row, expected in zip(written, epochs, strict=True):
        assert {k: float(v) for k, v in row.items()} == dataclasses.asdict(expected)


def test_write_predictions_writes_a_row_per_image(tmp_path, sample):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(10, 0.1), 400).astype("float32")
    evaluation = Evaluation(probabilities, sample.test.labels, sample.class_names)
    results.write_predictions(path := tmp_path / "predictions.csv", sample.test, evaluation)
    written = read_rows(path)
    assert [int(row["index"]) for row in written] == sample.test.indices.tolist()
    assert [int(row["label"]) for row in written] == sample.test.labels.tolist()
    assert [int(row["predicted"]) for row in written] == probabilities.argmax(1).tolist()
    names = ["confidence", *(f"p({name})" for name in sample.class_names)]
    assert list(written[0]) == ["index", "label", "predicted", *names]
    values = np.array([[float(row[name]) for name in names] for row in written])
    # Four significant digits.
    np.testing.assert_allclose(values[:, 0], probabilities.max(axis=1), rtol=6e-4)
    np.testing.assert_allclose(values[:, 1:], probabilities, rtol=6e-4)
    assert max(len(row["p(Coat)"]) for row in written) <= len("1.234e-05")


def test_write_predictions_writes_file_names_last_and_labels_of_the_data_set(tmp_path, sample):
    names = tuple(f'a "b", c/{i}.png' for i in range(400))
    split = dataclasses.replace(sample.test, filenames=names)
    evaluation = Evaluation(np.eye(10)[split.labels], split.labels, sample.class_names)
    results.write_predictions(path := tmp_path / "x.csv", split, evaluation, first_label=1)
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[-1] == "file" and len(header) == 15
    assert [row[-1] for row in rows] == [split.image_name(i) for i in range(400)]
    labels = (split.labels + 1).tolist()
    assert [(int(row[1]), int(row[2])) for row in rows] == list(zip(labels, labels, strict=True))


def test_saved_model_contains_no_optimizer(offline_run):
    assert offline_run.result.optimizer_variables() == []


@pytest.mark.parametrize("split", ["validation", "test"])
def test_documented_code_reads_probabilities_and_labels(split, offline_run):
    docs = (ROOT / "docs" / "outputs.md").read_text()
    (code,) = re.findall(r"^```python\n(.+?)^```$", docs, re.MULTILINE | re.DOTALL)
    name = "predictions.csv" if split == "test" else "validation_predictions.csv"
    documented = "outputs/cnn_basic/validation_predictions.csv"
    assert documented in code
    names = {}
    exec(code.replace(documented, str(offline_run.result.directory / name)), names)
    labels, probabilities = names["labels"], names["probabilities"]
    expected = offline_run.result.metrics[split]
    assert np.mean(probabilities.argmax(axis=1) == labels) == expected["accuracy"]
    assert log_loss(labels, probabilities) == pytest.approx(expected["loss"], rel=1e-3)


@pytest.fixture
def model():
    images = keras.Input((28, 28), dtype="uint8", name="images")
    scaled = keras.layers.Rescaling(1 / 255)(images)
    frozen = keras.layers.Dense(3, trainable=False)(keras.layers.Flatten()(scaled))
    return keras.Model(images, keras.layers.Dense(10, activation="softmax")(frozen))


@pytest.fixture
def save(open_run, model, sample):
    """Save the run after three epochs, with every other prediction correct."""

    def save_run():
        open_run.epoch_logger.epochs = [
            make_epoch(1, 0.25),
            make_epoch(2, 0.5),
            make_epoch(3, 0.375),
        ]
        predictions = {}
        for name, split in sample.splits.items():
            labels = split.labels.copy()
            labels[::2] = (labels[::2] + 1) % 10
            embeddings = np.stack([labels, split.labels], axis=1).astype("float16")
            predictions[name] = Predictions(np.eye(10)[labels] * 0.91 + 0.009, embeddings)
        return results.save(open_run, model, predictions)

    return save_run


@pytest.fixture
def output(open_run):
    return open_run.options.results.output_dir


def test_save_writes_all_files(save, output, open_run, model, sample):
    with open_run.stage("training"):
        time.sleep(0.05)
    open_run.update_metadata(weights={"source": "somewhere"})
    save()
    result = Result(output)  # checks the set of files
    metrics = result.metrics
    assert metrics["config"] == open_run.options.config()
    assert metrics["data"] == sample.metadata()
    assert metrics["weights"] == {"source": "somewhere"}
    assert metrics["best_epoch"] == 2
    for part in "train", "validation", "test":
        assert metrics[part]["accuracy"] == 0.5
    assert metrics["parameters"] == {"trainable": 3 * 10 + 10, "frozen": 784 * 3 + 3}
    assert metrics["seconds"]["training"] == pytest.approx(0.05, abs=0.04)
    assert metrics["seconds"].keys() == {"imports", "training", "total"}
    assert [row["val_accuracy"] for row in result.history] == [0.25, 0.5, 0.375]
    images = sample.test.images[:20]
    np.testing.assert_array_equal(
        result.model.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def test_save_with_full_disk_keeps_existing_files(save, output, monkeypatch):
    for name in OUTPUT_FILES:
        (output / name).write_text("earlier run")

    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(figures, "plot_reliability", fail)
    expected = "^could not write all results: No space left on device; free disk space, or"
    with pytest.raises(UserError, match=expected):
        save()
    assert {path.name for path in output.iterdir()} == set(OUTPUT_FILES)
    assert {path.read_text() for path in output.iterdir()} == {"earlier run"}


def test_save_with_wandb_error_keeps_the_results(save, output, monkeypatch):
    def fail(*args):
        raise OSError("W&B's directory is full")

    monkeypatch.setattr(results, "_log_to_wandb", fail)
    with pytest.raises(UserError, match="W&B's directory is full"):
        save()
    assert Result(output).metrics["best_epoch"] == 2


def test_summary_prints_accuracy_and_checks_required_accuracy(save, output, open_run, capsys):
    summary = save()
    capsys.readouterr()
    summary.print_and_check_accuracy()
    out = capsys.readouterr().out
    low, high = json.loads((output / "metrics.json").read_text())["test"]["interval95"]
    assert f"1,760       50.0%  50.0% ({low:.1%} to {high:.1%})" in out
    assert out.splitlines()[-1] == f"Saved in {output}: {', '.join(OUTPUT_FILES)}"

    argv = ("--output-dir", output, "--require-accuracy")
    open_run.options = parse_options(cnn_basic, *argv, 0.5)
    summary.print_and_check_accuracy()
    assert capsys.readouterr().out == out
    open_run.options = parse_options(cnn_basic, *argv, 0.51)
    with pytest.raises(UserError, match=r"^validation accuracy 0.5000 is below the required 0.51$"):
        summary.print_and_check_accuracy()
    assert capsys.readouterr().out == out


def test_parameters_are_counted(offline_run):
    metrics = offline_run.result.metrics
    network = build_small_resnet(include_top=False, weights=None, input_shape=(64, 64, 3))
    kernels = sum(w.numpy().size for w in network.weights if "kernel" in w.path)
    # Folding turns BatchNormalization into one bias per channel; the standardizer has mean,
    # variance and a counter.
    biases = sum(
        layer.filters for layer in network.layers if isinstance(layer, keras.layers.Conv2D)
    )
    channels = network.output.shape[-1]
    counts = {
        "cnn_basic": (784 * 32 + 32 + 32 * 10 + 10, 0),
        "resnet50_fashion": (
            channels * 512 + 512 + 512 * 10 + 10,
            kernels + biases + 2 * channels + 1,
        ),
    }
    parameters = metrics["parameters"]
    assert (parameters["trainable"], parameters["frozen"]) == counts[metrics["model"]]


def test_last_lines_contain_the_runs_metrics_and_hints(offline_run):
    metrics = offline_run.result.metrics
    low, high = metrics["test"]["interval95"]
    assert 0 < low < metrics["test"]["accuracy"] < high < 1
    row = (
        f"{metrics['model']:<28} {metrics['data']['train']:>12,}  "
        f"{metrics['validation']['accuracy']:>10.1%}  {metrics['test']['accuracy']:.1%} "
        f"({low:.1%} to {high:.1%})"
    )
    assert row in offline_run.out
    (wandb_dir,) = (offline_run.directory / "wandb").glob("offline-run-*")
    path = Path("wandb", wandb_dir.name)
    *_, saved, view, upload = offline_run.out.splitlines()
    assert upload.endswith(f"wandb sync {path}")
    if command := wandb_session.offline_viewer_command(wandb.__version__):
        assert view.endswith(f"{command} {path}")
    else:
        saved = view
    assert saved.startswith("Saved in ")
