"""Random augmentation, and horizontal flips."""

from fashion.backbones.augmentation import add_augmentation, flip_extractor_inputs, with_flip_tta

import keras
import numpy as np
import pytest


@pytest.mark.parametrize("max_shift", [1, 2])
def test_add_augmentation_flips_shifts_and_erases(max_shift, sample):
    keras.utils.set_random_seed(0)
    images = sample.train.images[:200]
    identity = keras.Sequential([keras.Input((28, 28), dtype="uint8"), keras.layers.Identity()])
    augmented = add_augmentation(identity, max_shift)(images, training=True).numpy()
    shifts, erased = set(), 0
    for image, result in zip(images, augmented, strict=True):
        padded = [np.pad(version, 3) for version in (image, image[:, ::-1])]
        changes = {
            (flipped, y, x): padded[flipped][y : y + 28, x : x + 28] != result
            for flipped in (0, 1)
            for y in range(7)
            for x in range(7)
        }
        fewest = min(changes.values(), key=np.count_nonzero)
        rows, columns = (np.flatnonzero(fewest.any(axis=axis)) for axis in (1, 0))
        if not len(rows):  # not erased
            found = [shift for shift, changed in changes.items() if not changed.any()]
            if len(found) == 1:
                shifts.add(found[0])
            continue
        sides = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert all(3 <= side <= 17 for side in sides)  # 0.14 to 0.57 of 28 pixels, rounded
        rectangle = fewest[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert rectangle.mean() > 0.3  # noise may equal the pixels it replaces
        erased += 1
    assert 30 <= erased <= 70  # of 200; the expectation is 50, its standard deviation 6
    assert {flipped for flipped, _, _ in shifts} == {0, 1}
    assert (
        {y for _, y, _ in shifts}
        == {x for _, _, x in shifts}
        == set(range(3 - max_shift, 4 + max_shift))
    )
    np.testing.assert_array_equal(
        add_augmentation(identity, max_shift)(images, training=False), images
    )


@pytest.fixture
def model():
    """uint8 (N, 28, 28) → {"means": float32 (N, 2)}: means of the left and right halves."""
    images = keras.Input((28, 28), dtype="uint8", name="images")
    halves = keras.ops.reshape(keras.ops.cast(images, "float32"), (-1, 28, 2, 14))
    return keras.Model(images, {"means": keras.ops.mean(halves, axis=(1, 3))})


def test_flip_extractor_inputs_flips_horizontally(model, sample):
    images = sample.test.images[:20]
    mirrored = flip_extractor_inputs(model, "_mirrored").predict(images, verbose=0)
    assert mirrored.keys() == {"means_mirrored"}
    left, right = images[:, :, :14].mean(axis=(1, 2)), images[:, :, 14:].mean(axis=(1, 2))
    np.testing.assert_allclose(mirrored["means_mirrored"], np.stack([right, left], 1), rtol=1e-5)


def test_with_flip_tta_averages_predictions(model, sample):
    images = sample.test.images[:20]
    classifier = keras.Model(model.input, model.output["means"], name="named")
    both = with_flip_tta(classifier)
    assert both.name == "named" and both.input_shape == (None, 28, 28)
    one, other = (classifier.predict(x, verbose=0) for x in (images, images[:, :, ::-1]))
    assert np.abs(one - other).max() > 10
    np.testing.assert_allclose(both.predict(images, verbose=0), (one + other) / 2, rtol=1e-5)
