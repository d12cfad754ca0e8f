"""The files of a run, its last lines, and model files with class names."""

import csv
import dataclasses
import errno
import json
import os
import re
import time
import zipfile
from pathlib import Path

from fashion.datasets.splits import CLASS_NAMES, validate_class_names
from fashion.errors import UserError
from fashion.results import output
from fashion.results.comparison import HEADER, Comparison
from fashion.results.evaluation import Evaluation
from fashion.results.output import OUTPUT_FILES, load_trained_model, save_model

import keras
import numpy as np
import pytest
from helpers.results import EPOCHS, open_run
from helpers.scripts import ROOT, skip_figures

import cnn_basic

CSV_FILES = {"validation": "validation_predictions.csv", "test": "predictions.csv"}


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "output"


@pytest.fixture
def save(model, predictions, evaluations, monkeypatch):
    """Save a run, with empty figures."""
    skip_figures(monkeypatch)
    return lambda run: output.save_results(run, model, predictions, evaluations)


# ---------------------------------------------------------------------------- output directory


def test_claim_output_dir_creates_it_and_prints_what_will_be_overwritten(output_dir, capsys):
    output.claim_output_dir(output_dir / "below")
    assert list(output_dir.rglob("*")) == [output_dir / "below"]
    assert capsys.readouterr().out == ""
    for name in "curves.png", "metrics.json", "unrelated.txt":
        (output_dir / name).write_text("")
    output.claim_output_dir(output_dir)
    expected = f"Existing files in {output_dir} will be overwritten: metrics.json, curves.png\n"
    assert capsys.readouterr().out == expected


def test_directory_that_cannot_be_used_is_an_error(output_dir):
    output_dir.write_text("a file")
    with pytest.raises(UserError, match=r"^--output-dir: .*; use a directory that you can write"):
        output.claim_output_dir(output_dir)
    output_dir.unlink()
    (output_dir / "report.html").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^--output-dir: .*report.html is a directory; remove it"):
        output.claim_output_dir(output_dir)


# --------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("split", ["validation", "test"])
def test_predictions_have_a_row_per_image(split, saved_run, sample, evaluations):
    rows = read_rows(saved_run.directory / CSV_FILES[split])
    expected = evaluations[split]
    assert [int(row["index"]) for row in rows] == sample.splits[split].indices.tolist()
    assert [int(row["label"]) for row in rows] == expected.labels.tolist()
    assert [int(row["predicted"]) for row in rows] == expected.predicted.tolist()
    names = ["confidence", *(f"p({name})" for name in sample.class_names)]
    assert list(rows[0]) == ["index", "label", "predicted", *names]
    values = np.array([[float(row[name]) for name in names] for row in rows])
    # Four significant digits.
    np.testing.assert_allclose(values[:, 0], expected.confidence, rtol=6e-4)
    np.testing.assert_allclose(values[:, 1:], expected.probabilities, rtol=6e-4)
    assert max(len(row["p(Coat)"]) for row in rows) <= len("1.234e-05")


def test_write_predictions_writes_file_names_last_and_labels_of_the_data_set(tmp_path, sample):
    filenames = tuple(f'a "b", c/{i}.png' for i in range(400))
    split = dataclasses.replace(sample.test, filenames=filenames)
    evaluation = Evaluation(np.eye(10)[split.labels], split.labels, sample.class_names)
    output.write_predictions(path := tmp_path / "x.csv", split, evaluation, first_label=1)
    rows = read_rows(path)
    assert list(rows[0])[-1] == "file" and len(rows[0]) == 15
    for row, label, i in zip(rows, split.labels, range(400), strict=True):
        assert row["file"] == split.image_name(i)
        assert row["label"] == row["predicted"] == str(label + 1)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_documented_code_reads_probabilities_and_labels(split, saved_run):
    docs = (ROOT / "docs" / "outputs.md").read_text()
    (code,) = re.findall(r"^```python\n(.+?)^```$", docs, re.MULTILINE | re.DOTALL)
    documented = "outputs/cnn_basic/validation_predictions.csv"
    assert documented in code
    names = {}
    exec(code.replace(documented, str(saved_run.directory / CSV_FILES[split])), names)
    labels, probabilities = names["labels"], names["probabilities"]
    expected = saved_run.run.metadata[split]
    assert np.mean(probabilities.argmax(axis=1) == labels) == expected["accuracy"]
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert loss == pytest.approx(expected["loss"], rel=1e-3)


def test_saved_files_have_the_results_of_the_run(saved_run, sample, evaluations, model):
    directory, run = saved_run.directory, saved_run.run
    assert {path.name for path in directory.iterdir()} == set(OUTPUT_FILES)
    metrics = json.loads((directory / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(run.metadata))
    assert metrics["config"]["output_dir"] == str(directory)
    assert metrics["data"] == sample.metadata()
    assert (metrics["best_epoch"], metrics["sweep"]) == (2, None)
    for name, evaluation in evaluations.items():
        for key in "accuracy", "loss", "expected_calibration_error":
            assert metrics[name][key] == getattr(evaluation, key)
        assert metrics[name]["accuracy_ci95"] == list(evaluation.accuracy_ci95)
    assert metrics["test"]["confusion_matrix"] == evaluations["test"].confusion_matrix.tolist()
    assert metrics["test"]["per_class"] == evaluations["test"].per_class
    assert metrics["parameters"] == {"trainable": 3 * 10 + 10, "frozen": 784 * 3 + 3}
    assert metrics["memory"].keys() >= {"peak_gb"} and metrics["seconds"]["total"] > 0
    history = read_rows(directory / "history.csv")
    for row, expected in zip(history, EPOCHS, strict=True):
        assert {k: float(v) for k, v in row.items()} == dataclasses.asdict(expected)
    images = sample.test.images[:20]
    saved_model, _ = output.load_trained_model(run.options)
    np.testing.assert_array_equal(saved_model(images), model(images))


def test_seconds_of_the_last_lap_and_given_parameter_counts_are_saved(save, sample, output_dir):
    run = open_run(sample, output_dir)
    run.metadata["parameters"] = {"trainable": 1, "frozen": 2}  # of fine-tuning
    run.lap("evaluation")
    time.sleep(0.05)
    save(run)
    metrics = json.loads((output_dir / "metrics.json").read_text())
    assert metrics["seconds"]["evaluation"] == pytest.approx(0.05, abs=0.04)
    assert metrics["parameters"] == {"trainable": 1, "frozen": 2}


@pytest.mark.parametrize("failing", ["save_model", "save_figures", "render_report"])
def test_full_disk_keeps_existing_files(failing, save, sample, output_dir, monkeypatch):
    output_dir.mkdir()
    for name in OUTPUT_FILES:
        (output_dir / name).write_text("earlier run")

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output, failing, fail)
    with pytest.raises(UserError, match=r"^--output-dir: .*No space left on device; free disk"):
        save(open_run(sample, output_dir))
    assert {path.name for path in output_dir.iterdir()} == set(OUTPUT_FILES)
    assert {path.read_text() for path in output_dir.iterdir()} == {"earlier run"}


@pytest.mark.parametrize("error", [UserError("W&B could not write"), KeyboardInterrupt()], ids=str)
def test_errors_of_wandb_keep_the_results(error, save, sample, output_dir):
    def fail(*args, **kwargs):
        raise error

    run = open_run(sample, output_dir)
    run.log_with = fail
    with pytest.raises(type(error)) as info:
        save(run)
    if isinstance(error, UserError):
        assert str(info.value) == f"{error}; the results in {output_dir} are complete"
    assert {path.name for path in output_dir.iterdir()} == set(OUTPUT_FILES)
    assert json.loads((output_dir / "metrics.json").read_text())["best_epoch"] == 2


# ---------------------------------------------------------------------------------- last lines


def test_last_lines(sample, output_dir, capsys):
    run = open_run(sample, output_dir)
    run.hints = lambda: ["how to view it"]
    rows = [
        list(HEADER),
        ["cnn_basic, other options", "50,000", "77.0%", "77.5% (75.0% to 79.0%)", "1234567 s"],
        ["cnn_basic", "1,760", "8.8%", "7.5% (5.0% to 9.0%)", "9 s"],
    ]
    output.print_summary(run, Comparison(rows, "a difference"))
    assert capsys.readouterr().out.splitlines() == [
        "",
        "model                     train images  validation  test (95% CI)                time",
        "cnn_basic, other options        50,000       77.0%  77.5% (75.0% to 79.0%)  1234567 s",
        "cnn_basic                        1,760        8.8%  7.5% (5.0% to 9.0%)           9 s",
        "a difference",
        "",
        f"Saved in {output_dir}: {', '.join(OUTPUT_FILES)}",
        "how to view it",
    ]


# --------------------------------------------------------------------------------- model files


@pytest.fixture
def options(tmp_path):
    return cnn_basic.Options(output_dir=tmp_path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.keras"


@pytest.mark.parametrize(
    "names", [("Straße", 'a "quoted" one'), tuple(f"{i:0100}" for i in range(500))], ids=len
)
def test_saved_class_names_are_loaded_and_keras_loads_the_model(names, options, path, sample):
    assert validate_class_names(names, "here") == names  # within the limit
    model = cnn_basic.build_model(4, len(names))
    model.save(path)
    members = zipfile.ZipFile(path).namelist()
    save_model(model, path, names)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.namelist() == members  # Keras would unpack an archive with more files to disk
    by_keras = keras.saving.load_model(path, safe_mode=True)
    loaded, loaded_names = load_trained_model(options)
    assert loaded_names == names
    images = sample.test.images[:5]
    for other in by_keras, loaded:
        np.testing.assert_array_equal(other(images), model(images))


def test_model_without_names_has_those_of_fashion_mnist(options, path):
    cnn_basic.build_model(4, 10).save(path)
    assert load_trained_model(options)[1] == CLASS_NAMES


@pytest.mark.parametrize("names", [["a\nb", "c"], ["\ud800", "b"], ["a", "a"], ["a"]])
def test_class_names_that_no_data_set_has_are_refused(names, options, path):
    save_model(cnn_basic.build_model(4, 2), path, names)
    with pytest.raises(UserError, match=r"model.keras cannot be loaded: its list of classes: "):
        load_trained_model(options)


@pytest.mark.parametrize(
    ("output_dir", "command"),
    [
        ("outputs/cnn_basic", "python cnn_basic.py"),
        ("my model", "python cnn_basic.py --output-dir 'my model'"),
    ],
)
def test_missing_model_is_an_error_with_the_command_that_trains_one(output_dir, command):
    with pytest.raises(UserError) as info:
        load_trained_model(cnn_basic.Options(output_dir=Path(output_dir)))
    expected = f"{output_dir}/model.keras does not exist; `{command}` trains a model"
    assert str(info.value) == expected


def test_unusable_model_is_an_error(options, path):
    path.write_bytes(b"damaged")
    expected = "cannot be loaded: File is not a zip file; if a newer Keras saved it, upgrade Keras"
    with pytest.raises(UserError, match=expected):
        load_trained_model(options)
    keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()]).save(path)
    with pytest.raises(UserError, match="is not a model of these scripts; `python cnn_basic"):
        load_trained_model(options)


def test_model_with_code_of_its_own_is_refused(options, path):
    images = keras.Input((28, 28), dtype="uint8")
    keras.Model(images, keras.layers.Lambda(lambda x: x[:, 0, :2])(images)).save(path)
    with pytest.raises(UserError, match=r"cannot be loaded: .*Lambda"):
        load_trained_model(options)
