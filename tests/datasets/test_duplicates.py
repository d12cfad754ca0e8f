"""The warnings about duplicate images: what is counted, and when nothing is printed."""

from fashion.datasets.duplicates import warn_about_contradictions, warn_about_duplicates

import numpy as np

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)


def test_duplicates_of_earlier_splits_are_counted(capsys):
    warn_about_duplicates(IMAGES[:5], IMAGES[4:7], IMAGES[[0, 6, 8]])
    assert capsys.readouterr().err == (
        "WARNING: duplicate images: 1 of 3 validation images also occur in the training set; 2 of "
        "3 test images also occur in the training or validation set.\n"
    )


def test_duplicates_within_the_training_set_are_no_reason_to_warn(capsys):
    warn_about_duplicates(IMAGES[[0, 0, 1]], IMAGES[2:4], IMAGES[4:])
    assert capsys.readouterr().err == ""


def test_equal_images_of_different_classes_are_named(capsys):
    names = [f"{i}.png" for i in range(8)]
    warn_about_contradictions(
        IMAGES[[0, 1, 0, 1, 2, 0, 0, 0]], np.array([0, 0, 1, 0, 1, 1, 1, 1]), names
    )
    assert capsys.readouterr().err == (
        "WARNING: equal images in different classes: 0.png and 2.png, 0.png and 5.png, 0.png and "
        "6.png; 1 more\n"
    )
    warn_about_contradictions(IMAGES[[0, 0, 1]], np.array([0, 0, 1]), names)
    assert capsys.readouterr().err == ""
