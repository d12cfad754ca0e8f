"""What the frozen network makes of each image, computed once and kept on disk.

The cache is a folder for each network, image size and precision, in it one for each split, in it a
file for each `CHUNK` of images. A file appears whole or not at all, by a rename, and with the same
bytes whoever computes it on this machine: a killed run, or two at once, do no harm, and a later run
goes on.
"""

import math
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fashion import devices
from fashion.data import Split
from fashion.errors import UserError
from fashion.options import AllOrCount
from fashion.run import Run

import keras
import numpy as np

# Images in one step of the extraction and in one file of its cache: what a killed run loses at
# most. It is no option since the last bits of the features depend on it. 125 divides 55,000,
# 5,000 and 10,000, and more is hardly faster.
CHUNK = 125


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/fashion-mnist-features`, by default below `~/.cache`."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(caches)) / "fashion-mnist-features"


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions:
    """The pass of each image through the frozen network, once."""

    cache_dir: Path = field(default_factory=default_cache_dir)
    """keeps the features"""
    gpus: AllOrCount = "all"
    """use all GPUs or the first N, each with its share of the work"""


def pool(activations: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
    """Each channel's average and maximum over all positions: float32 (N, channels)."""
    return {
        "avg": keras.layers.GlobalAveragePooling2D(dtype="float32")(activations),
        "max": keras.layers.GlobalMaxPooling2D(dtype="float32")(activations),
    }


def to_float16(values: keras.KerasTensor) -> keras.KerasTensor:
    """As float16; what is out of its range becomes its largest number."""
    largest = float(np.finfo("float16").max)
    return keras.ops.cast(keras.ops.clip(values, -largest, largest), "float16")


def has_features(path: Path, names: Iterable[str]) -> bool:
    """Whether a file of the cache is there, whole, and has these features."""
    try:
        with zipfile.ZipFile(path) as file:
            return {f"{name}.npy" for name in names} <= set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


@dataclass(frozen=True)
class FeatureCache:
    """A folder of one network's features."""

    folder: Path

    def path(self, split: Split, start: int) -> Path:
        """The file for the images from `start` on of a (whole) split."""
        return self.folder / split.digest[:16] / f"{start:06}.npz"

    def fill(
        self, extractor: keras.Model, splits: Iterable[Split], title: str, run: Run
    ) -> float | None:
        """Computes what is not there yet, file by file.

        Args:
            extractor: uint8 (N, 28, 28) → {name: float16 (N, …)}, what a file holds.
            splits: whose images in use are needed.
            title: of what is extracted, for the user and for W&B.
            run: is told the progress.

        Returns:
            Images per second once warm, or None if everything was there.

        Raises:
            UserError: the cache cannot be written, or its disk has not the room.
        """
        todo = [
            (path, split.all_images[start : start + CHUNK])
            for split in splits
            for start in range(0, split.size, CHUNK)
            if not has_features(path := self.path(split, start), extractor.output)
        ]
        if not todo:
            print(f"{title}: all in {self.folder}")
            return None
        left = sum(len(images) for _, images in todo)
        size = left * sum(2 * math.prod(values.shape[1:]) for values in extractor.output.values())
        self._make_room(size, f"{title} of {left:,} images")
        print(
            f"{title}: extracting {left:,} images, each once; {size / 1e9:.1f} GB, kept in "
            f"{self.folder}",
            flush=True,
        )
        progress = _Progress(title.lower(), left, run)
        for i in range(0, len(todo), devices.count()):
            group = []
            for path, images in todo[i : i + devices.count()]:
                if has_features(path, extractor.output):  # made meanwhile by another process
                    progress.target -= len(images)
                else:
                    group.append((path, images))
            if not group:
                continue
            outputs = devices.predict_batches(extractor, [images for _, images in group])
            for (path, _), features in zip(group, outputs, strict=True):
                _write(path, features)
            progress.advance(sum(len(images) for _, images in group))
        return progress.rate

    def _make_room(self, size: int, what: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise UserError(f"--cache-dir: {error}") from None
        if size > free:
            raise UserError(
                f"{what} take {size / 1e9:.1f} GB, but {self.folder} has only "
                f"{free / 1e9:.1f} GB left: use another --cache-dir, or fewer images"
            )

    def read_chunk(self, split: Split, start: int) -> dict[str, np.ndarray]:
        """What a file holds, of the split's images in use alone: {name: float16 (N, …)}.

        Raises:
            UserError: it is damaged.
        """
        path = self.path(split, start)
        images = len(split.all_images[start : start + CHUNK])
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file}
            if any(len(array) != images for array in arrays.values()):
                raise ValueError("it is not of so many images")
        except Exception as error:  # of a zip file's many ways to be damaged
            raise UserError(f"{path} is damaged ({error}): delete it, run again") from None
        return {name: array[: split.size - start] for name, array in arrays.items()}

    def read(self, split: Split, names: Iterable[str]) -> np.ndarray:
        """The named features of a split's images in use, side by side: float16 (N, channels).

        Raises:
            UserError: a file is damaged.
        """
        chunks = []
        for start in range(0, split.size, CHUNK):
            chunk = self.read_chunk(split, start)
            chunks.append(np.concatenate([chunk[name] for name in names], axis=1))
        return np.concatenate(chunks)


def _write(path: Path, features: dict[str, Any]) -> None:
    """Writes a file of the cache, unless one with as much has appeared meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".incomplete-") as folder:
            np.savez(part := Path(folder) / path.name, **features)
            if not has_features(path, features):
                part.replace(path)
    except OSError as error:
        raise UserError(f"--cache-dir: {error}") from None


class _Progress:
    """How far a pass is, for the user and for W&B."""

    def __init__(self, title: str, target: int, run: Run) -> None:
        self.title, self.target, self.run = title, target, run
        self.done = 0
        self.rate: float | None = None
        self.start = self.last_line = time.perf_counter()
        self.warm: tuple[int, float] | None = None  # images and time after the first step
        self.bar: keras.utils.Progbar | None = None
        run.wandb_run.define_metric(f"{title}/*", step_metric=f"{title}/images")

    def advance(self, images: int) -> None:
        """So many more images are done."""
        self.done += images
        now = time.perf_counter()
        # The first step includes tracing: a rate taken from it is half the true one.
        done_cold, since = self.warm or (0, self.start)
        self.rate = (self.done - done_cold) / (now - since)
        progress = {
            "images": self.done,
            "images_per_second": self.rate,
            "seconds": now - self.start,
        }
        self.run.wandb_run.log({f"{self.title}/{key}": value for key, value in progress.items()})
        if self.warm:
            self._show(now, self.rate)
        else:
            self.warm = self.done, now

    def _show(self, now: float, rate: float) -> None:
        minutes = (self.target - self.done) / rate / 60
        if not sys.stdout.isatty():  # a bar would fill the file with a terminal's codes
            if self.last_line == self.start or now - self.last_line > 60:
                self.last_line = now
                print(
                    f"{self.done:,} of {self.target:,} images at {rate:.0f} images/s, about "
                    f"{minutes:.1f} minutes to go",
                    flush=True,
                )
            return
        if not self.bar:
            print(f"About {minutes:.1f} minutes at {rate:.0f} images/s.")
            self.bar = keras.utils.Progbar(
                self.target, interval=0.5, stateful_metrics=["images/s"], unit_name="image"
            )
        self.bar.target = self.target
        self.bar.update(self.done, [("images/s", rate)])
