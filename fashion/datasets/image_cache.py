"""Image files as 28×28 arrays, each preprocessed once and cached by the SHA-256 of its file."""

import contextlib
import gzip
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fashion.datasets import preprocessing
from fashion.datasets.dataset import replace_unprintable
from fashion.datasets.image_files import find_image_files, with_progress
from fashion.datasets.preprocessing import IMAGE_SIZE
from fashion.environment import staging_dir
from fashion.errors import CacheDirError

import numpy as np
import PIL
from PIL import Image


class LabeledImages(NamedTuple):
    """Images in the order of their classes and files."""

    images: np.ndarray  # uint8 (N, 28, 28)
    labels: np.ndarray  # int32 (N,)
    filenames: tuple[str, ...]

    def select(self, mask: np.ndarray) -> "LabeledImages":
        """Return the images that a boolean mask selects."""
        filenames = tuple(
            name for name, is_selected in zip(self.filenames, mask, strict=True) if is_selected
        )
        return LabeledImages(self.images[mask], self.labels[mask], filenames)

    def concatenate(self, other: "LabeledImages") -> "LabeledImages":
        """Return these images followed by the others."""
        images, labels = (np.concatenate(pair) for pair in zip(self[:2], other[:2], strict=True))
        return LabeledImages(images, labels, self.filenames + other.filenames)

    def sha256(self, name: str) -> dict[str, str]:
        """Return the checksums, with the keys "<name>-images" and "<name>-labels"."""
        arrays = {f"{name}-images": self.images, f"{name}-labels": self.labels}
        return {key: hashlib.sha256(array.data).hexdigest() for key, array in arrays.items()}


class ImageCache:
    """Cache of preprocessed images: a PNG file per image file, named by its SHA-256."""

    def __init__(self, cache_dir: Path) -> None:
        """Use a directory of `cache_dir` for this version of the preprocessing and of Pillow."""
        key = _version_key() + PIL.__version__.encode()
        self.directory = cache_dir / f"pictures-{hashlib.sha256(key).hexdigest()[:16]}"

    def load(self, path: Path) -> np.ndarray:
        """Load and preprocess an image file, or read the cached result: uint8 (28, 28).

        Raises:
            CacheDirError: If the cache cannot be written.
            Exception: If the image cannot be used; Pillow raises many types.
        """
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        cached_path = self.directory / sha256[:2] / f"{sha256}.png"
        # A missing or damaged file is written again.
        with contextlib.suppress(Exception), Image.open(cached_path) as file:
            if (image := np.asarray(file)).shape == (IMAGE_SIZE, IMAGE_SIZE):
                return image
        image = preprocessing.preprocess_image(preprocessing.load_image(path))
        try:
            with staging_dir(cached_path.parent) as temporary_dir:
                Image.fromarray(image).save(tmp_path := temporary_dir / cached_path.name)
                tmp_path.replace(cached_path)
        except OSError as error:
            raise CacheDirError(error) from None
        return image


def _version_key() -> bytes:
    """Return the bytes that identify the version of the preprocessing."""
    version = preprocessing.PREPROCESSING_VERSION
    if version == 1:
        # Version 1 is that of earlier releases, whose key was the source text of the preprocessing.
        path = Path(__file__).with_name("preprocessing_v1.gz")
        return gzip.decompress(path.read_bytes())
    return f"{version}-".encode()


def load_images(directory: Path, class_dirs: Sequence[Path], cache: ImageCache) -> LabeledImages:
    """Load the images below the directory of each class; skip unusable files with a message.

    Args:
        directory: Directory that file names are relative to.
        class_dirs: Directory of each class, by label.
        cache: Cache of preprocessed images.

    Raises:
        OSError: If a directory cannot be read.
        CacheDirError: If the cache cannot be written.
    """
    paths = [
        (label, path)
        for label, class_dir in enumerate(class_dirs)
        for path in find_image_files(class_dir)
    ]
    images, labels, filenames = [], [], []
    for label, path in with_progress(paths, "Preprocessed"):
        try:
            images.append(cache.load(path))
        except CacheDirError:
            raise
        except Exception as error:  # Pillow raises many types
            print(f"{replace_unprintable(str(path))}: skipped: {error}", file=sys.stderr)
            continue
        labels.append(label)
        filenames.append(replace_unprintable(path.relative_to(directory).as_posix()))
    shape = len(images), IMAGE_SIZE, IMAGE_SIZE
    return LabeledImages(
        np.reshape(images, shape).astype("uint8"), np.array(labels, "int32"), tuple(filenames)
    )
