"""Saving and loading of `.keras` files that also contain the class names.

A `.keras` file is a zip archive. The class names are its comment, which Keras ignores and
`unzip -z` prints. If they were a file in the archive, Keras would take it for an asset and unpack
the complete archive to disk before loading.
"""

import json
import zipfile
from pathlib import Path

from fashion.datasets.dataset import CLASS_NAMES, validate_class_names

import keras


def save_model(model: keras.Model, path: Path, class_names: tuple[str, ...]) -> None:
    """Save a model and its class names; `keras.saving.load_model` loads the model.

    Raises:
        OSError: If the file cannot be written.
    """
    model.save(path)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = json.dumps({"classes": class_names}).encode()


def load_model(path: Path) -> tuple[keras.Model, tuple[str, ...]]:
    """Load a model and its class names (Fashion-MNIST's if the file has none).

    Raises:
        Exception: If the file cannot be read; zip, JSON, HDF5 and Keras each raise their own.
    """
    with zipfile.ZipFile(path) as file:  # before Keras, which says "not found" of a damaged file
        names = json.loads(file.comment)["classes"] if file.comment else CLASS_NAMES
    class_names = validate_class_names(map(str, names), "its list of classes")
    return keras.saving.load_model(path, safe_mode=True), class_names
