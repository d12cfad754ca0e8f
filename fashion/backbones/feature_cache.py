"""Cache of the features that a backbone extracts from images.

It has a directory per backbone, image size, precision and weights, in it a directory per split, in
it a file per chunk of images, feature and view. Files are written atomically, and every process on
a machine computes the same bytes for a file. An interrupted run, or two runs at once, therefore do
no harm, and later runs continue from the files that exist.
"""

import itertools
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fashion import files
from fashion.datasets.splits import Split
from fashion.errors import UserError
from fashion.progress import with_progress

import keras
import numpy as np

# Images per extraction step and per cache file; an interrupted run loses at most these. Fixed,
# because the last bits of the features depend on the batch size. 125 divides 55,000, 5,000 and
# 10,000, so that no chunk is smaller.
CHUNK_SIZE = 125


class Chunk(NamedTuple):
    """Consecutive images of a split, or their horizontal flips, with their files."""

    rows: slice  # of the split
    view: int  # 1: flipped
    images: np.ndarray  # uint8 (N, 28, 28)
    paths: dict[str, Path]  # by feature; empty if features are not stored


@dataclass(eq=False)
class FeatureCache:
    """Features of images, extracted once."""

    directory: Path | None  # created if there is something to store; None: nothing is stored
    extractor: keras.Model  # uint8 (N, 28, 28) → {name: float16 (N, channels)}
    names: tuple[str, ...]  # features that are read; all features of the extractor are stored
    # Gets the progress after each computed chunk.
    log: Callable[[dict[str, float]], None] = lambda metrics: None
    # Rate of the computed images, without the first chunk, which includes tracing.
    images_per_second: float | None = field(default=None, init=False)
    # Images and seconds of each computed chunk.
    _steps: list[tuple[int, float]] = field(default_factory=list, init=False)

    def load(self, split: Split, flip: bool) -> np.ndarray:
        """Return features of the N selected images of a split: float16 (N, views, channels).

        The views are the image and, with `flip`, its horizontal flip. The channels are those of
        `names`, concatenated. Features that are missing on disk are computed and stored; damaged
        files are replaced, with a warning.
        """
        missing: list[Chunk] = []
        cached: list[Chunk] = []
        for start in range(0, split.size, CHUNK_SIZE):
            for view in range(1 + flip):
                chunk = self._chunk(split, start, view)
                is_cached = chunk.paths and all(chunk.paths[name].exists() for name in self.names)
                (cached if is_cached else missing).append(chunk)
        if not missing:
            print(f"Features: all cached in {self.directory} ({split.size:,} images)")
        elif self.directory:
            self._print_and_check_size(self.directory, missing)
        # Processes that start together compute different chunks, and read those of the others.
        shuffled = [missing[i] for i in np.random.default_rng().permutation(len(missing))]
        num_channels = sum(self.extractor.output[name].shape[1] for name in self.names)
        features = np.empty((split.size, 1 + flip, num_channels), "float16")
        for chunk in itertools.chain(with_progress(shuffled, "Features", CHUNK_SIZE), cached):
            target = features[chunk.rows, chunk.view]
            values = self._read_or_compute(chunk)
            arrays = [values[name][: len(target)] for name in self.names]
            np.concatenate(arrays, axis=1, out=target)
        return features

    def load_splits(self, splits: dict[str, Split], flip: bool) -> dict[str, np.ndarray]:
        """Return the features of the selected images of each split, by its name, as `load` does."""
        return {name: self.load(split, flip) for name, split in splits.items()}

    def _chunk(self, split: Split, start: int, view: int) -> Chunk:
        """Return a chunk, which is complete even at the end of the selected images."""
        rows = slice(start, start + CHUNK_SIZE)
        images, paths = split.all_images[rows], {}
        if self.directory:
            directory = self.directory / split.images_sha256[:16]
            suffix = "-flipped.npy" if view else ".npy"
            names = self.extractor.output
            paths = {name: directory / f"{start:06}-{name}{suffix}" for name in names}
        return Chunk(rows, view, images[:, :, ::-1] if view else images, paths)

    def _print_and_check_size(self, directory: Path, missing: list[Chunk]) -> None:
        """Print how many images are missing; raise a `UserError` if their features do not fit."""
        num_images = sum(len(chunk.images) for chunk in missing)
        size = sum(
            2 * len(chunk.images) * self.extractor.output[name].shape[1]
            for chunk in missing
            for name, path in chunk.paths.items()
            if not path.exists()
        )
        print(
            f"Features: extracting {num_images:,} images (flips included), "
            f"{size / 1e6:,.0f} MB, to {directory}",
            flush=True,
        )
        files.check_disk_space(directory, size, "--cache-dir")

    def _read_or_compute(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Return the features of a chunk, float16 (N, channels) each, at least those of `names`."""
        stored = {}
        for name in self.names if chunk.paths else ():
            shape = len(chunk.images), self.extractor.output[name].shape[1]
            if (values := _read(chunk.paths[name], shape)) is not None:
                stored[name] = values
        if len(stored) == len(self.names):
            return stored
        start_time = time.perf_counter()
        # Contiguous, because the flips are a view.
        features = self.extractor.predict_on_batch(np.ascontiguousarray(chunk.images))
        if not all(np.isfinite(values).all() for values in features.values()):
            raise UserError(
                "features of some images are not finite; try --precision float32 or other --weights"
            )
        # Those of `names` last: if they exist, the chunk is complete, also after a kill.
        for name in sorted(chunk.paths, key=self.names.__contains__):
            if name not in stored and (name in self.names or not chunk.paths[name].exists()):
                _write(chunk.paths[name], features[name])
        self._steps.append((len(chunk.images), time.perf_counter() - start_time))
        self._update_rate()
        return features

    def _update_rate(self) -> None:
        images, seconds = (sum(values) for values in zip(*self._steps, strict=True))
        metrics = {"features/images": images, "features/seconds": seconds}
        if len(self._steps) > 1:
            first_images, first_seconds = self._steps[0]
            self.images_per_second = (images - first_images) / (seconds - first_seconds)
            metrics["features/images_per_second"] = self.images_per_second
        self.log(metrics)


def _checksum(values: np.ndarray) -> bytes:
    return zlib.crc32(values.data).to_bytes(4, "little")


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Read a float16 array; None if the file is missing, or, with a warning, damaged."""
    try:
        with path.open("rb") as file:
            values = np.load(file)
            if values.shape != shape or values.dtype != np.float16:
                raise ValueError(f"contains {values.dtype} {values.shape}")
            if file.read() != _checksum(values):
                raise ValueError("wrong checksum")
        return values
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy raises many types
        print(f"{path} is damaged ({error}); recomputing it.", file=sys.stderr)
        return None


def _write(path: Path, values: np.ndarray) -> None:
    """Write an array in the format of NumPy, followed by a checksum of the values."""
    with files.replacing(path, "--cache-dir") as temporary_path, temporary_path.open("wb") as file:
        np.save(file, values)
        file.write(_checksum(values))
