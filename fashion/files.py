"""Writing of files so that others never see a partial one."""

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fashion.errors import UserError, describe


@contextlib.contextmanager
def staging_dir(directory: Path, option: str = "--output-dir") -> Iterator[Path]:
    """Yield a temporary directory inside `directory`, which is created if needed.

    The caller writes files there and moves each to its final name when it is complete. Files that
    are left are deleted. An error names `option`, which sets the directory.
    """
    path = directory / f".incomplete-{secrets.token_hex(6)}"
    try:
        path.mkdir(parents=True)  # inside the block, so that a signal leaves nothing behind
        yield path
    except ConnectionError:  # of W&B, or of the reader of the output
        raise
    except OSError as error:
        raise UserError(f"{option}: cannot write to {directory}: {describe(error)}") from error
    finally:
        shutil.rmtree(path, ignore_errors=True)


def check_disk_space(directory: Path, size: int) -> None:
    """Raise an `OSError` if a file of `size` bytes does not fit on the disk.

    Unlike checking free disk space, allocating a file also respects quotas and file-size limits.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        elif size > shutil.disk_usage(directory).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def format_bytes(size: float) -> str:
    """Format a size in bytes, such as "1.2 GB" or "35 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
