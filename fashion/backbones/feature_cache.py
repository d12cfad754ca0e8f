"""What the frozen network makes of each image, computed once and kept on disk.

The cache is a folder for each network, image size and precision, in it one for each split, in it a
file for each `CHUNK` of images. A file appears whole or not at all, by a rename, and each feature
in it has the same bytes whoever computes it on this machine: a killed run, or two at once, do no
harm, and a later run goes on. A pass adds its features to those that a file has.
"""

import contextlib
import math
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fashion import devices, environment
from fashion.backbones.progress import Progress
from fashion.datasets.dataset import Split
from fashion.errors import UserError

import keras
import numpy as np

# Images in one step of the extraction and in one file of its cache: what a killed run loses at
# most. It is no option since the last bits of the features depend on it. 125 divides 55,000,
# 5,000 and 10,000, and more is hardly faster.
CHUNK = 125


def pool(activations: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
    """Each channel's average and maximum, float32 (N, channels), and its averages over the fields
    of a grid, "3x3" and "4x4": (N, fields·channels), row by row.

    Where the height is no multiple of the grid's, fields overlap; if less, they are fewer.
    """
    pooled = {
        "avg": keras.layers.GlobalAveragePooling2D(dtype="float32")(activations),
        "max": keras.layers.GlobalMaxPooling2D(dtype="float32")(activations),
    }
    height = activations.shape[1]
    for fields in 3, 4:
        strides = max(height // fields, 1)
        size = max(height - (fields - 1) * strides, 1)
        averages = keras.layers.AveragePooling2D(size, strides, dtype="float32")(activations)
        pooled[f"{fields}x{fields}"] = keras.layers.Flatten(dtype="float32")(averages)
    return pooled


def to_float16(values: keras.KerasTensor) -> keras.KerasTensor:
    """As float16; what is out of its range becomes its largest number."""
    largest = float(np.finfo("float16").max)
    return keras.ops.cast(keras.ops.clip(values, -largest, largest), "float16")


@dataclass(frozen=True)
class FeatureCache:
    """A folder of what one network makes of images."""

    folder: Path
    network: keras.Model  # uint8 (N, 28, 28) → {name: float16 (N, …)}, what is kept

    def path(self, split: Split, start: int) -> Path:
        """The file for the images from `start` on of a (whole) split."""
        return self.folder / split.digest[:16] / f"{start:06}.npz"

    def fill(self, splits: Iterable[Split], progress: Progress) -> None:
        """Computes what is not there yet, file by file.

        Args:
            splits: whose images in use are needed.
            progress: is told of it.

        Raises:
            UserError: the cache cannot be written, or its disk has not the room; or the network
                makes no numbers of the images.
        """
        sizes = {name: 2 * math.prod(v.shape[1:]) for name, v in self.network.output.items()}
        todo = []
        left = size = 0
        for split in splits:
            for start in range(0, split.size, CHUNK):
                path = self.path(split, start)
                if missing := set(sizes) - names_in(path):
                    images = split.all_images[start : start + CHUNK]
                    todo.append((path, images))
                    left += len(images)
                    size += len(images) * sum(sizes[name] for name in missing)
        if not todo:
            print(f"{progress.title}: all in {self.folder}")
            return
        self._make_room(size, f"{progress.title} of {left:,} images")
        print(
            f"{progress.title}: extracting {left:,} images, each once; "
            f"{environment.megabytes(size)}, kept in {self.folder}",
            flush=True,
        )
        progress.begin(left)
        for i in range(0, len(todo), devices.count()):
            group = []
            for path, images in todo[i : i + devices.count()]:
                if set(sizes) - names_in(path):
                    group.append((path, images))
                else:  # made meanwhile by another process
                    progress.target -= len(images)
            if not group:
                continue
            outputs = devices.predict_batches(self.network, [images for _, images in group])
            for (path, _), features in zip(group, outputs, strict=True):
                if any(np.isnan(values).any() for values in features.values()):
                    raise UserError(
                        f"the network makes no numbers of some images: {progress.title.lower()} "
                        "are NaN; try --precision float32"
                    )
                _add(path, features)
            progress.advance(sum(len(images) for _, images in group))

    def _make_room(self, size: int, what: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise UserError(f"--cache-dir: {error}") from None
        if size > free:
            raise UserError(
                f"{what} take {environment.megabytes(size)}, but {self.folder} has only "
                f"{environment.megabytes(free)} left: use another --cache-dir, or fewer images"
            )

    def read_chunk(self, split: Split, start: int) -> dict[str, np.ndarray]:
        """What a file holds, of the split's images in use alone: {name: float16 (N, …)}.

        A damaged file is computed anew, with a word.

        Raises:
            UserError: it cannot be written.
        """
        path, images = self.path(split, start), split.all_images[start : start + CHUNK]
        try:
            arrays = _read(path, self.network.output)
            if any(len(array) != len(images) for array in arrays.values()):
                raise ValueError("it is not of so many images")
        except Exception as error:  # of a zip file's many ways to be damaged
            print(f"{path} is damaged ({error}) and computed anew.", file=sys.stderr)
            (arrays,) = devices.predict_batches(self.network, [images])
            _add(path, arrays)
        return {name: array[: split.size - start] for name, array in arrays.items()}

    def read(self, split: Split, names: Sequence[str], out: np.ndarray) -> None:
        """Puts the named features of a split's images in use side by side into `out`.

        Args:
            split: N images.
            names: of the features, with `channels` in all.
            out: float16 (N, channels).

        Raises:
            UserError: a damaged file cannot be replaced.
        """
        for start in range(0, split.size, CHUNK):
            chunk = self.read_chunk(split, start)
            rows = out[start : start + CHUNK]
            np.concatenate([chunk[name] for name in names], axis=1, out=rows)


def read_copies(
    caches: dict[str, FeatureCache], split: Split, names: tuple[str, ...]
) -> np.ndarray:
    """The named features of a split's N images side by side, those of their copies after them.

    Args:
        caches: by what follows the names in each.
        split: whose images in use are read.
        names: of the features, with so many `channels` in all.

    Returns:
        float16 (copies·N, channels).
    """
    first = next(iter(caches.values())).network.output
    channels = sum(first[name].shape[1] for name in names)
    copies = np.empty((len(caches), split.size, channels), "float16")
    for copy, (suffix, cache) in zip(copies, caches.items(), strict=True):
        cache.read(split, [f"{name}{suffix}" for name in names], out=copy)
    return copies.reshape(-1, channels)


def names_in(path: Path) -> set[str]:
    """Of the features in a file of the cache: none, if it is not there, whole."""
    try:
        with zipfile.ZipFile(path) as file:
            return {name.removesuffix(".npy") for name in file.namelist()}
    except (OSError, zipfile.BadZipFile):
        return set()


def _read(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """These features of a file."""
    with np.load(path) as file:
        return {name: file[name] for name in names}


def _sound(path: Path, images: int) -> dict[str, np.ndarray]:
    """The features of a file, if there is one, but for those that are damaged."""
    found = {}
    for name in names_in(path):
        with contextlib.suppress(Exception):  # of a zip file's many ways to be so
            (values,) = _read(path, [name]).values()
            if len(values) == images:
                found[name] = values
    return found


def _add(path: Path, features: dict[str, np.ndarray]) -> None:
    """Adds features to a file of the cache; those that it has already stay, unless damaged."""
    images = len(next(iter(features.values())))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".incomplete-") as folder:
            features = features | _sound(path, images)
            # What `np.savez` writes; that complains of a full disk once more at the process's end.
            with zipfile.ZipFile(part := Path(folder) / path.name, "w") as archive:
                for name, values in sorted(features.items()):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, values, allow_pickle=False)
            part.replace(path)
    except OSError as error:
        raise UserError(f"--cache-dir: {error}") from None
