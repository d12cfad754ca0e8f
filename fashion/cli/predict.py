"""`--predict`: what a trained model says about one's own pictures."""

import csv
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fashion import devices
from fashion.datasets.dataset import printable
from fashion.datasets.preprocessing import SIDE, is_picture, read, to_fashion_mnist
from fashion.errors import UserError
from fashion.options import Options
from fashion.reporting import model_io
from fashion.reporting.plot_style import our_style, shortened

import keras
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

# The names of a run's files are others: theirs are of the test images.
TABLE, PICTURE = "own_predictions.csv", "predictions.png"
DRAWN = 60  # more would be too large to look at


class OwnPicture(NamedTuple):
    """One of the user's."""

    name: str
    original: Image.Image
    image: np.ndarray  # what the model sees of it, uint8 (28, 28)


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
        folder = options.results.output_dir
        save(folder, own, probabilities, class_names)
        print(f"{folder / TABLE} has all probabilities, {PICTURE} shows what the model saw", end="")
        print(f" of the first {DRAWN}." if len(own) > DRAWN else ".")
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
        model, class_names = model_io.load(path)
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


def save(
    folder: Path, own: list[OwnPicture], probabilities: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """Writes `TABLE` and `PICTURE`, each whole or not at all.

    Args:
        folder: gets them.
        own: N pictures.
        probabilities: (N, classes), in the table a column for each class: "p(Coat)".
        class_names: the classes'.

    Raises:
        UserError: one cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as temporary:
            part = Path(temporary)
            with open(part / TABLE, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["file", "predicted", *(f"p({name})" for name in class_names)])
                for picture, row in zip(own, probabilities, strict=True):
                    writer.writerow([picture.name, class_names[row.argmax()], *row])
            with our_style():
                draw(own, probabilities, class_names).savefig(part / PICTURE)
            for name in TABLE, PICTURE:
                (part / name).replace(folder / name)
    except OSError as error:
        raise UserError(f"{TABLE} and {PICTURE} cannot be written: {error}") from None


def draw(own: list[OwnPicture], probabilities: np.ndarray, class_names: tuple[str, ...]) -> Figure:
    """For each picture, up to `DRAWN`: itself, the 28×28 that the model saw, its probabilities.

    Those of the ten likeliest classes.
    """
    count = min(len(own), DRAWN)
    rows = (count + 1) // 2
    figure = Figure(figsize=(14, 2.2 * rows))
    widths = 1, 1, 1.6
    grid = figure.subplots(rows, 6, squeeze=False, width_ratios=[*widths, *widths])
    for axes in grid.flatten():
        axes.set_axis_off()
    for i in range(count):
        original, seen, bars = grid[i // 2, 3 * (i % 2) : 3 * (i % 2) + 3]
        original.imshow(own[i].original)
        original.set_title(f"{Path(own[i].name).name[:28]}", fontsize=9)
        seen.imshow(own[i].image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        seen.set_title("what the model saw", fontsize=9)
        bars.set_axis_on()
        best = np.argmax(probabilities[i])
        likeliest = np.sort(np.argsort(-probabilities[i], kind="stable")[:10])
        colours = ["C0" if j == best else "silver" for j in likeliest]
        names = [shortened(class_names[j]) for j in likeliest]
        bars.barh(names, probabilities[i, likeliest], color=colours)
        bars.set(xlim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0 %", "50 %", "100 %"))
        bars.tick_params(labelsize=7)
        bars.invert_yaxis()
        title = f"{shortened(class_names[best])} {probabilities[i, best]:.0%}"
        bars.set_title(title, fontsize=9)
    return figure
