"""Predictions, metrics, neighbors and t-SNE, compared with independent computations."""

import math

from fashion.datasets.splits import CLASS_NAMES, Split
from fashion.results.evaluation import (
    Evaluation,
    Predictions,
    apply_temperature,
    calibrate,
    fit_temperature,
    nearest_neighbors,
    predict_views,
    sample_rows,
    tsne,
    wilson_interval,
)

import keras
import numpy as np
import pytest
import sklearn.model_selection
import sklearn.neighbors
from scipy.special import softmax

import cnn_basic

RNG = np.random.default_rng(0)


def test_predictions_are_averaged_over_views_and_computed_in_batches(monkeypatch):
    keras.utils.set_random_seed(0)
    model = cnn_basic.build_model(hidden_units=16, num_classes=5)
    images = RNG.integers(0, 256, (1010, 28, 28)).astype("uint8")
    inputs = np.stack([images, images[:, :, ::-1]], axis=1)
    batches, predict_on_batch = [], keras.Model.predict_on_batch

    def record(self, batch):
        batches.append((batch.dtype, len(batch)))
        return predict_on_batch(self, batch)

    monkeypatch.setattr(keras.Model, "predict_on_batch", record)
    predictions = predict_views(model, inputs)
    assert batches == 2 * [(np.uint8, 1000)] + 2 * [(np.uint8, 10)]  # never all inputs at once
    hidden_kernel, hidden_bias, kernel, bias = model.get_weights()
    pixels = inputs.reshape(1010, 2, 784) / 255
    embeddings = np.maximum(pixels @ hidden_kernel + hidden_bias, 0)
    probabilities = softmax(embeddings @ kernel + bias, axis=2)
    np.testing.assert_allclose(predictions.probabilities, probabilities.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(predictions.embeddings, embeddings.mean(axis=1), 1e-3, 1e-3)
    assert predictions.probabilities.dtype == np.float32
    assert predictions.embeddings.dtype == np.float16


def test_embeddings_of_a_head_are_without_dropout_and_within_float16():
    policy = "mixed_bfloat16"
    inputs = keras.Input((4,), dtype="float16")
    x = keras.layers.Dense(4, kernel_initializer="identity", dtype=policy)(inputs)
    x = keras.layers.Dropout(0.9, dtype=policy)(keras.layers.Rescaling(100, dtype=policy)(x))
    head = keras.Model(inputs, keras.layers.Dense(3, activation="softmax", dtype="float32")(x))
    features = np.array([[[0, 1, 2, 3]], [[4, 5, 6, 7000]]], "float16")
    predictions = predict_views(head, features)
    expected = [[0, 100, 200, 300], [400, 500, 600, np.finfo("float16").max]]
    np.testing.assert_allclose(predictions.embeddings, expected, rtol=0.01)
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert predictions.probabilities.dtype == np.float32


@pytest.mark.parametrize("true_temperature", [0.5, 1.6])
def test_fitted_temperature_is_the_true_one(true_temperature):
    logits = RNG.normal(0, 2, (20_000, 10))
    probabilities = softmax(logits, axis=1).astype("float32")
    thresholds = softmax(logits / true_temperature, axis=1).cumsum(axis=1)
    labels = (thresholds > RNG.random((20_000, 1))).argmax(axis=1)  # drawn from these
    temperatures = []
    for size in 20_000, 199:  # too few
        split = Split(np.empty(0), labels[:size], np.arange(size), 10)
        predictions = Predictions(probabilities[:size], np.empty(0))
        temperatures.append(fit_temperature(predictions, split))
    assert temperatures == [pytest.approx(true_temperature, rel=0.05), 1]
    before, after = (
        Evaluation(np.asarray(values), labels, CLASS_NAMES)
        for values in (probabilities, apply_temperature(probabilities, temperatures[0]))
    )
    assert before.expected_calibration_error > 0.1
    assert after.expected_calibration_error < 0.01
    assert np.array_equal(before.predicted, after.predicted)


@pytest.mark.parametrize("temperature", [0.1, 0.6, 10])
def test_calibrated_model_returns_scaled_probabilities(temperature, tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.ops.softmax(inputs))
    logits = RNG.normal(0, 30, (100, 4)).astype("float32")  # many probabilities are 0
    expected = softmax(np.log(softmax(logits, axis=1).clip(1e-7, 1)) / temperature, axis=1)
    calibrate(model, temperature).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded.predict(logits, verbose=0), expected, rtol=1e-4, atol=1e-30)


@pytest.fixture(scope="module")
def random_evaluation():
    probabilities = RNG.dirichlet(np.full(10, 0.3), 997).astype("float32")
    probabilities[0] = np.eye(10)[3]  # the last bin of confidence includes 1
    labels = np.where(RNG.random(997) < 0.6, probabilities.argmax(1), RNG.integers(0, 9, 997))
    probabilities[1, labels[1]] = 0  # log 0
    return Evaluation(probabilities, labels.astype("int32"), CLASS_NAMES)


def test_accuracy_and_loss_equal_keras(random_evaluation):
    e = random_evaluation
    accuracy = keras.metrics.sparse_categorical_accuracy(e.labels, e.probabilities)
    assert e.accuracy == pytest.approx(float(np.mean(accuracy)), abs=1e-7)
    loss = keras.losses.sparse_categorical_crossentropy(e.labels, e.probabilities)
    assert e.loss == pytest.approx(float(np.mean(loss)), rel=1e-3)


def test_scores_per_class():
    evaluation = Evaluation(np.eye(4)[[0, 1, 1, 0]], np.array([0, 1, 2, 0]), tuple("abcd"))
    assert evaluation.confusion_matrix.tolist() == [
        *([2, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0])  # a row per label
    ]
    scores = [[*row.values()] for row in evaluation.per_class]
    assert scores == [
        ["a", 1, 1, 1, 2, "", 0],
        ["b", 0.5, 1, pytest.approx(2 / 3), 1, "", 0],
        ["c", 0, 0, 0, 1, "b", 1],
        ["d", 0, 0, 0, 0, "", 0],
    ]
    assert evaluation.format_top3(0) == "a 100%, b 0%, c 0%"
    two = Evaluation(np.eye(2), np.arange(2), ("a", "b"))
    assert two.format_top3(1) == "b 100%, a 0%"


def test_expected_calibration_error(random_evaluation):
    e = random_evaluation
    confidence, predicted = e.probabilities.max(1), e.probabilities.argmax(1)
    gaps = confidence - (predicted == e.labels)
    sums, _ = np.histogram(confidence, bins=15, range=(0, 1), weights=gaps)
    assert e.expected_calibration_error == pytest.approx(np.abs(sums).sum() / 997, abs=1e-6)
    assert sum(bin.num_images for bin in e.calibration_bins) == 997


def test_wilson_interval_equals_an_example_of_the_literature(random_evaluation):
    # 81 of 263: the example of Newcombe (Statistics in Medicine 17, 1998), method 3.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0 / 20, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    e = random_evaluation
    assert e.accuracy_ci95 == wilson_interval(e.accuracy, 997)


def test_coverage_curve_sorts_by_confidence_and_ends_at_accuracy(random_evaluation):
    e = random_evaluation
    assert list(e.coverage_curve) == pytest.approx(np.arange(1, 101) / 100)
    assert e.coverage_curve[1.0] == pytest.approx(e.accuracy)
    most_confident = np.argsort(e.probabilities.max(1))[-math.ceil(0.3 * 997) :]
    correct = e.probabilities.argmax(1) == e.labels
    assert e.coverage_curve[0.3] == pytest.approx(correct[most_confident].mean())


def test_most_confident_errors_are_sorted_errors(random_evaluation):
    e = random_evaluation
    errors = [i for i, row in enumerate(e.probabilities) if row.argmax() != e.labels[i]]
    errors.sort(key=lambda i: -e.probabilities[i].max())
    assert e.most_confident_errors(10**6).tolist() == errors
    assert e.most_confident_errors(7).tolist() == errors[:7]


@pytest.mark.parametrize("num_others", [3, 3000])
def test_nearest_neighbors_equal_brute_force(num_others, monkeypatch):
    monkeypatch.setattr("fashion.results.evaluation.NEIGHBORS_BLOCK", 999)  # the last has 3 rows
    others = RNG.normal(5, 1, (num_others, 40)).astype("float16")
    queries = RNG.normal(5, 1, (7, 40)).astype("float16")
    queries[3] = others[-2]  # a duplicate
    neighbors = nearest_neighbors(queries, others, 4)
    distances = np.linalg.norm(queries[:, None].astype("float64") - others, axis=2)
    indices = np.argsort(distances, axis=1)[:, :4]
    np.testing.assert_array_equal(neighbors.indices, indices)
    expected = np.take_along_axis(distances, indices, axis=1)
    np.testing.assert_allclose(neighbors.distances, expected, rtol=1e-5)
    assert (neighbors.indices[3, 0], neighbors.distances[3, 0]) == (num_others - 2, 0)


@pytest.mark.parametrize("noise", [0, 0.1])  # without noise: as saturated probabilities
def test_tsne_separates_groups_also_of_equal_rows(noise):
    """In the plane, the nearest neighbors of nearly all rows are of their group."""
    labels = np.arange(500) % 10
    points = tsne((np.eye(10)[labels] + noise * RNG.normal(size=(500, 10))).astype("float32"))
    assert points.shape == (500, 2)
    classifier = sklearn.neighbors.KNeighborsClassifier(5)
    correct = sklearn.model_selection.cross_val_predict(classifier, points, labels) == labels
    assert correct.mean() > 0.98


@pytest.mark.parametrize("num_rows", [1, 3, 4, 31])
def test_tsne_of_few_or_equal_rows(num_rows):
    for values in RNG.normal(size=(num_rows, 2)), np.ones((num_rows, 3)):
        points = tsne(values.astype("float32"))
        assert points.shape == (num_rows, 2) and np.isfinite(points).all()


def test_sampled_rows_are_ordered_and_of_all_classes():
    assert sample_rows(7, 10).tolist() == list(range(7))
    rows = sample_rows(10_000, 1000)
    assert len(set(rows.tolist())) == 1000 and np.all(np.diff(rows) > 0)
    # Data sets may be sorted by class, or have the classes in turns.
    for classes in np.arange(10).repeat(1000), np.tile(np.arange(10), 1000):
        assert np.bincount(classes[rows], minlength=10).min() > 70
