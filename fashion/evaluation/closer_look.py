"""A closer look at a model's answers: training images like its mistakes, a map of the test images.

Both by its embeddings, which tell what it takes for alike.
"""

from dataclasses import dataclass

from fashion.datasets.dataset import FashionMNIST
from fashion.evaluation.embeddings import Answers, Nearest, Projection, nearest, project
from fashion.evaluation.metrics import Evaluation
from fashion.reporting.plot_style import BLUE, GREY, ORANGE, lay_out, of_mistake, put, shortened

import matplotlib
import numpy as np
from matplotlib.figure import Figure

MISTAKES, NEAREST = 12, 4
LETTERS = 13  # for so many there is room over a picture
DIMENSIONS = 50  # of a projection; W&B's projector takes no more


@dataclass(frozen=True)
class CloserLook:
    """The most confident mistakes on the test images, the nearest training images, embeddings."""

    test: Evaluation
    mistakes: np.ndarray  # int (M,): rows of the test images
    nearest: Nearest  # of the training images, to each mistake
    units: int  # of the embeddings
    projection: Projection  # of the test images'

    @classmethod
    def at(cls, answers: dict[str, Answers], test: Evaluation) -> "CloserLook":
        """From the answers to the images of each split, and the evaluation of the test images."""
        mistakes, embeddings = test.mistakes(MISTAKES), answers["test"].embeddings
        found = nearest(embeddings[mistakes], answers["train"].embeddings, NEAREST)
        return cls(test, mistakes, found, embeddings.shape[1], project(embeddings, DIMENSIONS))

    def draw_neighbours(self, data: FashionMNIST) -> Figure:
        """Each mistake, and beside it the training images that the model takes for most alike."""
        figure = Figure(figsize=(12, 10.5))
        figure.suptitle(
            f"The {len(self.mistakes)} most confident mistakes on {len(self.test.labels):,} test "
            "images (true → predicted), and the training images nearest to each\nBlue: with the "
            "label that was predicted (is the mistake's own wrong?); orange: with the mistake's "
            "own (is the model wrong?)",
            x=0.01,
            ha="left",
            fontsize=13,
        )
        axes, names = (
            figure.subplots(),
            [shortened(name, LETTERS) for name in self.test.class_names],
        )
        lay_out(axes, columns=2 * (NEAREST + 1) + 0.5, rows=MISTAKES / 2)
        for place, (i, rows) in enumerate(zip(self.mistakes, self.nearest.rows, strict=True)):
            column, row = place % 2 * (NEAREST + 1.5), place // 2
            true, predicted = self.test.labels[i], self.test.predicted[i]
            title = of_mistake(self.test, data.test, i, LETTERS)
            put(axes, (column, row), data.test.images[i], title, "black")
            for k, j in enumerate(rows, start=1):
                label = data.train.labels[j]
                colour = {predicted: BLUE, true: ORANGE}.get(label, GREY)
                title = f"{names[label]}\n{data.train.title(j)[-LETTERS:]}"
                put(axes, (column + k, row), data.train.images[j], title, colour)
        return figure

    def draw_map(self) -> Figure:
        """The test images in two dimensions, coloured by class."""
        points, share = self.projection.points[:, :2], self.projection.shares[:2].sum()
        figure = Figure(figsize=(12, 10))
        axes, names = figure.subplots(), self.test.class_names
        count = len(names)
        shades = np.arange(count) if count <= 10 else np.linspace(0, 0.9, count)
        colours = matplotlib.colormaps["tab10" if count <= 10 else "hsv"](shades)
        for name, chosen, size, marker, alpha in (
            ("right", self.test.correct, 6, "o", 0.5),
            ("wrong", ~self.test.correct, 18, "x", 1),
        ):
            axes.scatter(
                points[chosen, 0],
                points[chosen, 1],
                c=colours[self.test.labels[chosen]],
                s=size,
                marker=marker,
                alpha=alpha,
                linewidths=size / 18,
            )
            axes.scatter([], [], color="black", marker=marker, label=name)
        if count <= 40:  # there is room for no more names
            for name, colour in zip(names, colours, strict=True):
                axes.scatter([], [], color=colour, label=shortened(name))
        axes.set_title(
            f"{len(points):,} test images by what the model's last layer sees of them "
            f"({self.units} units), coloured by true class"
        )
        axes.set(xlabel=f"first principal component (both: {share:.0%} of the variance)")
        axes.set(ylabel="second principal component")
        axes.set_aspect("equal", adjustable="datalim")
        figure.legend(loc="outside right upper", fontsize=11 if count <= 25 else 8)
        return figure
