"""The charts and tables of W&B's dashboard."""

from collections.abc import Iterable, Mapping

from fashion.datasets.dataset import FashionMNIST, Split
from fashion.evaluation.closer_look import CloserLook
from fashion.evaluation.metrics import ClassScores, Evaluation, Evaluations
from fashion.tracking.history import Epoch

import numpy as np
import wandb

PROJECTED = 1000  # W&B's projector takes so many rows of a table


def log(
    run: wandb.Run,
    evaluations: Evaluations,
    closer: CloserLook,
    data: FashionMNIST,
    epochs: list[Epoch],
) -> None:
    """Logs all of them; of a sweep's trials, whose pictures would be hundred thousands, fewer."""
    log_evaluations(run, evaluations, data.test, epochs)
    if not run.sweep_id:
        log_closer_look(run, closer, data)


def log_evaluations(
    run: wandb.Run, evaluations: Evaluations, images: Split, epochs: list[Epoch]
) -> None:
    """Logs the charts and tables that show how good the model is and where it is wrong.

    Args:
        run: gets them.
        evaluations: the model's.
        images: the test images.
        epochs: the training's.
    """
    test, names = evaluations.test, evaluations.test.class_names

    def table(rows: np.ndarray) -> wandb.Table:
        columns: list[str | int] = [
            "image",
            "true",
            "predicted",
            "confidence",
            "correct",
            "top three",
            "position",
            *(["file"] if images.files else []),
        ]
        table = wandb.Table(columns)
        for i in rows:
            row = [*_shown(test, images, i), float(test.confidence[i]), bool(test.correct[i])]
            row += [test.top3(i), int(images.positions[i])]
            table.add_data(*row, *([images.title(i)] if images.files else []))
        return table

    def lines(points: Mapping[str, Iterable[tuple]], x: str, title: str) -> object:
        xs = [[point[0] for point in line] for line in points.values()]
        ys = [[point[1] for point in line] for line in points.values()]
        return wandb.plot.line_series(xs, ys, keys=list(points), title=title, xname=x)

    def curve(metric: str) -> dict[str, list[tuple]]:
        return {
            "train": [(row.epoch, getattr(row, metric)) for row in epochs],
            "validation": [(row.epoch, getattr(row, f"val_{metric}")) for row in epochs],
        }

    held_out = {"validation": evaluations.validation, "test": evaluations.test}
    perfect = [(0, 0), (1, 1)]
    by_class = [np.flatnonzero(test.labels == i)[:10] for i in range(len(names))]
    run.log(
        {
            "report/accuracy": lines(curve("accuracy"), x="epoch", title="Accuracy by epoch"),
            "report/loss": lines(curve("loss"), x="epoch", title="Loss by epoch"),
            "test/confusion_matrix": wandb.plot.confusion_matrix(
                y_true=test.labels.tolist(),
                preds=test.predicted.tolist(),
                class_names=list(names),
                title="Test images by class",
            ),
            "test/per_class": wandb.Table(
                columns=["class", *ClassScores._fields[1:]],
                data=[list(scores) for scores in test.per_class],
            ),
            "test/mistakes": table(test.mistakes(100)),
            "test/examples": table(np.concatenate(by_class)),
            "test/reliability": lines(
                {
                    name: [(bin.confidence, bin.accuracy) for bin in part.calibration]
                    for name, part in held_out.items()
                }
                | {"ideal": perfect},
                x="confidence",
                title="Accuracy at each confidence",
            ),
            "test/coverage": lines(
                {name: part.coverage for name, part in held_out.items()},
                x="coverage",
                title="Accuracy on the surest share of the images",
            ),
        }
    )


def log_closer_look(run: wandb.Run, closer: CloserLook, data: FashionMNIST) -> None:
    """Logs the training images that are like the most confident mistakes, and the map's images."""
    test, names = closer.test, closer.test.class_names
    columns: list[str | int] = ["image", "true", "predicted", "confidence", "position"]
    numbers = range(1, closer.nearest.rows.shape[1] + 1)
    for number in numbers:
        columns += [f"{what} {number}" for what in ("nearest", "label", "distance", "its position")]
    neighbours = wandb.Table(columns)
    for i, rows, distances in zip(closer.mistakes, *closer.nearest, strict=True):
        row = [*_shown(test, data.test, i), float(test.confidence[i]), int(data.test.positions[i])]
        for j, distance in zip(rows, distances, strict=True):
            row += [_enlarged(data.train.images[j]), names[data.train.labels[j]], float(distance)]
            row += [int(data.train.positions[j])]
        neighbours.add_data(*row)
    points = closer.projection.points[:PROJECTED, : closer.units]  # of fewer units, without zeros
    projected = wandb.Table(["image", "class", "predicted", "correct", "embedding"])
    for i, point in enumerate(points):
        embedding = [round(float(x), 4) for x in point]
        projected.add_data(*_shown(test, data.test, i), bool(test.correct[i]), embedding)
    run.log({"test/neighbours": neighbours, "test/embeddings": projected})


def _shown(test: Evaluation, images: Split, row: int) -> tuple[wandb.Image, str, str]:
    """A test image, its class, and the one it was taken for."""
    names = test.class_names
    classes = names[test.labels[row]], names[test.predicted[row]]
    return _enlarged(images.images[row]), *classes


def _enlarged(image: np.ndarray) -> wandb.Image:
    """Large enough to look at: uint8 (28, 28), four times."""
    return wandb.Image(image.repeat(4, axis=0).repeat(4, axis=1))
