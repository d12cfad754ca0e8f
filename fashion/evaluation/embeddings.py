"""What a network makes of images just before its answer, and which images are alike in that."""

from typing import NamedTuple

from fashion import devices

import keras
import numpy as np


class Answers(NamedTuple):
    """A network's to N images."""

    probabilities: np.ndarray  # float32 (N, classes)
    embeddings: np.ndarray  # float16 (N, units): what its last layer sees

    @classmethod
    def of(cls, outputs: np.ndarray, classes: int) -> "Answers":
        """From what a network of `answering` gives."""
        largest = np.finfo("float16").max
        embeddings = outputs[:, classes:].clip(-largest, largest).astype("float16")
        return cls(outputs[:, :classes].copy(), embeddings)


def answering(network: keras.Model) -> keras.Model:
    """The same, giving what its last layer sees, too: float32 (N, classes + units)."""
    both = network.outputs[0], network.layers[-2].output
    both_float32 = [keras.ops.cast(values, "float32") for values in both]
    # A Sequential model's `input` would be that of the model which it is a part of.
    inputs = network.inputs[0] if isinstance(network, keras.Sequential) else network.input
    return keras.Model(inputs, keras.ops.concatenate(both_float32, axis=1))


def answer(
    network: keras.Model, inputs: np.ndarray, copies: int = 1, batch_size: int = 1000
) -> Answers:
    """A network's answers.

    Args:
        network: inputs → probabilities (N, classes), by the last of its layers.
        inputs: (copies·N, …).
        copies: how many there are of each image, all the first ones before all the second ones.
            The answers to them are averaged.
        batch_size: for how many inputs at once there is memory.
    """
    asked, classes, parts = answering(network), network.outputs[0].shape[-1], []
    every_copy = np.split(inputs, copies)
    for start in range(0, len(every_copy[0]), 10_000):  # in float32, all would be twice as large
        some = (copy[start : start + 10_000] for copy in every_copy)
        outputs = [devices.predict_in_batches(asked, copy, batch_size) for copy in some]
        parts.append(Answers.of(np.mean(outputs, axis=0), classes))
    return Answers(*map(np.concatenate, zip(*parts, strict=True)))


class Nearest(NamedTuple):
    """For each of M embeddings, those most like it among N others, the nearest first."""

    rows: np.ndarray  # int (M, count): among the others
    distances: np.ndarray  # float32 (M, count): Euclidean


def nearest(embeddings: np.ndarray, others: np.ndarray, count: int) -> Nearest:
    """Finds up to `count` of `others`, (N, units), for each of `embeddings`, (M, units)."""
    middle = others.mean(axis=0, dtype="float32")
    embeddings, others = embeddings - middle, others - middle
    # Squared distances, less what is the same for all others; rounded, but enough to sort out most.
    roughly = np.einsum("ij,ij->i", others, others) - 2 * embeddings @ others.T
    rows = np.argsort(roughly, axis=1)[:, : 4 * count]
    distances = np.linalg.norm(others[rows] - embeddings[:, None], axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return Nearest(*(np.take_along_axis(values, order, axis=1) for values in (rows, distances)))


class Projection(NamedTuple):
    """N embeddings in fewer dimensions: the directions in which they differ most come first."""

    points: np.ndarray  # float32 (N, dimensions)
    shares: np.ndarray  # float32 (dimensions,): of their variance


def project(embeddings: np.ndarray, dimensions: int) -> Projection:
    """Principal components of embeddings, (N, units); where there are fewer, zeros beside them."""
    centred = embeddings.astype("float32")
    centred -= centred.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred)  # the least variance first
    directions = directions[:, : -dimensions - 1 : -1]
    # The sign of a direction is chance: here its largest part is positive.
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])])
    points = centred @ directions
    shares = variances[: -dimensions - 1 : -1] / max(variances.sum(), 1e-9)
    missing = 0, dimensions - len(shares)
    return Projection(np.pad(points, [(0, 0), missing]), np.pad(shares, missing))
