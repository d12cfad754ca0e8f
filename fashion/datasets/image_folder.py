"""Image folders: a data set of one directory of images per class.

The layout is that of `keras.utils.image_dataset_from_directory` and torchvision's `ImageFolder`:
the sorted names of the directories are the classes. Each image becomes 28×28 by the same
preprocessing as for `--predict`.
"""

import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from fashion.datasets import idx_files
from fashion.datasets.dataset import (
    SPLIT_SEED,
    RawDataset,
    validate_class_names,
    warn_about_classes,
)
from fashion.datasets.duplicates import warn_about_contradictions, warn_about_duplicates
from fashion.datasets.image_cache import ImageCache, LabeledImages, load_images
from fashion.datasets.image_files import is_hidden, is_image_file
from fashion.errors import UsageError, UserError

import numpy as np

MIN_IMAGES_PER_CLASS = 5
# Without test/ or val/, a sixth and a twelfth of each class are held out.
TEST_DIVISOR, VALIDATION_DIVISOR = 6, 12
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
    """Return whether a directory contains directories, and no IDX files.

    Raises:
        UserError: If the directory cannot be read.
    """
    try:
        return bool(_list_subdirs(path)) and not idx_files.find_data_dir(path)
    except OSError as error:
        raise UserError(f"--data-dir: {error}") from None


def check_outputs_outside_data_dir(data_dir: Path | None, output_dirs: dict[str, Path]) -> None:
    """Check that no output directory lies inside an image folder, where it would become a class.

    Args:
        data_dir: Value of `--data-dir`.
        output_dirs: Directories that the run writes to, by option.

    Raises:
        UsageError: If an output directory lies inside `data_dir`.
    """
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

    Raises:
        UserError: If there are too few classes or images, the classes of the splits differ, a
            directory cannot be read, or the cache cannot be written.
    """
    try:
        split_dirs = _find_split_dirs(path)
        class_names, parts = _load_splits(path, split_dirs, ImageCache(cache_dir))
    except BrokenPipeError:
        raise  # the reader of the output is gone
    except OSError as error:
        raise UserError(f"--data-dir: {error}") from None
    train, test = parts["train"], parts.get("test")
    if not test:
        test_mask = _stratified_holdout(train.labels, TEST_DIVISOR)
        train, test = train.select(~test_mask), train.select(test_mask)
    if explicit_validation := parts.get("validation"):
        num_train = len(train.labels)
        train = train.concatenate(explicit_validation)
        validation_mask = np.arange(len(train.labels)) >= num_train
    else:
        validation_mask = _stratified_holdout(train.labels, VALIDATION_DIVISOR)
    warn_about_contradictions(*train.concatenate(test))
    warn_about_duplicates(
        train.images[~validation_mask], train.images[validation_mask], test.images
    )
    return RawDataset(
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        source=f"{path} (--data-dir, {len(class_names)} classes)",
        sha256=train.sha256("train") | test.sha256("test"),
        name=path.resolve().name,
        class_names=class_names,
        validation_indices=np.flatnonzero(validation_mask),
        train_filenames=train.filenames,
        test_filenames=test.filenames,
    )


def _load_splits(
    path: Path, split_dirs: dict[str, Path], cache: ImageCache
) -> tuple[tuple[str, ...], dict[str, LabeledImages]]:
    """Return the class names and the images of each split that has a directory.

    Raises:
        OSError: If a directory cannot be read.
        UserError: If classes differ, or contain too few images.
    """
    class_dirs = {split: _list_subdirs(directory) for split, directory in split_dirs.items()}
    if len(class_dirs["train"]) == 1:
        raise UserError(
            f"{split_dirs['train']}: expected one subdirectory of images per class, found only "
            f"{next(iter(class_dirs['train']))!r}; give the directory that contains those of the "
            "classes"
        )
    class_names = validate_class_names(class_dirs["train"], split_dirs["train"])
    warn_about_classes(class_names, {})
    for directory in split_dirs.values():
        if count := sum(
            is_image_file(file) and not is_hidden(file) for file in directory.iterdir()
        ):
            print(
                f"WARNING: {directory}: ignored {count} images that are in no class directory",
                file=sys.stderr,
            )
    for split, directory in split_dirs.items():
        if unmatched := set(class_names) ^ set(class_dirs[split]):
            both = f"{split_dirs['train'].name}/ and {directory.name}/"
            raise UserError(
                f"{path}: {both} must contain the same classes; only in one of them: "
                f"{', '.join(sorted(unmatched))}"
            )
    parts = {
        split: load_images(directory, [class_dirs[split][name] for name in class_names], cache)
        for split, directory in split_dirs.items()
    }
    counts = {
        split: np.bincount(part.labels, minlength=len(class_names)) for split, part in parts.items()
    }
    total = np.sum(list(counts.values()), axis=0)
    _check_min_images(path, class_names, total, MIN_IMAGES_PER_CLASS)
    for split, directory in split_dirs.items():
        # Training images are divided among the splits without a directory.
        minimum = 4 - len(split_dirs) if split == "train" else 1
        _check_min_images(directory, class_names, counts[split], minimum)
    return class_names, parts


def _list_subdirs(directory: Path) -> dict[str, Path]:
    """Return the visible subdirectories by name, sorted; {} if there is no such directory."""
    if not directory.is_dir():
        return {}
    subdirs: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not is_hidden(path):
            name = unicodedata.normalize("NFC", path.name)  # macOS decomposes umlauts
            if name in subdirs:
                raise UserError(f"{directory}: two directories are named {name!r}; merge them")
            subdirs[name] = path
    return subdirs


def _find_split_dirs(path: Path) -> dict[str, Path]:
    """Return the directory of each split: only "train" if the classes are directly in `path`.

    Raises:
        UserError: If there are split directories, but none with classes to train on.
    """
    subdirs = _list_subdirs(path)
    split_dirs: dict[str, Path] = {}
    others = []
    for name, subdir in subdirs.items():
        split = SPLIT_DIR_NAMES.get(name.lower())
        if split and split not in split_dirs and _list_subdirs(subdir):
            split_dirs[split] = subdir
        else:
            others.append(name)
    others_are_splits = all(name.lower() in SPLIT_DIR_NAMES for name in others)
    if "train" in split_dirs and (others_are_splits or len(split_dirs) > 1):
        if others:
            names = ", ".join(sorted(others))
            print(f"WARNING: {path}: ignored, because not a split: {names}", file=sys.stderr)
        order = dict.fromkeys(SPLIT_DIR_NAMES.values())
        return {split: split_dirs[split] for split in order if split in split_dirs}
    if others_are_splits and subdirs:
        raise UserError(f"{path}: create train/ with one subdirectory of training images per class")
    return {"train": path}


def _check_min_images(
    path: Path, class_names: Sequence[str], counts: np.ndarray, minimum: int
) -> None:
    """Raise a `UserError` that names the classes with fewer than `minimum` images."""
    too_few = [
        f"{name} ({count})"
        for name, count in zip(class_names, counts, strict=True)
        if count < minimum
    ]
    if too_few:
        images = "image" if minimum == 1 else "images"
        raise UserError(
            f"{path}: each class needs at least {minimum} usable {images}; too few: "
            f"{', '.join(too_few)}"
        )


def _stratified_holdout(labels: np.ndarray, one_in: int) -> np.ndarray:
    """Return a mask that holds out 1/`one_in` of each class (at least one image), bool (N,)."""
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        shuffled = np.random.default_rng([SPLIT_SEED, label]).permutation(indices)
        mask[shuffled[: max(1, len(indices) // one_in)]] = True
    return mask
