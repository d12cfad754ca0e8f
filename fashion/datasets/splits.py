"""The train, validation and test splits of a data set."""

import collections
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fashion.errors import UsageError, UserError, print_warning

import numpy as np

# Class names of Fashion-MNIST; other data sets bring their own.
CLASS_NAMES: tuple[str, ...] = (
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


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """Training and test images before splitting."""

    train_images: np.ndarray  # uint8 (N, 28, 28)
    train_labels: np.ndarray  # int32 (N,); the first class is 0
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str  # description for the user
    sha256: dict[str, str]  # of each (decompressed) file, by name
    name: str
    class_names: tuple[str, ...]  # by label
    validation_indices: np.ndarray  # of training images
    first_label: int = 0  # label of the first class in the files
    train_filenames: tuple[str, ...] = ()  # by index, if each image is a file
    test_filenames: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """A train, validation or test split; every prefix keeps the proportions of the classes.

    A subset is a prefix. Smaller subsets are therefore nested in larger ones, and cached features
    of one subset are useful for all others.
    """

    all_images: np.ndarray  # uint8 (M, 28, 28)
    labels: np.ndarray  # int32 (N,), of the N <= M selected images
    indices: np.ndarray  # int64 (N,), of the selected images in the data set's file
    num_classes: int
    filenames: tuple[str, ...] = ()  # by index, if each image is a file

    @property
    def size(self) -> int:
        """The number N of selected images."""
        return len(self.labels)

    @property
    def images(self) -> np.ndarray:
        """The selected images, uint8 (N, 28, 28)."""
        return self.all_images[: self.size]

    @property
    def one_hot(self) -> np.ndarray:
        """The labels as targets of training, float32 (N, classes)."""
        return np.eye(self.num_classes, dtype="float32")[self.labels]

    def image_name(self, i: int) -> str:
        """Return the display name of a selected image: its file name, or "image <index>"."""
        index = int(self.indices[i])
        return replace_unprintable(self.filenames[index]) if self.filenames else f"image {index}"

    @cached_property
    def images_sha256(self) -> str:
        """SHA-256 of all M images, in their order."""
        return hashlib.sha256(self.all_images.data).hexdigest()


@dataclass(frozen=True)
class ImageDataset:
    """The three splits of a data set, with its source, checksums and class names.

    The other attributes are those of `RawDataset`.
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
    def splits(self) -> dict[str, Split]:
        """The splits by name, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def slug(self) -> str:
        """The name as a W&B artifact name, such as "fashion-mnist"."""
        return re.sub("[^a-z0-9.]+", "-", self.name.lower()).strip("-.")[:60] or "data"

    def metadata(self) -> dict[str, object]:
        """Return sizes, checksums and class names, as recorded in metrics.json."""
        sizes = {name: split.size for name, split in self.splits.items()}
        classes = list(self.class_names)
        return {"source": self.source, **sizes, "sha256": self.sha256, "classes": classes}


def make_splits(
    raw: RawDataset, train_size: int | None, validation_size: int | None, test_size: int | None
) -> ImageDataset:
    """Split a data set, into proportional subsets if sizes are given; warn of missing classes."""
    if not raw.validation_indices.size:
        raise UserError(f"{raw.source}: at least one class needs two training images")

    def make_split(name: str, classes: list[np.ndarray], size: int | None) -> Split:
        images, labels, filenames = raw.train_images, raw.train_labels, raw.train_filenames
        if name == "test":
            images, labels, filenames = raw.test_images, raw.test_labels, raw.test_filenames
        # Merge the classes so that every prefix keeps their proportions.
        fractions = np.concatenate([(np.arange(len(x)) + 0.5) / len(x) for x in classes])
        order = np.concatenate(classes)[np.argsort(fractions, kind="stable")]
        if size and size > len(order):
            raise UsageError(f"--{name}-size {size}: there are only {len(order)} {name} images")
        selected = order[:size]
        missing = np.setdiff1d(range(len(raw.class_names)), labels[selected])
        if missing.size:
            names = ", ".join(raw.class_names[label] for label in missing[:10])
            more = f" and {missing.size - 10} more" if missing.size > 10 else ""
            print_warning(f"no {name} images of {names}{more}")
        return Split(images[order], labels[selected], selected, len(raw.class_names), filenames)

    classes = shuffle_by_class(raw.train_labels)
    held_out = [indices[np.isin(indices, raw.validation_indices)] for indices in classes]
    rest = [indices[~np.isin(indices, raw.validation_indices)] for indices in classes]
    return ImageDataset(
        train=make_split("train", rest, train_size),
        validation=make_split("validation", held_out, validation_size),
        test=make_split("test", shuffle_by_class(raw.test_labels), test_size),
        source=raw.source,
        sha256=raw.sha256,
        name=raw.name,
        class_names=raw.class_names,
        first_label=raw.first_label,
    )


def shuffle_by_class(labels: np.ndarray) -> list[np.ndarray]:
    """Return the shuffled indices of the images of each class."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return np.split(by_class, np.cumsum(np.bincount(labels))[:-1])


def hold_out(classes: list[np.ndarray], divisor: int) -> np.ndarray:
    """Return 1/`divisor` of the indices of each class, at least one if it has two images."""
    counts = [min(len(x) - 1, max(1, len(x) // divisor)) for x in classes]
    return np.concatenate([x[:count] for x, count in zip(classes, counts, strict=True)])


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read and validate `classes.txt`, with one class name per line."""
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8; save it as UTF-8") from None
    return validate_class_names((name.strip() for name in names), path)


def write_class_names(directory: Path, class_names: Iterable[str]) -> None:
    """Write `classes.txt`, with one class name per line."""
    (directory / "classes.txt").write_text("".join(f"{name}\n" for name in class_names), "utf-8")


def validate_class_names(names: Iterable[str], origin: object) -> tuple[str, ...]:
    """Validate the class names in `origin`, a file or directory, and return them as a tuple."""
    names = tuple(names)
    if len(names) < 2:
        found = f"only {names[0]!r} was found" if names else "none was found"
        raise UserError(f"{origin}: at least 2 classes are needed, but {found}")
    for i, name in enumerate(names):
        if not name.strip() or not name.isprintable():
            raise UserError(
                f"{origin}: the name of class {i}, {name!r}, is empty or unprintable; rename it"
            )
    name, count = collections.Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{origin}: two classes have the name {name!r}; rename one")
    if len(json.dumps(names)) > MAX_CLASS_NAMES_BYTES:
        raise UserError(f"{origin}: the {len(names)} class names are too long; shorten them")
    return names


def replace_unprintable(name: str) -> str:
    """Replace characters of a file name that cannot be plotted or logged with U+FFFD."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
