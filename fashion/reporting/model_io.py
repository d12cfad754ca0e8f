"""A saved model's file: Keras' own, which also has the names of its classes.

They are the comment of the zip archive that a `.keras` file is (`unzip -z` shows it), where Keras
does not look. A file of their own in the archive would have Keras unpack all of it to the disk
first, since it takes any fourth one for an asset.
"""

import json
import zipfile
from pathlib import Path

from fashion.datasets.dataset import CLASS_NAMES

import keras


def save(model: keras.Model, path: Path, class_names: tuple[str, ...]) -> None:
    """Saves a model, which `keras.saving.load_model` loads, and the names of its classes.

    Raises:
        OSError: it cannot be written.
    """
    model.save(path)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = json.dumps({"classes": class_names}).encode()


def load(path: Path) -> tuple[keras.Model, tuple[str, ...]]:
    """A saved model, and the names of its classes: without any, Fashion-MNIST's.

    Raises:
        Exception: of zip, JSON, HDF5 and Keras, where it cannot be read.
    """
    model = keras.saving.load_model(path, safe_mode=True)
    with zipfile.ZipFile(path) as file:
        names = json.loads(file.comment)["classes"] if file.comment else CLASS_NAMES
    return model, tuple(names)
