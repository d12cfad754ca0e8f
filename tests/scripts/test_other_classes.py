"""Data with other classes: names and numbers of classes in all outputs."""

import shutil

import keras
import numpy as np
import pytest
from helpers.data import load_sample
from helpers.forkserver import ForkedScript
from helpers.scripts import Result
from PIL import Image

import cnn_basic
import resnet50_fashion

NAMES = ("bag ($)", "<boot>", "scarf")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, sample):
    """The sample's last three classes, with other names."""
    data_dir = tmp_path_factory.mktemp("data")
    for part, splits in ("train", (sample.validation, sample.train)), ("test", (sample.test,)):
        images, labels = (
            np.concatenate([getattr(split, name) for split in splits])
            for name in ("images", "labels")
        )
        rows = np.column_stack([labels - 7, images.reshape(-1, 784)])[labels >= 7]
        np.savetxt(data_dir / f"{part}.csv", rows, "%d", ",")
    (data_dir / "classes.txt").write_text("\n".join(NAMES))
    return data_dir


@pytest.fixture(scope="module")
def completed(tmp_path_factory, data_dir, fork_server):
    """The working directory of a run on `data_dir`."""
    directory = tmp_path_factory.mktemp("run")
    argv = ("--data-dir", data_dir, "--epochs", 5, "--wandb", "disabled")
    process = ForkedScript("cnn_basic", directory, *argv)
    assert process.wait() == 0, process.err
    return directory


def test_metrics_report_and_model_have_the_class_names(completed, data_dir):
    result = Result(completed / "outputs" / "cnn_basic")
    assert result.metrics["data"]["classes"] == list(NAMES)
    assert [row["class"] for row in result.metrics["test"]["per_class"]] == list(NAMES)
    assert np.sum(result.metrics["test"]["confusion_matrix"]) == 120
    assert result.metrics["test"]["accuracy"] > 0.6
    page = (result.directory / "report.html").read_text()
    assert f"<h1>cnn_basic on {data_dir.name}</h1>" in page
    assert "<td>&lt;boot&gt;</td>" in page and "boot>" not in page
    for name in "Sneaker", "Ankle boot", "Fashion-MNIST":
        assert name not in page
    assert result.model.output_shape == (None, 3)


def test_predict_uses_the_class_names_of_the_model(completed, command_line, tmp_path, data_dir):
    outputs = tmp_path / "outputs" / "cnn_basic"
    outputs.mkdir(parents=True)
    shutil.copy(completed / "outputs" / "cnn_basic" / "model.keras", outputs)  # only the model
    images = load_sample(data_dir).test.images[:6]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    done = command_line(cnn_basic, "--predict", *sorted(tmp_path.glob("*.png")))
    assert done.code == 0, done.err
    *lines, blank, _table, _figure = done.out.splitlines()
    assert len(lines) == 6 and not blank
    assert all(name in line for line in lines for name in NAMES)
    model = keras.saving.load_model(outputs / "model.keras")
    predicted = model.predict(images, verbose=0).argmax(axis=1)
    # Preprocessing hardly changes images of the data set.
    agree = [f".png  {NAMES[i]}" in line for line, i in zip(lines, predicted, strict=True)]
    assert np.mean(agree) >= 0.8


@pytest.mark.slow
@pytest.mark.versions
def test_resnet50_and_fine_tuning_have_the_number_of_classes(
    run_main, data_dir, shared_cache_dir, small_resnet
):
    result = run_main(
        resnet50_fashion,
        *("--data-dir", data_dir, "--weights", "random", "--image-size", 64, "--epochs", 2),
        *("--train-size", 60, "--validation-size", 20, "--test-size", 20, "--flip"),
        *("--fine-tune-blocks", 1, "--fine-tune-epochs", 1, "--cache-dir", shared_cache_dir),
    )
    assert result.model.output_shape == (None, 3)
    assert [row["class"] for row in result.metrics["test"]["per_class"]] == list(NAMES)
