"""The pictures of a run, by matplotlib."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fashion.data import Split
from fashion.epochs import Epoch
from fashion.errors import UserError
from fashion.evaluation import Evaluation, Evaluations, wilson_interval

import matplotlib.font_manager
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

NAMES = ("curves.png", "confusion_matrix.png", "mistakes.png", "reliability.png")
DRAWN = 60  # of one's own pictures: more would be too large to look at
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"  # told apart by all (Okabe & Ito 2008)


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
    "text.parse_math": False,  # a dollar sign in a name is one
}
# Where the first has no letter, one of the others that are installed: Linux, Windows, macOS.
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Microsoft YaHei", "Malgun Gothic", "Hiragino Sans GB")


@contextlib.contextmanager
def our_style() -> Iterator[None]:
    """Draws with `STYLE`, not the user's own; says if classes have letters of no font."""
    installed = matplotlib.font_manager.get_font_names()
    fonts = {"font.family": [font for font in FONTS if font in installed]}
    style = matplotlib.style.context(["default", STYLE, fonts])
    with warnings.catch_warnings(record=True) as caught, style:
        yield
    missing = [warning for warning in caught if str(warning.message).startswith("Glyph ")]
    if missing:
        print("The pictures lack letters of some names: no font here has them", file=sys.stderr)
    for warning in caught:
        if warning not in missing:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def shortened(name: str) -> str:
    """As long as there is room for."""
    return name if len(name) <= 20 else f"{name[:19]}…"


def draw_run(
    folder: Path, evaluations: Evaluations, test: Split, epochs: list[Epoch], best_epoch: int
) -> None:
    """Draws `NAMES` into a folder."""
    figures = (
        lambda: draw_curves(epochs, best_epoch),
        lambda: draw_confusion_matrix(evaluations.test),
        lambda: draw_mistakes(evaluations.test, test),
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
    # On the same axes: as many axes as images would take as long as all the other pictures.
    axes = figure.subplots()
    axes.set(xlim=(0, 8), ylim=(7, 0), aspect="equal")
    axes.set_axis_off()
    for place, i in enumerate(wrong):
        left, top = place % 8, place // 8 * 1.4
        axes.imshow(
            split.images[i],
            extent=(left + 0.07, left + 0.93, top + 1.32, top + 0.46),
            cmap="gray_r",
            vmin=0,
            vmax=255,
            interpolation="nearest",
        )
        true, predicted = (
            shortened(test.class_names[label]) for label in (test.labels[i], test.predicted[i])
        )
        title = f"{true} →\n{predicted} {test.confidence[i]:.0%}\n{split.title(i)[-20:]}"
        axes.text(left + 0.5, top + 0.43, title, ha="center", va="bottom", fontsize=9.5)
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


class OwnPicture(NamedTuple):
    """One of the user's."""

    name: str
    original: Image.Image
    image: np.ndarray  # what the model sees of it, uint8 (28, 28)


def draw_own_pictures(
    path: Path, own: list[OwnPicture], probabilities: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """For each picture, up to `DRAWN`: itself, the 28×28 that the model saw, its probabilities.

    Those of the ten likeliest classes. The file appears whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    count = min(len(own), DRAWN)
    rows = (count + 1) // 2
    with our_style():
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
        part = path.with_name(f".incomplete-{path.name}")
        try:
            figure.savefig(part, format="png")
            part.replace(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error}") from None
