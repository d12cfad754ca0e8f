"""`--predict`: classification of the user's images with the trained model."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fashion.datasets.photos import find_image_files, load_image, preprocess_image
from fashion.datasets.splits import replace_unprintable
from fashion.errors import UserError
from fashion.files import staging_dir, write_csv
from fashion.options import SharedOptions
from fashion.progress import with_progress
from fashion.results.figures import plot_style, truncate
from fashion.results.output import load_trained_model

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

PREDICTIONS_CSV, PREDICTIONS_PNG = "user_predictions.csv", "user_predictions.png"
BATCH_SIZE = 125  # images
MAX_PLOTTED = 60  # images in the figure; more would be too large to view
THUMBNAIL_SIZE = 256  # pixels; the size at which an image is plotted


class UserImage(NamedTuple):
    """An image of the user."""

    name: str
    thumbnail: Image.Image | None  # if plotted
    image: np.ndarray  # input of the model, uint8 (28, 28)


def predict_images(paths: Iterable[Path], options: SharedOptions) -> None:
    """Classify image files, and those in directories; print and save the predictions."""
    model, class_names = load_trained_model(options)
    files = find_images(paths)
    user_images = read_images(files)
    if user_images:
        images = np.stack([user_image.image for user_image in user_images])
        parts = [images[i : i + BATCH_SIZE] for i in range(0, len(images), BATCH_SIZE)]
        batches = with_progress(parts, "Predictions", BATCH_SIZE)
        probabilities = np.concatenate([model.predict_on_batch(batch) for batch in batches])
        names = [replace_unprintable(user_image.name) for user_image in user_images]
        width = max(map(len, names))
        for name, row in zip(names, probabilities, strict=True):
            top3 = ", ".join(f"{class_names[i]} {row[i]:.1%}" for i in np.argsort(-row)[:3])
            print(f"{name:{width}}  {top3}")
        save_predictions(options.output_dir, user_images, probabilities, class_names)
        limit = f" (first {MAX_PLOTTED} images)" if len(user_images) > MAX_PLOTTED else ""
        print(f"\nAll probabilities: {options.output_dir / PREDICTIONS_CSV}")
        print(f"Model inputs and top classes: {options.output_dir / PREDICTIONS_PNG}{limit}")
    if num_skipped := len(files) - len(user_images):
        raise UserError(f"{num_skipped} of {len(files)} images were skipped, as listed above")


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the files among `paths`, and the image files below the directories among them."""
    found = []
    for path in paths:
        # Files may have any name; opening a missing one raises the error.
        image_files = find_image_files(path) if path.is_dir() else [path]
        if not image_files:
            raise UserError(
                f"--predict: {path} contains no image files; give files, or a directory that "
                "contains some"
            )
        found += image_files
    return found


def read_images(files: Sequence[Path]) -> list[UserImage]:
    """Read and preprocess images; print the files that cannot be used, which are skipped."""
    user_images: list[UserImage] = []
    for path in with_progress(files, "Reading"):
        try:
            original = load_image(path)
            image = preprocess_image(original)
        except Exception as error:  # Pillow raises many types
            print(f"{replace_unprintable(str(path))}: skipped: {error}", file=sys.stderr)
            continue
        thumbnail = None
        if len(user_images) < MAX_PLOTTED:  # thousands would fill the memory
            original.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
            thumbnail = original
        user_images.append(UserImage(str(path), thumbnail, image))
    return user_images


def save_predictions(
    directory: Path,
    user_images: list[UserImage],
    probabilities: np.ndarray,
    class_names: tuple[str, ...],
) -> None:
    """Write `PREDICTIONS_CSV`, with a column per class, and `PREDICTIONS_PNG` atomically."""
    with staging_dir(directory, kind="predict") as temporary_dir:
        rows: list[list[object]] = [["file", "predicted", *(f"p({name})" for name in class_names)]]
        for user_image, row in zip(user_images, probabilities, strict=True):
            rows.append([user_image.name, class_names[row.argmax()], *row])
        write_csv(temporary_dir / PREDICTIONS_CSV, rows)
        with plot_style():
            figure = plot_predictions(user_images[:MAX_PLOTTED], probabilities, class_names)
            figure.savefig(temporary_dir / PREDICTIONS_PNG)
        for name in PREDICTIONS_CSV, PREDICTIONS_PNG:
            (temporary_dir / name).replace(directory / name)


def plot_predictions(
    user_images: list[UserImage], probabilities: np.ndarray, class_names: tuple[str, ...]
) -> Figure:
    """Plot each image, the input of the model and up to ten most likely classes."""
    num_rows = (len(user_images) + 1) // 2
    figure = Figure(figsize=(14, 2.2 * num_rows))
    grid = figure.subplots(num_rows, 6, squeeze=False, width_ratios=[1, 1, 1.6] * 2)
    for axes in grid.flat:
        axes.set_axis_off()
    cells = grid.reshape(-1, 3)  # two images per row
    for cell, user_image, row in zip(cells, user_images, probabilities, strict=False):
        original, model_input, bars = cell
        if user_image.thumbnail:
            original.imshow(user_image.thumbnail)
        original.set_title(replace_unprintable(Path(user_image.name).name[:28]), fontsize=9)
        model_input.imshow(user_image.image, cmap="gray", vmax=255, vmin=0, interpolation="nearest")
        model_input.set_title("model input", fontsize=9)
        bars.set_axis_on()
        best = row.argmax()
        top10 = np.sort(np.argsort(-row, kind="stable")[:10])
        colors = ["C0" if j == best else "silver" for j in top10]
        bars.barh([truncate(class_names[j]) for j in top10], row[top10], color=colors)
        bars.set(xlim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0%", "50%", "100%"))
        bars.tick_params(labelsize=7)
        bars.invert_yaxis()
        bars.set_title(f"{truncate(class_names[best])} {row[best]:.0%}", fontsize=9)
    return figure
