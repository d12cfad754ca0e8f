"""One file of the feature cache: the features of a chunk of images, in NumPy's .npz format."""

import contextlib
import errno
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from fashion.environment import staging_dir
from fashion.errors import CacheDirError

import filelock
import numpy as np

LOCK_FILE = ".lock"
MAX_LOCK_SECONDS = 30  # merging a file takes milliseconds
# Errors that writing the features would also raise. All others are taken to mean that the file
# system has no locks; their codes differ between systems.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_use_locks = True  # until locking fails in this process


def stored_features(path: Path) -> set[str]:
    """Return the names of the features in a file; an empty set if there is no complete file."""
    try:
        with zipfile.ZipFile(path) as file:
            return {name.removesuffix(".npy") for name in file.namelist()}
    except (OSError, zipfile.BadZipFile):
        return set()


def read(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read features of a file, each float16 (N, …).

    Raises:
        Exception: If the file is missing or damaged; zipfile raises many types.
    """
    with np.load(path) as file:
        return {name: file[name] for name in names}


def merge(path: Path, features: dict[str, np.ndarray]) -> None:
    """Add features to a file, which is created if needed; intact features in it are kept.

    Raises:
        CacheDirError: If the file cannot be written.
    """
    num_images = len(next(iter(features.values())))
    try:
        with staging_dir(path.parent) as temporary_dir, _locked(path.parent):
            features = features | _read_intact(path, num_images)
            # Not `np.savez`, which writes the same bytes: on a full disk, it prints a second error
            # when the process ends.
            with zipfile.ZipFile(tmp_path := temporary_dir / path.name, "w") as archive:
                for name, values in sorted(features.items()):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, values, allow_pickle=False)
            tmp_path.replace(path)
    except OSError as error:
        raise CacheDirError(error) from None


def _read_intact(path: Path, num_images: int) -> dict[str, np.ndarray]:
    """Read the features of a file that are not damaged; {} if there is no file."""
    features = {}
    for name in stored_features(path):
        with contextlib.suppress(Exception):  # damaged zipfile raises many types
            (values,) = read(path, [name]).values()
            if len(values) == num_images:
                features[name] = values
    return features


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes from merging into files of a directory at the same time.

    Without the lock, two processes could both read a file, each add its features, and the second
    write would discard the features of the first. The operating system releases the lock of a
    killed process. If locking fails, print one warning and continue without locks.
    """
    global _use_locks
    # All users who may write to the directory may lock it.
    lock = filelock.FileLock(directory / LOCK_FILE, timeout=MAX_LOCK_SECONDS, mode=0o666)
    try:
        if _use_locks:
            lock.acquire()
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", None) in DISK_ERRORS:
            raise
        _use_locks = False
        print(
            f"WARNING: could not lock {directory} ({error}). If several runs fill the cache at the "
            "same time, some features may be computed again later.",
            file=sys.stderr,
        )
    try:
        yield
    finally:
        lock.release()
