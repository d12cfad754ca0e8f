"""This run beside the last one of another model on the same data."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fashion.evaluation.metrics import Z95

import numpy as np

HEADER = ("model", "train images", "validation", "test (95 % interval)", "time")


@dataclass(frozen=True)
class Contender:
    """What a comparison needs to know about a run."""

    model: str  # models are the two scripts', and the fine-tuned one
    data_sha256: dict[str, str]  # of each file
    train_images: int
    validation_accuracy: float
    test_accuracy: float
    test_interval95: tuple[float, float]
    seconds: float
    finished: float  # when: seconds since 1970
    # The test images' numbers in the data set's file, int (N,), and which were right, bool (N,).
    read_answers: Callable[[], tuple[np.ndarray, np.ndarray]]

    def row(self) -> list[str]:
        """As `HEADER` says."""
        low, high = self.test_interval95
        return [
            self.model,
            f"{self.train_images:,}",
            f"{self.validation_accuracy:.1%}",
            f"{self.test_accuracy:.1%} ({low:.1%} to {high:.1%})",
            f"{self.seconds:.0f} s",
        ]


@dataclass(frozen=True)
class Comparison:
    """A table and a sentence on the difference, or ""."""

    rows: list[list[str]]  # the first its header
    sentence: str


def compare(this: Contender, others: Iterable[Contender]) -> Comparison:
    """A run beside the last of the others that is another model's, on the same data."""
    rivals = [
        other
        for other in others
        if other.data_sha256 == this.data_sha256 and other.model != this.model
    ]
    if not rivals:
        return Comparison([list(HEADER), this.row()], "")
    last = max(rivals, key=lambda other: other.finished)
    return Comparison([list(HEADER), last.row(), this.row()], _difference(this, last))


def _difference(this: Contender, other: Contender) -> str:
    """Says how far two models differ in accuracy on the same images; else there is no word.

    The interval is that of the mean of paired differences, narrower than the models' own intervals
    suggest. It needs some images on which one is right and the other wrong.
    """
    positions, correct = this.read_answers()
    try:
        other_positions, other_correct = other.read_answers()
    except (OSError, ValueError, IndexError):  # whatever lies there, it is no reason to fail
        return ""
    if not np.array_equal(positions, other_positions):
        return ""
    differences = correct.astype(float) - other_correct
    if np.count_nonzero(differences) < 10:
        return ""
    mean = differences.mean()
    half = Z95 * differences.std(ddof=1) / math.sqrt(len(differences))
    return (
        f"On the same {len(correct):,} test images, {this.model} is {100 * abs(mean):.1f} points "
        f"{'better' if mean >= 0 else 'worse'} than {other.model} (difference, 95 % interval: "
        f"{100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})."
    )
