"""Neighbours and map: what is drawn is what it says."""

import io

from fashion.datasets.dataset import CLASS_NAMES
from fashion.evaluation.closer_look import CloserLook
from fashion.evaluation.embeddings import Answers, project
from fashion.evaluation.metrics import Evaluation
from fashion.reporting.plot_style import BLUE, GREY, ORANGE

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image


def look(sample, wrong):
    """At made-up answers, of which so many on the test images are wrong."""
    rng = np.random.default_rng(0)
    answers = {}
    for name in "train", "test":
        split = sample.splits[name]
        labels = split.labels.copy()
        if name == "test":
            labels[:wrong] = (labels[:wrong] + 1) % 10
        probabilities = (np.eye(10)[labels] * 0.5 + rng.dirichlet(np.ones(10), split.size)) / 1.5
        embeddings = rng.normal(size=(split.size, 6)) + 3 * np.eye(10)[labels][:, :6]
        answers[name] = Answers(probabilities, embeddings.astype("float16"))
    test = Evaluation(answers["test"].probabilities, sample.test.labels, CLASS_NAMES)
    return CloserLook.at(answers, test), answers


def test_neighbours_are_drawn_beside_their_mistakes(sample):
    closer, answers = look(sample, wrong=30)
    (axes,) = closer.draw_neighbours(sample).axes
    assert len(axes.images) == len(axes.texts) == 12 * 5
    test, train = sample.test, sample.train
    embeddings = [answers[name].embeddings.astype("float32") for name in ("test", "train")]
    drawn = iter(zip(axes.images, axes.texts, strict=True))
    colours = set()
    for i in closer.test.mistakes(12):
        image, text = next(drawn)
        np.testing.assert_array_equal(image.get_array(), test.images[i])
        true, predicted = test.labels[i], closer.test.predicted[i]
        assert text.get_text().startswith(f"{CLASS_NAMES[true]} →\n{CLASS_NAMES[predicted]} ")
        assert text.get_text().endswith(f"\nimage {test.positions[i]}")
        distances = np.linalg.norm(embeddings[1] - embeddings[0][i], axis=1)
        for j in np.argsort(distances)[:4]:
            image, text = next(drawn)
            np.testing.assert_array_equal(image.get_array(), train.images[j])
            label = train.labels[j]
            assert text.get_text() == f"{CLASS_NAMES[label]}\nimage {train.positions[j]}"
            expected = BLUE if label == predicted else ORANGE if label == true else GREY
            assert text.get_color() == expected
            colours.add(expected)
    assert colours == {BLUE, ORANGE, GREY}


@pytest.mark.parametrize("wrong", [0, 1, 5])
def test_pictures_of_few_mistakes(wrong, sample):
    closer, _ = look(sample, wrong)
    for figure in closer.draw_neighbours(sample), closer.draw_map():
        figure.savefig(buffer := io.BytesIO())
        assert Image.open(buffer).width == 1200


def test_map_has_each_test_image_in_its_classes_colour(sample):
    closer, answers = look(sample, wrong=30)
    figure = closer.draw_map()
    (axes,) = figure.axes
    right, _, wrong, _, *classes = axes.collections
    points = project(answers["test"].embeddings, 2).points
    names = {to_hex(drawn.get_facecolor()[0][:3]): drawn.get_label() for drawn in classes}
    assert list(names.values()) == list(CLASS_NAMES)  # each has a colour of its own
    for drawn, chosen in (right, closer.test.correct), (wrong, ~closer.test.correct):
        np.testing.assert_array_equal(drawn.get_offsets(), points[chosen])
        shown = [names[to_hex(colour[:3])] for colour in drawn.get_facecolor()]
        assert shown == [CLASS_NAMES[label] for label in sample.test.labels[chosen]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["right", "wrong", *CLASS_NAMES]


@pytest.mark.filterwarnings("error")  # of a layout for which there is no room
@pytest.mark.parametrize("classes", [40, 300])
def test_map_of_many_classes_of_which_some_have_no_image(classes):
    labels = np.arange(300) % 30
    names = tuple(f"a class with a name {i}" for i in range(classes))
    test = Evaluation(np.eye(classes)[labels], labels, names)
    embeddings = np.random.default_rng(0).normal(size=(300, 1)).astype("float16")
    answers = Answers(test.probabilities, embeddings)
    figure = CloserLook.at({"train": answers, "test": answers}, test).draw_map()
    assert len(figure.legends[0].texts) == (42 if classes == 40 else 2)
    figure.savefig(written := io.BytesIO())
    assert Image.open(written).width == 1200
