"""Figures of small images in a grid: errors, and their nearest training images."""

from fashion.datasets.dataset import ImageDataset, Split
from fashion.evaluation.embeddings import NUM_MISTAKES, NUM_NEIGHBORS, EmbeddingAnalysis
from fashion.evaluation.metrics import Evaluation
from fashion.reporting.plot_style import BLUE, GRAY, ORANGE, truncate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MISTAKE_COLUMNS, MISTAKE_ROWS = 8, 5
MAX_TITLE_CHARS = 13  # per line above the thumbnails of `plot_neighbors`
CELL_HEIGHT = 1.4  # in units of the cell's width: three lines of text and a thumbnail


def setup_thumbnail_axes(axes: Axes, columns: float, rows: float) -> None:
    """Prepare axes for a grid of thumbnails.

    One axes per thumbnail would take as long to draw as all other figures of a run.
    """
    axes.set(xlim=(0, columns), ylim=(CELL_HEIGHT * rows, 0), aspect="equal")
    axes.set_axis_off()


def draw_thumbnail(
    axes: Axes, cell: tuple[float, float], image: np.ndarray, title: str, color: str
) -> None:
    """Draw an image below its title.

    Args:
        axes: Axes prepared by `setup_thumbnail_axes`.
        cell: (column, row) of the thumbnail.
        image: uint8 (28, 28).
        title: Up to three lines of text.
        color: Color of the title.
    """
    left, top = cell[0], cell[1] * CELL_HEIGHT
    axes.imshow(
        image,
        extent=(left + 0.07, left + 0.93, top + 1.32, top + 0.46),
        cmap="gray_r",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
    axes.text(left + 0.5, top + 0.43, title, ha="center", va="bottom", fontsize=9.5, color=color)


def mistake_title(evaluation: Evaluation, split: Split, index: int, length: int = 20) -> str:
    """Return the title of a misclassified image: label, prediction, image name."""
    true, predicted = (
        truncate(evaluation.class_names[label], length)
        for label in (evaluation.labels[index], evaluation.predicted[index])
    )
    confidence = evaluation.confidence[index]
    return f"{true} →\n{predicted} {confidence:.0%}\n{split.image_name(index)[-length:]}"


def plot_mistakes(evaluation: Evaluation, split: Split) -> Figure:
    """Plot the most confident errors, with the images' indices or file names."""
    figure = Figure(figsize=(12, 11))
    mistakes = evaluation.most_confident_errors(MISTAKE_COLUMNS * MISTAKE_ROWS)
    figure.suptitle(
        f"The {len(mistakes)} most confident of {np.sum(~evaluation.correct):,} errors "
        f"on {len(evaluation.labels):,} test images: true → predicted",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    axes = figure.subplots()
    setup_thumbnail_axes(axes, MISTAKE_COLUMNS, MISTAKE_ROWS)
    for i, index in enumerate(mistakes):
        cell = i % MISTAKE_COLUMNS, i // MISTAKE_COLUMNS
        title = mistake_title(evaluation, split, index)
        draw_thumbnail(axes, cell, split.images[index], title, "black")
    return figure


def plot_neighbors(analysis: EmbeddingAnalysis, data: ImageDataset) -> Figure:
    """Plot each of the most confident errors next to its nearest training images."""
    evaluation = analysis.evaluation
    figure = Figure(figsize=(12, 10.5))
    figure.suptitle(
        f"The {len(analysis.mistakes)} most confident errors on {len(evaluation.labels):,} test "
        "images (true → predicted), each with its nearest training images\n"
        "Blue: labeled as predicted (is the test image's label wrong?); "
        "orange: labeled like the test image (is the model wrong?)",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    axes = figure.subplots()
    setup_thumbnail_axes(axes, columns=2 * (NUM_NEIGHBORS + 1) + 0.5, rows=NUM_MISTAKES / 2)
    names = [truncate(name, MAX_TITLE_CHARS) for name in evaluation.class_names]
    for i, index in enumerate(analysis.mistakes):
        column, row = i % 2 * (NUM_NEIGHBORS + 1.5), i // 2
        true, predicted = evaluation.labels[index], evaluation.predicted[index]
        title = mistake_title(evaluation, data.test, index, MAX_TITLE_CHARS)
        draw_thumbnail(axes, (column, row), data.test.images[index], title, "black")
        for rank, neighbor in enumerate(analysis.neighbors.indices[i], start=1):
            label = data.train.labels[neighbor]
            color = {predicted: BLUE, true: ORANGE}.get(label, GRAY)
            title = f"{names[label]}\n{data.train.image_name(neighbor)[-MAX_TITLE_CHARS:]}"
            cell = column + rank, row
            draw_thumbnail(axes, cell, data.train.images[neighbor], title, color)
    return figure
