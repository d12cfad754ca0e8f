"""`--predict`: classification of the user's images with a trained model."""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fashion import devices
from fashion.cli.trained_model import load_trained_model
from fashion.datasets.dataset import replace_unprintable
from fashion.datasets.image_files import find_image_files, with_progress
from fashion.datasets.preprocessing import load_image, preprocess_image
from fashion.environment import staging_dir
from fashion.errors import UserError
from fashion.options import Options
from fashion.reporting.plot_style import plot_style, truncate

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

PREDICTIONS_CSV, PREDICTIONS_PNG = "user_predictions.csv", "user_predictions.png"
MAX_PLOTTED = 60  # images in the figure; more would be too large to view
THUMBNAIL_SIZE = 256  # pixels; the size at which an image is plotted


class UserImage(NamedTuple):
    """A user's image."""

    name: str
    thumbnail: Image.Image | None  # if plotted
    image: np.ndarray  # the model's input, uint8 (28, 28)


def predict_images(paths: Iterable[Path], options: Options) -> None:
    """Classify image files, or all images in directories; print and save the predictions.

    Raises:
        UserError: If there is no model or no image, or if not all images could be used.
    """
    model, class_names = load_trained_model(options)
    user_images: list[UserImage] = []
    num_failed = 0
    for path in with_progress(find_images(paths), "Read"):
        try:
            original = load_image(path)
            image = preprocess_image(original)
        except Exception as error:  # Pillow raises many types
            num_failed += 1
            print(f"{replace_unprintable(str(path))}: skipped: {error}", file=sys.stderr)
            continue
        thumbnail = None
        if len(user_images) < MAX_PLOTTED:  # thousands would fill the memory
            original.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
            thumbnail = original
        user_images.append(UserImage(replace_unprintable(str(path)), thumbnail, image))
    if user_images:
        images = np.stack([user_image.image for user_image in user_images])
        probabilities = devices.predict_in_batches(model, images, batch_size=125)
        _print_predictions(user_images, probabilities, class_names)
        output_dir = options.results.output_dir
        save_predictions(output_dir, user_images, probabilities, class_names)
        limit = f" (first {MAX_PLOTTED} images)" if len(user_images) > MAX_PLOTTED else ""
        print(f"\nAll probabilities: {output_dir / PREDICTIONS_CSV}")
        print(f"Model inputs and top classes: {output_dir / PREDICTIONS_PNG}{limit}")
    if num_failed:
        raise UserError(
            f"{num_failed} of {num_failed + len(user_images)} images were skipped, as listed above"
        )


def _print_predictions(
    user_images: list[UserImage], probabilities: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """Print the three most likely classes of each image."""
    width = max(len(user_image.name) for user_image in user_images)
    for user_image, row in zip(user_images, probabilities, strict=True):
        top3 = ", ".join(f"{class_names[i]} {row[i]:.1%}" for i in np.argsort(-row)[:3])
        print(f"{user_image.name:{width}}  {top3}")


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the files among `paths`, and the image files below the directories among them.

    Raises:
        UserError: If a directory contains no image file, or cannot be read.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)  # opening it later reports a missing file
            continue
        try:
            image_files = find_image_files(path)
        except OSError as error:
            raise UserError(f"--predict: {error}") from None
        if not image_files:
            raise UserError(
                f"--predict: {path} contains no image files; give "
                "files, or a directory that contains some"
            )
        found += image_files
    return found


def save_predictions(
    directory: Path,
    user_images: list[UserImage],
    probabilities: np.ndarray,
    class_names: tuple[str, ...],
) -> None:
    """Write `PREDICTIONS_CSV` and `PREDICTIONS_PNG`, each completely or not at all.

    Args:
        directory: Directory to write to.
        user_images: N images.
        probabilities: (N, classes); a column per class in the CSV file, such as "p(Coat)".
        class_names: Names of the classes.

    Raises:
        UserError: If a file cannot be written.
    """
    try:
        with staging_dir(directory) as temporary_dir:
            with open(temporary_dir / PREDICTIONS_CSV, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["file", "predicted", *(f"p({name})" for name in class_names)])
                for user_image, row in zip(user_images, probabilities, strict=True):
                    writer.writerow([user_image.name, class_names[row.argmax()], *row])
            with plot_style():
                figure = plot_predictions(user_images, probabilities, class_names)
                figure.savefig(temporary_dir / PREDICTIONS_PNG)
            for name in PREDICTIONS_CSV, PREDICTIONS_PNG:
                (temporary_dir / name).replace(directory / name)
    except OSError as error:
        raise UserError(
            f"could not write {PREDICTIONS_CSV} and {PREDICTIONS_PNG}: {error}; --output-dir "
            "must be writable and have free space"
        ) from None


def plot_predictions(
    user_images: list[UserImage], probabilities: np.ndarray, class_names: tuple[str, ...]
) -> Figure:
    """Plot up to `MAX_PLOTTED` images, each with its model input and its top ten classes."""
    num_images = min(len(user_images), MAX_PLOTTED)
    num_rows = (num_images + 1) // 2
    figure = Figure(figsize=(14, 2.2 * num_rows))
    widths = 1, 1, 1.6
    grid = figure.subplots(num_rows, 6, squeeze=False, width_ratios=[*widths, *widths])
    for axes in grid.flatten():
        axes.set_axis_off()
    for i in range(num_images):
        original, model_input, bars = grid[i // 2, 3 * (i % 2) : 3 * (i % 2) + 3]
        if thumbnail := user_images[i].thumbnail:
            original.imshow(thumbnail)
        original.set_title(f"{Path(user_images[i].name).name[:28]}", fontsize=9)
        model_input.imshow(
            user_images[i].image, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
        )
        model_input.set_title("model input", fontsize=9)
        bars.set_axis_on()
        best = np.argmax(probabilities[i])
        top10 = np.sort(np.argsort(-probabilities[i], kind="stable")[:10])
        colors = ["C0" if j == best else "silver" for j in top10]
        names = [truncate(class_names[j]) for j in top10]
        bars.barh(names, probabilities[i, top10], color=colors)
        bars.set(xlim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0 %", "50 %", "100 %"))
        bars.tick_params(labelsize=7)
        bars.invert_yaxis()
        title = f"{truncate(class_names[best])} {probabilities[i, best]:.0%}"
        bars.set_title(title, fontsize=9)
    return figure
