"""Staging directories and the check of disk space."""

import errno
import os

from fashion.errors import UserError
from fashion.files import check_disk_space, staging_dir, try_lock

import pytest

fcntl = pytest.importorskip("fcntl", reason="needs locks as on Unix")


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


def test_too_small_disk_raises(tmp_path):
    check_disk_space(tmp_path, 1_000_000)
    with pytest.raises(UserError, match=r"^--x: cannot write to .*(No space|too large)"):
        check_disk_space(tmp_path, 2**60, "--x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_causes_one_warning(number, tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = try_lock(tmp_path)
    assert not lock.is_locked
    lock.release()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"WARNING: cannot lock {tmp_path}") and os.strerror(number) in line
