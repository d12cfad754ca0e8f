"""Predictions of a model for each split, compared with the labels."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fashion.datasets.splits import ImageDataset, Split

import keras
import numpy as np

Z95 = 1.959964  # standard normal quantile of 97.5%
NUM_CALIBRATION_BINS = 15
PREDICTION_BATCH = 1000  # images
MIN_TEMPERATURE_IMAGES = 200  # fewer are too few to fit a temperature
NEIGHBORS_BLOCK = 10_000  # rows that are in memory as float32 at once


class Predictions(NamedTuple):
    """A model's predictions for N images."""

    probabilities: np.ndarray  # float32 (N, classes)
    embeddings: np.ndarray  # float16 (N, dim): outputs of the penultimate layer


def predict_views(model: keras.Model, inputs: np.ndarray) -> Predictions:
    """Return a model's probabilities and embeddings, averaged over the views of each image.

    Args:
        model: Inputs → (N, classes) probabilities, computed by the last layer.
        inputs: (N, views, …).
    """
    # Not `model.predict`, which converts all float16 inputs to float32 at once.
    outputs = keras.Model(model.inputs[0], [model.outputs[0], model.layers[-2].output])
    largest = np.finfo("float16").max
    probabilities, embeddings = [], []
    for start in range(0, len(inputs), PREDICTION_BATCH):
        batch = inputs[start : start + PREDICTION_BATCH]
        views = [outputs.predict_on_batch(batch[:, view]) for view in range(batch.shape[1])]
        means = [
            np.mean([np.asarray(values, "float32") for values in parts], axis=0)
            for parts in zip(*views, strict=True)
        ]
        probabilities.append(means[0])
        embeddings.append(means[1].clip(-largest, largest).astype("float16"))
    return Predictions(np.concatenate(probabilities), np.concatenate(embeddings))


def apply_temperature(
    probabilities: np.ndarray | keras.KerasTensor, temperature: float
) -> keras.KerasTensor:
    """Return softmax(log(p) / temperature) of probabilities p, float32 (N, classes).

    A temperature below 1 makes them more confident. The order of the classes does not change.
    """
    logits = keras.ops.log(keras.ops.clip(probabilities, 1e-7, 1))
    return keras.ops.softmax(logits / temperature)


def fit_temperature(predictions: Predictions, split: Split) -> float:
    """Return the temperature from 0.1 to 10 with the lowest cross-entropy (Guo et al. 2017).

    It is 1 if the split has fewer than `MIN_TEMPERATURE_IMAGES` images.
    """
    if split.size < MIN_TEMPERATURE_IMAGES:
        return 1.0

    def loss(temperature: float) -> float:
        probabilities = np.asarray(apply_temperature(predictions.probabilities, temperature))
        return Evaluation(probabilities, split.labels, class_names=()).loss

    return float(min(np.geomspace(0.1, 10, 201), key=loss))


def calibrate(model: keras.Model, temperature: float) -> keras.Model:
    """Return a model whose probabilities are those of `model`, scaled by the temperature."""
    outputs = apply_temperature(model.outputs[0], temperature)
    return keras.Model(model.inputs[0], outputs, name=model.name)


def wilson_interval(proportion: float, n: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a proportion of `n` trials (Wilson 1927)."""
    square = Z95 * Z95 / n
    center = (proportion + square / 2) / (1 + square)
    variance = proportion * (1 - proportion) * square + square * square / 4
    half_width = math.sqrt(variance) / (1 + square)
    return center - half_width, center + half_width


def format_interval(bounds: tuple[float, float]) -> str:
    """Format the bounds of a proportion, such as "94.2% to 95.1%"."""
    return "{:.1%} to {:.1%}".format(*bounds)


class CalibrationBin(NamedTuple):
    """Images with similar confidence."""

    num_images: int
    confidence: float  # mean
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """A model's probabilities for images, and the images' labels."""

    probabilities: np.ndarray  # float (N, classes)
    labels: np.ndarray  # int (N,)
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
    def accuracy_ci95(self) -> tuple[float, float]:
        """The Wilson 95% confidence interval of the accuracy."""
        return wilson_interval(self.accuracy, len(self.labels))

    @property
    def loss(self) -> float:
        """The mean cross-entropy in nats; probabilities are clipped to 1e-7, as in Keras."""
        label_probabilities = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(label_probabilities, 1e-7), dtype="float64").mean())

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
    def coverage_curve(self) -> dict[float, float]:
        """The accuracy on the most confident 1%, 2% … 100% of the images, by this fraction."""
        most_confident_first = np.argsort(-self.confidence, kind="stable")
        num_correct = self.correct[most_confident_first].cumsum()
        counts = {i: math.ceil(len(self.labels) * i / 100) for i in range(1, 101)}
        return {i / 100: float(num_correct[n - 1] / n) for i, n in counts.items()}

    @cached_property
    def confusion_matrix(self) -> np.ndarray:
        """The number of images by label (row) and predicted class (column), int."""
        from sklearn.metrics import confusion_matrix  # slow to import

        return confusion_matrix(self.labels, self.predicted, labels=range(len(self.class_names)))

    @cached_property
    def per_class(self) -> list[dict[str, object]]:
        """The scores of each class; ratios with a zero denominator are 0.

        "most_confused_with" is the class that its images are most often mistaken for, or "".
        """
        from sklearn.metrics import precision_recall_fscore_support

        precision, recall, f1, support = precision_recall_fscore_support(
            self.labels, self.predicted, labels=range(len(self.class_names)), zero_division=0
        )
        confused = self.confusion_matrix - np.diag(self.confusion_matrix.diagonal())
        return [
            {
                "class": name,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
                "most_confused_with": self.class_names[row.argmax()] if row.any() else "",
                "most_confused_count": int(row.max()),
            }
            for i, (name, row) in enumerate(zip(self.class_names, confused, strict=True))
        ]

    def most_confident_errors(self, limit: int) -> np.ndarray:
        """Return the indices of misclassified images, most confident first: int (≤ limit,)."""
        errors = np.flatnonzero(~self.correct)
        return errors[np.argsort(-self.confidence[errors], kind="stable")][:limit]

    def format_top3(self, index: int) -> str:
        """Format the top three classes, such as "Shirt 61%, Coat 30%, Pullover 8%"."""
        probabilities = self.probabilities[index]
        top3 = np.argsort(-probabilities, kind="stable")[:3]
        return ", ".join(f"{self.class_names[i]} {probabilities[i]:.0%}" for i in top3)

    def summary(self) -> dict[str, object]:
        """Return the scalar metrics by their keys in metrics.json."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "accuracy_ci95": self.accuracy_ci95,
            "expected_calibration_error": self.expected_calibration_error,
        }


def evaluate(
    predictions: dict[str, Predictions], data: ImageDataset, temperature: float
) -> dict[str, Evaluation]:
    """Calibrate and evaluate the predictions for each split, by the name of the split."""
    evaluations = {}
    for name, split in data.splits.items():
        probabilities = np.asarray(apply_temperature(predictions[name].probabilities, temperature))
        evaluations[name] = Evaluation(probabilities, split.labels, data.class_names)
    return evaluations


class Neighbors(NamedTuple):
    """The nearest neighbors of M embeddings among N others, nearest first."""

    indices: np.ndarray  # int (M, k), into the others
    distances: np.ndarray  # float32 (M, k), Euclidean


def nearest_neighbors(embeddings: np.ndarray, others: np.ndarray, k: int) -> Neighbors:
    """Find up to `k` nearest neighbors of each embedding, (M, dim), among `others`, (N, dim)."""
    from sklearn.neighbors import NearestNeighbors  # slow to import

    if not len(embeddings):
        return Neighbors(np.empty((0, k), int), np.empty((0, k), "float32"))
    embeddings = embeddings.astype("float32")
    candidates = []
    for start in range(0, len(others), NEIGHBORS_BLOCK):
        block = others[start : start + NEIGHBORS_BLOCK].astype("float32")
        search = NearestNeighbors(n_neighbors=min(k, len(block)), algorithm="brute").fit(block)
        candidates.append(start + search.kneighbors(embeddings, return_distance=False))
    indices = np.concatenate(candidates, axis=1)
    distances = np.linalg.norm(others[indices].astype("float32") - embeddings[:, None], axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return Neighbors(
        np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)
    )


def sample_rows(num_rows: int, max_rows: int) -> np.ndarray:
    """Return the indices of up to `max_rows` rows, in ascending order, int (M,).

    They are random, since the first rows, or every n-th, may be of a single class.
    """
    rng = np.random.default_rng(0)
    return np.sort(rng.choice(num_rows, min(num_rows, max_rows), replace=False))


def tsne(values: np.ndarray) -> np.ndarray:
    """Map rows, (N, dim), to points in the plane, float32 (N, 2), by t-SNE.

    Similar rows become near points.
    """
    from sklearn.manifold import TSNE  # slow to import
    from threadpoolctl import threadpool_limits

    num_rows = len(values)
    if num_rows < 4 or not np.ptp(values, axis=0).any():
        return np.zeros((num_rows, 2), "float32")
    perplexity = min(30, (num_rows - 1) / 3)
    with threadpool_limits(1):  # more threads do not help with so few rows
        # With init="pca", groups of equal rows may end at the same point.
        model = TSNE(perplexity=perplexity, max_iter=500, init="random", random_state=0)
        return model.fit_transform(values)
