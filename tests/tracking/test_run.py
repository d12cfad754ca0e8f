"""One run: the output folder, its record, and what it leaves, whole or not at all."""

import json
import time
from pathlib import Path

from fashion.errors import UserError
from fashion.evaluation.embeddings import Answers
from fashion.reporting import figures
from fashion.tracking import wandb_session
from fashion.tracking.run import OUTPUT_FILES, Run

import keras
import numpy as np
import pytest
import wandb
from conftest import SAMPLE, Result, parse
from test_epochs import epoch

import cnn_basic


@pytest.fixture
def model():
    images = keras.Input((28, 28), dtype="uint8", name="images")
    scaled = keras.layers.Rescaling(1 / 255)(images)
    frozen = keras.layers.Dense(3, trainable=False)(keras.layers.Flatten()(scaled))
    return keras.Model(images, keras.layers.Dense(10, activation="softmax")(frozen))


@pytest.fixture
def save(open_run, model, sample):
    """Saves the run, after three epochs; of each split, the model gets every other image right."""

    def save_it():
        open_run.epoch_log.epochs = [epoch(1, 0.25), epoch(2, 0.5), epoch(3, 0.375)]
        answers = {}
        for name, split in sample.splits.items():
            labels = split.labels.copy()
            labels[::2] = (labels[::2] + 1) % 10
            embeddings = np.stack([labels, split.labels], axis=1).astype("float16")
            answers[name] = Answers(np.eye(10)[labels] * 0.91 + 0.009, embeddings)
        open_run.save(model, answers)

    return save_it


@pytest.fixture
def output(open_run):
    return open_run.options.results.output_dir


def test_results_are_written_whole(save, output, open_run, model, sample):
    with open_run.stage("training"):
        time.sleep(0.05)
    open_run.note(weights={"source": "somewhere"})
    save()
    result = Result(output)  # all the files, and no others
    metrics = result.metrics
    assert metrics["config"] == open_run.options.config()
    assert metrics["data"] == sample.record()
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


def test_failure_while_writing_leaves_what_was_there(save, output, monkeypatch):
    for name in OUTPUT_FILES:
        (output / name).write_text("of an earlier run")

    def fail(*of):
        raise OSError("No space left on device")

    monkeypatch.setattr(figures, "draw_reliability", fail)
    expected = "^not all results could be written: No space left on device$"
    with pytest.raises(UserError, match=expected):
        save()
    assert {path.name for path in output.iterdir()} == set(OUTPUT_FILES)
    assert {path.read_text() for path in output.iterdir()} == {"of an earlier run"}


def test_failure_of_wandb_loses_no_results(save, output, monkeypatch):
    def fail(*of):
        raise OSError("W&B's folder is full")

    monkeypatch.setattr(Run, "_log", fail)
    with pytest.raises(UserError, match="W&B's folder is full"):
        save()
    assert Result(output).metrics["best_epoch"] == 2


def test_last_lines_say_what_was_reached_and_whether_it_is_enough(save, output, open_run, capsys):
    save()
    capsys.readouterr()
    open_run.conclude()
    out = capsys.readouterr().out
    low, high = json.loads((output / "metrics.json").read_text())["test"]["interval95"]
    assert f"1,760       50.0%  50.0% ({low:.1%} to {high:.1%})" in out
    assert out.splitlines()[-1] == f"Saved in {output}: {', '.join(OUTPUT_FILES)}"

    words = ("--output-dir", output, "--require-accuracy")
    open_run.options = parse(cnn_basic, *words, 0.5)
    open_run.conclude()
    assert capsys.readouterr().out == out
    open_run.options = parse(cnn_basic, *words, 0.51)
    with pytest.raises(UserError, match=r"^validation accuracy 0.5000 is below the required 0.51$"):
        open_run.conclude()
    assert capsys.readouterr().out == out


def enter(output):
    with Run(parse(cnn_basic, "--output-dir", output)):
        pass


def test_output_folder_is_made(tmp_path, capsys):
    enter(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())
    assert capsys.readouterr().out == ""


def test_what_will_be_replaced_is_said(tmp_path, capsys):
    for name in "report.html", "model.keras", "notes.txt":
        (tmp_path / name).touch()
    enter(tmp_path)
    expected = f"The end of this run replaces model.keras, report.html in {tmp_path}\n"
    assert capsys.readouterr().out == expected


def test_output_folder_that_cannot_be_is_an_error_in_one_line(tmp_path, command_line):
    (tmp_path / "file").touch()
    done = command_line(cnn_basic, "--data-dir", SAMPLE, "--output-dir", "file")
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("cnn_basic.py: error: --output-dir: ")


def test_folder_in_the_place_of_a_file_is_an_error(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(UserError, match=f"^--output-dir: {tmp_path / 'metrics.json'} is a folder$"):
        enter(tmp_path)


def test_stages_are_counted_and_no_more_than_the_whole(offline_run):
    seconds = dict(offline_run.result.metrics["seconds"])
    total = seconds.pop("total")
    stages = {"imports", "data", "training", "evaluation"}
    if offline_run.result.metrics["model"] == "resnet50_fashion":
        stages |= {"backbone", "extraction"}
    assert seconds.keys() == stages
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) <= total


def test_parameters_are_counted(offline_run):
    metrics = offline_run.result.metrics
    counts = {
        "cnn_basic": (784 * 32 + 32 + 32 * 10 + 10, 0),
        # The head's; and 23.5 million of the ResNet50 (published), its batch norms folded.
        "resnet50_fashion": (2048 * 512 + 512 + 5130, pytest.approx(23.5e6, rel=0.01)),
    }
    parameters = metrics["parameters"]
    assert (parameters["trainable"], parameters["frozen"]) == counts[metrics["model"]]


def test_printed_table_and_last_lines_are_the_runs(offline_run):
    metrics = offline_run.result.metrics
    low, high = metrics["test"]["interval95"]
    assert 0 < low < metrics["test"]["accuracy"] < high < 1
    row = (
        f"{metrics['model']:<28} {metrics['data']['train']:>12,}  "
        f"{metrics['validation']['accuracy']:>10.1%}  {metrics['test']['accuracy']:.1%} "
        f"({low:.1%} to {high:.1%})"
    )
    assert row in offline_run.out
    (folder,) = (offline_run.folder / "wandb").glob("offline-run-*")
    path = Path("wandb", folder.name)
    *_, saved, look, sync = offline_run.out.splitlines()
    assert sync.endswith(f"wandb sync {path}")
    if command := wandb_session.viewer(wandb.__version__):
        assert look.endswith(f"{command} {path}")
    else:
        saved = look
    assert saved.startswith("Saved in ")


def test_a_run_that_ends_well_writes_nothing_to_the_stream_of_errors(offline_run):
    assert offline_run.err == ""
    assert offline_run.out.startswith("Data: ")  # and nothing of TensorFlow's comes before
