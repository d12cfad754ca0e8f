"""The figures of a run: curves, confusion matrix, reliability, t-SNE."""

from pathlib import Path

from fashion.datasets.dataset import ImageDataset
from fashion.evaluation.embeddings import EmbeddingAnalysis
from fashion.evaluation.metrics import Evaluation, SplitEvaluations, wilson_interval
from fashion.reporting.image_grids import plot_mistakes, plot_neighbors
from fashion.reporting.plot_style import BLUE, GRAY, ORANGE, plot_style, truncate
from fashion.tracking.history import EpochLogger, EpochMetrics

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

FIGURE_FILES = (
    "curves.png",
    "confusion_matrix.png",
    "mistakes.png",
    "neighbors.png",
    "map.png",
    "reliability.png",
)
MAX_EPOCHS_WITH_MARKERS = 50
MAX_CLASSES_WITH_NUMBERS = 25  # in the confusion matrix
MAX_CLASSES_IN_LEGEND = 40


def save_figures(
    directory: Path,
    evaluations: SplitEvaluations,
    analysis: EmbeddingAnalysis,
    data: ImageDataset,
    epoch_logger: EpochLogger,
) -> None:
    """Save `FIGURE_FILES` in a directory."""
    plot_functions = (
        lambda: plot_learning_curves(epoch_logger.epochs, epoch_logger.best.epoch),
        lambda: plot_confusion_matrix(evaluations.test),
        lambda: plot_mistakes(evaluations.test, data.test),
        lambda: plot_neighbors(analysis, data),
        lambda: plot_prediction_map(analysis),
        lambda: plot_reliability(evaluations.validation, evaluations.test),
    )
    with plot_style():
        for name, plot in zip(FIGURE_FILES, plot_functions, strict=True):
            plot().savefig(directory / name)


def plot_learning_curves(epochs: list[EpochMetrics], best_epoch: int) -> Figure:
    """Plot accuracy and loss of training and validation, learning rate and seconds by epoch."""
    figure = Figure(figsize=(12, 8))
    x = [metrics.epoch for metrics in epochs]
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
            axes.axvline(best_epoch, color=GRAY, linestyle=":", label=f"best epoch ({best_epoch})")
            axes.legend()
        else:
            axes.set_ylim(bottom=0)
        axes.set(title=title, xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_confusion_matrix(evaluation: Evaluation) -> Figure:
    """Plot the confusion matrix, in percent of each row."""
    figure = Figure(figsize=(12, 10))
    axes = figure.subplots()
    names = [truncate(name) for name in evaluation.class_names]
    label_size = min(12, 300 / len(names))
    counts = evaluation.confusion_matrix
    percent = 100 * counts / np.maximum(counts.sum(axis=1), 1)[:, None]
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    if len(names) <= MAX_CLASSES_WITH_NUMBERS:
        for (true, predicted), value in np.ndenumerate(percent):
            text = f"{value:.1f}" if counts[true, predicted] else "·"
            color = "white" if value > 50 else "black"
            axes.text(predicted, true, text, ha="center", va="center", color=color)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, fontsize=label_size)
    axes.set_yticks(ticks, names, fontsize=label_size)
    for label in axes.get_xticklabels():
        label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{len(evaluation.labels):,} test images, percent of each true class (row)")
    axes.grid(False)
    return figure


def plot_reliability(validation: Evaluation, test: Evaluation) -> Figure:
    """Plot the reliability diagram, a histogram of confidence, and accuracy by coverage."""
    figure = Figure(figsize=(12, 6.5))
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    diagram = figure.add_subplot(grid[0, 0])
    histogram = figure.add_subplot(grid[1, 0], sharex=diagram)
    coverage = figure.add_subplot(grid[:, 1])
    diagram.plot([0, 1], [0, 1], color=GRAY, linestyle=":", label="perfect calibration")
    for name, evaluation, color, marker in (
        ("validation", validation, ORANGE, "s"),
        ("test", test, BLUE, "o"),
    ):
        _plot_calibration(diagram, name, evaluation, color, marker)
        fractions = [point.coverage for point in evaluation.coverage_curve]
        accuracy = [point.accuracy for point in evaluation.coverage_curve]
        label = f"{name}, all images: {evaluation.accuracy:.1%}"
        coverage.plot(fractions, accuracy, color=color, label=label)
    diagram.set(title="Reliability (below the diagonal: overconfident)", ylabel="accuracy")
    diagram.set(ylim=(0, 1.02))
    diagram.legend(fontsize=11)
    histogram.hist(test.confidence, bins=15, range=(0, 1), color=BLUE)
    histogram.set(xlabel="confidence", ylabel="test images")
    coverage.set(title="Accuracy on the most confident images", ylabel="accuracy")
    coverage.set(xlabel="fraction of images, most confident first", xlim=(0, 1.02))
    coverage.legend(fontsize=11)
    return figure


def _plot_calibration(
    axes: Axes, name: str, evaluation: Evaluation, color: str, marker: str
) -> None:
    """Plot accuracy by confidence, with Wilson intervals."""
    bins = evaluation.calibration_bins
    confidence = [bin.confidence for bin in bins]
    intervals = [wilson_interval(bin.accuracy, bin.num_images) for bin in bins]
    error = evaluation.expected_calibration_error
    label = f"{name}, expected calibration error {error:.3f}"
    axes.plot(confidence, [bin.accuracy for bin in bins], color=color, marker=marker, label=label)
    axes.vlines(confidence, *np.transpose(intervals), color=color, alpha=0.4)


def plot_prediction_map(analysis: EmbeddingAnalysis) -> Figure:
    """Plot test images such that those with similar probabilities are near each other."""
    evaluation, points = analysis.evaluation, analysis.map_points
    labels, correct = (
        values[analysis.map_indices] for values in (evaluation.labels, evaluation.correct)
    )
    figure = Figure(figsize=(12, 10))
    axes, names = figure.subplots(), evaluation.class_names
    num_classes = len(names)
    positions = np.arange(num_classes) if num_classes <= 10 else np.linspace(0, 0.9, num_classes)
    colors = matplotlib.colormaps["tab10" if num_classes <= 10 else "hsv"](positions)
    for label, mask, size, marker, alpha in (
        ("correct", correct, 12, "o", 0.5),
        ("wrong", ~correct, 36, "x", 1),
    ):
        axes.scatter(
            points[mask, 0],
            points[mask, 1],
            c=colors[labels[mask]],
            s=size,
            marker=marker,
            alpha=alpha,
            linewidths=size / 24,
        )
        axes.scatter([], [], color="black", marker=marker, label=label)
    if num_classes <= MAX_CLASSES_IN_LEGEND:
        for name, color in zip(names, colors, strict=True):
            axes.scatter([], [], color=color, label=truncate(name))
        _write_class_names(axes, points, labels, names)
    num_images = f"{len(points):,}"
    if len(points) < len(evaluation.labels):
        num_images += f" of {len(evaluation.labels):,}"
    axes.set_title(f"t-SNE of the probabilities of {num_images} test images, colored by true class")
    axes.set(xticks=[], yticks=[])  # the units have no meaning
    axes.margins(0.08)  # for the names
    axes.set_aspect("equal", adjustable="datalim")
    entries = [c for c in axes.collections if not str(c.get_label()).startswith("_child")]
    legend = figure.legend(
        entries,
        ["" for _ in entries],
        loc="outside right upper",
        fontsize=11 if num_classes <= 25 else 8,
    )
    # Set afterwards, since Matplotlib may leave out labels that start with "_".
    for text, entry in zip(legend.get_texts(), entries, strict=True):
        text.set_text(str(entry.get_label()))
    return figure


def _write_class_names(
    axes: Axes, points: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> None:
    """Write the name of each class just above the median of its points."""
    outline = [withStroke(linewidth=4, foreground="white")]
    for label in np.unique(labels):
        axes.annotate(
            truncate(names[label]),
            np.median(points[labels == label], axis=0),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=13 if len(names) <= 10 else 9,
            path_effects=outline,
        )
