"""Data sets of 28×28 gray images: images, labels, class names, and the three splits.

A twelfth of Fashion-MNIST's 60,000 training images (5,000, 500 of each class) is the validation
split, the same in every run and for both scripts.
"""

import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fashion.errors import UsageError, UserError

import numpy as np

# Class names of Fashion-MNIST; other data sets bring their own.
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
MAX_CLASS_NAMES_BYTES = 60_000  # of all names as JSON; a .keras file's comment holds 65,535
SPLIT_SEED = 2017  # fixed, so that all runs validate on the same images


class RawDataset(NamedTuple):
    """Training and test images before splitting, with their source and checksums."""

    train_images: np.ndarray  # uint8 (N, 28, 28)
    train_labels: np.ndarray  # uint8 or int32 (N,)
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str  # description for the user
    sha256: dict[str, str]  # of each (decompressed) file, by name
    name: str
    class_names: tuple[str, ...]
    validation_indices: np.ndarray | None = None  # of training images, if already chosen
    train_filenames: tuple[str, ...] = ()  # by index, if each image is a file
    test_filenames: tuple[str, ...] = ()
    first_label: int = 0  # label of the first class in the files


@dataclass(frozen=True)
class Split:
    """A train, validation or test split, ordered so that every prefix is class-balanced.

    A subset is a prefix. Smaller subsets are therefore nested in larger ones, and cached features
    of one subset are useful for all others.

    Attributes:
        all_images: uint8 (M, 28, 28).
        all_labels: int32 (M,).
        all_indices: int64 (M,), each image's position in the data set's file.
        size: Number N <= M of selected images.
        filenames: File names by index, if each image is a file.
    """

    all_images: np.ndarray
    all_labels: np.ndarray
    all_indices: np.ndarray
    size: int
    filenames: tuple[str, ...] = ()

    @property
    def images(self) -> np.ndarray:
        """The selected images, uint8 (N, 28, 28)."""
        return self.all_images[: self.size]

    @property
    def labels(self) -> np.ndarray:
        """The labels of the selected images, int32 (N,)."""
        return self.all_labels[: self.size]

    @property
    def indices(self) -> np.ndarray:
        """The selected images' positions in the data set's file, int64 (N,)."""
        return self.all_indices[: self.size]

    def image_name(self, i: int) -> str:
        """Return the display name of a selected image: its file name, or "image <index>"."""
        index = int(self.indices[i])
        return self.filenames[index] if self.filenames else f"image {index}"

    @cached_property
    def images_sha256(self) -> str:
        """SHA-256 of all M images, in their order."""
        return hashlib.sha256(self.all_images.data).hexdigest()


@dataclass(frozen=True)
class ImageDataset:
    """The three splits of a data set, with its source and checksums.

    Attributes:
        train, validation, test: The splits.
        source: Description for the user.
        sha256: Checksum of each (decompressed) file, by name.
        name: Name of the data set.
        class_names: Class names by label.
        first_label: Label of the first class in the data set's files; labels here start at 0.
    """

    train: Split
    validation: Split
    test: Split
    source: str
    sha256: dict[str, str]
    name: str
    class_names: tuple[str, ...]
    first_label: int = 0

    @property
    def slug(self) -> str:
        """The name as a W&B artifact name, such as "fashion-mnist"."""
        return re.sub("[^a-z0-9.]+", "-", self.name.lower()).strip("-.")[:60] or "data"

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def metadata(self) -> dict[str, object]:
        """Return sizes, checksums and class names, as recorded in metrics.json."""
        sizes = {name: split.size for name, split in self.splits.items()}
        classes = list(self.class_names)
        return {"source": self.source, **sizes, "sha256": self.sha256, "classes": classes}


def validate_class_names(names: Iterable[str], origin: object) -> tuple[str, ...]:
    """Validate class names and return them as a tuple.

    Args:
        names: Class names.
        origin: File or directory that contains them, for messages.

    Raises:
        UserError: If there are fewer than two names, a name is empty, unprintable or not unique, or
            all names together are too long.
    """
    names = tuple(names)
    if len(names) < 2:
        found = f"only {names[0]!r} was found" if names else "none was found"
        raise UserError(f"{origin}: at least 2 classes are needed, but {found}")
    seen = set()
    for i, name in enumerate(names):
        if not name.strip() or not name.isprintable():
            raise UserError(
                f"{origin}: the name of class {i}, {name!r}, is empty or unprintable; rename it"
            )
        if name in seen:
            raise UserError(f"{origin}: two classes have the name {name!r}; rename one")
        seen.add(name)
    if len(json.dumps(names)) > MAX_CLASS_NAMES_BYTES:
        raise UserError(f"{origin}: the {len(names)} class names are too long; shorten them")
    return names


def warn_about_classes(names: tuple[str, ...], labels: dict[str, np.ndarray]) -> None:
    """Warn about classes without images in a split, and about names that look the same.

    Args:
        names: Class names by label.
        labels: Labels by the name of the split.
    """
    counts = {split: np.bincount(part, minlength=len(names)) for split, part in labels.items()}
    used = np.sum(list(counts.values()), axis=0) > 0  # labels may have gaps
    for split, part in counts.items():
        if missing := [name for name, n, u in zip(names, part, used, strict=True) if u and not n]:
            print(f"WARNING: no {split} images of {', '.join(missing)}", file=sys.stderr)
    seen: dict[str, str] = {}
    for name in names:
        normalized = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if (other := seen.setdefault(normalized, name)) != name:
            print(f"WARNING: the classes {other!r} and {name!r} look the same", file=sys.stderr)


def replace_unprintable(name: str) -> str:
    """Replace characters of a file name that cannot be plotted or logged with U+FFFD."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def make_splits(
    raw: RawDataset, train_size: int | None, validation_size: int | None, test_size: int | None
) -> ImageDataset:
    """Split a data set, and restrict each split to a class-balanced subset if a size is given.

    Raises:
        UserError: If there are too few training images.
        UsageError: If a size is larger than its split.
    """
    if raw.validation_indices is None:
        order = class_balanced_order(raw.train_labels)
        num_validation = len(order) // 12
        if not num_validation:
            raise UserError(
                f"{raw.source}: {len(order)} training images are too few; at least 12 are needed"
            )
        train, validation = order[num_validation:], order[:num_validation]
    else:
        others = np.setdiff1d(np.arange(len(raw.train_labels)), raw.validation_indices)
        train, validation = (
            indices[class_balanced_order(raw.train_labels[indices])]
            for indices in (others, raw.validation_indices)
        )

    def make_split(name: str, order: np.ndarray, size: int | None) -> Split:
        if size and size > len(order):
            raise UsageError(f"--{name}-size {size}: there are only {len(order)} {name} images")
        images, labels, filenames = raw.train_images, raw.train_labels, raw.train_filenames
        if name == "test":
            images, labels, filenames = raw.test_images, raw.test_labels, raw.test_filenames
        labels = labels[order].astype("int32")
        return Split(images[order], labels, order, size or len(order), filenames)

    return ImageDataset(
        train=make_split("train", train, train_size),
        validation=make_split("validation", validation, validation_size),
        test=make_split("test", class_balanced_order(raw.test_labels), test_size),
        source=raw.source,
        sha256=raw.sha256,
        name=raw.name,
        class_names=raw.class_names,
        first_label=raw.first_label,
    )


def class_balanced_order(labels: np.ndarray) -> np.ndarray:
    """Return a shuffled order that takes one image of each class in turn while any are left."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank_in_class = np.concatenate([np.arange(count) for count in np.bincount(labels)])
    return by_class[np.argsort(rank_in_class, kind="stable")]
