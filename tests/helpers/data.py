"""Data sets of the tests."""

from pathlib import Path

from fashion.datasets.fashion_mnist import load_files
from fashion.datasets.splits import ImageDataset, make_splits

import numpy as np

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


def write_idx(directory: Path, data: ImageDataset, classes: range) -> Path:
    """Write some classes of a data set as IDX files, without class names."""
    for part, splits in ("train", [data.validation, data.train]), ("t10k", [data.test]):
        images = np.concatenate([split.images for split in splits])
        labels = np.concatenate([split.labels for split in splits])
        mask = np.isin(labels, classes)
        labels = (labels[mask] - classes.start).astype("uint8")
        for kind, array in ("images-idx3", images[mask]), ("labels-idx1", labels):
            header = np.array([0x800 + array.ndim, *array.shape], ">u4")
            payload = header.tobytes() + array.tobytes()
            (directory / f"{part}-{kind}-ubyte").write_bytes(payload)
    return directory
