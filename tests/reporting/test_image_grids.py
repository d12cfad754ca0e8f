"""Grids of small images: the plotted images, titles and colors."""

import io

from fashion.datasets.dataset import CLASS_NAMES
from fashion.evaluation.metrics import Evaluation
from fashion.reporting import image_grids
from fashion.reporting.plot_style import BLUE, GRAY, ORANGE, plot_style

import numpy as np
import pytest
from helpers.predictions import make_analysis, random_evaluation
from matplotlib.figure import Figure
from PIL import Image


def test_thumbnail_is_upright_in_its_cell():
    image = np.zeros((28, 28), "uint8")
    image[:14, :7] = 255
    with plot_style():
        figure = Figure(figsize=(4, 2.8))
        axes = figure.subplots()
        image_grids.setup_thumbnail_axes(axes, columns=2, rows=1)
        image_grids.draw_thumbnail(axes, (1, 0), image, "", "black")
        figure.savefig(buffer := io.BytesIO())
        pixels = np.asarray(Image.open(buffer))[:, :, 0]
        (left, top), (right, bottom) = (
            axes.transData.transform(corner) for corner in ((1.07, 0.46), (1.93, 1.32))
        )
    height = pixels.shape[0]
    rows, columns = (
        slice(int(height - top) + 2, int(height - bottom) - 2),
        slice(int(left) + 2, int(right) - 2),
    )
    dark = pixels[rows, columns] < 100
    half, quarter = dark.shape[0] // 2, dark.shape[1] // 4
    assert dark[: half - 3, : quarter - 3].all()
    assert not dark[half + 3 :].any() and not dark[:, quarter + 3 :].any()


def test_plot_mistakes_shows_images_and_indices(sample):
    evaluation = random_evaluation(sample)
    figure = image_grids.plot_mistakes(evaluation, sample.test)
    mistakes = evaluation.most_confident_errors(40)
    assert f"40 most confident of {np.sum(~evaluation.correct)} errors" in figure.get_suptitle()
    (axes,) = figure.axes
    for image, text, i in zip(axes.images, axes.texts, mistakes, strict=True):
        np.testing.assert_array_equal(image.get_array(), sample.test.images[i])
        true, predicted = CLASS_NAMES[sample.test.labels[i]], CLASS_NAMES[evaluation.predicted[i]]
        title = text.get_text()
        assert title.startswith(f"{true} →\n{predicted} {evaluation.confidence[i]:.0%}")
        assert title.endswith(f"image {sample.test.indices[i]}")


def test_plot_mistakes_without_errors(sample):
    labels = sample.test.labels[:20]
    evaluation = Evaluation(np.eye(10)[labels], labels, CLASS_NAMES)
    figure = image_grids.plot_mistakes(evaluation, sample.test)
    figure.savefig(buffer := io.BytesIO())
    assert "0 most confident of 0 errors" in figure.get_suptitle()
    assert Image.open(buffer).width == 1200


def test_plot_neighbors_shows_nearest_training_images_next_to_each_error(sample):
    analysis, predictions = make_analysis(sample, num_errors=30)
    (axes,) = image_grids.plot_neighbors(analysis, sample).axes
    assert len(axes.images) == len(axes.texts) == 12 * 5
    test, train = sample.test, sample.train
    embeddings = {name: values.embeddings.astype("float32") for name, values in predictions.items()}
    thumbnails = iter(zip(axes.images, axes.texts, strict=True))
    colors = set()
    for i in analysis.evaluation.most_confident_errors(12):
        image, text = next(thumbnails)
        np.testing.assert_array_equal(image.get_array(), test.images[i])
        true, predicted = test.labels[i], analysis.evaluation.predicted[i]
        assert text.get_text().startswith(f"{CLASS_NAMES[true]} →\n{CLASS_NAMES[predicted]} ")
        assert text.get_text().endswith(f"\nimage {test.indices[i]}")
        distances = np.linalg.norm(embeddings["train"] - embeddings["test"][i], axis=1)
        for j in np.argsort(distances)[:4]:
            image, text = next(thumbnails)
            np.testing.assert_array_equal(image.get_array(), train.images[j])
            label = train.labels[j]
            assert text.get_text() == f"{CLASS_NAMES[label]}\nimage {train.indices[j]}"
            expected = BLUE if label == predicted else ORANGE if label == true else GRAY
            assert text.get_color() == expected
            colors.add(expected)
    assert colors == {BLUE, ORANGE, GRAY}


@pytest.mark.parametrize("num_errors", [0, 1, 5])
def test_plot_neighbors_of_few_errors(num_errors, sample):
    analysis, _ = make_analysis(sample, num_errors)
    image_grids.plot_neighbors(analysis, sample).savefig(buffer := io.BytesIO())
    assert Image.open(buffer).width == 1200
