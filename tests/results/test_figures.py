"""The figures of a run: the plotted values, images, titles and colors."""

import io

from fashion.datasets.splits import CLASS_NAMES
from fashion.results import figures, output
from fashion.results.evaluation import Evaluation, evaluate, tsne
from fashion.results.figures import BLUE, FIGURES, GRAY, ORANGE, plot_style

import matplotlib
import numpy as np
import pytest
from helpers.results import EPOCHS, make_predictions, open_run
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image


def render(figure):
    """Return the pixels of a figure, (height, width, 4)."""
    figure.savefig(buffer := io.BytesIO())
    return np.asarray(Image.open(buffer))


def test_saved_figures_are_legible(saved_run):
    for name in FIGURES:
        with Image.open(saved_run.options.output_dir / name) as image:
            assert image.width == 1200
            assert len(image.convert("L").getcolors(256)) > 50  # not blank


def test_plot_curves_shows_each_epoch():
    accuracy, loss, learning_rate, seconds = figures.plot_curves(epochs=EPOCHS).axes
    for axes, metric in (accuracy, "accuracy"), (loss, "loss"):
        train, validation, best = axes.lines
        assert list(train.get_ydata()) == [getattr(row, metric) for row in EPOCHS]
        assert list(validation.get_ydata()) == [getattr(row, f"val_{metric}") for row in EPOCHS]
        assert list(train.get_xdata()) == list(validation.get_xdata()) == [1, 2, 3]
        assert set(best.get_xdata()) == {2}
    assert list(learning_rate.lines[0].get_ydata()) == [1e-3] * 3
    assert list(seconds.lines[0].get_ydata()) == [1.0] * 3


def test_plot_confusion_matrix_is_in_percent_of_each_row(evaluations):
    with plot_style():
        (axes,) = figures.plot_confusion_matrix(evaluations=evaluations).axes
    shown = np.array([text.get_text() for text in axes.texts]).reshape(10, 10)
    matrix = evaluations["test"].confusion_matrix
    expected = 100 * matrix / matrix.sum(axis=1, keepdims=True)
    for i, j in np.ndindex(10, 10):
        assert shown[i, j] == (f"{expected[i, j]:.1f}" if matrix[i, j] else "·")
    assert [text.get_text() for text in axes.get_yticklabels()] == list(CLASS_NAMES)
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    assert axes.images[0].get_clim() == (0, 100)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_plot_reliability_shows_calibration_and_coverage(evaluations):
    diagram, histogram, coverage = figures.plot_reliability(evaluations=evaluations).axes
    ideal, *calibration = diagram.lines
    assert list(ideal.get_xdata()) == list(ideal.get_ydata()) == [0, 1]
    for name, line, curve in zip(("validation", "test"), calibration, coverage.lines, strict=True):
        expected = evaluations[name]
        assert list(line.get_xdata()) == [bin.confidence for bin in expected.calibration_bins]
        assert list(line.get_ydata()) == [bin.accuracy for bin in expected.calibration_bins]
        assert line.get_label().startswith(name)
        assert f"{expected.expected_calibration_error:.3f}" in line.get_label()
        assert dict(zip(*curve.get_data(), strict=True)) == expected.coverage_curve
    assert sum(bar.get_height() for bar in histogram.patches) == 400


def test_plot_tsne_shows_each_test_image_in_the_color_of_its_class(evaluations):
    test = evaluations["test"]
    points = tsne(test.probabilities)
    figure = figures.plot_tsne(evaluations=evaluations)
    (axes,) = figure.axes
    correct, wrong, _, _, *classes = axes.collections
    names = {to_hex(dots.get_facecolor()[0][:3]): dots.get_label().strip() for dots in classes}
    assert list(names.values()) == list(CLASS_NAMES)  # the colors differ
    for dots, is_plotted in (correct, test.correct), (wrong, ~test.correct):
        np.testing.assert_array_equal(dots.get_offsets(), points[is_plotted])
        shown = [names[to_hex(color[:3])] for color in dots.get_facecolor()]
        assert shown == [CLASS_NAMES[label] for label in test.labels[is_plotted]]
    (legend,) = figure.legends
    shown = [text.get_text().strip() for text in legend.texts]
    assert shown == ["correct", "wrong", *CLASS_NAMES]
    assert axes.get_title().startswith("t-SNE of the probabilities of 400 test images")
    assert [text.get_text() for text in axes.texts] == list(CLASS_NAMES)
    for label, text in enumerate(axes.texts):
        np.testing.assert_array_equal(text.xy, np.median(points[test.labels == label], axis=0))


def test_plot_tsne_of_many_images_shows_a_sample(evaluations, monkeypatch):
    monkeypatch.setattr(figures, "MAX_TSNE_IMAGES", 150)
    (axes,) = figures.plot_tsne(evaluations=evaluations).axes
    assert axes.get_title().startswith("t-SNE of the probabilities of 150 of 400 test images")
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == 150


@pytest.mark.filterwarnings("error")  # a layout that does not fit
@pytest.mark.parametrize("num_classes", [40, 300])
def test_many_classes_with_long_names_some_without_images(num_classes):
    labels = np.arange(300) % 30
    # As a formula, `$\0$` would be an error.
    names = tuple(rf"_class $\{i}$ with a long name" for i in range(num_classes))
    shown = [f"{name[:19]}…" for name in names]
    evaluations = {"test": Evaluation(np.eye(num_classes)[labels], labels, names)}
    with plot_style():
        matrix = figures.plot_confusion_matrix(evaluations=evaluations)
        points = figures.plot_tsne(evaluations=evaluations)
        assert render(matrix).shape[1] == render(points).shape[1] == 1200
    assert [text.get_text() for text in matrix.axes[0].get_xticklabels()] == shown
    assert not matrix.axes[0].texts  # no numbers
    legend = [text.get_text().strip() for text in points.legends[0].get_texts()]
    assert legend == ["correct", "wrong", *(shown if num_classes == 40 else ())]


def mistake_title(test, sample, i):
    true, predicted = CLASS_NAMES[test.labels[i]], CLASS_NAMES[test.predicted[i]]
    return f"{true} →\n{predicted} {test.confidence[i]:.0%}\nimage {sample.test.indices[i]}"


def test_plot_mistakes_shows_images_and_indices(evaluations, sample):
    test = evaluations["test"]
    figure = figures.plot_mistakes(evaluations=evaluations, data=sample)
    mistakes = test.most_confident_errors(40)
    (axes,) = figure.axes
    assert "40 most confident of 90 errors" in axes.get_title()
    assert axes.yaxis_inverted()
    for image, text, i in zip(axes.images, axes.texts, mistakes, strict=True):
        left, right, bottom, top = image.get_extent()
        assert left < right and bottom > top > text.get_position()[1]  # upright, below its title
        np.testing.assert_array_equal(image.get_array(), sample.test.images[i])
        assert text.get_text() == mistake_title(test, sample, i)


def test_plot_neighbors_shows_nearest_training_images_next_to_each_error(
    evaluations, neighbors, sample
):
    figure = figures.plot_neighbors(evaluations=evaluations, data=sample, neighbors=neighbors)
    (axes,) = figure.axes
    assert len(axes.images) == len(axes.texts) == 12 * 5
    test, train = evaluations["test"], sample.train
    thumbnails = iter(zip(axes.images, axes.texts, strict=True))
    colors = set()
    for i, indices in zip(test.most_confident_errors(12), neighbors.indices, strict=True):
        image, text = next(thumbnails)
        np.testing.assert_array_equal(image.get_array(), sample.test.images[i])
        assert text.get_text() == mistake_title(test, sample, i)
        for j in indices:
            image, text = next(thumbnails)
            np.testing.assert_array_equal(image.get_array(), train.images[j])
            label = train.labels[j]
            assert text.get_text() == f"{CLASS_NAMES[label]}\nimage {train.indices[j]}"
            color_by_label = {test.predicted[i]: BLUE, test.labels[i]: ORANGE}
            assert text.get_color() == color_by_label.get(label, GRAY)
            colors.add(text.get_color())
    assert colors == {BLUE, ORANGE, GRAY}


def test_all_figures_without_errors(sample, model, tmp_path):
    predictions = make_predictions(sample, num_errors=0)
    evaluations = evaluate(predictions, sample, temperature=1)
    output.save_results(open_run(sample, tmp_path), model, predictions, evaluations, 1)
    assert {path.name for path in tmp_path.iterdir()} >= set(FIGURES)
    (axes,) = figures.plot_mistakes(evaluations=evaluations, data=sample).axes
    assert "The 0 most confident of 0 errors" in axes.get_title()


def render_names(*names):
    """Render a figure with names as labels; return its pixels."""
    with plot_style():
        figure = Figure(figsize=(6, 3))
        figure.subplots().barh(names, np.arange(len(names)) + 1)
        return render(figure)


def test_plot_style_overrides_the_users_style():
    default = render_names("a", "b")
    with matplotlib.rc_context({"figure.dpi": 30, "figure.facecolor": "red", "font.size": 30}):
        np.testing.assert_array_equal(render_names("a", "b"), default)


def test_missing_characters_are_printed_once(capfd):
    render_names("\ue123\ue124", "\ue125")  # private use characters
    assert capfd.readouterr().err == (
        "WARNING: some characters in class or file names are missing from the installed fonts and "
        "are not shown in the figures.\n"
    )
