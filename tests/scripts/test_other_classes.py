"""Data with other classes: each place that names or counts them, from the files to `--predict`."""

import collections
import json
import shutil

import keras
import numpy as np
import pytest
from conftest import Result, load, read_wandb_run, run_script, write_idx
from PIL import Image

import cnn_basic
import resnet50_fashion

NAMES = ("bag ($)", "<boot>", "scarf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sample):
    """The sample's last three classes, under other names."""
    folder = write_idx(tmp_path_factory.mktemp("data"), sample, range(7, 10))
    (folder / "classes.txt").write_text("\n".join(NAMES))
    return folder


@pytest.fixture(scope="module")
def ended(tmp_path_factory, folder):
    """A script's process on them: its folder."""
    here = tmp_path_factory.mktemp("run")
    words = ("--data-dir", folder, "--epochs", 5, "--wandb", "offline")
    done = run_script(here, "cnn_basic.py", *words)
    assert done.returncode == 0, done.stderr
    return here


def test_record_page_and_files_have_their_names(ended, folder):
    result = Result(ended / "outputs" / "cnn_basic")
    assert result.metrics["data"]["classes"] == list(NAMES)
    assert [row["class"] for row in result.metrics["test"]["per_class"]] == list(NAMES)
    assert np.sum(result.metrics["test"]["confusion_matrix"]) == 120
    assert result.metrics["test"]["accuracy"] > 0.6
    page = (result.folder / "report.html").read_text()
    assert f"<h1>cnn_basic on {folder.name}</h1>" in page
    assert "<td>&lt;boot&gt;</td>" in page and "boot>" not in page
    for name in "Sneaker", "Ankle boot", "Fashion-MNIST":
        assert name not in page
    assert result.model.output_shape == (None, 3)


def test_wandb_has_their_names(ended, folder):
    run = read_wandb_run(ended)
    (files,) = ended.glob("wandb/offline-run-*/files")
    history = {key: value for row in run.rows for key, value in row.items()}
    tables = {}
    for key in "test/per_class", "test/examples", "test/confusion_matrix_table":
        table = json.loads((files / history[f"{key}.path"]).read_text())
        tables[key] = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["class"] for row in tables["test/per_class"]] == list(NAMES)
    assert {row["Actual"] for row in tables["test/confusion_matrix_table"]} == set(NAMES)
    shown = collections.Counter(row["true"] for row in tables["test/examples"])
    assert shown == dict.fromkeys(NAMES, 10)
    size = run.summary["config"]["data"]["train"]
    assert run.started["run_group"] == f"{size}-train-images-of-{folder.name}"
    assert run.started["tags"] == [folder.name]


def test_predict_takes_the_names_from_the_models_file(ended, command_line, tmp_path, folder):
    outputs = tmp_path / "outputs" / "cnn_basic"
    outputs.mkdir(parents=True)
    shutil.copy(ended / "outputs" / "cnn_basic" / "model.keras", outputs)  # and nothing else
    data = load(folder)
    for i, image in enumerate(data.test.images[:6]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    done = command_line(cnn_basic, "--predict", *sorted(tmp_path.glob("*.png")))
    assert done.code == 0, done.err
    *lines, last = done.out.splitlines()
    assert len(lines) == 6 and "predictions.png" in last
    for line in lines:
        assert all(name in line for name in NAMES)
    model = keras.saving.load_model(outputs / "model.keras")
    predicted = model.predict(data.test.images[:6], verbose=0).argmax(axis=1)
    # Cropping an image of the data set changes little.
    answers = [line.split(".png  ")[1] for line in lines]
    named = [a.startswith(NAMES[i]) for a, i in zip(answers, predicted, strict=True)]
    assert np.mean(named) >= 0.8


@pytest.mark.parametrize("more", [(), ("--fine-tune-blocks", 1, "--fine-tune-epochs", 1)], ids=len)
def test_resnet_and_its_fine_tuning_have_as_many_classes(
    more, run_main, folder, shared_cache, small_resnet
):
    result = run_main(
        resnet50_fashion,
        *("--data-dir", folder, "--weights", "none", "--image-size", 64, "--epochs", 2),
        *("--train-size", 60, "--validation-size", 20, "--test-size", 20, "--mirror"),
        *("--cache-dir", shared_cache, *more),
    )
    assert result.model.output_shape == (None, 3)
    assert [row["class"] for row in result.metrics["test"]["per_class"]] == list(NAMES)


def test_runs_on_other_classes_are_not_compared(ended, folder, command_line, tmp_path, sample):
    outputs = tmp_path / "outputs"
    shutil.copytree(ended / "outputs" / "cnn_basic", outputs / "other")
    path = outputs / "other" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": "another"}))
    words = ("--epochs", 1, "--wandb", "disabled", "--data-dir")
    assert "another" in command_line(cnn_basic, *words, folder).out  # the same
    four = tmp_path / "four"
    four.mkdir()
    write_idx(four, sample, range(6, 10))
    done = command_line(cnn_basic, *words, four)
    assert done.code == 0 and "another" not in done.out
