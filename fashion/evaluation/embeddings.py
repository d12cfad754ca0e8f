"""Nearest neighbors and principal components of embeddings; t-SNE of the probabilities."""

from dataclasses import dataclass
from typing import NamedTuple

from fashion import devices
from fashion.datasets.dataset import ImageDataset
from fashion.evaluation.metrics import Evaluation

import keras
import numpy as np

NUM_MISTAKES, NUM_NEIGHBORS = 12, 4
NUM_COMPONENTS = 50  # the maximum of W&B's projector
MAX_MAP_IMAGES = 1000  # more would take seconds
PREDICTION_CHUNK = 10_000  # images whose float32 outputs are in memory at once


class Predictions(NamedTuple):
    """A model's predictions for N images."""

    probabilities: np.ndarray  # float32 (N, classes)
    embeddings: np.ndarray  # float16 (N, embedding_dim): input of the last layer

    @classmethod
    def from_outputs(cls, outputs: np.ndarray, num_classes: int) -> "Predictions":
        """Split the outputs of a model with embedding output, float32 (N, …)."""
        largest = np.finfo("float16").max
        embeddings = outputs[:, num_classes:].clip(-largest, largest).astype("float16")
        return cls(outputs[:, :num_classes].copy(), embeddings)


def with_embedding_output(model: keras.Model) -> keras.Model:
    """Return a model that also outputs the output of its penultimate layer.

    The output is the concatenation of probabilities and embeddings, float32
    (N, classes + embedding_dim).
    """
    outputs = model.outputs[0], model.layers[-2].output
    outputs_float32 = [keras.ops.cast(values, "float32") for values in outputs]
    # The `input` of a Sequential model inside another model would be the outer model's.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, keras.ops.concatenate(outputs_float32, axis=1))


def predict_with_embeddings(
    model: keras.Model, inputs: np.ndarray, num_views: int = 1, batch_size: int = 1000
) -> Predictions:
    """Return a model's probabilities and embeddings, averaged over the views of each image.

    The views of an image are the image itself and, if wanted, its horizontal flip.

    Args:
        model: inputs → (N, classes) probabilities, computed by the last layer.
        inputs: (num_views·N, …): the first views of all images, then their second views.
        num_views: Number of views per image.
        batch_size: Inputs per batch.
    """
    embedding_model, num_classes = with_embedding_output(model), model.outputs[0].shape[-1]
    chunks, views = [], np.split(inputs, num_views)
    for start in range(0, len(views[0]), PREDICTION_CHUNK):
        outputs = [
            devices.predict_in_batches(
                embedding_model, view[start : start + PREDICTION_CHUNK], batch_size
            )
            for view in views
        ]
        chunks.append(Predictions.from_outputs(np.mean(outputs, axis=0), num_classes))
    return Predictions(*map(np.concatenate, zip(*chunks, strict=True)))


def predict_splits(
    model: keras.Model, inputs: dict[str, np.ndarray], data: ImageDataset
) -> dict[str, Predictions]:
    """Return the predictions for each split, averaged over the views in its inputs.

    Args:
        model: Inputs → (N, classes) probabilities, computed by the last layer.
        inputs: Inputs of each split, (num_views·N, …): the first views of its N images, then their
            second views.
        data: Data set with the splits.
    """
    return {
        name: predict_with_embeddings(model, values, len(values) // data.splits[name].size)
        for name, values in inputs.items()
    }


class Neighbors(NamedTuple):
    """The nearest neighbors of M embeddings among N others, nearest first."""

    indices: np.ndarray  # int (M, k), into the others
    distances: np.ndarray  # float32 (M, k), Euclidean


def nearest_neighbors(embeddings: np.ndarray, others: np.ndarray, k: int) -> Neighbors:
    """Find up to `k` nearest neighbors of each embedding, (M, dim), among `others`, (N, dim)."""
    mean = others.mean(axis=0, dtype="float32")
    embeddings, others = embeddings - mean, others - mean
    # Squared distances up to a constant per row; rounded, but good enough to preselect candidates.
    approx_distances = np.einsum("ij,ij->i", others, others) - 2 * embeddings @ others.T
    candidates = np.argsort(approx_distances, axis=1)[:, : 4 * k]
    distances = np.linalg.norm(others[candidates] - embeddings[:, None], axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    indices, distances = (
        np.take_along_axis(values, order, axis=1) for values in (candidates, distances)
    )
    return Neighbors(indices, distances)


class PCAProjection(NamedTuple):
    """N embeddings projected onto their principal components, largest variance first."""

    points: np.ndarray  # float32 (N, n_components)
    explained_variance_ratio: np.ndarray  # float32 (n_components,)


def pca(embeddings: np.ndarray, n_components: int) -> PCAProjection:
    """Project embeddings, (N, dim), onto principal components; pad with zeros if dim is smaller."""
    centered = embeddings.astype("float32")
    centered -= centered.mean(axis=0)
    variances, directions = np.linalg.eigh(centered.T @ centered)  # smallest variance first
    directions = directions[:, : -n_components - 1 : -1]
    # The sign of a direction is arbitrary; make its largest component positive.
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])])
    points = centered @ directions
    ratios = variances[: -n_components - 1 : -1] / max(variances.sum(), 1e-9)
    padding = 0, n_components - len(ratios)
    return PCAProjection(np.pad(points, [(0, 0), padding]), np.pad(ratios, padding))


def tsne(values: np.ndarray) -> np.ndarray:
    """Map rows, (N, dim), to points in the plane, float32 (N, 2), by t-SNE.

    Similar rows become near points. Half of scikit-learn's default number of iterations gives
    nearly the same map.
    """
    from sklearn.manifold import TSNE  # slow to import
    from threadpoolctl import threadpool_limits

    num_rows = len(values)
    if num_rows < 4 or not np.ptp(values, axis=0).any():
        return np.zeros((num_rows, 2), "float32")
    perplexity = min(30, (num_rows - 1) / 3)
    with threadpool_limits(1):  # several threads are slower with so few rows
        # With init="pca", groups of equal rows may end at the same point.
        model = TSNE(perplexity=perplexity, max_iter=500, init="random", random_state=0)
        return model.fit_transform(values)


def sample_rows(num_rows: int, max_rows: int) -> np.ndarray:
    """Return the indices of up to `max_rows` rows, in ascending order, int (M,).

    They are random, since the first rows, or every n-th, may be of a single class.
    """
    rng = np.random.default_rng(0)
    return np.sort(rng.choice(num_rows, min(num_rows, max_rows), replace=False))


@dataclass(frozen=True)
class EmbeddingAnalysis:
    """Neighbors of the most confident errors, and projections of test images.

    Attributes:
        evaluation: Evaluation of the test images.
        mistakes: Indices of the most confident errors among the test images, int (M,).
        neighbors: Nearest training images of each mistake.
        embedding_dim: Number of units of the penultimate layer.
        projection: Principal components of the test images' embeddings.
        map_indices: Indices of up to `MAX_MAP_IMAGES` test images, int (M,).
        map_points: t-SNE of the probabilities of these images, float32 (M, 2).
    """

    evaluation: Evaluation
    mistakes: np.ndarray
    neighbors: Neighbors
    embedding_dim: int
    projection: PCAProjection
    map_indices: np.ndarray
    map_points: np.ndarray

    @classmethod
    def from_predictions(
        cls, predictions: dict[str, Predictions], evaluation: Evaluation
    ) -> "EmbeddingAnalysis":
        """Analyze the predictions for each split, given the evaluation of the test images."""
        mistakes = evaluation.most_confident_errors(NUM_MISTAKES)
        embeddings = predictions["test"].embeddings
        train_embeddings = predictions["train"].embeddings
        neighbors = nearest_neighbors(embeddings[mistakes], train_embeddings, NUM_NEIGHBORS)
        map_indices = sample_rows(len(embeddings), MAX_MAP_IMAGES)
        return cls(
            evaluation,
            mistakes,
            neighbors,
            embedding_dim=embeddings.shape[1],
            projection=pca(embeddings, NUM_COMPONENTS),
            map_indices=map_indices,
            map_points=tsne(predictions["test"].probabilities[map_indices]),
        )
