"""Data sets of the tests."""

from pathlib import Path

from fashion.datasets.fashion_mnist import load_files
from fashion.datasets.splits import ImageDataset, make_splits

from helpers.scripts import SAMPLE


def load_sample(
    directory: Path = SAMPLE,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
) -> ImageDataset:
    """Load the IDX files in a directory."""
    raw = load_files(directory, "--data-dir")
    return make_splits(raw, train_size, validation_size, test_size)
