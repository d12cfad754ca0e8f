"""history.csv, predictions.csv, metrics.json: how a run writes them, and another one reads them."""

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from fashion.datasets.dataset import Split
from fashion.evaluation.metrics import Evaluation
from fashion.reporting.comparison import Contender
from fashion.tracking.history import Epoch

import numpy as np


def write_history(folder: Path, epochs: Sequence[Epoch]) -> None:
    """A row for each epoch."""
    with open(folder / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, asdict(epochs[0]))
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in epochs)


def write_predictions(folder: Path, split: Split, evaluation: Evaluation) -> None:
    """A row for each image: its number in the data set's file, label, answer and confidence.

    If it was a file of its own, which one.
    """
    columns: list[Iterable] = [split.positions, evaluation.labels, evaluation.predicted]
    columns.append(evaluation.confidence)
    if split.files:
        columns.append(split.title(i) for i in range(split.size))
    with open(folder / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["position", "label", "predicted", "confidence", "file"][: len(columns)])
        writer.writerows(zip(*columns, strict=True))


def read(folder: Path) -> Contender:
    """What a comparison needs to know of the run that wrote the files of a folder.

    Raises:
        Exception: of many kinds, where something else lies there.
    """
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text())
    fine_tuned = metrics.get("config", {}).get("fine_tune_blocks")
    low, high = metrics["test"]["interval95"]

    def read_answers() -> tuple[np.ndarray, np.ndarray]:
        path = folder / "predictions.csv"
        with open(path, encoding="utf-8") as file:  # without the names of pictures, if it has any
            lines = [line.split(",", 3)[:3] for line in file]
        rows = np.array(lines[1:], float)
        return rows[:, 0], rows[:, 1] == rows[:, 2]

    return Contender(
        model=f"{metrics['model']}, fine-tuned" if fine_tuned else str(metrics["model"]),
        data_sha256=metrics["data"]["sha256"],
        train_images=int(metrics["data"]["train"]),
        validation_accuracy=float(metrics["validation"]["accuracy"]),
        test_accuracy=float(metrics["test"]["accuracy"]),
        test_interval95=(float(low), float(high)),
        seconds=float(metrics["seconds"]["total"]),
        finished=path.stat().st_mtime,
        read_answers=read_answers,
    )


def read_beside(folder: Path) -> Iterator[Contender]:
    """The runs in the folders beside one, and in itself, as far as they can be read."""
    for path in folder.resolve().parent.glob("*/metrics.json"):
        with contextlib.suppress(Exception):  # whatever lies there, it is no reason to fail
            yield read(path.parent)
