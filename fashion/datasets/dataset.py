"""Fashion-MNIST, or other data like it, as a value: images, labels, class names; three splits.

A twelfth of the 60,000 training images (5,000, 500 of each class) is the validation split, the same
for every run and both scripts.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fashion.errors import UsageError, UserError

import numpy as np

# Fashion-MNIST's. Other data bring theirs.
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


MOST_BYTES = 60_000  # of all names of classes: a model's file has room for 65,535
SPLIT_SEED = 2017  # the data set's year; fixed, so that every run validates on the same images


@dataclass(frozen=True)
class Split:
    """One of train, validation and test, in an order in which every prefix is class-balanced.

    A subset is a prefix, so smaller subsets are nested in larger ones, and what is computed for
    each image of a subset is of use to every other subset.
    """

    all_images: np.ndarray  # uint8 (M, 28, 28)
    all_labels: np.ndarray  # int32 (M,)
    all_positions: np.ndarray  # int64 (M,): the image's number in the data set's file, from 0
    size: int  # N <= M: how many of them are used
    files: tuple[str, ...] = ()  # by position, if each image was a file of its own

    @property
    def images(self) -> np.ndarray:
        """The images in use, uint8 (N, 28, 28)."""
        return self.all_images[: self.size]

    @property
    def labels(self) -> np.ndarray:
        """Their labels, int32 (N,): numbers of class names, from 0."""
        return self.all_labels[: self.size]

    @property
    def positions(self) -> np.ndarray:
        """Their numbers in the data set's file, by which anybody can find them."""
        return self.all_positions[: self.size]

    def title(self, row: int) -> str:
        """By which anybody can find an image in use: its file, or "image" and its number."""
        position = int(self.positions[row])
        return self.files[position] if self.files else f"image {position}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all M images, in their order."""
        return hashlib.sha256(self.all_images.data).hexdigest()


class Files(NamedTuple):
    """The contents of the data set's four files, or as if of such, and where they were found."""

    train_images: np.ndarray  # uint8 (N, 28, 28)
    train_labels: np.ndarray  # uint8 (N,)
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str  # in words
    sha256: dict[str, str]  # of each file, decompressed, by its name
    name: str  # the data set's
    class_names: tuple[str, ...]  # by label
    validation: np.ndarray | None = None  # numbers of training images, if they are chosen already
    train_files: tuple[str, ...] = ()  # by number, if each image was a file of its own
    test_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class FashionMNIST:
    """The three splits, and what they were read from."""

    train: Split
    validation: Split
    test: Split
    source: str
    sha256: dict[str, str]  # of each file, decompressed
    name: str
    class_names: tuple[str, ...]  # by label

    @property
    def slug(self) -> str:
        """The name as W&B takes it for an artifact: "fashion-mnist"."""
        return re.sub("[^a-z0-9.]+", "-", self.name.lower()).strip("-.")[:60] or "data"

    @property
    def splits(self) -> dict[str, Split]:
        """The three by name, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def record(self) -> dict[str, object]:
        """What a run notes about its data."""
        sizes = {name: split.size for name, split in self.splits.items()}
        classes = list(self.class_names)
        return {"source": self.source, **sizes, "sha256": self.sha256, "classes": classes}


def checked_names(names: Iterable[str], origin: object) -> tuple[str, ...]:
    """The names of classes, unless they would be of no use in pictures, tables and a model's file.

    Raises:
        UserError: there is only one, one is empty, not printable or there twice, or all together
            are too long.
    """
    names = tuple(names)
    if len(names) < 2:
        there = f"only {names[0]!r}" if names else "none"
        raise UserError(f"{origin}: at least 2 classes are needed, and there is {there}")
    for i, name in enumerate(names):
        if not name.strip() or not name.isprintable():
            raise UserError(f"{origin}: the name of class {i}, {name!r}, is empty or unprintable")
        if name in names[:i]:
            raise UserError(f"{origin}: {name!r} is the name of two classes")
    if len(json.dumps(names)) > MOST_BYTES:
        raise UserError(f"{origin}: the names of all {len(names)} classes are too long")
    return names


def printable(name: str) -> str:
    """A file's name as it can be drawn and logged: its bytes may be of no character."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def split_files(
    files: Files, train_size: int | None, validation_size: int | None, test_size: int | None
) -> FashionMNIST:
    """The three splits; of each, if a size is given, only so many images, class-balanced.

    Raises:
        UserError: there are too few training images.
        UsageError: a size is larger than its split.
    """
    if files.validation is None:
        order = class_balanced_order(files.train_labels)
        held_out = len(order) // 12
        if not held_out:
            raise UserError(f"{files.source}: {len(order)} training images are too few to split")
        train, validation = order[held_out:], order[:held_out]
    else:
        others = np.setdiff1d(np.arange(len(files.train_labels)), files.validation)
        train, validation = (
            rows[class_balanced_order(files.train_labels[rows])]
            for rows in (others, files.validation)
        )

    def split(name: str, order: np.ndarray, size: int | None) -> Split:
        if size and size > len(order):
            raise UsageError(f"--{name}-size {size}: there are {len(order)} {name} images")
        images, labels, names = files.train_images, files.train_labels, files.train_files
        if name == "test":
            images, labels, names = files.test_images, files.test_labels, files.test_files
        labels = labels[order].astype("int32")
        return Split(images[order], labels, order, size or len(order), names)

    return FashionMNIST(
        train=split("train", train, train_size),
        validation=split("validation", validation, validation_size),
        test=split("test", class_balanced_order(files.test_labels), test_size),
        source=files.source,
        sha256=files.sha256,
        name=files.name,
        class_names=files.class_names,
    )


def class_balanced_order(labels: np.ndarray) -> np.ndarray:
    """A shuffled order that takes one image of each class in turn, as long as there are any."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    turn = np.concatenate([np.arange(count) for count in np.bincount(labels)])
    return by_class[np.argsort(turn, kind="stable")]
