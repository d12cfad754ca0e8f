"""The pictures of a run, by matplotlib."""

from pathlib import Path

from fashion.datasets.dataset import FashionMNIST, Split
from fashion.evaluation.closer_look import CloserLook
from fashion.evaluation.metrics import Evaluation, Evaluations, wilson_interval
from fashion.reporting.plot_style import (
    BLUE,
    GREY,
    ORANGE,
    lay_out,
    of_mistake,
    our_style,
    put,
    shortened,
)
from fashion.tracking.history import Epoch, EpochLog

import numpy as np
from matplotlib.figure import Figure

NAMES = (
    "curves.png",
    "confusion_matrix.png",
    "mistakes.png",
    "neighbours.png",
    "map.png",
    "reliability.png",
)


def draw_run(
    folder: Path, evaluations: Evaluations, closer: CloserLook, data: FashionMNIST, log: EpochLog
) -> None:
    """Draws `NAMES` into a folder."""
    figures = (
        lambda: draw_curves(log.epochs, log.best.epoch),
        lambda: draw_confusion_matrix(evaluations.test),
        lambda: draw_mistakes(evaluations.test, data.test),
        lambda: closer.draw_neighbours(data),
        lambda: closer.draw_map(),
        lambda: draw_reliability(evaluations.validation, evaluations.test),
    )
    with our_style():
        for name, draw in zip(NAMES, figures, strict=True):
            draw().savefig(folder / name)


def draw_curves(history: list[Epoch], best_epoch: int) -> Figure:
    """Loss and accuracy, train beside validation; learning rate; seconds."""
    figure = Figure(figsize=(12, 8))
    epochs = [row.epoch for row in history]
    titles = {
        "accuracy": "Accuracy",
        "loss": "Loss",
        "learning_rate": "Learning rate at the epoch's start",
        "seconds": "Seconds",
    }
    for axes, (metric, title) in zip(figure.subplots(2, 2).flat, titles.items(), strict=True):
        marker = "o" if len(epochs) <= 50 else ""
        axes.plot(epochs, [getattr(row, metric) for row in history], color=BLUE, marker=marker)
        if hasattr(history[0], f"val_{metric}"):
            axes.lines[0].set_label("train, during the epoch")
            validation = [getattr(row, f"val_{metric}") for row in history]
            axes.plot(epochs, validation, color=ORANGE, marker=marker, label="validation")
            axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best epoch, {best_epoch}")
            axes.legend()
        else:
            axes.set_ylim(bottom=0)
        axes.set(title=title, xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_confusion_matrix(test: Evaluation) -> Figure:
    """Each class's images by predicted class, in percent of the row."""
    figure = Figure(figsize=(12, 10))
    axes = figure.subplots()
    names = [shortened(name) for name in test.class_names]
    size = min(12, 300 / len(names))  # of letters; those of figures fit for up to 25 classes
    percent = 100 * test.confusion_matrix / np.maximum(test.confusion_matrix.sum(1), 1)[:, None]
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (true, predicted), value in np.ndenumerate(percent if len(names) <= 25 else ()):
        text = f"{value:.1f}" if test.confusion_matrix[true, predicted] else "·"
        colour = "white" if value > 50 else "black"
        axes.text(predicted, true, text, ha="center", va="center", color=colour)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"Of {len(test.labels):,} test images, percent of each class (row)")
    axes.grid(False)
    return figure


def draw_mistakes(test: Evaluation, split: Split) -> Figure:
    """The most confident mistakes, with their numbers in the data set's file."""
    figure = Figure(figsize=(12, 11))
    wrong = test.mistakes(40)
    figure.suptitle(
        f"The {len(wrong)} most confident of {np.sum(~test.correct):,} mistakes "
        f"on {len(test.labels):,} test images: true → predicted",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    axes = figure.subplots()
    lay_out(axes, columns=8, rows=5)
    for place, i in enumerate(wrong):
        title = of_mistake(test, split, i)
        put(axes, (place % 8, place // 8), split.images[i], title, "black")
    return figure


def draw_reliability(validation: Evaluation, test: Evaluation) -> Figure:
    """Whether the confidence can be trusted, and the accuracy where the model is sure."""
    figure = Figure(figsize=(12, 6.5))
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    diagram = figure.add_subplot(grid[0, 0])
    counts = figure.add_subplot(grid[1, 0], sharex=diagram)
    coverage = figure.add_subplot(grid[:, 1])
    diagram.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="ideal")
    for name, part, colour, marker in (
        ("validation", validation, ORANGE, "s"),
        ("test", test, BLUE, "o"),
    ):
        confidence = [bin.confidence for bin in part.calibration]
        accuracy = [bin.accuracy for bin in part.calibration]
        intervals = [wilson_interval(bin.accuracy, bin.images) for bin in part.calibration]
        error = f"{name}, expected calibration error {part.expected_calibration_error:.3f}"
        diagram.plot(confidence, accuracy, color=colour, marker=marker, label=error)
        diagram.vlines(confidence, *np.transpose(intervals), color=colour, alpha=0.4)
        shares = [point.coverage for point in part.coverage]
        accuracy = [point.accuracy for point in part.coverage]
        coverage.plot(shares, accuracy, color=colour, label=f"{name}, all: {part.accuracy:.1%}")
    diagram.set(title="Reliability: below the line is too sure", ylabel="accuracy", ylim=(0, 1.02))
    diagram.legend(fontsize=11)
    counts.hist(test.confidence, bins=15, range=(0, 1), color=BLUE)
    counts.set(xlabel="confidence", ylabel="test images")
    coverage.set(title="Accuracy on the surest images", xlabel="share of the images, surest first")
    coverage.set(ylabel="accuracy", xlim=(0, 1.02))
    coverage.legend(fontsize=11)
    return figure
