"""Files of the feature cache, written by several processes at the same time."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

from fashion.backbones import chunk_file
from fashion.errors import CacheDirError

import filelock
import numpy as np
import pytest
from helpers import forkserver
from helpers.scripts import directory_contents

NUM_FILES = 40


def features_of(index: int, name: str) -> dict[str, np.ndarray]:
    """Return the feature `name` of the file with this index, float16 (20, 3)."""
    seed = [index, *name.encode()]
    return {name: np.random.default_rng(seed).normal(size=(20, 3)).astype("float16")}


def merge_all(directory: Path, name: str, barrier) -> None:
    """Add a feature to all files, at the same time as another process."""
    for i in range(NUM_FILES):
        barrier.wait(60)
        chunk_file.merge(directory / f"{i:06}.npz", features_of(i, name))


def hold_lock(directory: Path, is_locked) -> None:
    """Take the lock and wait to be killed."""
    with chunk_file._locked(directory):
        (directory / ".incomplete-x").mkdir()
        is_locked.set()
        time.sleep(600)


@pytest.fixture
def context(fork_server):
    yield forkserver.SERVER
    forkserver.kill_remaining_processes()


def start(context, function, *args) -> multiprocessing.Process:
    process = context.Process(target=function, args=args)
    process.start()
    return process


def check_files(directory: Path, *names: str) -> None:
    for i in range(NUM_FILES):
        path = directory / f"{i:06}.npz"
        assert chunk_file.stored_features(path) == set(names)
        for name in names:
            expected = features_of(i, name)[name]
            np.testing.assert_array_equal(chunk_file.read(path, [name])[name], expected)


def test_merge_of_two_processes_at_once_loses_nothing(context, tmp_path):
    barrier = context.Barrier(2)
    processes = [start(context, merge_all, tmp_path, name, barrier) for name in ("a", "b")]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    check_files(tmp_path, "a", "b")


def test_lock_of_a_killed_process_is_released(context, tmp_path):
    is_locked = context.Event()
    process = start(context, hold_lock, tmp_path, is_locked)
    assert is_locked.wait(60)
    with pytest.raises(filelock.Timeout):
        filelock.FileLock(tmp_path / chunk_file.LOCK_FILE, timeout=0).acquire()
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    start_time = time.monotonic()
    for i in range(NUM_FILES):
        chunk_file.merge(tmp_path / f"{i:06}.npz", features_of(i, "a"))
    assert time.monotonic() - start_time < chunk_file.MAX_LOCK_SECONDS / 2
    check_files(tmp_path, "a")


def test_merge_waits_while_another_process_holds_the_lock(context, tmp_path):
    """Without the lock, the features of the other process would be lost."""
    path = tmp_path / "000000.npz"
    chunk_file.merge(path, features_of(0, "a"))
    is_locked = context.Event()
    process = start(context, hold_lock, tmp_path, is_locked)
    assert is_locked.wait(60)
    barrier = context.Barrier(1)
    other = start(context, merge_all, tmp_path, "b", barrier)
    time.sleep(1)
    assert chunk_file.stored_features(path) == {"a"}
    os.kill(process.pid, signal.SIGKILL)
    other.join(60)
    assert other.exitcode == 0
    assert chunk_file.stored_features(path) == {"a", "b"}


def test_reading_takes_no_lock(context, tmp_path):
    path = tmp_path / "000000.npz"
    chunk_file.merge(path, features_of(0, "a"))
    with chunk_file._locked(tmp_path):
        before = directory_contents(tmp_path)
        assert chunk_file.stored_features(path) == {"a"}
        expected = features_of(0, "a")["a"]
        np.testing.assert_array_equal(chunk_file.read(path, ["a"])["a"], expected)
        assert directory_contents(tmp_path) == before


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("no flock"),
        OSError(errno.ENOLCK, "No locks available"),
        OSError(45, "ENOTSUP of macOS"),
        PermissionError(errno.EACCES, "another user's lock file"),
        filelock.Timeout("a lock file"),
    ],
    ids=str,
)
def test_merge_without_locks_warns_once(error, tmp_path, monkeypatch, capsys):
    attempts = []

    def acquire(lock, *args, **kwargs):
        attempts.append(lock)
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    monkeypatch.setattr(chunk_file, "_use_locks", True)
    for i in range(3):
        chunk_file.merge(tmp_path / f"{i:06}.npz", features_of(i, "a"))
        chunk_file.merge(tmp_path / f"{i:06}.npz", features_of(i, "b"))
        assert chunk_file.stored_features(tmp_path / f"{i:06}.npz") == {"a", "b"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"WARNING: could not lock {tmp_path} (")
    assert len(attempts) == 1


def test_other_users_of_the_directory_may_lock_it(tmp_path):
    umask = os.umask(0o077)
    try:
        chunk_file.merge(tmp_path / "000000.npz", features_of(0, "a"))
    finally:
        os.umask(umask)
    assert (tmp_path / chunk_file.LOCK_FILE).stat().st_mode & 0o777 == 0o666


def test_merge_on_full_disk_raises_without_warning(tmp_path, monkeypatch, capsys):
    def acquire(lock, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(CacheDirError, match=r"^--cache-dir: .*No space left on device"):
        chunk_file.merge(tmp_path / "000000.npz", features_of(0, "a"))
    assert capsys.readouterr().err == ""
    assert not directory_contents(tmp_path)
