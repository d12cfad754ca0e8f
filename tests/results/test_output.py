"""The files of a run, its last lines, and model files with class names."""

import csv
import dataclasses
import json
import re
import time
import zipfile
from pathlib import Path

from fashion.datasets.splits import validate_class_names, write_class_names
from fashion.errors import UserError
from fashion.files import staging_dir
from fashion.predict import UserImage, save_predictions
from fashion.results import output
from fashion.results.comparison import HEADER, Comparison
from fashion.results.evaluation import Evaluation
from fashion.results.figures import FIGURES
from fashion.results.output import OUTPUT_FILES, RESULT_FILES, load_trained_model, save_model

import keras
import numpy as np
import pytest
from helpers.results import EPOCHS, open_run
from helpers.scripts import ROOT, skip_figures
from helpers.wandb_runs import read_wandb_run

import cnn_basic


def read_rows(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "output"


@pytest.fixture
def save(model, predictions, evaluations, monkeypatch):
    """Save a run, with empty figures."""
    skip_figures(monkeypatch)
    return lambda run: output.save_results(run, model, predictions, evaluations, temperature=1)


# ---------------------------------------------------------------------------- output directory


def test_claim_output_dir_creates_it_and_prints_what_will_be_overwritten(output_dir, capsys):
    with output.claim_output_dir(output_dir / "below") as directory:
        assert directory == output_dir / "below"
    assert {path.name for path in output_dir.rglob("*")} == {"below", ".lock"}
    assert capsys.readouterr().out == ""
    for name in "curves.png", "metrics.json", "unrelated.txt":
        (output_dir / name).write_text("")
    with output.claim_output_dir(output_dir):
        pass
    expected = f"Existing files in {output_dir} will be overwritten: metrics.json, curves.png\n"
    assert capsys.readouterr().out == expected


def test_directory_that_cannot_be_used_is_an_error(tmp_path):
    output_dir = tmp_path / "output"
    output_dir.write_text("a file")
    with pytest.raises(UserError, match=r"^--output-dir: cannot write to .*Not a directory"):
        output.claim_output_dir(output_dir).__enter__()
    output_dir.unlink()
    (output_dir / "report.html").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^--output-dir: .*report.html is a directory; remove it"):
        output.claim_output_dir(output_dir).__enter__()


def test_leftovers_of_killed_runs_are_removed_but_not_those_of_predict(output_dir):
    with staging_dir(output_dir, kind="predict") as predict:
        for parent in output_dir, output_dir / "checkpoint":
            (parent / ".incomplete-run-1234").mkdir(parents=True)
            (parent / ".incomplete-run-1234" / "model.keras").touch()
        with output.claim_output_dir(output_dir):
            names = {str(path.relative_to(output_dir)) for path in output_dir.rglob("*")}
            assert names == {".lock", "checkpoint", predict.name}


@pytest.mark.parametrize("year", [1970, 2108])
def test_date_that_a_model_file_cannot_contain_is_an_error(year, output_dir, monkeypatch):
    date = time.struct_time((year, 1, 2, 0, 0, 0, 4, 2, 0))
    monkeypatch.setattr(time, "localtime", lambda seconds=None: date)
    with pytest.raises(UserError, match=r"a .keras file cannot contain the date .*; set the clock"):
        output.claim_output_dir(output_dir).__enter__()


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
    assert list(rows[0])[-3:] == ["label_name", "predicted_name", "file"] and len(rows[0]) == 17
    for row, label, i in zip(rows, split.labels, range(400), strict=True):
        assert row["file"] == filenames[split.indices[i]]
        assert row["label"] == row["predicted"] == str(label + 1)
        assert row["label_name"] == row["predicted_name"] == sample.class_names[label]


NAMES = ("NA", "null", "007", "1-2", "=1+1", "-5", "'=", "''+", "Mäntel", 'a,"b"')
FILES = ("=1.png", "+/a", "@", "\tx", "\rx", "two\nlines\r", "a\tb", "\u2028", "'tis", "nan")


@pytest.mark.any_version  # pandas
def test_documented_lines_read_names_as_they_are_meant(tmp_path, sample, monkeypatch):
    skip_figures(monkeypatch)
    pytest.importorskip("pandas")
    split = dataclasses.replace(
        sample.test, labels=np.arange(10), indices=np.arange(10), filenames=FILES
    )
    output.write_predictions(
        tmp_path / "predictions.csv", split, Evaluation(np.eye(10), split.labels, NAMES)
    )
    images = [UserImage(name, None, np.zeros((28, 28), "uint8")) for name in FILES]
    save_predictions(tmp_path, images, np.eye(10), NAMES)
    docs = (ROOT / "docs" / "outputs.md").read_text()
    (code,) = re.findall(r"^```python\n(import pandas.+?)^```$", docs, re.MULTILINE | re.DOTALL)
    exec(code.replace("outputs/mine", str(tmp_path)), tables := {})
    (undo,) = re.findall(r'`table\["file"\](\.str.+?)`', docs)
    for name, file, columns in (
        ("table", "predictions.csv", {"label_name": NAMES, "predicted_name": NAMES, "file": FILES}),
        ("user", "user_predictions.csv", {"predicted": NAMES, "file": FILES}),
    ):
        with open(tmp_path / file, newline="", encoding="utf-8-sig") as text:
            rows = list(csv.DictReader(text, strict=True))
        for column, expected in columns.items():
            cells = tables[name][column]
            assert cells.tolist() == [row[column] for row in rows]
            assert not any(re.match(r"[=+\-@\t\r]", cell) for cell in cells)
            assert tuple(eval(f"cells{undo}")) == expected
        assert (tmp_path / file).read_bytes().startswith(b"\xef\xbb\xbf")  # for Excel


def test_documented_code_reads_labels_and_probabilities(saved_run, evaluations):
    docs = (ROOT / "docs" / "outputs.md").read_text()
    code, *_ = re.findall(r"^```python\n(.+?)^```$", docs, re.MULTILINE | re.DOTALL)
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


def test_given_parameter_counts_and_labels_of_the_data_set_are_saved(save, sample, tmp_path):
    run = open_run(dataclasses.replace(sample, first_label=1), tmp_path)
    run.metadata["parameters"] = {"trainable": 1, "frozen": 2}  # of fine-tuning
    save(run)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["parameters"] == {"trainable": 1, "frozen": 2}
    for prefix, split in ("", sample.test), ("validation_", sample.validation):
        rows = read_rows(tmp_path / f"{prefix}predictions.csv")
        assert [int(row["label"]) for row in rows] == (split.labels + 1).tolist()


def test_error_of_writing_keeps_the_earlier_results(save, sample, output_dir, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    output_dir.mkdir()
    for name in OUTPUT_FILES:
        (output_dir / name).write_text("earlier run")
    monkeypatch.setattr(output, "write_predictions", fail)
    with pytest.raises(UserError, match=r"^--output-dir: cannot write to .*: disk full"):
        save(open_run(sample, output_dir))
    contents = {path.name: path.read_text() for path in output_dir.iterdir()}
    assert contents == dict.fromkeys(OUTPUT_FILES, "earlier run")


def test_ctrl_c_during_the_upload_keeps_the_results(save, sample, output_dir):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    run = open_run(sample, output_dir)
    run.log_with = fail
    with pytest.raises(KeyboardInterrupt):
        save(run)
    assert {path.name for path in output_dir.iterdir()} == set(OUTPUT_FILES)
    assert json.loads((output_dir / "metrics.json").read_text())["best_epoch"] == 2


def test_kill_between_any_two_steps_leaves_a_model_and_files_of_its_run(tmp_path, monkeypatch):
    source, target = tmp_path / "new", tmp_path / "old"
    for directory, names in (source, RESULT_FILES), (target, OUTPUT_FILES):
        directory.mkdir()
        for name in names:
            (directory / name).write_text(directory.name)
    states = []  # after each removal or renaming of a file

    def recording(function):
        def call(*args):
            function(*args)
            states.append({path.name: path.read_text() for path in target.iterdir()})

        return call

    for name in "unlink", "replace":
        monkeypatch.setattr(Path, name, recording(getattr(Path, name)))
    output.replace_results(source, target)
    assert len(states) == len(OUTPUT_FILES) - 1 + len(RESULT_FILES)
    for contents in states:
        assert len(set(contents.values())) == 1 and "model.keras" in contents
    assert states[-1] == dict.fromkeys(RESULT_FILES, "new")


def test_file_that_cannot_be_replaced_costs_no_model(save, sample, output_dir):
    (output_dir / "predictions.csv").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^--output-dir: cannot write to .*predictions.csv"):
        save(open_run(sample, output_dir))
    assert (output_dir / "model.keras").exists() and (output_dir / "metrics.json").exists()


STEPS = {  # after the training: what is missing, and what the warning names
    "compare": ([], "the comparison"),
    "nearest_neighbors": (["neighbors.png"], "neighbors.png"),
    "tsne.png": (["tsne.png"], "tsne.png"),
    "save_figures": (FIGURES, "the figures"),
    "render_report": (["report.html"], "report.html"),
    "dashboard": ([], "the W&B dashboard"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.usefixtures("only_warn")
def test_what_fails_after_the_results_are_saved_costs_a_warning(
    step, model, predictions, evaluations, sample, output_dir, monkeypatch, capsys
):
    def fail(*args, **kwargs):
        raise ValueError("two\nlines")

    output_dir.mkdir()
    for name in OUTPUT_FILES:
        (output_dir / name).write_text("earlier run")
    skip_figures(monkeypatch)
    monkeypatch.setenv("WANDB_DIR", str(output_dir.parent))
    if step in FIGURES:
        monkeypatch.setitem(FIGURES, step, fail)
    else:
        owner, name = (output.dashboard, "log_results") if step == "dashboard" else (output, step)
        monkeypatch.setattr(owner, name, fail)
    with open_run(sample, output_dir, "--wandb", "offline") as run:
        comparison = output.save_results(run, model, predictions, evaluations, 1)
    output.print_summary(run, comparison)
    missing, subject = STEPS[step]
    captured = capsys.readouterr()
    assert captured.err == f"WARNING: could not make {subject} (ValueError: two lines)\n"
    assert {path.name for path in output_dir.iterdir()} == set(OUTPUT_FILES) - set(missing)
    assert b"earlier run" not in {path.read_bytes() for path in output_dir.iterdir()}
    for name in missing:
        assert name not in captured.out
    logged = {key for row in read_wandb_run(output_dir.parent).rows for key in row}
    if step != "dashboard":
        for name in "report.html", *FIGURES:
            key = "report/page" if name == "report.html" else f"report/{name[:-4]}"
            assert (f"{key}.path" in logged) == (name not in missing)


# ---------------------------------------------------------------------------------- last lines


def test_last_lines(sample, output_dir, monkeypatch, capsys):
    run = open_run(sample, output_dir)
    monkeypatch.setattr(output.wandb_session, "hints", lambda run: ["how to view it"])
    output_dir.mkdir()
    for name in OUTPUT_FILES[:3]:
        (output_dir / name).touch()
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
        f"Saved in {output_dir}: {', '.join(OUTPUT_FILES[:3])}",
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


@pytest.mark.parametrize("comment", [b"", b"of another tool"])
def test_model_that_another_tool_saved_has_the_names_in_classes_txt(comment, options, path, capsys):
    names = [f"class {i}" for i in range(10)]
    save_model(cnn_basic.build_model(4, 10), path, names)
    keras.saving.load_model(path).save(path)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = comment
    for wrong in [], names[1:]:
        if wrong:
            write_class_names(path.parent, wrong)
        message = f"^{path} contains no class names; write them to .*classes.txt, one per line$"
        with pytest.raises(UserError, match=message):
            load_trained_model(options)
    write_class_names(path.parent, [*names, ""])  # as if edited by hand
    capsys.readouterr()
    assert load_trained_model(options)[1] == tuple(names)
    expected = f"Class names: from {path.with_name('classes.txt')}, since {path} contains none\n"
    assert capsys.readouterr().out == expected


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
