"""A model's file: Keras' own, with the names of the classes."""

import zipfile

from fashion.datasets.dataset import CLASS_NAMES, checked_names
from fashion.reporting import model_io

import keras
import numpy as np
import pytest

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype("uint8")


@pytest.fixture
def model():
    images = keras.Input((28, 28), dtype="uint8")
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(images / 255))
    return keras.Model(images, outputs)


@pytest.mark.parametrize(
    "names", [("Straße", 'a "quoted" one'), tuple(f"{i:0100}" for i in range(500))], ids=len
)
def test_names_are_in_the_file_which_keras_alone_still_loads(model, tmp_path, names):
    assert checked_names(names, "here") == names  # as long as they may be
    model_io.save(model, path := tmp_path / "model.keras", names)
    expected = model.predict(IMAGES, verbose=0)
    by_keras = keras.saving.load_model(path, safe_mode=True)
    loaded, found = model_io.load(path)
    assert found == names
    for again in by_keras, loaded:
        np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), expected)


def test_the_archive_is_the_one_that_keras_writes(model, tmp_path):
    """Or Keras would have to unpack it to the disk."""
    model.save(tmp_path / "plain.keras")
    model_io.save(model, tmp_path / "model.keras", ("a", "b"))
    members = []
    for name in "plain", "model":
        with zipfile.ZipFile(tmp_path / f"{name}.keras") as file:
            assert file.testzip() is None
            members.append(file.namelist())
    assert members[0] == members[1]


def test_a_model_from_before_is_fashion_mnists(model, tmp_path):
    model.save(tmp_path / "model.keras")
    assert model_io.load(tmp_path / "model.keras")[1] == CLASS_NAMES
