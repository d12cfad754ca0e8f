"""Versions, CPU, memory, reachability of servers, staging directories."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from fashion import environment

import keras
import numpy as np
import pytest
import tensorflow as tf
import wandb
from helpers.scripts import ROOT


def test_environment_info_contains_versions_and_hardware():
    info = environment.environment_info()
    for name, package in ("tensorflow", tf), ("keras", keras), ("numpy", np), ("wandb", wandb):
        assert info[name] == package.__version__
    assert info["python"] == platform.python_version()
    assert info["cores"] == os.cpu_count()
    assert info["processor"]
    assert len(info["gpus"]) == len(tf.config.list_physical_devices("GPU"))


@pytest.fixture
def git(tmp_path):
    """Run git in a repository, `repository`, which contains a copy of the scripts."""
    root = tmp_path / "repository"
    for name in environment.PROJECT_FILES:
        (root / name).parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name)
        else:
            shutil.copy(ROOT / name, root / name)

    def run(*arguments):
        identity = ("-c", "user.name=me", "-c", "user.email=me@example.com")
        command = ["git", "-C", str(root), *identity, *map(str, arguments)]
        return subprocess.check_output(command, text=True, stderr=subprocess.STDOUT).strip()

    run("init")
    return run


def test_git_commit_is_that_of_the_tracked_scripts(git, tmp_path):
    root = tmp_path / "repository"
    assert environment.git_commit(root) is None  # nothing is tracked
    (root / ".gitignore").write_text("copy/\n")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert environment.git_commit(root) == commit
    # Neither other files nor untracked ones are the project's.
    (root / ".gitignore").write_text("copy/\nother/\n")
    (root / "fashion" / "untracked.py").touch()
    assert environment.git_commit(root) == commit
    (root / "fashion" / "errors.py").write_text("changed = True\n")
    assert environment.git_commit(root) == f"{commit}-dirty"
    # A copy in an ignored directory of another repository.
    shutil.copytree(ROOT / "fashion", root / "copy" / "fashion")
    for name in "common.py", "cnn_basic.py", "resnet50_fashion.py", "requirements.txt":
        shutil.copy(ROOT / name, root / "copy" / name)
    assert environment.git_commit(root / "copy") is None


def test_git_commit_ignores_variables_of_another_repository(git, tmp_path, monkeypatch):
    """Git sets them in hooks and for aliases."""
    root = tmp_path / "repository"
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    commit = environment.git_commit(root)
    monkeypatch.undo()
    assert commit == git("rev-parse", "HEAD")


def test_git_commit_without_git_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_commit() is None


def test_cpu_info_describes_the_first_core():
    path = Path("/proc/cpuinfo")
    if not path.exists():
        pytest.skip("needs Linux")
    lines = path.read_text().splitlines()
    info = environment.cpu_info()
    for name in "processor", "flags":
        for line in lines:
            if line.startswith(name):
                assert info[name] == line.split(":", 1)[1].strip()
                break


def test_environment_info_without_proc_is_reduced(monkeypatch, tmp_path):
    """On Windows, the CPU's name or architecture is still known."""
    monkeypatch.setattr(environment, "PROC", tmp_path / "proc")
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert environment.cpu_info() == {}
    assert environment.environment_info()["processor"]
    assert environment.peak_memory().keys() <= {"gpu_peak_gb"}


def test_cpu_info_ignores_malformed_lines(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PROC", tmp_path)
    (tmp_path / "cpuinfo").write_text("model name : odd: very\nno colon\n\nmodel name : other\n")
    assert environment.cpu_info() == {"model name": "odd: very"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_available_memory_is_the_systems_or_the_containers(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(environment, "CGROUP_MEMORY_LIMITS", (tmp_path / "absent", limit))
    limit.write_text("max\n")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < environment.available_memory() < total
    used = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    limit.write_text(f"{used + 10**8}\n")
    assert environment.available_memory() == pytest.approx(10**8, abs=3e7)
    limit.write_text("1000\n")
    assert environment.available_memory() == 0
    monkeypatch.setattr(environment, "PROC", tmp_path)  # no Linux
    assert environment.available_memory() is None


def test_peak_memory_is_at_least_the_memory_of_a_freed_block():
    block = np.ones(25_000_000)  # 0.2 GB
    with_block = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    del block
    peak = environment.peak_memory()["peak_gb"]
    assert with_block / 1e9 - 0.01 <= peak < 16


def test_keras_home_follows_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    assert environment.keras_home() == tmp_path / "keras"
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.keras_home() == tmp_path / ".keras"


def test_check_reachable_refused_connection_raises():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OSError, match="Connection refused"):
        environment.check_reachable(f"http://127.0.0.1:{port}/")


@pytest.fixture
def silent_server():
    """The URL of a local server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def test_check_reachable_silent_server_raises_after_timeout(silent_server):
    start = time.monotonic()
    with pytest.raises(OSError, match=r"no response|timed out"):
        environment.check_reachable(silent_server, timeout=1)
    assert time.monotonic() - start < 5


def test_check_reachable_sends_head_request():
    with socket.create_server(("127.0.0.1", 0)) as server:
        requests = []

        def respond():
            connection, _ = server.accept()
            requests.append(connection.recv(1000))
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=respond)
        thread.start()
        environment.check_reachable(f"http://127.0.0.1:{server.getsockname()[1]}/file")
        thread.join()
    assert requests[0].startswith(b"HEAD /file ")  # without downloading the file


def test_staging_dir_is_hidden_next_to_the_target_and_deleted(tmp_path):
    directory = tmp_path / "a" / "b"
    with environment.staging_dir(directory) as temporary_dir:
        assert temporary_dir.parent == directory
        assert temporary_dir.name.startswith(".incomplete-")
        (temporary_dir / "complete").write_text("moved")
        (temporary_dir / "partial").write_text("left")
        (temporary_dir / "complete").replace(directory / "complete")
    assert [path.name for path in directory.iterdir()] == ["complete"]


def test_staging_dir_is_deleted_after_an_error(tmp_path):
    with pytest.raises(OSError, match="disk full"), environment.staging_dir(tmp_path) as path:
        (path / "partial").touch()
        raise OSError("disk full")
    assert not list(tmp_path.iterdir())
