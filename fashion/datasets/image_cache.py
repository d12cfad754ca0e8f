"""Picture files as 28×28 images, prepared once: a cache has each by the digest of its file."""

import collections
import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from fashion.datasets import preprocessing
from fashion.datasets.dataset import printable
from fashion.errors import UserError

import numpy as np
import PIL
from PIL import Image


class Pictures(NamedTuple):
    """Pictures in the order of their classes and files."""

    images: np.ndarray  # uint8 (N, 28, 28)
    labels: np.ndarray  # int32 (N,)
    files: tuple[str, ...]

    def rows(self, chosen: np.ndarray) -> "Pictures":
        """Those where the mask is true."""
        files = tuple(file for file, used in zip(self.files, chosen, strict=True) if used)
        return Pictures(self.images[chosen], self.labels[chosen], files)

    def and_then(self, other: "Pictures") -> "Pictures":
        """These, and after them those of another."""
        images, labels = (np.concatenate(pair) for pair in zip(self[:2], other[:2], strict=True))
        return Pictures(images, labels, self.files + other.files)

    def digests(self, name: str) -> dict[str, str]:
        """SHA-256 of the images, and of their labels."""
        arrays = {f"{name}-images": self.images, f"{name}-labels": self.labels}
        return {key: hashlib.sha256(array.data).hexdigest() for key, array in arrays.items()}


class PictureCache:
    """Pictures as 28×28, each a PNG file by the digest of the file that it comes from."""

    def __init__(self, cache_dir: Path) -> None:
        """In a folder for these very steps: other ones would make other images."""
        steps = Path(preprocessing.__file__).read_bytes() + PIL.__version__.encode()
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
            if (image := np.asarray(file)).shape == (preprocessing.SIDE, preprocessing.SIDE):
                return image
        image = preprocessing.to_fashion_mnist(preprocessing.read(path))
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".incomplete-") as folder:
                Image.fromarray(image).save(part := Path(folder) / kept.name)
                part.replace(kept)
        except OSError as error:
            raise UserError(f"--cache-dir: {error}") from None
        return image


def listed(names: Iterable[str]) -> str:
    """Sorted, with commas."""
    return ", ".join(sorted(names))


def read_pictures(folder: Path, classes: Sequence[Path], cache: PictureCache) -> Pictures:
    """The pictures in the classes' folders, by label, and in folders of these; named in `folder`.

    What cannot be used is named on stderr and left out.

    Raises:
        OSError: a folder or file cannot be read.
        UserError: the cache cannot be written.
    """
    found = [(label, path) for label, of in enumerate(classes) for path in _pictures_below(of)]
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
    shape = len(images), preprocessing.SIDE, preprocessing.SIDE
    return Pictures(
        np.reshape(images, shape).astype("uint8"), np.array(labels, "int32"), tuple(files)
    )


def _pictures_below(folder: Path) -> list[Path]:
    """The picture files in a folder and its folders, by name; says which others there are."""

    def fail(error: OSError) -> NoReturn:
        raise error

    paths: list[Path] = []
    others: list[Path] = []
    for where, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(where, name) for name in names if not name.startswith(".")):
            (paths if preprocessing.is_picture(path) else others).append(path)
    if others:
        kinds = collections.Counter(path.suffix or path.name for path in others)
        named = listed(f"{kind} ({count})" for kind, count in kinds.items())
        print(f"{folder}: not used, since not named as pictures: {named}", file=sys.stderr)
    return sorted(paths)
