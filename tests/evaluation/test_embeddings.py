"""Embeddings, nearest neighbors and PCA, compared with independent computations."""

from fashion.backbones.augmentation import with_flip_tta
from fashion.evaluation.embeddings import (
    EmbeddingAnalysis,
    Predictions,
    nearest_neighbors,
    pca,
    predict_with_embeddings,
    sample_rows,
    tsne,
)
from fashion.evaluation.metrics import Evaluation

import keras
import numpy as np
import pytest
import sklearn.decomposition
import sklearn.model_selection
import sklearn.neighbors

import cnn_basic

RNG = np.random.default_rng(0)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return cnn_basic.build_model(hidden_units=16, num_classes=5)


@pytest.fixture
def images():
    return RNG.integers(0, 256, (1010, 28, 28)).astype("uint8")


def test_predictions_are_the_models_outputs_and_last_layer_inputs(model, images):
    predictions = predict_with_embeddings(model, images)
    expected = model.predict(images, batch_size=1000, verbose=0)
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=1e-5, atol=1e-7)
    assert predictions.probabilities.dtype == np.float32
    assert predictions.embeddings.dtype == np.float16
    kernel, bias = model.layers[-1].get_weights()
    assert predictions.embeddings.shape == (1010, 16)
    logits = predictions.embeddings.astype("float32") @ kernel + bias
    expected = keras.ops.softmax(logits)
    np.testing.assert_allclose(expected, predictions.probabilities, atol=2e-3)


def test_predictions_are_averaged_over_views(model, images):
    views = np.concatenate([images, images[:, :, ::-1]])
    predictions = predict_with_embeddings(model, views, num_views=2, batch_size=300)
    expected = with_flip_tta(model).predict(images, verbose=0)
    np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-6)
    one, other = (
        predict_with_embeddings(model, view).embeddings for view in (images, images[:, :, ::-1])
    )
    expected = (one.astype("float32") + other) / 2
    np.testing.assert_allclose(predictions.embeddings, expected, rtol=2e-3, atol=2e-3)


def test_nearest_neighbors_equal_brute_force():
    others = RNG.normal(5, 1, (3000, 40)).astype("float16")
    queries = RNG.normal(5, 1, (7, 40)).astype("float16")
    queries[3] = others[1234]  # a duplicate
    neighbors = nearest_neighbors(queries, others, 4)
    assert neighbors.indices.shape == neighbors.distances.shape == (7, 4)
    for i, embedding in enumerate(queries):
        distances = [np.linalg.norm(embedding.astype("float64") - other) for other in others]
        expected = np.argsort(distances)[:4]
        assert neighbors.indices[i].tolist() == expected.tolist()
        np.testing.assert_allclose(neighbors.distances[i], np.take(distances, expected), rtol=1e-5)
    assert (neighbors.indices[3, 0], neighbors.distances[3, 0]) == (1234, 0)


def test_nearest_neighbors_of_few_or_none():
    assert nearest_neighbors(np.ones((2, 3)), np.zeros((3, 3)), 4).indices.shape == (2, 3)
    assert nearest_neighbors(np.ones((0, 3)), np.zeros((3, 3)), 4).indices.shape == (0, 3)


def test_pca_equals_scikit_learn():
    values = (RNG.normal(size=(500, 6)) * [1, 9, 3, 1, 5, 2] + 100).astype("float32")
    points, ratios = pca(values, 3)
    reference = sklearn.decomposition.PCA(3).fit(values)
    expected = reference.transform(values)
    for component, expected_component in zip(points.T, expected.T, strict=True):
        sign = np.sign(component @ expected_component)  # arbitrary in scikit-learn
        np.testing.assert_allclose(component * sign, expected_component, atol=0.01)
    np.testing.assert_allclose(ratios, reference.explained_variance_ratio_, rtol=2e-3)
    # A small change of the values does not flip the sign of a component.
    np.testing.assert_allclose(pca(values + 1e-3, 3).points, points, atol=0.01)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_pca_pads_missing_components(dim):
    points, ratios = pca(RNG.normal(size=(20, dim)), 2)
    assert (points.shape, ratios.shape) == ((20, 2), (2,))
    assert (ratios.sum() == pytest.approx(1)) == (dim <= 2)
    points, ratios = pca(np.ones((20, dim)), 2)
    assert not points.any() and not ratios.any()


def test_tsne_separates_groups():
    """In the plane, the nearest neighbors of nearly all rows are of their group."""
    labels = np.arange(300) % 6
    values = RNG.normal(size=(300, 20)) + 8 * np.eye(20)[labels]
    points = tsne(values.astype("float32"))
    assert points.shape == (300, 2)
    classifier = sklearn.neighbors.KNeighborsClassifier(5)
    correct = sklearn.model_selection.cross_val_predict(classifier, points, labels) == labels
    assert correct.mean() > 0.98
    by_pca = sklearn.model_selection.cross_val_predict(classifier, pca(values, 2).points, labels)
    assert np.mean(by_pca == labels) < 0.9
    np.testing.assert_array_equal(tsne(values.astype("float32")), points)


def test_tsne_keeps_equal_rows_of_different_groups_apart():
    """As saturated probabilities of many classes."""
    labels = np.arange(300) % 30
    points = tsne(np.eye(30, dtype="float32")[labels])
    centers = np.stack([points[labels == label].mean(axis=0) for label in range(30)])
    distances = np.linalg.norm(centers[:, None] - centers, axis=2) + 1e9 * np.eye(30)
    assert distances.min() > 1


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 31])
def test_tsne_of_few_or_equal_rows(num_rows):
    for values in RNG.normal(size=(num_rows, 2)), np.ones((num_rows, 3)):
        points = tsne(values.astype("float32"))
        assert points.shape == (num_rows, 2) and np.isfinite(points).all()


def test_error_analysis_of_few_errors():
    """With fewer errors than wanted, there are fewer rows; neighbors are training images."""
    labels = np.arange(20) % 4
    probabilities = np.eye(4)[labels] * 0.9 + 0.025
    probabilities[[3, 7]] = np.roll(probabilities[[3, 7]], 1, axis=1)
    evaluation = Evaluation(probabilities, labels, tuple("abcd"))
    embeddings = RNG.normal(size=(20, 6)).astype("float16")
    predictions = {
        "train": Predictions(probabilities, embeddings[::-1].copy()),
        "test": Predictions(probabilities, embeddings),
    }
    analysis = EmbeddingAnalysis.from_predictions(predictions, evaluation)
    assert analysis.mistakes.tolist() == [3, 7]
    assert analysis.neighbors.indices[:, 0].tolist() == [16, 12]  # the embeddings in reverse order
    assert analysis.embedding_dim == 6
    assert analysis.projection.points.shape == (20, 50)


def test_sampled_rows_are_ordered_and_of_all_classes():
    assert sample_rows(7, 10).tolist() == list(range(7))
    rows = sample_rows(10_000, 1000)
    assert len(set(rows.tolist())) == 1000 and np.all(np.diff(rows) > 0)
    # Data sets may be sorted by class, or have the classes in turns.
    for classes in np.arange(10).repeat(1000), np.tile(np.arange(10), 1000):
        assert np.bincount(classes[rows], minlength=10).min() > 70
