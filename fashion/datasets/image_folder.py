"""Image folders: a data set of one directory of images per class.

The layout is that of `keras.utils.image_dataset_from_directory` and torchvision's `ImageFolder`:
the sorted names of the directories are the classes. Each image becomes 28×28 by the same
preprocessing as for `--predict`.
"""

import contextlib
import hashlib
import sys
import unicodedata
from pathlib import Path

from fashion.datasets import photos, splits
from fashion.datasets.fashion_mnist import find_data_dir
from fashion.datasets.photos import IMAGE_SIZE, find_image_files, is_hidden, is_image_file, walk
from fashion.datasets.splits import SPLIT_SEED, RawDataset, replace_unprintable
from fashion.errors import UsageError, UserError, print_warning
from fashion.files import replacing
from fashion.progress import with_progress

import numpy as np
import PIL
from PIL import Image

SPLITS = ("train", "validation", "test")
MIN_IMAGES_PER_CLASS = 5
# Without test/ or val/, a sixth and a twelfth of each class are held out, in this order.
HOLD_OUT_DIVISORS = {"test": 6, "validation": 12}
SPLIT_DIR_NAMES = {  # lower case
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def is_image_folder(path: Path) -> bool:
    """Return whether a directory contains directories, some images, and no IDX files."""
    has_classes = path.is_dir() and _list_subdirs(path) and not find_data_dir(path)
    return bool(has_classes) and any(map(is_image_file, walk(path)))


def check_outputs_outside_data_dir(data_dir: Path | None, output_dirs: dict[str, Path]) -> None:
    """Check that no output directory, by option, lies inside an image folder as another class."""
    if data_dir and is_image_folder(data_dir):
        for option, path in output_dirs.items():
            if path.resolve().is_relative_to(data_dir.resolve()):
                raise UsageError(
                    f"{option}: {path} lies inside --data-dir, where each directory is a class; "
                    "use another directory"
                )


def load_image_folder(path: Path, cache_dir: Path) -> RawDataset:
    """Load images from one directory per class, optionally below `train/`, `val/` and `test/`.

    Without `test/`, a sixth of each class is held out for testing, with a fixed seed; without
    `val/`, a twelfth of the rest for validation. Each class has at least one image in each split.
    Files that cannot be used are skipped with a message.
    """
    split_dirs = _find_split_dirs(path)
    class_names = _check_classes(path, split_dirs)
    images, labels, filenames, split_names = _load_images(split_dirs, class_names, cache_dir)
    for split, divisor in HOLD_OUT_DIVISORS.items():
        if split not in split_dirs:
            _hold_out(split, divisor, labels, split_names)
    _check_counts(path, class_names, labels, split_names)
    printable = np.array([replace_unprintable(name) for name in filenames])
    _warn_about_duplicates(images, labels, printable, split_names)
    is_test = split_names == "test"
    return RawDataset(
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
        source=f"{path} (--data-dir, {len(class_names)} classes)",
        sha256={
            f"{part}-{kind}": hashlib.sha256(array[mask].data).hexdigest()
            for part, mask in (("train", ~is_test), ("test", is_test))
            for kind, array in (("images", images), ("labels", labels))
        },
        name=path.resolve().name,
        class_names=class_names,
        validation_indices=np.flatnonzero(split_names[~is_test] == "validation"),
        train_filenames=tuple(filenames[~is_test]),
        test_filenames=tuple(filenames[is_test]),
    )


def _list_subdirs(directory: Path) -> dict[str, Path]:
    """Return the visible subdirectories by name, sorted."""
    subdirs: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not is_hidden(path):
            name = unicodedata.normalize("NFC", path.name)  # macOS decomposes umlauts
            if name in subdirs:
                raise UserError(f"{directory}: two directories are named {name!r}; merge them")
            subdirs[name] = path
    return subdirs


def _find_split_dirs(path: Path) -> dict[str, Path]:
    """Return the directory of each split: only "train" if the classes are directly in `path`."""
    subdirs = _list_subdirs(path)
    split_dirs: dict[str, Path] = {}
    for name, subdir in subdirs.items():
        split = SPLIT_DIR_NAMES.get(name.lower())
        if split and split not in split_dirs and _list_subdirs(subdir):
            split_dirs[split] = subdir
    others = [name for name, subdir in subdirs.items() if subdir not in split_dirs.values()]
    others_are_splits = all(name.lower() in SPLIT_DIR_NAMES for name in others)
    if "train" in split_dirs and (others_are_splits or len(split_dirs) > 1):
        if others:
            names = ", ".join(others)
            print_warning(f"{path}: ignored, since no split with class directories: {names}")
        return split_dirs
    if others_are_splits:
        raise UserError(f"{path}: create train/ with one subdirectory of training images per class")
    return {"train": path}


def _check_classes(path: Path, split_dirs: dict[str, Path]) -> tuple[str, ...]:
    """Return the class names, which all splits must share; warn about images without a class."""
    train_dir = split_dirs["train"]
    class_names = splits.validate_class_names(_list_subdirs(train_dir), train_dir)
    for directory in split_dirs.values():
        num_loose = sum(is_image_file(file) and not is_hidden(file) for file in directory.iterdir())
        if num_loose:
            print_warning(f"{directory}: ignored {num_loose} images that are in no class directory")
        if unmatched := set(class_names) ^ _list_subdirs(directory).keys():
            raise UserError(
                f"{path}: {train_dir.name}/ and {directory.name}/ must contain the same classes; "
                f"only in one of them: {', '.join(sorted(unmatched))}"
            )
    return class_names


def _load_images(
    split_dirs: dict[str, Path], class_names: tuple[str, ...], cache_dir: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Load the images of all splits; skip unusable files with a message.

    Returns:
        Images, uint8 (N, 28, 28), labels, int32 (N,), file names relative to the directory of the
        split, strings (N,), and names of the splits, strings (N,).
    """
    files = [
        (split, class_names.index(name), path)
        for split, directory in split_dirs.items()
        for name, class_dir in _list_subdirs(directory).items()
        for path in find_image_files(class_dir)
    ]
    images, labels, filenames, split_names = [], [], [], []
    for split, label, path in with_progress(files, "Preprocessing"):
        try:
            images.append(load_preprocessed(path, cache_dir))
        except UserError:
            raise
        except Exception as error:  # Pillow raises many types
            print(f"{replace_unprintable(str(path))}: skipped: {error}", file=sys.stderr)
            continue
        labels.append(label)
        filenames.append(path.relative_to(split_dirs[split]).as_posix())
        split_names.append(split)
    return (
        np.array(images, "uint8").reshape(len(images), IMAGE_SIZE, IMAGE_SIZE),
        np.array(labels, "int32"),
        np.array(filenames, object),
        np.array(split_names, object),
    )


def load_preprocessed(path: Path, cache_dir: Path) -> np.ndarray:
    """Load and preprocess an image file, or read the cached result: uint8 (28, 28).

    The cache contains a PNG file per image file, named by its SHA-256. A missing or damaged file of
    the cache is written again.

    Raises:
        UserError: If the cache cannot be written.
        Exception: If the image cannot be used; Pillow raises many types.
    """
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    versions = f"{photos.PREPROCESSING_VERSION}-{PIL.__version__}"  # the pixels depend on them
    cached_path = cache_dir / f"images-{versions}" / sha256[:2] / f"{sha256}.png"
    with contextlib.suppress(Exception), Image.open(cached_path) as file:
        if (image := np.asarray(file)).shape == (IMAGE_SIZE, IMAGE_SIZE):
            return image
    image = photos.preprocess_image(photos.load_image(path))
    with replacing(cached_path, "--cache-dir") as temporary_path:
        Image.fromarray(image).save(temporary_path)
    return image


def _hold_out(split: str, divisor: int, labels: np.ndarray, split_names: np.ndarray) -> None:
    """Move 1/`divisor` of the training images of each class to another split."""
    for label in np.unique(labels):
        indices = np.flatnonzero((labels == label) & (split_names == "train"))
        shuffled = np.random.default_rng([SPLIT_SEED, label]).permutation(indices)
        split_names[splits.hold_out([shuffled], divisor)] = split


def _check_counts(
    path: Path, class_names: tuple[str, ...], labels: np.ndarray, split_names: np.ndarray
) -> None:
    """Check that each class has enough images, and at least one in each split."""
    too_few = []
    for label, name in enumerate(class_names):
        counts = {split: np.sum(split_names[labels == label] == split) for split in SPLITS}
        if sum(counts.values()) < MIN_IMAGES_PER_CLASS or not all(counts.values()):
            numbers = ", ".join(f"{count} {split}" for split, count in counts.items())
            too_few.append(f"{name} ({numbers})")
    if too_few:
        raise UserError(
            f"{path}: each class needs at least {MIN_IMAGES_PER_CLASS} usable images, and one in "
            f"each split; too few: {', '.join(too_few)}"
        )


def _warn_about_duplicates(
    images: np.ndarray, labels: np.ndarray, filenames: np.ndarray, split_names: np.ndarray
) -> None:
    """Warn about equal images in different classes, and in different splits."""
    indices: dict[bytes, int] = {}
    # For each image, the index of the first image that equals it.
    first = np.array([indices.setdefault(image.tobytes(), i) for i, image in enumerate(images)])
    pairs = [
        f"{filenames[first[i]]} and {filenames[i]}" for i in np.flatnonzero(labels != labels[first])
    ]
    if pairs:
        more = f"; {len(pairs) - 3:,} more" if len(pairs) > 3 else ""
        print_warning(f"equal images in different classes: {', '.join(pairs[:3])}{more}")
    train, validation, test = (first[split_names == split] for split in SPLITS)
    in_train = np.isin(validation, train).sum()
    in_either = np.isin(test, np.concatenate([train, validation])).sum()
    if in_train or in_either:
        print_warning(
            f"duplicate images: {in_train:,} of {len(validation):,} validation images also occur "
            f"in the training set; {in_either:,} of {len(test):,} test images also occur in the "
            "training or validation set."
        )
