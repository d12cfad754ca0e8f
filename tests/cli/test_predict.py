"""`--predict`: what comes of pictures of many kinds, and how the command fails."""

import csv
import re
import shutil
from pathlib import Path

from fashion.cli import predict
from fashion.datasets.dataset import CLASS_NAMES
from fashion.datasets.preprocessing import read, to_fashion_mnist

import keras
import numpy as np
import pytest
from conftest import SAMPLE, contents, train
from PIL import Image, ImageOps
from test_preparation import saved, shape

import cnn_basic
import resnet50_fashion


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output folder of the baseline, trained on the sample."""
    folder = tmp_path_factory.mktemp("trained") / "output"
    train(cnn_basic, "--data-dir", SAMPLE, "--epochs", 20, "--output-dir", folder)
    return folder


def write_photos(folder, images):
    """Images as photos: 300×400, dark on white, off-centre; every fourth with an alpha."""
    rng = np.random.default_rng(0)
    for i, image in enumerate(images):
        garment = ImageOps.invert(Image.fromarray(image)).resize((220, 220), Image.BICUBIC)
        photo = Image.new("L", (300, 400), "white")
        corner = int(rng.integers(0, 80)), int(rng.integers(0, 180))
        photo.paste(garment, corner)
        if i % 4:
            photo.save(folder / f"{i:03}.jpg", quality=90)
            continue
        alpha = Image.new("L", photo.size, 0)  # what is black beneath it must not be seen
        alpha.paste(255, (*corner, corner[0] + 220, corner[1] + 220))
        photo.paste(0, mask=ImageOps.invert(alpha))
        photo.putalpha(alpha)
        photo.save(folder / f"{i:03}.png")


def classes(output):
    """{name of a picture: the likeliest class}, as printed."""
    found = re.findall(r"^(\S+)\s+(\D+) [\d.]+%, .+ [\d.]+%, .+ [\d.]+%$", output, re.MULTILINE)
    return {name.rsplit("/", 1)[-1]: CLASS_NAMES.index(label) for name, label in found}


def check_photos(command_line, script, folder, photos, test):
    """Classifies 200 test images as photos, nearly as well as the images themselves.

    `folder` has the script's model; `photos` is an empty folder.
    """
    images, labels = test.images[:200], test.labels[:200]
    write_photos(photos, images)
    done = command_line(script, "--predict", photos, "--output-dir", folder)
    assert done.code == 0, done.err
    predicted = [label for _, label in sorted(classes(done.out).items())]
    assert len(predicted) == 200
    model = keras.saving.load_model(folder / "model.keras")
    of_originals = model.predict(images, verbose=0).argmax(axis=1)
    of_photos = np.mean(predicted == labels)
    assert of_photos >= np.mean(of_originals == labels) - 0.05
    table = folder / "own_predictions.csv"
    expected = f"{table} has all probabilities, predictions.png shows what the model saw"
    assert done.out.endswith(f"\n{expected} of the first {predict.DRAWN}.\n")
    with Image.open(folder / "predictions.png") as png:
        assert png.width == 1400
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [CLASS_NAMES.index(row["predicted"]) for row in rows] == predicted
    paths = sorted(photos.iterdir())
    assert [row["file"] for row in rows] == list(map(str, paths))
    seen = np.stack([to_fashion_mnist(read(path)) for path in paths])
    shown = [[float(row[f"p({name})"]) for name in CLASS_NAMES] for row in rows]
    atol = 1e-6 if script is cnn_basic else 0.02  # in bfloat16, a batch's size shows
    np.testing.assert_allclose(shown, model.predict(seen, verbose=0), atol=atol)
    table.unlink()
    (folder / "predictions.png").unlink()


def test_baseline_on_photos(trained, command_line, sample, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(predict, "DRAWN", 5)  # which takes long
    photos = tmp_path_factory.mktemp("photos")
    check_photos(command_line, cnn_basic, trained, photos, sample.test)


def test_what_cannot_be_used_is_named_and_the_rest_is_done(trained, command_line, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    saved(folder / "a.png", Image.fromarray(shape()))
    (folder / "b.png").write_text("no picture")
    saved(folder / "c.png", Image.new("L", (50, 50), "gray"))
    saved(folder / "d.png", Image.new("1", (10_000, 9_000)))  # 90 million pixels
    (folder / "notes.txt").write_text("not looked at")
    done = command_line(
        cnn_basic, "--output-dir", trained, "--predict", folder, tmp_path / "absent.jpg"
    )
    assert done.code == 1
    assert list(classes(done.out)) == ["a.png"]
    lines = [line for line in done.err.splitlines() if "not used:" in line or "error:" in line]
    assert [line.split(":")[0].rsplit("/", 1)[-1] for line in lines[:-1]] == [
        *("b.png", "c.png", "d.png", "absent.jpg")
    ]
    assert lines[-1] == "cnn_basic.py: error: 4 of 5 pictures could not be used"
    assert "Traceback" not in done.err and "notes.txt" not in done.err


@pytest.mark.parametrize("script", [cnn_basic, resnet50_fashion])
def test_without_a_model_it_says_how_to_make_one(script, command_line, tmp_path):
    name = f"{script.__name__}.py"
    done = command_line(script, "--predict", "shoe.jpg", "--output-dir", "mine")
    assert done.code == 1
    expected = f"there is no mine/model.keras: `python {name} --output-dir mine` makes one"
    assert done.err == f"{name}: error: {expected}\n"
    done = command_line(script, "--predict", "shoe.jpg")
    expected = f"there is no outputs/{script.__name__}/model.keras: `python {name}` makes one"
    assert done.err == f"{name}: error: {expected}\n"
    assert not (tmp_path / "mine").exists() and not (tmp_path / "outputs").exists()


def test_a_damaged_model_or_an_empty_folder_is_an_error(trained, command_line, tmp_path):
    (tmp_path / "empty").mkdir()
    done = command_line(cnn_basic, "--predict", tmp_path / "empty", "--output-dir", trained)
    assert done.code == 1
    assert done.err.splitlines()[-1].endswith("empty has no picture files")
    outputs = tmp_path / "outputs" / "cnn_basic"
    shutil.copytree(trained, outputs)
    (outputs / "model.keras").write_bytes(b"damaged")
    done = command_line(cnn_basic, "--predict", "shoe.jpg")
    assert done.code == 1
    assert "model.keras cannot be read" in done.err.splitlines()[-1]


def test_model_of_something_else_is_an_error(command_line, tmp_path):
    (tmp_path / "outputs" / "cnn_basic").mkdir(parents=True)
    path = tmp_path / "outputs" / "cnn_basic" / "model.keras"
    keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()]).save(path)
    done = command_line(cnn_basic, "--predict", "shoe.jpg")
    assert done.code == 1
    expected = "outputs/cnn_basic/model.keras is not a model of these scripts"
    assert done.err == f"cnn_basic.py: error: {expected}\n"


def test_files_of_a_run_stay_and_a_failure_leaves_what_was_there(trained, command_line, tmp_path):
    shutil.copytree(trained, tmp_path / "model")
    for name in "predictions.png", "own_predictions.csv":  # of another test
        (tmp_path / "model" / name).unlink(missing_ok=True)
    before = contents(tmp_path / "model")
    (tmp_path / "model" / "predictions.png").mkdir()
    saved(tmp_path / "a.png", Image.fromarray(shape()))
    words = ("--predict", tmp_path / "a.png", "--output-dir", tmp_path / "model")
    done = command_line(cnn_basic, *words)
    assert done.code == 1
    (line,) = (line for line in done.err.splitlines() if "error:" in line)
    assert "own_predictions.csv and predictions.png cannot be written: " in line
    (tmp_path / "model" / "predictions.png").rmdir()
    assert command_line(cnn_basic, *words).code == 0
    after = contents(tmp_path / "model")
    assert after.keys() - before.keys() == {Path("own_predictions.csv"), Path("predictions.png")}
    assert before.items() <= after.items()
