"""Image files in directories: which files are images, and progress of reading them."""

import collections
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
from PIL import Image

NOT_DECODED = {"MPEG", "BUFR", "GRIB", "HDF5"}  # formats that Pillow only recognizes
SECONDS_BETWEEN_LINES = 20  # of progress, where stdout is not a terminal


def is_image_file(path: Path) -> bool:
    """Return whether a file has an extension of a format that Pillow can open."""
    file_format = Image.registered_extensions().get(path.suffix.lower())
    return file_format in Image.OPEN and file_format not in NOT_DECODED


def find_image_files(directory: Path) -> list[Path]:
    """Return the image files below a directory, in sorted order.

    Links to files and directories are followed. Hidden files and directories are skipped, such as
    macOS's `._IMG.jpg` and `.DS_Store`. Other files are counted, and reported by extension.

    Raises:
        OSError: If a directory cannot be read.
    """
    image_files: list[Path] = []
    others: collections.Counter[str] = collections.Counter()
    for path in _walk(directory, frozenset()):
        if is_image_file(path):
            image_files.append(path)
        else:
            others[path.suffix.lower() or path.name] += 1
    for kind, count in sorted(others.items()):
        files = "1 file" if count == 1 else f"{count} files"
        print(
            f"{directory}: skipped {files} of a kind that Pillow cannot open, {kind}; if these are "
            "images, convert them to JPEG or PNG",
            file=sys.stderr,
        )
    return sorted(image_files)


def _walk(directory: Path, parents: frozenset[Path]) -> Iterator[Path]:
    """Yield the visible files below a directory; links to one of its `parents` are skipped."""
    parents |= {directory.resolve()}
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if not path.is_dir():
            yield path
        elif path.resolve() not in parents:
            yield from _walk(path, parents)


def with_progress(items: Sequence, verb: str) -> Iterator:
    """Yield the items; show a bar on a terminal, else print a line every 20 seconds.

    Args:
        items: Image files, or tuples with them.
        verb: Past participle of what is done with each, such as "Read".
    """
    bar, last_line = None, time.monotonic()
    if sys.stdout.isatty() and len(items) > 100:
        bar = keras.utils.Progbar(len(items), interval=0.5, unit_name="image")
    for done, item in enumerate(items):
        yield item
        if bar:
            bar.update(done + 1)
        elif time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            print(f"{verb} {done + 1:,} of {len(items):,} images", flush=True)
