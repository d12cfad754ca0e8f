"""The figures of a run."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from fashion import errors
from fashion.datasets.splits import ImageDataset, Split
from fashion.files import replacing
from fashion.results.evaluation import Evaluation, Neighbors, sample_rows, tsne, wilson_interval
from fashion.run import EpochMetrics, best_epoch

import matplotlib.font_manager
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

MAX_EPOCHS_WITH_MARKERS = 50
MAX_CLASSES_WITH_NUMBERS = 25  # in the confusion matrix
MAX_CLASSES_IN_LEGEND = 40
MAX_TSNE_IMAGES = 1000  # more would take seconds
MISTAKE_COLUMNS, MISTAKE_ROWS = 8, 5
NUM_NEIGHBOR_MISTAKES, NUM_NEIGHBORS = 12, 4
MAX_TITLE_CHARS = 13  # per line above the thumbnails of `plot_neighbors`
CELL_HEIGHT = 1.4  # in units of the cell's width: three lines of text and a thumbnail

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"  # colorblind-safe (Okabe & Ito 2008)
STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "text.parse_math": False,  # dollar signs in names are not formulas
}
# The others supply characters that the first one lacks, on Linux, Windows and macOS.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Hiragino Sans GB",
)


# Each function of `FIGURES` takes, by keyword, what it needs of the arguments of `save_figures`.


def plot_curves(*, epochs: list[EpochMetrics], **_: object) -> Figure:
    """Plot accuracy and loss of training and validation, learning rate and seconds by epoch."""
    figure = Figure(figsize=(12, 8))
    x = [metrics.epoch for metrics in epochs]
    best = best_epoch(epochs).epoch
    titles = {
        "accuracy": "Accuracy",
        "loss": "Loss",
        "learning_rate": "Learning rate at the start of the epoch",
        "seconds": "Seconds per epoch",
    }
    marker = "o" if len(epochs) <= MAX_EPOCHS_WITH_MARKERS else ""
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, titles.items(), strict=True):
        axes.plot(x, [getattr(metrics, name) for metrics in epochs], color=BLUE, marker=marker)
        if hasattr(epochs[0], f"val_{name}"):
            axes.lines[0].set_label("train, during the epoch")
            validation = [getattr(metrics, f"val_{name}") for metrics in epochs]
            axes.plot(x, validation, color=ORANGE, marker=marker, label="validation")
            axes.axvline(best, color=GRAY, linestyle=":", label=f"best epoch ({best})")
            axes.legend()
        else:
            axes.set_ylim(bottom=0)
        axes.set(title=title, xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_confusion_matrix(*, evaluations: dict[str, Evaluation], **_: object) -> Figure:
    """Plot the confusion matrix, in percent of each row."""
    from sklearn.metrics import ConfusionMatrixDisplay  # slow to import

    test = evaluations["test"]
    names = [truncate(name) for name in test.class_names]
    counts = test.confusion_matrix
    percent = 100 * counts / np.maximum(counts.sum(axis=1), 1)[:, None]
    figure = Figure(figsize=(12, 10))
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(percent, display_labels=names).plot(
        include_values=len(names) <= MAX_CLASSES_WITH_NUMBERS,
        values_format=".1f",
        cmap="Blues",
        im_kw={"vmin": 0, "vmax": 100},
        colorbar=False,
        ax=axes,
    )
    if display.text_ is not None:
        for text in display.text_[counts == 0]:
            text.set_text("·")
    axes.tick_params(labelsize=min(12, 300 / len(names)))
    for label in axes.get_xticklabels():
        label.set(rotation=45, ha="right", rotation_mode="anchor")
    title = f"{len(test.labels):,} test images, percent of each true class (row)"
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    axes.grid(False)
    return figure


def plot_reliability(*, evaluations: dict[str, Evaluation], **_: object) -> Figure:
    """Plot the reliability diagram, a histogram of confidence, and accuracy by coverage."""
    figure = Figure(figsize=(12, 6.5))
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    diagram = figure.add_subplot(grid[0, 0])
    histogram = figure.add_subplot(grid[1, 0], sharex=diagram)
    coverage = figure.add_subplot(grid[:, 1])
    diagram.plot([0, 1], [0, 1], color=GRAY, linestyle=":", label="perfect calibration")
    for name, color, marker in ("validation", ORANGE, "s"), ("test", BLUE, "o"):
        evaluation = evaluations[name]
        num_images, confidence, accuracy = zip(*evaluation.calibration_bins, strict=True)
        intervals = map(wilson_interval, accuracy, num_images)
        label = f"{name}, expected calibration error {evaluation.expected_calibration_error:.3f}"
        diagram.plot(confidence, accuracy, color=color, marker=marker, label=label)
        diagram.vlines(confidence, *zip(*intervals, strict=True), color=color, alpha=0.4)
        curve = evaluation.coverage_curve
        label = f"{name}, all images: {evaluation.accuracy:.1%}"
        coverage.plot(list(curve), list(curve.values()), color=color, label=label)
    title = "Reliability (below the diagonal: overconfident)"
    diagram.set(title=title, ylabel="accuracy", ylim=(0, 1.02))
    diagram.legend(fontsize=11)
    histogram.hist(evaluations["test"].confidence, bins=15, range=(0, 1), color=BLUE)
    histogram.set(xlabel="confidence", ylabel="test images")
    coverage.set(title="Accuracy on the most confident images", ylabel="accuracy")
    coverage.set(xlabel="fraction of images, most confident first", xlim=(0, 1.02))
    coverage.legend(fontsize=11)
    return figure


def plot_tsne(*, evaluations: dict[str, Evaluation], **_: object) -> Figure:
    """Plot test images such that those with similar probabilities are near each other."""
    test = evaluations["test"]
    names, num_classes = test.class_names, len(test.class_names)
    rows = sample_rows(len(test.labels), MAX_TSNE_IMAGES)
    points, labels, correct = tsne(test.probabilities[rows]), test.labels[rows], test.correct[rows]
    positions = np.arange(num_classes) if num_classes <= 10 else np.linspace(0, 0.9, num_classes)
    colors = matplotlib.colormaps["tab10" if num_classes <= 10 else "hsv"](positions)
    figure = Figure(figsize=(12, 10))
    axes = figure.subplots()
    (x, y), c = points.T, colors[labels]
    axes.scatter(x[correct], y[correct], s=12, c=c[correct], alpha=0.5, linewidths=0.5)
    axes.scatter(x[~correct], y[~correct], s=36, c=c[~correct], marker="x", linewidths=1.5)
    axes.scatter([], [], color="black", label=" correct")
    axes.scatter([], [], color="black", marker="x", label=" wrong")
    if num_classes <= MAX_CLASSES_IN_LEGEND:
        for name, color in zip(names, colors, strict=True):
            # With a space, since Matplotlib leaves out labels that start with "_".
            axes.scatter([], [], color=color, label=f" {truncate(name)}")
        for label in np.unique(labels):
            axes.annotate(
                truncate(names[label]),
                np.median(points[labels == label], axis=0),
                xytext=(0, 4),  # just above the median of the points
                textcoords="offset points",
                ha="center",
                fontsize=13 if num_classes <= 10 else 9,
                path_effects=[withStroke(linewidth=4, foreground="white")],
            )
    num_images = f"{len(rows):,}"
    if len(rows) < len(test.labels):
        num_images += f" of {len(test.labels):,}"
    axes.set_title(f"t-SNE of the probabilities of {num_images} test images, colored by true class")
    axes.set(xticks=[], yticks=[])  # the units have no meaning
    axes.margins(0.08)  # for the names
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside right upper", fontsize=11 if num_classes <= 25 else 8)
    return figure


def plot_mistakes(*, evaluations: dict[str, Evaluation], data: ImageDataset, **_: object) -> Figure:
    """Plot the most confident errors, with the images' indices or file names."""
    test = evaluations["test"]
    mistakes = test.most_confident_errors(MISTAKE_COLUMNS * MISTAKE_ROWS)
    title = (
        f"The {len(mistakes)} most confident of {np.sum(~test.correct):,} errors on "
        f"{len(test.labels):,} test images: true → predicted"
    )
    figure, axes = _thumbnail_figure(title, MISTAKE_COLUMNS, MISTAKE_ROWS, height=11)
    for i, index in enumerate(mistakes):
        row, column = divmod(i, MISTAKE_COLUMNS)
        title = _mistake_title(test, data.test, index)
        _draw_thumbnail(axes, column, row, data.test.images[index], title)
    return figure


def plot_neighbors(
    *, evaluations: dict[str, Evaluation], data: ImageDataset, neighbors: Neighbors, **_: object
) -> Figure:
    """Plot each of the most confident errors next to its nearest training images."""
    test, train = evaluations["test"], data.train
    mistakes = test.most_confident_errors(NUM_NEIGHBOR_MISTAKES)
    title = (
        f"The {len(mistakes)} most confident errors on {len(test.labels):,} test images (true → "
        "predicted), each with its nearest training images\n"
        "Blue: labeled as predicted (is the test image's label wrong?); "
        "orange: labeled like the test image (is the model wrong?)"
    )
    # Two errors per row, with half a column between them.
    columns, rows = 2 * (NUM_NEIGHBORS + 1) + 0.5, NUM_NEIGHBOR_MISTAKES / 2
    figure, axes = _thumbnail_figure(title, columns, rows, height=10.5)
    for i, index in enumerate(mistakes):
        row, column = i // 2, i % 2 * (NUM_NEIGHBORS + 1.5)
        title = _mistake_title(test, data.test, index, MAX_TITLE_CHARS)
        _draw_thumbnail(axes, column, row, data.test.images[index], title)
        colors = {test.labels[index]: ORANGE, test.predicted[index]: BLUE}
        for rank, j in enumerate(neighbors.indices[i], start=1):
            label = train.labels[j]
            name = truncate(test.class_names[label], MAX_TITLE_CHARS)
            title = f"{name}\n{train.image_name(j)[-MAX_TITLE_CHARS:]}"
            color = colors.get(label, GRAY)
            _draw_thumbnail(axes, column + rank, row, train.images[j], title, color)
    return figure


def _thumbnail_figure(
    title: str, columns: float, rows: float, height: float
) -> tuple[Figure, Axes]:
    """Return a figure with axes for a grid of thumbnails.

    One axes per thumbnail would take as long to draw as all other figures of a run.
    """
    figure = Figure(figsize=(12, height))
    axes = figure.subplots()
    axes.set_title(title, pad=16)
    axes.set(xlim=(0, columns), ylim=(CELL_HEIGHT * rows, 0), aspect="equal")
    axes.set_axis_off()
    return figure, axes


def _draw_thumbnail(
    axes: Axes, column: float, row: int, image: np.ndarray, title: str, color: str = "black"
) -> None:
    """Draw an image, uint8 (28, 28), below its title."""
    top = row * CELL_HEIGHT
    extent = (column + 0.07, column + 0.93, top + 1.32, top + 0.46)
    axes.imshow(image, "gray_r", vmin=0, vmax=255, extent=extent, interpolation="nearest")
    axes.text(column + 0.5, top + 0.43, title, ha="center", va="bottom", fontsize=9.5, color=color)


def _mistake_title(test: Evaluation, split: Split, index: int, length: int = 20) -> str:
    """Return the title of a misclassified image: label, prediction, image name."""
    true, predicted = (
        truncate(test.class_names[label], length)
        for label in (test.labels[index], test.predicted[index])
    )
    confidence = test.confidence[index]
    return f"{true} →\n{predicted} {confidence:.0%}\n{split.image_name(index)[-length:]}"


def truncate(name: str, length: int = 20) -> str:
    """Shorten a name to `length` characters, with an ellipsis at its end."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


FIGURES: dict[str, Callable[..., Figure]] = {
    "curves.png": plot_curves,
    "confusion_matrix.png": plot_confusion_matrix,
    "mistakes.png": plot_mistakes,
    "neighbors.png": plot_neighbors,
    "tsne.png": plot_tsne,
    "reliability.png": plot_reliability,
}


def save_figures(directory: Path, **results: object) -> None:
    """Save `FIGURES` in a directory; print a warning for each that fails.

    `results` are epochs, data, evaluations by the name of the split, and neighbors: the nearest
    training images of the `NUM_NEIGHBOR_MISTAKES` most confident errors, or None.
    """
    with plot_style():
        for name, plot in FIGURES.items():
            if name == "neighbors.png" and results["neighbors"] is None:
                continue  # which has failed before
            with errors.warn_on_failure(name), replacing(directory / name) as path:
                plot(**results).savefig(path)


@contextlib.contextmanager
def plot_style() -> Iterator[None]:
    """Apply `STYLE` in place of the user's style; warn about characters that no font contains."""
    installed = matplotlib.font_manager.get_font_names()
    fonts = {"font.family": [font for font in FONTS if font in installed]}
    style = matplotlib.style.context(["default", STYLE, fonts])
    with warnings.catch_warnings(record=True) as caught, style:
        yield
    if any(str(warning.message).startswith("Glyph ") for warning in caught):
        errors.print_warning(
            "some characters in class or file names are missing from the installed fonts and are "
            "not shown in the figures."
        )
