"""Comparison of a run with the latest run of another model on the same data."""

import contextlib
import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fashion.evaluation.metrics import Z95

import numpy as np

HEADER = ("model", "train images", "validation", "test (95 % interval)", "time")
MIN_DISAGREEMENTS = 10  # fewer are too few for the interval of a paired difference


@dataclass(frozen=True)
class RunSummary:
    """The results of a run that a comparison needs."""

    model: str  # name of the script, with ", fine-tuned" appended for fine-tuned models
    data_sha256: dict[str, str]  # by file
    train_images: int
    validation_accuracy: float
    test_accuracy: float
    test_accuracy_ci95: tuple[float, float]
    seconds: float
    finished: float  # seconds since 1970
    # Returns the test images' indices, int (N,), and whether each prediction is correct, bool (N,).
    load_test_results: Callable[[], tuple[np.ndarray, np.ndarray]]

    def table_row(self) -> list[str]:
        """Return the cells below `HEADER`."""
        low, high = self.test_accuracy_ci95
        return [
            self.model,
            f"{self.train_images:,}",
            f"{self.validation_accuracy:.1%}",
            f"{self.test_accuracy:.1%} ({low:.1%} to {high:.1%})",
            f"{self.seconds:.0f} s",
        ]


@dataclass(frozen=True)
class Comparison:
    """A table of runs, and a sentence on their difference or ""."""

    rows: list[list[str]]  # the first row is the header
    difference: str


def compare(this: RunSummary, others: Iterable[RunSummary]) -> Comparison:
    """Compare a run with the latest of `others` that has another model and the same data."""
    other_models = [
        other
        for other in others
        if other.data_sha256 == this.data_sha256 and other.model != this.model
    ]
    if not other_models:
        return Comparison([list(HEADER), this.table_row()], "")
    latest = max(other_models, key=lambda other: other.finished)
    rows = [list(HEADER), latest.table_row(), this.table_row()]
    return Comparison(rows, _format_difference(this, latest))


def _format_difference(this: RunSummary, other: RunSummary) -> str:
    """Describe the paired accuracy difference, or return "" if there is none to report.

    The interval is the one of the mean of paired differences, which is narrower than the intervals
    of the two accuracies suggest. It needs images on which the two models disagree.
    """
    indices, correct = this.load_test_results()
    try:
        other_indices, other_correct = other.load_test_results()
    except (OSError, ValueError, IndexError):  # ignore unreadable files
        return ""
    if not np.array_equal(indices, other_indices):
        return ""
    differences = correct.astype(float) - other_correct
    if np.count_nonzero(differences) < MIN_DISAGREEMENTS:
        return ""
    mean = differences.mean()
    half_width = Z95 * differences.std(ddof=1) / math.sqrt(len(differences))
    return (
        f"On the same {len(correct):,} test images, {this.model} is {100 * abs(mean):.1f} "
        f"percentage points {'better' if mean >= 0 else 'worse'} than {other.model} "
        f"(difference, 95 % interval: {100 * (mean - half_width):+.1f} to "
        f"{100 * (mean + half_width):+.1f})."
    )


def load_run_summary(directory: Path) -> RunSummary:
    """Load the summary of the run that wrote the files in a directory.

    Raises:
        Exception: If the files cannot be read; the exception depends on what they contain.
    """
    path = directory / "metrics.json"
    metrics = json.loads(path.read_text())
    is_fine_tuned = metrics.get("config", {}).get("fine_tune_blocks")
    low, high = metrics["test"]["interval95"]

    def load_test_results() -> tuple[np.ndarray, np.ndarray]:
        with open(directory / "predictions.csv", newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        # Earlier versions called the index "position".
        index = header.index("index" if "index" in header else "position")
        columns = index, header.index("label"), header.index("predicted")
        values = np.array([[row[column] for column in columns] for row in rows], int)
        return values[:, 0], values[:, 1] == values[:, 2]

    return RunSummary(
        model=f"{metrics['model']}, fine-tuned" if is_fine_tuned else str(metrics["model"]),
        data_sha256=metrics["data"]["sha256"],
        train_images=int(metrics["data"]["train"]),
        validation_accuracy=float(metrics["validation"]["accuracy"]),
        test_accuracy=float(metrics["test"]["accuracy"]),
        test_accuracy_ci95=(float(low), float(high)),
        seconds=float(metrics["seconds"]["total"]),
        finished=path.stat().st_mtime,
        load_test_results=load_test_results,
    )


def find_sibling_runs(directory: Path) -> Iterator[RunSummary]:
    """Yield the readable runs in the directories next to `directory`, and in itself."""
    for path in directory.resolve().parent.glob("*/metrics.json"):
        with contextlib.suppress(Exception):  # ignore unreadable files
            yield load_run_summary(path.parent)
