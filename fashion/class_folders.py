"""One's own pictures as a data set: a folder for each class, as Keras' own loader takes them.

That is what `keras.utils.image_dataset_from_directory` takes: the folders' names, sorted, are the
classes. Each picture becomes 28×28 by the steps of `--predict`, once: a cache has it by the digest
of its file.
"""

import collections
import contextlib
import hashlib
import os
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from fashion import preparation
from fashion.data import SPLIT_SEED, Files, checked_names, printable
from fashion.errors import UsageError, UserError

import numpy as np
import PIL
from PIL import Image

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
        class_names = checked_names(_subfolders(folders["train"]), folders["train"])
        for part in folders.values():
            if other := set(class_names) ^ set(_subfolders(part)):
                both = f"{folders['train'].name}/ and {part.name}/"
                raise UserError(f"{folder}: in only one of {both}: {_listed(other)}")
        cache = _Cache(cache_dir)
        parts = {name: _read_part(part, class_names, cache) for name, part in folders.items()}
    except BrokenPipeError:
        raise  # nobody reads what is printed
    except OSError as error:
        raise UserError(f"--data-dir: {error}") from None
    counts = {
        name: np.bincount(part.labels, minlength=len(class_names)) for name, part in parts.items()
    }
    _check(folder, class_names, np.sum(list(counts.values()), axis=0), FEWEST)
    for name, part in folders.items():
        fewest = 1 + (len({"validation", "test"} - set(folders)) if name == "train" else 0)
        _check(part, class_names, counts[name], fewest)
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


class _Part(NamedTuple):
    """Pictures in the order of their classes and files."""

    images: np.ndarray  # uint8 (N, 28, 28)
    labels: np.ndarray  # int32 (N,)
    files: tuple[str, ...]

    def rows(self, chosen: np.ndarray) -> "_Part":
        """Those where the mask is true."""
        files = tuple(file for file, used in zip(self.files, chosen, strict=True) if used)
        return _Part(self.images[chosen], self.labels[chosen], files)

    def and_then(self, other: "_Part") -> "_Part":
        """These, and after them those of another."""
        images, labels = (np.concatenate(pair) for pair in zip(self[:2], other[:2], strict=True))
        return _Part(images, labels, self.files + other.files)

    def digests(self, name: str) -> dict[str, str]:
        """SHA-256 of the images, and of their labels."""
        arrays = {f"{name}-images": self.images, f"{name}-labels": self.labels}
        return {key: hashlib.sha256(array.data).hexdigest() for key, array in arrays.items()}


class _Cache:
    """Pictures as 28×28, each a PNG file by the digest of the file that it comes from."""

    def __init__(self, cache_dir: Path) -> None:
        """In a folder for these very steps: other ones would make other images."""
        steps = Path(preparation.__file__).read_bytes() + PIL.__version__.encode()
        self.folder = cache_dir / f"pictures-{hashlib.sha256(steps).hexdigest()[:16]}"

    def prepared(self, path: Path) -> np.ndarray:
        """A picture file as uint8 (28, 28).

        Raises:
            UserError: the cache cannot be written.
            Exception: of Pillow's many kinds: the file cannot be used.
        """
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        kept = self.folder / digest[:2] / f"{digest}.png"
        with contextlib.suppress(Exception), Image.open(kept) as file:  # not there, or damaged
            if (image := np.asarray(file)).shape == (preparation.SIDE, preparation.SIDE):
                return image
        image = preparation.to_fashion_mnist(preparation.read(path))
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".incomplete-") as folder:
                Image.fromarray(image).save(part := Path(folder) / kept.name)
                part.replace(kept)
        except OSError as error:
            raise UserError(f"--cache-dir: {error}") from None
        return image


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
            print(f"{folder}: not looked at: {_listed(others)}", file=sys.stderr)
        return {split: found[split] for split in dict.fromkeys(SPLITS.values()) if split in found}
    if named and inside:
        raise UserError(f"{folder}: there is no train/ with a folder for each class in it")
    return {"train": folder}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _read_part(folder: Path, class_names: Sequence[str], cache: _Cache) -> _Part:
    """The pictures in the classes' folders, and in folders of these."""
    folders = _subfolders(folder)
    found = [
        (label, path)
        for label, name in enumerate(class_names)
        for path in _pictures_below(folders[name])
    ]
    images, labels, files = [], [], []
    last = time.monotonic()
    for done, (label, path) in enumerate(found):
        if time.monotonic() - last > 20:
            last = time.monotonic()
            print(f"{done:,} of {len(found):,} pictures are prepared", flush=True)
        try:
            images.append(cache.prepared(path))
        except UserError:
            raise
        except Exception as error:  # of Pillow's many ways to refuse a file
            print(f"{path}: not used: {error}", file=sys.stderr)
            continue
        labels.append(label)
        files.append(printable(path.relative_to(folder).as_posix()))
    shape = len(images), preparation.SIDE, preparation.SIDE
    return _Part(np.reshape(images, shape).astype("uint8"), np.array(labels, "int32"), tuple(files))


def _pictures_below(folder: Path) -> list[Path]:
    """The picture files in a folder and its folders, by name; says which others there are."""

    def fail(error: OSError) -> NoReturn:
        raise error

    paths: list[Path] = []
    others: list[Path] = []
    for where, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(where, name) for name in names if not name.startswith(".")):
            (paths if preparation.is_picture(path) else others).append(path)
    if others:
        kinds = collections.Counter(path.suffix or path.name for path in others)
        named = _listed(f"{kind} ({count})" for kind, count in kinds.items())
        print(f"{folder}: not used, since not named as pictures: {named}", file=sys.stderr)
    return sorted(paths)


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
