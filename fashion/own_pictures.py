"""`--predict`: what a trained model says about one's own pictures."""

import sys
from collections.abc import Iterable
from pathlib import Path

from fashion import devices, model_file, pictures
from fashion.data import printable
from fashion.errors import UserError
from fashion.options import Options
from fashion.pictures import OwnPicture
from fashion.preparation import SIDE, is_picture, read, to_fashion_mnist

import keras
import numpy as np


def classify(paths: Iterable[Path], options: Options) -> None:
    """Classifies picture files, or those of folders; prints and draws the result.

    Raises:
        UserError: there is no model or picture, or not every picture could be used.
    """
    model, class_names = load_model(options)
    own, failures = [], 0
    for path in files(paths):
        try:
            original = read(path)
            image = to_fashion_mnist(original)
        except Exception as error:  # of Pillow's many ways to refuse a file
            failures += 1
            print(f"{path}: not used: {error}", file=sys.stderr)
            continue
        original.thumbnail((256, 256))  # as large as it will be drawn
        own.append(OwnPicture(printable(str(path)), original, image))
    if own:
        images = np.stack([picture.image for picture in own])
        probabilities = devices.predict_in_batches(model, images, batch_size=125)
        width = max(len(picture.name) for picture in own)
        for picture, row in zip(own, probabilities, strict=True):
            likeliest = ", ".join(f"{class_names[i]} {row[i]:.1%}" for i in np.argsort(-row)[:3])
            print(f"{picture.name:{width}}  {likeliest}")
        path = options.results.output_dir / "predictions.png"
        pictures.draw_own_pictures(path, own, probabilities, class_names)
        print(f"{path} shows what the model saw", end="")
        print(f" of the first {pictures.DRAWN}." if len(own) > pictures.DRAWN else ".")
    if failures:
        raise UserError(f"{failures} of {failures + len(own)} pictures could not be used")


def load_model(options: Options) -> tuple[keras.Model, tuple[str, ...]]:
    """The model that an earlier run saved, uint8 (N, 28, 28) → probabilities, and its class names.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    folder = options.results.output_dir
    path = folder / "model.keras"
    if not path.exists():
        command = f"python {options.script}.py"
        if folder != type(options)().results.output_dir:
            command += f" --output-dir {folder}"
        raise UserError(f"there is no {path}: `{command}` makes one")
    try:
        model, class_names = model_file.load(path)
    except Exception as error:  # of zip, JSON, HDF5 and Keras
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from None
    if (model.input_shape, model.output_shape) != ((None, SIDE, SIDE), (None, len(class_names))):
        raise UserError(f"{path} is not a model of these scripts")
    return model, class_names


def files(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths, and those in their folders that look like pictures, by name.

    Raises:
        UserError: a folder has none, or cannot be read.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)  # if there is no such file, opening it will say so
            continue
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            raise UserError(f"--predict: {error}") from None
        found += (inside := [file for file in inside if is_picture(file)])
        if not inside:
            raise UserError(f"--predict: {path} has no picture files")
    return found
