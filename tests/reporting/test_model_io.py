"""Model files with class names."""

import zipfile

from fashion.datasets.dataset import CLASS_NAMES, validate_class_names
from fashion.errors import UserError
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
def test_saved_class_names_are_loaded_and_keras_loads_the_model(model, tmp_path, names):
    assert validate_class_names(names, "here") == names  # within the limit
    model_io.save_model(model, path := tmp_path / "model.keras", names)
    expected = model.predict(IMAGES, verbose=0)
    by_keras = keras.saving.load_model(path, safe_mode=True)
    loaded, loaded_names = model_io.load_model(path)
    assert loaded_names == names
    for other in by_keras, loaded:
        np.testing.assert_array_equal(other.predict(IMAGES, verbose=0), expected)


def test_save_model_adds_no_file_to_the_archive(model, tmp_path):
    """Keras would unpack an archive with more files to disk."""
    model.save(tmp_path / "plain.keras")
    model_io.save_model(model, tmp_path / "model.keras", ("a", "b"))
    members = []
    for name in "plain", "model":
        with zipfile.ZipFile(tmp_path / f"{name}.keras") as file:
            assert file.testzip() is None
            members.append(file.namelist())
    assert members[0] == members[1]


def test_load_model_without_names_uses_fashion_mnist_names(model, tmp_path):
    model.save(tmp_path / "model.keras")
    assert model_io.load_model(tmp_path / "model.keras")[1] == CLASS_NAMES


@pytest.mark.parametrize("names", [["a\nb", "c"], ["\ud800", "b"], ["a", "a"], ["a"]])
def test_load_model_refuses_class_names_that_no_data_set_has(model, tmp_path, names):
    model_io.save_model(model, path := tmp_path / "model.keras", names)
    with pytest.raises(UserError, match=r"^its list of classes: "):
        model_io.load_model(path)
