"""What the last layer sees: against the layers called one by one, and against other libraries."""

from fashion.backbones.augmentation import with_mirror_images
from fashion.evaluation.embeddings import answer, nearest, project

import keras
import numpy as np
import pytest

import cnn_basic

RNG = np.random.default_rng(0)


def embeddings_of(model, images):
    """What the last layer of a saved model of either script sees, float32 (N, units)."""
    if model.name == "resnet50_fashion":
        head = model.get_layer("head")
        *body, _ = head.get_layer("classifier").layers
        before = model.layers[model.layers.index(head) - 1]
        values = keras.Model(model.input, before.output).predict(images, verbose=0)
        values = head.get_layer("standardiser")(values)
    else:
        *body, _ = model.layers
        values = images
    for layer in body:
        values = layer(values)
    return np.asarray(values, "float32")


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return cnn_basic.build_model(hidden_units=16, classes=5)


@pytest.fixture
def images():
    return RNG.integers(0, 256, (1010, 28, 28)).astype("uint8")


def test_answers_are_the_models_and_what_its_last_layer_sees(model, images):
    answers = answer(model, images)
    np.testing.assert_array_equal(answers.probabilities, model.predict_on_batch(images))
    assert (answers.probabilities.dtype, answers.embeddings.dtype) == ("float32", "float16")
    kernel, bias = model.layers[-1].get_weights()
    assert answers.embeddings.shape == (1010, 16)
    logits = answers.embeddings.astype("float32") @ kernel + bias
    again = keras.ops.softmax(logits)
    np.testing.assert_allclose(again, answers.probabilities, atol=2e-3)


def test_answers_to_copies_are_averaged(model, images):
    copies = np.concatenate([images, images[:, :, ::-1]])
    answers = answer(model, copies, copies=2, batch_size=300)
    expected = with_mirror_images(model).predict(images, verbose=0)
    np.testing.assert_allclose(answers.probabilities, expected, atol=1e-6)
    one, other = (answer(model, x).embeddings for x in (images, images[:, :, ::-1]))
    expected = (one.astype("float32") + other) / 2
    np.testing.assert_allclose(answers.embeddings, expected, rtol=2e-3, atol=2e-3)


def test_nearest_are_those_of_the_least_distance():
    others = RNG.normal(5, 1, (3000, 40)).astype("float16")
    some = RNG.normal(5, 1, (7, 40)).astype("float16")
    some[3] = others[1234]  # a duplicate
    found = nearest(some, others, 4)
    assert found.rows.shape == found.distances.shape == (7, 4)
    for i, embedding in enumerate(some):
        distances = [np.linalg.norm(embedding.astype("float64") - other) for other in others]
        expected = np.argsort(distances)[:4]
        assert found.rows[i].tolist() == expected.tolist()
        np.testing.assert_allclose(found.distances[i], np.take(distances, expected), rtol=1e-5)
    assert (found.rows[3, 0], found.distances[3, 0]) == (1234, 0)


def test_nearest_of_few_or_for_none_are_fewer():
    assert nearest(np.ones((2, 3)), np.zeros((3, 3)), 4).rows.shape == (2, 3)
    assert nearest(np.ones((0, 3)), np.zeros((3, 3)), 4).rows.shape == (0, 3)


def test_projection_is_the_principal_components():
    sklearn = pytest.importorskip("sklearn.decomposition", reason="needs scikit-learn")
    values = (RNG.normal(size=(500, 6)) * [1, 9, 3, 1, 5, 2] + 100).astype("float32")
    points, shares = project(values, 3)
    pca = sklearn.PCA(3).fit(values)
    expected = pca.transform(values)
    for ours, theirs in zip(points.T, expected.T, strict=True):
        sign = np.sign(ours @ theirs)
        np.testing.assert_allclose(ours * sign, theirs, atol=0.01)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, rtol=2e-3)
    # The least change of the values turns no direction around.
    np.testing.assert_allclose(project(values + 1e-3, 3).points, points, atol=0.01)


@pytest.mark.parametrize("units", [1, 2, 5])
def test_projection_has_the_dimensions_asked_for(units):
    points, shares = project(RNG.normal(size=(20, units)), 2)
    assert (points.shape, shares.shape) == ((20, 2), (2,))
    assert (shares.sum() == pytest.approx(1)) == (units <= 2)
    points, shares = project(np.ones((20, units)), 2)
    assert not points.any() and not shares.any()
