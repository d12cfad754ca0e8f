"""Image files in directories: which files are images, and progress of reading them."""

import collections
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
from PIL import Image

# Files and directories that systems create, in lower case.
SYSTEM_NAMES = {
    *("__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "lost+found"),
    *("$recycle.bin", "system volume information"),
}
NOT_DECODED = {"MPEG", "BUFR", "GRIB", "HDF5"}  # formats that Pillow only recognizes
SECONDS_BETWEEN_LINES = 20  # of progress, where stdout is not a terminal


def is_hidden(path: Path) -> bool:
    """Return whether a file or directory is hidden, or one that a system creates."""
    return path.name.startswith(".") or path.name.lower() in SYSTEM_NAMES


def is_image_file(path: Path) -> bool:
    """Return whether a file has an extension of a format that Pillow can open."""
    file_format = Image.registered_extensions().get(path.suffix.lower())
    return file_format in Image.OPEN and file_format not in NOT_DECODED


def find_image_files(directory: Path) -> list[Path]:
    """Return the image files below a directory, in sorted order.

    Links to files and directories are followed; each directory is read once. Hidden files and
    directories are skipped, such as macOS's `._IMG.jpg`, and `SYSTEM_NAMES`. Other files are
    counted, and reported by extension.

    Raises:
        OSError: If a directory cannot be read.
    """
    image_files: list[Path] = []
    others: collections.Counter[str] = collections.Counter()
    for path in _walk(directory, {directory.resolve(), *directory.resolve().parents}):
        if is_image_file(path):
            image_files.append(path)
        else:
            extension = path.suffix.lower()
            # Numbers such as those of "frame.0001" and "frame.0002" would each be an extension.
            is_kind = extension and not extension[1:].isdigit()
            others[extension if is_kind else "without an extension"] += 1
    for kind, count in sorted(others.items()):
        files = "1 file" if count == 1 else f"{count} files"
        print(
            f"{directory}: skipped {files} of a kind that Pillow cannot open, {kind}; if these are "
            "images, give them their extension, or convert them to JPEG or PNG",
            file=sys.stderr,
        )
    return sorted(image_files)


def _walk(directory: Path, visited: set[Path]) -> Iterator[Path]:
    """Yield the visible files below a directory; add the directories to `visited`, read once."""
    for path in sorted(directory.iterdir()):
        if is_hidden(path):
            continue
        if path.is_dir():
            if (resolved := path.resolve()) not in visited:
                visited.add(resolved)
                yield from _walk(path, visited)
        elif path.is_file() or path.is_symlink():  # broken links are reported; no pipes, sockets
            yield path


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
