"""Duplicate images: warnings that an image occurs in two splits, or in two classes."""

import sys
from collections.abc import Sequence

import numpy as np


def warn_about_contradictions(
    images: np.ndarray, labels: np.ndarray, filenames: Sequence[str]
) -> None:
    """Warn about equal images, uint8 (N, 28, 28), of different classes; name the first ones."""
    first: dict[bytes, int] = {}
    pairs = []
    for i, image in enumerate(images):
        j = first.setdefault(image.tobytes(), i)
        if labels[i] != labels[j]:
            pairs.append(f"{filenames[j]} and {filenames[i]}")
    if pairs:
        more = f"; {len(pairs) - 3:,} more" if len(pairs) > 3 else ""
        print(
            f"WARNING: equal images in different classes: {', '.join(pairs[:3])}{more}",
            file=sys.stderr,
        )


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
