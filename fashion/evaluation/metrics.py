"""How good a model is: all that is derived from its probabilities and the labels."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fashion.datasets.dataset import FashionMNIST

import numpy as np

Z95 = 1.959964  # standard normal quantile of 97.5 %


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share that was found among so many (Wilson 1927)."""
    square = Z95 * Z95 / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    return centre - half, centre + half


class Bin(NamedTuple):
    """Images of about the same confidence."""

    images: int
    confidence: float  # the mean
    accuracy: float


class Coverage(NamedTuple):
    """The accuracy on the surest share of the images."""

    coverage: float
    accuracy: float


class ClassScores(NamedTuple):
    """How well one class is told from the others, and what it is most often taken for."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    confused_with: str  # "" if with none
    confused: int  # how many images

    def record(self) -> dict[str, object]:
        """As a run notes them."""
        return {"class": self.name} | {name: getattr(self, name) for name in self._fields[1:]}


@dataclass(frozen=True)
class Evaluation:
    """A model's probabilities, float (N, classes), for images with these labels, int (N,)."""

    probabilities: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @cached_property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each image, int (N,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability of the likeliest class, float (N,)."""
        return self.probabilities.max(axis=1)

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether the likeliest class is the right one, bool (N,)."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """The share of images whose likeliest class is the right one."""
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        """The mean cross-entropy in nats; probabilities below 1e-7 count as 1e-7, as in Keras."""
        of_label = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(of_label, 1e-7), dtype="float64").mean())

    @property
    def interval95(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the accuracy."""
        return wilson_interval(self.accuracy, len(self.labels))

    @cached_property
    def calibration(self) -> list[Bin]:
        """Those of 15 bins of confidence that hold images."""
        bins = np.minimum((self.confidence * 15).astype(int), 14)
        return [
            Bin(
                images=int(np.sum(bins == i)),
                confidence=float(self.confidence[bins == i].mean(dtype="float64")),
                accuracy=float(self.correct[bins == i].mean()),
            )
            for i in np.unique(bins)
        ]

    @property
    def expected_calibration_error(self) -> float:
        """How far confidence and accuracy are apart, on average (Guo et al., ICML 2017)."""
        gaps = (bin.images * abs(bin.confidence - bin.accuracy) for bin in self.calibration)
        return sum(gaps) / len(self.labels)

    @cached_property
    def coverage(self) -> list[Coverage]:
        """The accuracy on the surest 1 %, 2 % … 100 % of the images."""
        surest_first = self.correct[np.argsort(-self.confidence, kind="stable")]
        rows = []
        for percent in range(1, 101):
            images = math.ceil(len(self.labels) * percent / 100)
            rows.append(Coverage(percent / 100, float(surest_first[:images].mean())))
        return rows

    @cached_property
    def confusion_matrix(self) -> np.ndarray:
        """How many images of each class (row) were taken for each class (column), int."""
        matrix = np.zeros((len(self.class_names), len(self.class_names)), int)
        np.add.at(matrix, (self.labels, self.predicted), 1)
        return matrix

    @cached_property
    def per_class(self) -> list[ClassScores]:
        """The scores of each class. A share of nothing counts as 0, as in scikit-learn."""
        rows = []
        for i, name in enumerate(self.class_names):
            hits, taken_for = int(self.confusion_matrix[i, i]), self.confusion_matrix[i].copy()
            support, answers = int(taken_for.sum()), int(self.confusion_matrix[:, i].sum())
            taken_for[i] = 0
            confused = int(taken_for.max())
            rows.append(
                ClassScores(
                    name=name,
                    precision=hits / max(answers, 1),
                    recall=hits / max(support, 1),
                    f1=2 * hits / max(support + answers, 1),
                    support=support,
                    confused_with=self.class_names[taken_for.argmax()] if confused else "",
                    confused=confused,
                )
            )
        return rows

    def mistakes(self, most: int) -> np.ndarray:
        """Where the model is wrong, the most confident mistakes first: int (at most `most`,)."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:most]

    def top3(self, image: int) -> str:
        """Such as "Shirt 61 %, Coat 30 %, Pullover 8 %"."""
        probabilities = self.probabilities[image]
        likeliest = np.argsort(-probabilities, kind="stable")[:3]
        return ", ".join(f"{self.class_names[i]} {probabilities[i]:.0%}" for i in likeliest)

    def summary(self) -> dict[str, object]:
        """What a run notes about each evaluation."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "interval95": self.interval95,
            "expected_calibration_error": self.expected_calibration_error,
        }

    def tables(self) -> dict[str, object]:
        """What a run notes besides about the test images."""
        return {
            "confusion_matrix": self.confusion_matrix.tolist(),
            "per_class": [scores.record() for scores in self.per_class],
        }


class Evaluations(NamedTuple):
    """A model's on each split."""

    train: Evaluation
    validation: Evaluation
    test: Evaluation

    @classmethod
    def of(cls, probabilities: dict[str, np.ndarray], data: FashionMNIST) -> "Evaluations":
        """From the probabilities for the images of each split, by its name."""
        return cls(
            train=Evaluation(probabilities["train"], data.train.labels, data.class_names),
            validation=Evaluation(
                probabilities["validation"], data.validation.labels, data.class_names
            ),
            test=Evaluation(probabilities["test"], data.test.labels, data.class_names),
        )
