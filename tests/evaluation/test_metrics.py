"""Metrics, compared with independent computations."""

import collections
import math

from fashion.datasets.dataset import CLASS_NAMES
from fashion.evaluation.metrics import Evaluation, SplitEvaluations, wilson_interval

import keras
import numpy as np
import pytest


@pytest.fixture
def random_evaluation():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(10, 0.3), 997).astype("float32")
    labels = np.where(random.random(997) < 0.6, probabilities.argmax(1), random.integers(0, 9, 997))
    return Evaluation(probabilities, labels.astype("int32"), CLASS_NAMES)


def test_accuracy_and_loss_equal_keras():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), 500).astype("float32")
    labels = rng.integers(0, 10, 500)
    probabilities[0, labels[0]] = 0  # log 0
    evaluation = Evaluation(probabilities, labels, CLASS_NAMES)
    accuracy = keras.metrics.SparseCategoricalAccuracy()
    accuracy.update_state(labels, probabilities)
    loss = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
    assert evaluation.accuracy == pytest.approx(float(accuracy.result()), abs=1e-7)
    assert evaluation.loss == pytest.approx(float(np.mean(loss)), rel=1e-3)


def test_confusion_matrix_and_per_class_scores(random_evaluation):
    true = random_evaluation.labels.tolist()
    predicted = [max(range(10), key=row.__getitem__) for row in random_evaluation.probabilities]
    assert random_evaluation.predicted.tolist() == predicted
    pairs = collections.Counter(zip(true, predicted, strict=True))
    matrix = random_evaluation.confusion_matrix
    assert {(i, j): matrix[i, j] for i in range(10) for j in range(10) if matrix[i, j]} == pairs
    for i, row in enumerate(random_evaluation.per_class):
        precision, recall = pairs[i, i] / predicted.count(i), pairs[i, i] / true.count(i)
        assert row.name == CLASS_NAMES[i]
        assert row.precision == pytest.approx(precision)
        assert row.recall == pytest.approx(recall)
        assert row.f1 == pytest.approx(2 * precision * recall / (precision + recall))
        assert row.support == true.count(i)
        others = {j: pairs[i, j] for j in range(10) if j != i}
        assert row.most_confused_count == max(others.values())
        if row.most_confused_with or row.most_confused_count:
            assert others[CLASS_NAMES.index(row.most_confused_with)] == row.most_confused_count


def test_per_class_scores_equal_scikit_learn(random_evaluation):
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    e = random_evaluation
    expected = metrics.precision_recall_fscore_support(e.labels, e.predicted, labels=range(10))
    ours = [(row.precision, row.recall, row.f1, row.support) for row in e.per_class]
    np.testing.assert_allclose(np.transpose(ours), expected)


def test_per_class_scores_of_absent_class_are_zero():
    (row,) = Evaluation(np.eye(10)[[0, 1]], np.array([0, 0]), CLASS_NAMES).per_class[9:]
    assert (row.precision, row.recall, row.f1, row.support) == (0, 0, 0, 0)
    assert (row.most_confused_with, row.most_confused_count) == ("", 0)


def test_expected_calibration_error(random_evaluation):
    e = random_evaluation
    error = 0
    for i in range(15):
        inside = [
            (max(row), max(row) == row[label])
            for row, label in zip(e.probabilities.tolist(), e.labels, strict=True)
            if i / 15 <= max(row) < (i + 1) / 15 + (i == 14)
        ]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            error += abs(confidence - accuracy) * len(inside) / len(e.labels)
    assert e.expected_calibration_error == pytest.approx(error, abs=1e-6)
    assert sum(bin.num_images for bin in e.calibration_bins) == len(e.labels)
    # Half of the images correct at a confidence of 0.9: an error of 0.4.
    probabilities = np.full((4, 10), 0.1 / 9)
    probabilities[:, 3] = 0.9
    uncalibrated = Evaluation(probabilities, np.array([3, 3, 1, 2]), CLASS_NAMES)
    assert uncalibrated.expected_calibration_error == pytest.approx(0.4)
    assert [(bin.num_images, bin.accuracy) for bin in uncalibrated.calibration_bins] == [(4, 0.5)]
    # The last bin includes its upper end.
    confident = np.array([[0.95, 0.05, *8 * [0]], [1, 0, *8 * [0]]])
    evaluation = Evaluation(confident, np.array([0, 0]), CLASS_NAMES)
    assert [bin.num_images for bin in evaluation.calibration_bins] == [2]


def test_wilson_interval_equals_published_example(random_evaluation):
    # 81 of 263: the example of Newcombe (Statistics in Medicine 17, 1998), method 3.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0 / 20, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    e = random_evaluation
    assert e.accuracy_ci95 == wilson_interval(e.accuracy, 997)


def test_coverage_curve_sorts_by_confidence_and_ends_at_accuracy(random_evaluation):
    e = random_evaluation
    assert [row.coverage for row in e.coverage_curve] == pytest.approx(np.arange(1, 101) / 100)
    assert e.coverage_curve[-1].accuracy == e.accuracy
    threshold = sorted(e.probabilities.max(1))[-math.ceil(0.3 * len(e.labels))]
    confident = e.probabilities.max(1) >= threshold
    correct = e.probabilities[confident].argmax(1) == e.labels[confident]
    assert e.coverage_curve[29].accuracy == pytest.approx(correct.mean())


def test_most_confident_errors_are_sorted_errors(random_evaluation):
    e = random_evaluation
    errors = [i for i, row in enumerate(e.probabilities) if row.argmax() != e.labels[i]]
    errors.sort(key=lambda i: -e.probabilities[i].max())
    assert e.most_confident_errors(10**6).tolist() == errors
    assert e.most_confident_errors(7).tolist() == errors[:7]
    assert (
        Evaluation(np.eye(10), np.arange(10), CLASS_NAMES).most_confident_errors(5).tolist() == []
    )


def test_format_top3():
    probabilities = np.full((1, 10), 0.01)
    probabilities[0, [6, 0, 2]] = 0.6, 0.2, 0.13
    evaluation = Evaluation(probabilities, np.zeros(1), CLASS_NAMES)
    assert evaluation.format_top3(0) == "Shirt 60%, T-shirt/top 20%, Pullover 13%"


def test_summary_and_class_metrics_have_metrics_json_keys(random_evaluation):
    e = random_evaluation
    assert e.summary() == {
        "accuracy": e.accuracy,
        "loss": e.loss,
        "interval95": e.accuracy_ci95,
        "expected_calibration_error": e.expected_calibration_error,
    }
    tables = e.class_metrics()
    assert tables["confusion_matrix"] == e.confusion_matrix.tolist()
    (first, *_), (scores, *_) = tables["per_class"], e.per_class
    assert list(first) == [
        *("class", "precision", "recall", "f1", "support", "confused_with", "confused")
    ]
    assert list(first.values()) == list(scores)


def test_split_evaluations_use_the_labels_of_each_split(sample):
    correct = {name: np.eye(10)[split.labels] for name, split in sample.splits.items()}
    for name in correct:
        wrong = correct | {name: np.roll(correct[name], 1, axis=1)}
        evaluations = SplitEvaluations.from_probabilities(wrong, sample)._asdict()
        accuracies = {split: evaluation.accuracy for split, evaluation in evaluations.items()}
        assert accuracies == {split: float(split != name) for split in sample.splits}


def test_evaluation_supports_other_class_names():
    e = Evaluation(np.eye(3)[[0, 1, 1, 0]], np.array([0, 1, 2, 0]), ("a", "b", "c"))
    assert e.confusion_matrix.tolist() == [[2, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert [(row.name, row.most_confused_with, row.most_confused_count) for row in e.per_class] == [
        *(("a", "", 0), ("b", "", 0), ("c", "b", 1))
    ]
    assert e.format_top3(0) == "a 100%, b 0%, c 0%"
    two = Evaluation(np.eye(2), np.arange(2), ("a", "b"))
    assert two.format_top3(1) == "b 100%, a 0%"
