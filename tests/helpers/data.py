"""Data sets of the tests."""

import hashlib
from pathlib import Path

import numpy as np

import common
from helpers.scripts import SAMPLE


def load_sample(directory: Path = SAMPLE, **sizes: int) -> common.ImageDataset:
    """Load the data set in a directory; `train_size=…` etc. restrict its splits."""
    return common.load_fashion_mnist(common.DataOptions(data_dir=directory, **sizes))


def write_idx(directory: Path, data: common.ImageDataset, classes: range) -> Path:
    """Write some classes of a data set as IDX files with their checksums, without class names."""
    checksums = []
    for part, splits in ("train", [data.validation, data.train]), ("t10k", [data.test]):
        images = np.concatenate([split.images for split in splits])
        labels = np.concatenate([split.labels for split in splits])
        mask = np.isin(labels, classes)
        labels = (labels[mask] - classes.start).astype("uint8")
        for kind, array in ("images-idx3", images[mask]), ("labels-idx1", labels):
            header = np.array([0x800 + array.ndim, *array.shape], ">u4")
            payload = header.tobytes() + array.tobytes()
            (directory / f"{part}-{kind}-ubyte").write_bytes(payload)
            checksums.append(f"{hashlib.sha256(payload).hexdigest()}  {part}-{kind}-ubyte\n")
    (directory / "SHA256SUMS").write_text("".join(checksums))
    return directory
