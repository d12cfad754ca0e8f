"""Cache of features extracted by the frozen backbone.

The cache has a directory per backbone, weights, image size and precision, in it a directory per
split, in it a file per chunk of images. A file appears completely or not at all, and every process
on this machine computes the same bytes for a feature. An interrupted run, or two runs at once,
therefore do no harm, and later runs continue from the files that exist. Each run adds its features
to the ones that a file contains.
"""

import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fashion import devices
from fashion.backbones import chunk_file
from fashion.backbones.progress import Progress
from fashion.datasets.dataset import Split
from fashion.environment import format_bytes
from fashion.errors import CacheDirError, UserError

import keras
import numpy as np

# Images per extraction step and per cache file; an interrupted run loses at most these. Not an
# option, because the last bits of the features depend on it. 125 divides 55,000, 5,000 and 10,000,
# and more is hardly faster.
CHUNK_SIZE = 125


class MissingChunk(NamedTuple):
    """A cache file that lacks features."""

    path: Path
    images: np.ndarray  # uint8 (N, 28, 28)
    num_bytes: int  # of the missing features


@dataclass(frozen=True)
class FeatureCache:
    """Features that one model extracts from images, in a directory.

    Attributes:
        directory: Directory of the features.
        extractor: uint8 (N, 28, 28) → {name: float16 (N, …)}.
    """

    directory: Path
    extractor: keras.Model

    def chunk_path(self, split: Split, start: int) -> Path:
        """Return the file for the images of the complete split from index `start` on."""
        return self.directory / split.images_sha256[:16] / f"{start:06}.npz"

    def compute_missing(self, splits: Iterable[Split], progress: Progress) -> None:
        """Extract the features that the cache does not contain, file by file.

        Args:
            splits: Splits whose selected images are needed.
            progress: Progress reporter.

        Raises:
            UserError: If the cache cannot be written, its disk has too little space, or features
                are NaN.
        """
        missing = self._find_missing(splits)
        if not missing:
            print(f"{progress.title}: all cached in {self.directory}")
            return
        num_missing = sum(len(chunk.images) for chunk in missing)
        size = sum(chunk.num_bytes for chunk in missing)
        self._check_disk_space(size, f"{progress.title} of {num_missing:,} images")
        print(
            f"{progress.title}: {num_missing:,} images, each processed once; "
            f"{format_bytes(size)}, cached in {self.directory}",
            flush=True,
        )
        progress.reset(num_missing)
        for i in range(0, len(missing), devices.num_replicas()):
            group = []
            for chunk in missing[i : i + devices.num_replicas()]:
                if self._missing_features(chunk.path):
                    group.append(chunk)
                else:  # computed by another process in the meantime
                    progress.total -= len(chunk.images)
            if group:
                self._extract(group, progress)

    def _missing_features(self, path: Path) -> set[str]:
        return self.extractor.output.keys() - chunk_file.stored_features(path)

    def _find_missing(self, splits: Iterable[Split]) -> list[MissingChunk]:
        bytes_per_image = {
            name: 2 * math.prod(output.shape[1:]) for name, output in self.extractor.output.items()
        }
        missing = []
        for split in splits:
            for start in range(0, split.size, CHUNK_SIZE):
                path = self.chunk_path(split, start)
                if names := self._missing_features(path):
                    images = split.all_images[start : start + CHUNK_SIZE]
                    num_bytes = len(images) * sum(bytes_per_image[name] for name in names)
                    missing.append(MissingChunk(path, images, num_bytes))
        return missing

    def _check_disk_space(self, size: int, title: str) -> None:
        """Raise a `UserError` if the disk has less than `size` bytes left."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.directory).free
        except OSError as error:
            raise CacheDirError(error) from None
        if size > free:
            raise UserError(
                f"{title} need {format_bytes(size)}, but {self.directory} has only "
                f"{format_bytes(free)} left; use another --cache-dir, or fewer images"
            )

    def _extract(self, group: list[MissingChunk], progress: Progress) -> None:
        """Extract and store the features of one file per device."""
        outputs = devices.predict_on_replicas(self.extractor, [chunk.images for chunk in group])
        for chunk, features in zip(group, outputs, strict=True):
            if any(np.isnan(values).any() for values in features.values()):
                raise UserError(
                    f"{progress.title.lower()} are NaN for some images; try --precision float32, "
                    "or other --weights"
                )
            chunk_file.merge(chunk.path, features)
        progress.update(sum(len(chunk.images) for chunk in group))

    def read_chunk(self, split: Split, start: int) -> dict[str, np.ndarray]:
        """Read a file's features of the split's selected images: {name: float16 (N, …)}.

        Damaged files are recomputed, with a warning.

        Raises:
            UserError: If a recomputed file cannot be written.
        """
        path, images = self.chunk_path(split, start), split.all_images[start : start + CHUNK_SIZE]
        try:
            arrays = chunk_file.read(path, self.extractor.output)
            if any(len(array) != len(images) for array in arrays.values()):
                raise ValueError("wrong number of images")
        except Exception as error:  # damaged zipfile raises many types
            print(f"{path} is damaged ({error}); recomputing it.", file=sys.stderr)
            (arrays,) = devices.predict_on_replicas(self.extractor, [images])
            chunk_file.merge(path, arrays)
        return {name: array[: split.size - start] for name, array in arrays.items()}

    def read(self, split: Split, names: Sequence[str], out: np.ndarray) -> None:
        """Read features of the split's selected images, concatenated, into `out`.

        Args:
            split: N selected images.
            names: Features, with `channels` channels in total.
            out: float16 (N, channels).

        Raises:
            UserError: If a damaged file cannot be replaced.
        """
        for start in range(0, split.size, CHUNK_SIZE):
            chunk = self.read_chunk(split, start)
            rows = out[start : start + CHUNK_SIZE]
            np.concatenate([chunk[name] for name in names], axis=1, out=rows)


def read_views(
    caches: dict[str, FeatureCache], split: Split, feature_names: tuple[str, ...]
) -> np.ndarray:
    """Read the features of a split's N selected images and of their other views, such as flips.

    Args:
        caches: Cache of each view by the suffix of its feature names.
        split: Split whose selected images are read.
        feature_names: Features without suffix, with `channels` channels in total.

    Returns:
        float16 (views·N, channels): the first views of all images, then their second views.
    """
    first = next(iter(caches.values())).extractor.output
    channels = sum(first[name].shape[1] for name in feature_names)
    views = np.empty((len(caches), split.size, channels), "float16")
    for view, (suffix, cache) in zip(views, caches.items(), strict=True):
        cache.read(split, [f"{name}{suffix}" for name in feature_names], out=view)
    return views.reshape(-1, channels)
