"""Precision, versions, git commit, memory, reachability of servers."""

import os
import platform
import shutil
import socket
import subprocess
import time
from pathlib import Path

from fashion import machine

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.forkserver import SMALL_WITHOUT_FIGURES, ForkedScript
from helpers.scripts import ROOT, SAMPLE
from helpers.wandb_server import Server


@pytest.mark.parametrize(
    ("flags", "gpus", "capability", "expected"),
    [
        ("fpu avx2 avx512_bf16 sse", [], None, "bfloat16"),
        ("amx_tile amx_bf16", [], None, "bfloat16"),
        ("fpu avx2 avx512f", [], None, "float32"),
        ("amx_bf16", ["a GPU"], None, "float32"),
        ("amx_bf16", ["a GPU", "another"], (6, 0), "float32"),  # P100
        ("", ["a GPU"], (7, 0), "float16"),  # V100
        ("", ["a GPU"], (7, 5), "float16"),  # T4
        ("", ["a GPU"], (8, 0), "bfloat16"),  # A100
    ],
)
def test_precision_by_hardware(flags, gpus, capability, expected, monkeypatch):
    """With simulated hardware; `test_gpu.py` uses a real GPU."""
    calls, config = [], tf.config.experimental
    details = {"compute_capability": capability} if capability else {}
    cpuinfo = f"model name\t: odd: very\nno colon\nflags\t\t: {flags}\n\nflags\t\t: amx_bf16\n"
    monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(config, "get_device_details", lambda gpu: details)
    monkeypatch.setattr(config, "enable_op_determinism", lambda: calls.append(1))
    for name in "auto", *machine.PRECISIONS:
        machine.set_precision(name)
        precision = expected if name == "auto" else name
        assert machine.precision() == precision
        policy = keras.layers.Dense(1).dtype_policy
        assert (policy.compute_dtype, policy.variable_dtype) == (precision, "float32")
    assert len(calls) == (4 if gpus else 0)  # operations on a CPU are deterministic


def enable_determinism(patch):
    tf.config.experimental.enable_op_determinism()


@pytest.mark.slow
def test_each_random_operation_has_a_seed(fork_server, tmp_path):
    """Without one, it is an error with deterministic operations, which GPUs need."""
    argv = ("--data-dir", SAMPLE, "--epochs", 1, "--wandb", "disabled", "--output-dir", "output")
    argv += ("--weights", "random", "--image-size", 64, "--train-size", 300, "--flip")
    argv += ("--fine-tune-blocks", 3, "--fine-tune-epochs", 1, "--cache-dir", "cache")
    patches = (enable_determinism, *SMALL_WITHOUT_FIGURES)
    process = ForkedScript("resnet50_fashion", tmp_path, *argv, patches=patches)
    assert process.wait() == 0, process.err


def test_environment_without_proc_is_reduced(monkeypatch):
    """On Windows, the CPU's name or architecture is still known."""
    monkeypatch.setattr(machine, "Path", lambda path: Path("/nonexistent"))
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert machine.environment_info()["processor"]
    assert machine.peak_memory().keys() <= {"gpu_peak_gb"}


def test_peak_memory_is_at_least_the_memory_of_a_freed_block():
    block = np.ones(25_000_000)  # 0.2 GB
    with_block = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    del block
    assert with_block / 1e9 - 0.01 <= machine.peak_memory()["peak_gb"] < 16


def test_git_commit_is_that_of_the_tracked_scripts(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-C", tmp_path, "-c", "user.name=me", "-c", "user.email=me@example.com"]
        return subprocess.check_output([*command, *arguments], text=True).strip()

    git("init")
    (tmp_path / "notes").touch()
    git("add", ".")
    git("commit", "-m", "another project")
    for name in machine.PROJECT_FILES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    assert machine.git_commit(tmp_path) is None  # the scripts are not tracked
    git("add", ".")
    git("commit", "-m", "scripts")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "notes").write_text("changed")
    (tmp_path / "fashion" / "untracked.py").touch()
    assert machine.git_commit(tmp_path) == commit
    (tmp_path / "fashion" / "errors.py").write_text("changed = True\n")
    assert machine.git_commit(tmp_path) == f"{commit}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert machine.git_commit(tmp_path) is None


def test_check_reachable():
    """It sends a HEAD request; a server may not respond or refuse the connection."""
    with Server() as server:
        machine.check_reachable(f"{server.url}/file")
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        with pytest.raises(OSError, match=r"no response|timed out"):
            machine.check_reachable(f"http://127.0.0.1:{server.getsockname()[1]}/file", timeout=1)
        assert time.monotonic() - start < 5
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1000).startswith(b"HEAD /file ")  # without downloading the file
    with pytest.raises(OSError, match="Connection refused"):
        machine.check_reachable("http://127.0.0.1:9/file")
