"""The figures of a run: the plotted values."""

import io

from fashion.datasets.dataset import CLASS_NAMES
from fashion.evaluation import embeddings
from fashion.evaluation.embeddings import EmbeddingAnalysis, Predictions
from fashion.evaluation.metrics import Evaluation
from fashion.reporting import figures
from fashion.tracking.run import OUTPUT_FILES

import numpy as np
import pytest
from helpers.epochs import make_epoch
from helpers.predictions import make_analysis, random_evaluation
from matplotlib.colors import to_hex
from PIL import Image


@pytest.fixture
def evaluation(sample):
    return random_evaluation(sample)


def test_figure_files_are_the_png_files_of_a_run():
    assert set(figures.FIGURE_FILES) == {name for name in OUTPUT_FILES if name.endswith(".png")}


def test_saved_figures_are_legible(offline_run):
    for name in figures.FIGURE_FILES:
        with Image.open(offline_run.result.directory / name) as image:
            assert image.width == 1200
            assert len(image.convert("L").getcolors(256)) > 50  # not blank


def test_plot_learning_curves_shows_each_epoch():
    epochs = [make_epoch(1, 0.5), make_epoch(2, 0.75), make_epoch(3, 0.625)]
    accuracy, loss, learning_rate, seconds = figures.plot_learning_curves(epochs, 2).axes
    for axes, metric in (accuracy, "accuracy"), (loss, "loss"):
        train, validation, best = axes.lines
        assert list(train.get_ydata()) == [getattr(row, metric) for row in epochs]
        assert list(validation.get_ydata()) == [getattr(row, f"val_{metric}") for row in epochs]
        assert list(train.get_xdata()) == list(validation.get_xdata()) == [1, 2, 3]
        assert set(best.get_xdata()) == {2}
    assert list(learning_rate.lines[0].get_ydata()) == [1e-3] * 3
    assert list(seconds.lines[0].get_ydata()) == [1.0] * 3


def test_plot_confusion_matrix_is_in_percent_of_each_row(evaluation):
    (axes,) = figures.plot_confusion_matrix(evaluation).axes
    shown = np.array([text.get_text() for text in axes.texts]).reshape(10, 10)
    matrix = evaluation.confusion_matrix
    expected = 100 * matrix / matrix.sum(axis=1, keepdims=True)
    for i, j in np.ndindex(10, 10):
        assert shown[i, j] == (f"{expected[i, j]:.1f}" if matrix[i, j] else "·")
    assert [text.get_text() for text in axes.get_yticklabels()] == list(CLASS_NAMES)
    np.testing.assert_allclose(axes.images[0].get_array(), expected)


def test_plot_confusion_matrix_of_many_classes_omits_numbers():
    names = tuple(map(str, range(40)))
    figure = figures.plot_confusion_matrix(Evaluation(np.eye(40), np.arange(40), names))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == list(names)
    assert not figure.axes[0].texts


def test_plot_reliability_shows_calibration_and_coverage(evaluation):
    perfect = Evaluation(np.eye(10)[evaluation.labels], evaluation.labels, CLASS_NAMES)
    diagram, histogram, coverage = figures.plot_reliability(perfect, evaluation).axes
    ideal, validation, test = diagram.lines
    assert list(ideal.get_xdata()) == list(ideal.get_ydata()) == [0, 1]
    for line, expected in (validation, perfect), (test, evaluation):
        assert list(line.get_xdata()) == [bin.confidence for bin in expected.calibration_bins]
        assert list(line.get_ydata()) == [bin.accuracy for bin in expected.calibration_bins]
        assert f"{expected.expected_calibration_error:.3f}" in line.get_label()
    assert sum(bar.get_height() for bar in histogram.patches) == 400
    for line, expected in zip(coverage.lines, (perfect, evaluation), strict=True):
        assert list(line.get_ydata()) == [point.accuracy for point in expected.coverage_curve]


def test_plot_prediction_map_shows_each_test_image_in_the_color_of_its_class(sample):
    analysis, _ = make_analysis(sample, num_errors=30)
    figure = figures.plot_prediction_map(analysis)
    (axes,) = figure.axes
    correct, _, wrong, _, *classes = axes.collections
    points = analysis.map_points
    assert points.shape == (400, 2)
    names = {to_hex(dots.get_facecolor()[0][:3]): dots.get_label() for dots in classes}
    assert list(names.values()) == list(CLASS_NAMES)  # the colors differ
    mask = analysis.evaluation.correct
    for dots, is_plotted in (correct, mask), (wrong, ~mask):
        np.testing.assert_array_equal(dots.get_offsets(), points[is_plotted])
        shown = [names[to_hex(color[:3])] for color in dots.get_facecolor()]
        assert shown == [CLASS_NAMES[label] for label in sample.test.labels[is_plotted]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["correct", "wrong", *CLASS_NAMES]
    assert axes.get_title().startswith("t-SNE of the probabilities of 400 test images")
    for label, text in enumerate(axes.texts):
        assert text.get_text() == CLASS_NAMES[label]
        median = np.median(points[sample.test.labels == label], axis=0)
        np.testing.assert_array_equal(text.xy, median)
    assert len(axes.texts) == 10


def test_plot_prediction_map_shows_all_classes_if_it_omits_images(sample, monkeypatch):
    monkeypatch.setattr(embeddings, "MAX_MAP_IMAGES", 150)
    labels = np.sort(sample.test.labels)  # data sets may be sorted by class
    evaluation = Evaluation(np.eye(10)[labels], labels, CLASS_NAMES)
    predictions = Predictions(evaluation.probabilities, np.zeros((400, 1), "float16"))
    splits = {"train": predictions, "test": predictions}
    analysis = EmbeddingAnalysis.from_predictions(splits, evaluation)
    axes = figures.plot_prediction_map(analysis).axes[0]
    assert axes.get_title().startswith("t-SNE of the probabilities of 150 of 400 test images")
    _, counts = np.unique(axes.collections[0].get_facecolor(), axis=0, return_counts=True)
    assert counts.sum() == 150 and len(counts) == 10 and counts.min() >= 5


@pytest.mark.parametrize("num_errors", [0, 1, 5])
def test_plot_prediction_map_with_few_errors(num_errors, sample):
    analysis, _ = make_analysis(sample, num_errors)
    figures.plot_prediction_map(analysis).savefig(buffer := io.BytesIO())
    assert Image.open(buffer).width == 1200


@pytest.mark.filterwarnings("error")  # a layout that does not fit
@pytest.mark.parametrize("num_classes", [40, 300])
def test_plot_prediction_map_of_many_classes_some_without_images(num_classes):
    labels = np.arange(300) % 30
    names = tuple(f"_class number {i}" for i in range(num_classes))
    evaluation = Evaluation(np.eye(num_classes)[labels], labels, names)
    normal = np.random.default_rng(0).normal(size=(300, 1))
    predictions = Predictions(evaluation.probabilities, normal.astype("float16"))
    splits = {"train": predictions, "test": predictions}
    figure = figures.plot_prediction_map(EmbeddingAnalysis.from_predictions(splits, evaluation))
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["correct", "wrong", *(names if num_classes == 40 else ())]
    figure.savefig(buffer := io.BytesIO())
    assert Image.open(buffer).width == 1200
