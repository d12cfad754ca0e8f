"""One's own pictures as a data set: a folder for each class, as Keras' own loader takes them.

That is what `keras.utils.image_dataset_from_directory` takes: the folders' names, sorted, are the
classes. Each picture becomes 28×28 by the steps of `--predict`.
"""

import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from fashion.datasets.dataset import SPLIT_SEED, Files, checked_names
from fashion.datasets.image_cache import PictureCache, listed, read_pictures
from fashion.errors import UsageError, UserError

import numpy as np

FEWEST = 5  # pictures of a class
SPLITS = {  # by the names of their folders, whatever their case
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def are_in(folder: Path) -> bool:
    """Whether a folder has folders, and no IDX files.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return bool(_subfolders(folder)) and not any(folder.glob("*-ubyte*"))
    except OSError as error:
        raise UserError(f"--data-dir: {error}") from None


def keep_apart(data_dir: Path | None, written: dict[str, Path]) -> None:
    """What a run writes, by its option, must not come among the classes of a later run.

    Raises:
        UsageError: it would.
    """
    if data_dir and are_in(data_dir):
        for option, path in written.items():
            if path.resolve().is_relative_to(data_dir.resolve()):
                raise UsageError(
                    f"{option}: {path} is within --data-dir, where a folder is a class: use another"
                )


def read(folder: Path, cache_dir: Path) -> Files:
    """The pictures of a folder for each class, or of its `train/` and `test/` with such folders.

    Without `test/`, a sixth of each class is set aside as such by a fixed seed; without `val/`, a
    twelfth of the rest is for validation. Each class has at least one picture in each split. What
    cannot be used is named and left out.

    Raises:
        UserError: there are too few classes or pictures, train/ and test/ differ in their classes,
            a file or folder cannot be read, or the cache cannot be written.
    """
    try:
        folders = _split_folders(folder)
        classes = {name: _subfolders(part) for name, part in folders.items()}
        class_names = checked_names(classes["train"], folders["train"])
        for name, part in folders.items():
            if other := set(class_names) ^ set(classes[name]):
                both = f"{folders['train'].name}/ and {part.name}/"
                raise UserError(f"{folder}: in only one of {both}: {listed(other)}")
        cache = PictureCache(cache_dir)
        parts = {
            name: read_pictures(part, [classes[name][n] for n in class_names], cache)
            for name, part in folders.items()
        }
    except BrokenPipeError:
        raise  # nobody reads what is printed
    except OSError as error:
        raise UserError(f"--data-dir: {error}") from None
    counts = {
        name: np.bincount(part.labels, minlength=len(class_names)) for name, part in parts.items()
    }
    _check(folder, class_names, np.sum(list(counts.values()), axis=0), FEWEST)
    for name, part in folders.items():
        # Those for training are divided among the splits that have no folder.
        _check(part, class_names, counts[name], 4 - len(folders) if name == "train" else 1)
    train, test = parts["train"], parts.get("test")
    if not test:
        chosen = _choose(train.labels, 6)
        train, test = train.rows(~chosen), train.rows(chosen)
    if of_its_own := parts.get("validation"):
        validation = np.arange(len(train.labels) + len(of_its_own.labels)) >= len(train.labels)
        train = train.and_then(of_its_own)
    else:
        validation = _choose(train.labels, 12)
    _tell_of_twins(train.images[~validation], train.images[validation], test.images)
    return Files(
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        source=f"{folder} (--data-dir, {len(class_names)} classes)",
        sha256=train.digests("train") | test.digests("test"),
        name=folder.resolve().name,
        class_names=class_names,
        validation=np.flatnonzero(validation),
        train_files=train.files,
        test_files=test.files,
    )


def _subfolders(folder: Path) -> dict[str, Path]:
    """A folder's folders by name, sorted, but hidden ones: none if there is no such folder."""
    if not folder.is_dir():
        return {}
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    return {
        unicodedata.normalize("NFC", path.name): path  # macOS writes umlauts otherwise
        for path in found
        if not path.name.startswith(".") and path.name != "__MACOSX"
    }


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders with the classes' folders, by split: "train", and others if there are such.

    Raises:
        UserError: they are named as splits, but without classes' folders to train on.
    """
    inside = _subfolders(folder)
    found: dict[str, Path] = {}
    others = []
    for name, path in inside.items():
        split = SPLITS.get(name.lower())
        if split and split not in found and _subfolders(path):
            found[split] = path
        else:
            others.append(name)
    named = all(name.lower() in SPLITS for name in others)
    if "train" in found and (named or len(found) > 1):
        if others:
            print(f"{folder}: not looked at: {listed(others)}", file=sys.stderr)
        return {split: found[split] for split in dict.fromkeys(SPLITS.values()) if split in found}
    if named and inside:
        raise UserError(f"{folder}: there is no train/ with a folder for each class in it")
    return {"train": folder}


def _check(folder: Path, class_names: Sequence[str], counts: np.ndarray, fewest: int) -> None:
    """Raises a `UserError` that names the classes which have fewer pictures."""
    few = [f"{n} ({count})" for n, count in zip(class_names, counts, strict=True) if count < fewest]
    if few:
        pictures = "picture" if fewest == 1 else "pictures"
        needed = f"each class needs at least {fewest} {pictures} that can be used"
        raise UserError(f"{folder}: {needed}; too few are in {', '.join(few)}")


def _choose(labels: np.ndarray, share: int) -> np.ndarray:
    """Marks one in so many of each class, at least one, by the fixed seed: bool (N,)."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shuffled = np.random.default_rng([SPLIT_SEED, label]).permutation(rows)
        chosen[shuffled[: max(1, len(rows) // share)]] = True
    return chosen


def _tell_of_twins(train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> None:
    """Says how many images of a later split are in an earlier one, too."""
    seen: set[bytes] = set()
    twins = []
    for images in train, validation, test:
        contents = [image.tobytes() for image in images]
        twins.append(sum(content in seen for content in contents))
        seen.update(contents)
    if any(twins[1:]):
        print(
            f"Identical pictures: {twins[1]:,} of {len(validation):,} for validation are also for "
            f"training, and {twins[2]:,} of {len(test):,} for testing also for one of these",
            file=sys.stderr,
        )
