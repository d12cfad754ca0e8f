"""Images flipped and shifted, and mirrored."""

from fashion.augmentation import augment, mirror_images, with_mirror_images

import keras
import numpy as np
import pytest


def test_augmented_images_are_flipped_and_shifted(sample):
    images = sample.train.images[:200]
    identity = keras.Sequential([keras.Input((28, 28), dtype="uint8"), keras.layers.Identity()])
    augmented = augment(identity)(images, training=True).numpy()
    shifts = set()
    for image, result in zip(images, augmented, strict=True):
        padded = [np.pad(version, 3) for version in (image, image[:, ::-1])]
        found = [
            (flipped, y, x)
            for flipped in (0, 1)
            for y in range(7)
            for x in range(7)
            if np.array_equal(padded[flipped][y : y + 28, x : x + 28], result)
        ]
        assert found
        if len(found) == 1:
            shifts.add(found[0])
    assert {flipped for flipped, _, _ in shifts} == {0, 1}
    assert {y for _, y, _ in shifts} == {x for _, _, x in shifts} == {1, 2, 3, 4, 5}
    np.testing.assert_array_equal(augment(identity)(images, training=False), images)


@pytest.fixture
def model():
    """uint8 (N, 28, 28) → {"means": float32 (N, 2)}: of the left half and of the right one."""
    images = keras.Input((28, 28), dtype="uint8", name="images")
    halves = keras.ops.reshape(keras.ops.cast(images, "float32"), (-1, 28, 2, 14))
    return keras.Model(images, {"means": keras.ops.mean(halves, axis=(1, 3))})


def test_mirror_images_are_the_images_turned_left_to_right(model, sample):
    images = sample.test.images[:20]
    mirrored = mirror_images(model, "_mirrored").predict(images, verbose=0)
    assert mirrored.keys() == {"means_mirrored"}
    left, right = images[:, :, :14].mean(axis=(1, 2)), images[:, :, 14:].mean(axis=(1, 2))
    np.testing.assert_allclose(mirrored["means_mirrored"], np.stack([right, left], 1), rtol=1e-5)


def test_answer_to_both_is_their_mean(model, sample):
    images = sample.test.images[:20]
    answers = keras.Model(model.input, model.output["means"], name="named")
    both = with_mirror_images(answers)
    assert both.name == "named" and both.input_shape == (None, 28, 28)
    one, other = (answers.predict(x, verbose=0) for x in (images, images[:, :, ::-1]))
    assert np.abs(one - other).max() > 10
    np.testing.assert_allclose(both.predict(images, verbose=0), (one + other) / 2, rtol=1e-5)
