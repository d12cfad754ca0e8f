"""The files of a run, its last lines, and model files with class names."""

import csv
import dataclasses
import json
import re
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


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def save(model, predictions, evaluations, monkeypatch):
    """Save a run, with empty figures."""
    skip_figures(monkeypatch)
    return lambda run: output.save_results(run, model, predictions, evaluations, temperature=1)


# ---------------------------------------------------------------------------- output directory


def test_claim_output_dir_prints_what_will_be_overwritten(tmp_path, capsys):
    for name in "curves.png", "metrics.json", "unrelated.txt":
        (tmp_path / name).write_text("")
    output.claim_output_dir(tmp_path)
    expected = f"Existing files in {tmp_path} will be overwritten: metrics.json, curves.png\n"
    assert capsys.readouterr().out == expected


def test_directory_that_cannot_be_used_is_an_error(tmp_path):
    output_dir = tmp_path / "output"
    output_dir.write_text("a file")
    with pytest.raises(UserError, match=r"^--output-dir: .*; use a directory that you can write"):
        output.claim_output_dir(output_dir)
    output_dir.unlink()
    (output_dir / "report.html").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^--output-dir: .*report.html is a directory; remove it"):
        output.claim_output_dir(output_dir)


# --------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("prefix", "split"), [("", "test"), ("validation_", "validation")])
def test_predictions_have_a_row_per_image(prefix, split, saved_run, sample, evaluations):
    rows = read_rows(saved_run.options.output_dir / f"{prefix}predictions.csv")
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


def test_documented_code_reads_labels_and_probabilities(saved_run, evaluations):
    docs = (ROOT / "docs" / "outputs.md").read_text()
    (code,) = re.findall(r"^```python\n(.+?)^```$", docs, re.MULTILINE | re.DOTALL)
    documented = "outputs/cnn_basic/validation_predictions.csv"
    assert documented in code
    path = saved_run.options.output_dir / "validation_predictions.csv"
    names = {}
    exec(code.replace(documented, str(path)), names)
    expected = evaluations["validation"]
    np.testing.assert_array_equal(names["labels"], expected.labels)
    np.testing.assert_allclose(names["probabilities"], expected.probabilities, rtol=6e-4)


def test_saved_files_have_the_results_of_the_run(saved_run, sample, evaluations, model):
    directory = saved_run.options.output_dir
    assert {path.name for path in directory.iterdir()} == set(OUTPUT_FILES)
    metrics = json.loads((directory / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(saved_run.metadata))
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
    assert "evaluation" in metrics["seconds"]  # the last lap
    history = read_rows(directory / "history.csv")
    for row, expected in zip(history, EPOCHS, strict=True):
        assert {k: float(v) for k, v in row.items()} == dataclasses.asdict(expected)
    images = sample.test.images[:20]
    saved_model, _ = output.load_trained_model(saved_run.options)
    np.testing.assert_array_equal(saved_model(images), model(images))


def test_given_parameter_counts_are_saved(save, sample, tmp_path):
    run = open_run(sample, tmp_path)
    run.metadata["parameters"] = {"trainable": 1, "frozen": 2}  # of fine-tuning
    save(run)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["parameters"] == {"trainable": 1, "frozen": 2}


@pytest.mark.parametrize("error", [UserError("W&B could not write"), KeyboardInterrupt()], ids=str)
def test_errors_of_wandb_keep_the_results(error, save, sample, tmp_path):
    def fail(*args, **kwargs):
        raise error

    run = open_run(sample, tmp_path)
    run.log_with = fail
    with pytest.raises(type(error)) as info:
        save(run)
    if isinstance(error, UserError):
        assert str(info.value) == f"{error}; the results in {tmp_path} are complete"
    assert {path.name for path in tmp_path.iterdir()} == set(OUTPUT_FILES)
    assert json.loads((tmp_path / "metrics.json").read_text())["best_epoch"] == 2


# ---------------------------------------------------------------------------------- last lines


def test_last_lines(sample, tmp_path, capsys):
    run = open_run(sample, tmp_path)
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
        f"Saved in {tmp_path}: {', '.join(OUTPUT_FILES)}",
        "how to view it",
    ]


# --------------------------------------------------------------------------------- model files


@pytest.fixture
def options(tmp_path):
    return cnn_basic.Options(output_dir=tmp_path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.keras"


def test_saved_class_names_are_loaded_and_keras_loads_the_model(options, path, sample):
    names = ("Straße", 'a "quoted" one', *(f"{i:0100}" for i in range(498)))
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


def test_missing_model_is_an_error_with_the_command_that_trains_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = {
        "outputs/cnn_basic": "python cnn_basic.py",
        "my model": "python cnn_basic.py --output-dir 'my model'",
    }
    for output_dir, command in commands.items():
        with pytest.raises(UserError) as info:
            load_trained_model(cnn_basic.Options(output_dir=Path(output_dir)))
        expected = f"{output_dir}/model.keras does not exist; `{command}` trains a model"
        assert str(info.value) == expected


def test_unusable_models_are_errors(options, path):
    path.write_bytes(b"damaged")
    expected = "cannot be loaded: File is not a zip file; if a newer Keras saved it, upgrade Keras"
    with pytest.raises(UserError, match=expected):
        load_trained_model(options)
    images = keras.Input((28, 28), dtype="uint8")
    pixels = keras.layers.Flatten()(images)
    with_code = keras.layers.Lambda(lambda x: x[:, :2])(pixels)
    unusable = {
        r"cannot be loaded: .*Lambda": (with_code, ("a", "b")),
        r"cannot be loaded: its list of classes: two classes have the name": (pixels, ("a", "a")),
        r"is not a model of these scripts; `python cnn_basic": (pixels, ("a", "b")),
    }
    for expected, (outputs, names) in unusable.items():
        save_model(keras.Model(images, outputs), path, names)
        with pytest.raises(UserError, match=expected):
            load_trained_model(options)
