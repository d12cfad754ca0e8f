"""Files: atomic writing, disk space, kinds."""

import contextlib
import csv
import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fashion.errors import UserError, describe, print_warning

import filelock

# Files that users confuse with the right ones, by a regular expression of their first bytes.
FILE_KINDS = {
    rb"version https://git-lfs": "this is a pointer of Git LFS; run `git lfs pull`",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype )?(html|head|!--)": (
        "this is a web page, as of a failed download"
    ),
    rb"(?s)PK.{28}(config|metadata)\.json": "this is a whole model (.keras)",
    rb"(?s)PK.{28}[^/]+/data\.pkl|\x80[\x02-\x05]": "this is a file of PyTorch",
    rb"PK": "this is a ZIP archive (.zip, .npz …)",
    rb"(?s).{8}\{\"": "this is a safetensors file",
}
# The start of cells that a spreadsheet computes; after apostrophes, so that one can be removed.
FORMULA = re.compile(r"'*[=+\-@\t\r]")


def try_lock(directory: Path) -> filelock.BaseFileLock | None:
    """Create and lock a directory; return None if another process that still runs has locked it."""
    check_disk_space(directory, size=1)  # an error if nothing can be written
    lock = filelock.FileLock(directory / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return None
    except OSError as error:  # some network file systems have no locks
        print_warning(f"cannot lock {directory} ({error}); use it for one run")
    return lock


@contextlib.contextmanager
def staging_dir(directory: Path, option: str = "--output-dir", kind: str = "run") -> Iterator[Path]:
    """Yield a temporary directory inside `directory`, which is created if needed.

    The caller writes files there and moves each to its final name when it is complete. Files that
    are left are deleted. An error names `option`, which sets the directory.
    """
    path = directory / f".incomplete-{kind}-{secrets.token_hex(6)}"
    try:
        path.mkdir(parents=True)  # inside the block, so that a signal leaves nothing behind
        yield path
    except ConnectionError:  # of W&B, or of the reader of the output
        raise
    except OSError as error:
        raise UserError(f"{option}: cannot write to {directory}: {describe(error)}") from error
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: Path, option: str = "--output-dir") -> Iterator[Path]:
    """Yield a temporary path; what is written there replaces the file at `path`, atomically."""
    with staging_dir(path.parent, option) as directory:
        yield directory / path.name
        (directory / path.name).replace(path)


def check_disk_space(directory: Path, size: int, option: str = "--output-dir") -> None:
    """Raise a `UserError` that names `option` if a file of `size` bytes does not fit on the disk.

    Unlike checking free disk space, allocating a file also respects quotas and file-size limits.
    """
    with staging_dir(directory, option) as path, tempfile.TemporaryFile(dir=path) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        elif size > shutil.disk_usage(directory).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def describe_kind(content: bytes, default: str) -> str:
    """Return what a file is, by its first 1,000 bytes or more; `default` if unknown."""
    return next((kind for start, kind in FILE_KINDS.items() if re.match(start, content)), default)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, with an apostrophe before each cell that matches `FORMULA`."""
    with open(path, "w", newline="", encoding="utf-8-sig", errors="backslashreplace") as file:
        writer = csv.writer(file)
        for row in rows:
            writer.writerow([f"'{cell}" if FORMULA.match(str(cell)) else cell for cell in row])
