"""Staging directories and the check of disk space."""

import errno
import os
from pathlib import Path

from fashion.errors import UserError
from fashion.files import check_disk_space, format_bytes, staging_dir

import pytest

resource = pytest.importorskip("resource", reason="needs limits as on Unix")


def test_staging_dir_is_hidden_inside_the_target_and_deleted(tmp_path):
    directory = tmp_path / "a" / "b"
    with staging_dir(directory) as staging:
        assert staging.parent == directory
        assert staging.name.startswith(".incomplete-")
        assert staging.stat().st_mode == tmp_path.joinpath("a").stat().st_mode  # not private
        (staging / "complete").write_text("moved")
        (staging / "partial").write_text("left")
        (staging / "complete").replace(directory / "complete")
    assert [path.name for path in directory.iterdir()] == ["complete"]


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "Full"), UserError, "^--x: cannot write to .*Full; free disk"),
        (BrokenPipeError("reader"), BrokenPipeError, "reader"),
        (ConnectionResetError("server"), ConnectionResetError, "server"),
        (UserError("own"), UserError, "^own$"),
        (KeyboardInterrupt("^C"), KeyboardInterrupt, "C"),
    ],
)
def test_staging_dir_is_deleted_after_an_error(error, expected, message, tmp_path):
    """The `OSError` of a failed write has no file name, so option and directory are added."""
    with pytest.raises(expected, match=message), staging_dir(tmp_path / "d", "--x") as staging:
        (staging / "partial").touch()
        raise error
    assert not list((tmp_path / "d").iterdir())


def test_staging_dir_in_an_unusable_directory_raises(tmp_path):
    (tmp_path / "file").touch()
    for directory in tmp_path / "file" / "d", Path("/proc/nonexistent/d"):
        message = f"^--output-dir: cannot write to {directory}: "
        with pytest.raises(UserError, match=message), staging_dir(directory):
            pytest.fail("the block must not run")


def test_check_disk_space_respects_the_disk_and_the_limit_of_a_process(tmp_path):
    check_disk_space(tmp_path, 1_000_000)
    with pytest.raises(OSError) as error:
        check_disk_space(tmp_path, 2**60)
    assert error.value.errno in (errno.ENOSPC, errno.EFBIG)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            check_disk_space(tmp_path, 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_format_bytes():
    assert [format_bytes(size) for size in (35e6, 999e6, 1.24e9)] == ["35 MB", "999 MB", "1.2 GB"]
