"""Duplicate images: the warning that the same image occurs in two splits."""

import sys

import numpy as np


def warn_about_duplicates(train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> None:
    """Warn on stderr about validation or test images that also occur in an earlier split.

    Args:
        train, validation, test: The images of each split, uint8 (N, 28, 28).
    """
    seen: set[bytes] = set()
    num_duplicates = []
    for images in train, validation, test:
        contents = [image.tobytes() for image in images]
        num_duplicates.append(sum(content in seen for content in contents))
        seen.update(contents)
    if any(num_duplicates[1:]):
        print(
            f"WARNING: duplicate images: {num_duplicates[1]:,} of {len(validation):,} validation "
            f"images also occur in the training set; {num_duplicates[2]:,} of {len(test):,} test "
            "images also occur in the training or validation set.",
            file=sys.stderr,
        )
