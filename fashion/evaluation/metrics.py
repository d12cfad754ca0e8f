"""Metrics of a model, computed from its probabilities and the labels."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fashion.datasets.dataset import ImageDataset

import keras
import numpy as np

Z95 = 1.959964  # standard normal quantile of 97.5 %
NUM_CALIBRATION_BINS = 15


def parameter_counts(model: keras.Model) -> dict[str, int]:
    """Return the number of trainable and frozen parameters of a model."""
    return {
        "trainable": sum(math.prod(weight.shape) for weight in model.trainable_weights),
        "frozen": sum(math.prod(weight.shape) for weight in model.non_trainable_weights),
    }


def wilson_interval(proportion: float, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion of `n` trials (Wilson 1927)."""
    square = Z95 * Z95 / n
    center = (proportion + square / 2) / (1 + square)
    variance = proportion * (1 - proportion) * square + square * square / 4
    half_width = math.sqrt(variance) / (1 + square)
    return center - half_width, center + half_width


class CalibrationBin(NamedTuple):
    """Images with similar confidence."""

    num_images: int
    confidence: float  # mean
    accuracy: float


class CoveragePoint(NamedTuple):
    """Accuracy on the fraction `coverage` of the images that has the highest confidence."""

    coverage: float
    accuracy: float


class ClassScores(NamedTuple):
    """Scores of one class, and the class that its images are most often mistaken for."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    most_confused_with: str  # "" if never confused
    most_confused_count: int  # number of images

    def as_dict(self) -> dict[str, object]:
        """Return the scores by their keys in metrics.json and columns in W&B."""
        return {
            "class": self.name,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "support": self.support,
            "confused_with": self.most_confused_with,
            "confused": self.most_confused_count,
        }


@dataclass(frozen=True)
class Evaluation:
    """A model's probabilities for images, and the images' labels.

    Attributes:
        probabilities: float (N, classes).
        labels: int (N,).
        class_names: Names of the classes.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most likely class of each image, int (N,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability of the most likely class, float (N,)."""
        return self.probabilities.max(axis=1)

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether the most likely class is the label, bool (N,)."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """The fraction of images that are classified correctly."""
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        """The mean cross-entropy in nats; probabilities are clipped to 1e-7, as in Keras."""
        label_probabilities = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(label_probabilities, 1e-7), dtype="float64").mean())

    @property
    def accuracy_ci95(self) -> tuple[float, float]:
        """The Wilson 95 % confidence interval of the accuracy."""
        return wilson_interval(self.accuracy, len(self.labels))

    @cached_property
    def calibration_bins(self) -> list[CalibrationBin]:
        """The non-empty bins of equal width in confidence."""
        last = NUM_CALIBRATION_BINS - 1
        bins = np.minimum((self.confidence * NUM_CALIBRATION_BINS).astype(int), last)
        return [
            CalibrationBin(
                num_images=int(np.sum(bins == i)),
                confidence=float(self.confidence[bins == i].mean(dtype="float64")),
                accuracy=float(self.correct[bins == i].mean()),
            )
            for i in np.unique(bins)
        ]

    @property
    def expected_calibration_error(self) -> float:
        """The gap between confidence and accuracy per bin, mean over images (Guo et al. 2017)."""
        gaps = (
            bin.num_images * abs(bin.confidence - bin.accuracy) for bin in self.calibration_bins
        )
        return sum(gaps) / len(self.labels)

    @cached_property
    def coverage_curve(self) -> list[CoveragePoint]:
        """The accuracy on the most confident 1 %, 2 % … 100 % of the images."""
        most_confident_first = self.correct[np.argsort(-self.confidence, kind="stable")]
        points = []
        for percent in range(1, 101):
            num_images = math.ceil(len(self.labels) * percent / 100)
            accuracy = float(most_confident_first[:num_images].mean())
            points.append(CoveragePoint(percent / 100, accuracy))
        return points

    @cached_property
    def confusion_matrix(self) -> np.ndarray:
        """The number of images by label (row) and predicted class (column), int."""
        matrix = np.zeros((len(self.class_names), len(self.class_names)), int)
        np.add.at(matrix, (self.labels, self.predicted), 1)
        return matrix

    @cached_property
    def per_class(self) -> list[ClassScores]:
        """The scores of each class; ratios with a zero denominator are 0, as in scikit-learn."""
        scores = []
        for i, name in enumerate(self.class_names):
            true_positives = int(self.confusion_matrix[i, i])
            confusion_row = self.confusion_matrix[i].copy()
            support = int(confusion_row.sum())
            num_predicted = int(self.confusion_matrix[:, i].sum())
            confusion_row[i] = 0
            count = int(confusion_row.max())
            scores.append(
                ClassScores(
                    name=name,
                    precision=true_positives / max(num_predicted, 1),
                    recall=true_positives / max(support, 1),
                    f1=2 * true_positives / max(support + num_predicted, 1),
                    support=support,
                    most_confused_with=self.class_names[confusion_row.argmax()] if count else "",
                    most_confused_count=count,
                )
            )
        return scores

    def most_confident_errors(self, limit: int) -> np.ndarray:
        """Return the indices of misclassified images, most confident first: int (≤ limit,)."""
        errors = np.flatnonzero(~self.correct)
        return errors[np.argsort(-self.confidence[errors], kind="stable")][:limit]

    def format_top3(self, index: int) -> str:
        """Format the top three classes, such as "Shirt 61 %, Coat 30 %, Pullover 8 %"."""
        probabilities = self.probabilities[index]
        top3 = np.argsort(-probabilities, kind="stable")[:3]
        return ", ".join(f"{self.class_names[i]} {probabilities[i]:.0%}" for i in top3)

    def summary(self) -> dict[str, object]:
        """Return the scalar metrics by their keys in metrics.json."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "interval95": self.accuracy_ci95,
            "expected_calibration_error": self.expected_calibration_error,
        }

    def class_metrics(self) -> dict[str, object]:
        """Return confusion matrix and per-class scores by their keys in metrics.json."""
        return {
            "confusion_matrix": self.confusion_matrix.tolist(),
            "per_class": [scores.as_dict() for scores in self.per_class],
        }


class SplitEvaluations(NamedTuple):
    """Evaluations of one model on each split."""

    train: Evaluation
    validation: Evaluation
    test: Evaluation

    @classmethod
    def from_probabilities(
        cls, probabilities: dict[str, np.ndarray], data: ImageDataset
    ) -> "SplitEvaluations":
        """Evaluate the probabilities for the images of each split."""
        return cls(
            **{
                name: Evaluation(probabilities[name], split.labels, data.class_names)
                for name, split in data.splits.items()
            }
        )
