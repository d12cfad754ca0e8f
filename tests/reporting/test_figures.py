"""The pictures of a run."""

import io

from fashion.datasets.dataset import CLASS_NAMES
from fashion.evaluation.metrics import Evaluation
from fashion.reporting import figures

import numpy as np
import pytest
from PIL import Image
from test_epochs import epoch


@pytest.fixture
def evaluation(sample):
    """Of random probabilities for the sample's test images."""
    rng = np.random.default_rng(0)
    return Evaluation(rng.dirichlet(np.full(10, 0.3), 400), sample.test.labels, CLASS_NAMES)


def test_pictures_of_a_run_are_legible(offline_run):
    for name in figures.NAMES:
        with Image.open(offline_run.result.folder / name) as picture:
            assert picture.width == 1200
            assert len(picture.convert("L").getcolors(256)) > 50  # something is drawn


def test_curves_are_the_epochs():
    history = [epoch(1, 0.5), epoch(2, 0.75), epoch(3, 0.625)]
    accuracy, loss, learning_rate, seconds = figures.draw_curves(history, 2).axes
    for axes, metric in (accuracy, "accuracy"), (loss, "loss"):
        train, validation, best = axes.lines
        assert list(train.get_ydata()) == [getattr(row, metric) for row in history]
        assert list(validation.get_ydata()) == [getattr(row, f"val_{metric}") for row in history]
        assert list(train.get_xdata()) == list(validation.get_xdata()) == [1, 2, 3]
        assert set(best.get_xdata()) == {2}
    assert list(learning_rate.lines[0].get_ydata()) == [1e-3] * 3
    assert list(seconds.lines[0].get_ydata()) == [1.0] * 3


def test_confusion_matrix_is_in_percent_of_each_class(evaluation):
    (axes,) = figures.draw_confusion_matrix(evaluation).axes
    shown = np.array([text.get_text() for text in axes.texts]).reshape(10, 10)
    matrix = evaluation.confusion_matrix
    expected = 100 * matrix / matrix.sum(axis=1, keepdims=True)
    for i, j in np.ndindex(10, 10):
        assert shown[i, j] == (f"{expected[i, j]:.1f}" if matrix[i, j] else "·")
    assert [text.get_text() for text in axes.get_yticklabels()] == list(CLASS_NAMES)
    np.testing.assert_allclose(axes.images[0].get_array(), expected)


def test_mistakes_are_shown_with_their_numbers(evaluation, sample):
    figure = figures.draw_mistakes(evaluation, sample.test)
    wrong = evaluation.mistakes(40)
    assert f"40 most confident of {np.sum(~evaluation.correct)} mistakes" in figure.get_suptitle()
    (axes,) = figure.axes
    for image, text, i in zip(axes.images, axes.texts, wrong, strict=True):
        np.testing.assert_array_equal(image.get_array(), sample.test.images[i])
        true, predicted = CLASS_NAMES[sample.test.labels[i]], CLASS_NAMES[evaluation.predicted[i]]
        title = text.get_text()
        assert title.startswith(f"{true} →\n{predicted} {evaluation.confidence[i]:.0%}")
        assert title.endswith(f"image {sample.test.positions[i]}")


def test_mistakes_picture_without_a_mistake(sample):
    labels = sample.test.labels[:20]
    figure = figures.draw_mistakes(Evaluation(np.eye(10)[labels], labels, CLASS_NAMES), sample.test)
    figure.savefig(buffer := io.BytesIO())
    assert "0 most confident of 0 mistakes" in figure.get_suptitle()
    assert Image.open(buffer).width == 1200


def test_reliability_is_the_calibration_and_the_coverage(evaluation):
    perfect = Evaluation(np.eye(10)[evaluation.labels], evaluation.labels, CLASS_NAMES)
    diagram, counts, coverage = figures.draw_reliability(perfect, evaluation).axes
    ideal, validation, test = diagram.lines
    assert list(ideal.get_xdata()) == list(ideal.get_ydata()) == [0, 1]
    for line, of in (validation, perfect), (test, evaluation):
        assert list(line.get_xdata()) == [bin.confidence for bin in of.calibration]
        assert list(line.get_ydata()) == [bin.accuracy for bin in of.calibration]
        assert f"{of.expected_calibration_error:.3f}" in line.get_label()
    assert sum(bar.get_height() for bar in counts.patches) == 400
    for line, of in zip(coverage.lines, (perfect, evaluation), strict=True):
        assert list(line.get_ydata()) == [row.accuracy for row in of.coverage]


def test_many_classes_are_shown_without_figures():
    names = tuple(map(str, range(40)))
    figure = figures.draw_confusion_matrix(Evaluation(np.eye(40), np.arange(40), names))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == list(names)
    assert not figure.axes[0].texts
