"""What a run notes about the machine and the software."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from fashion import environment

import keras
import numpy as np
import pytest
import tensorflow as tf
import wandb
from conftest import ROOT


def test_versions_are_those_of_the_packages_and_the_machine():
    versions = environment.versions()
    for name, package in ("tensorflow", tf), ("keras", keras), ("numpy", np), ("wandb", wandb):
        assert versions[name] == package.__version__
    assert versions["python"] == platform.python_version()
    assert versions["cores"] == os.cpu_count()
    assert versions["processor"]
    assert len(versions["gpus"]) == len(tf.config.list_physical_devices("GPU"))


def test_commit_is_gits_and_says_whether_files_differ():
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone of the repository")
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    changed = subprocess.check_output(
        [*git, "status", "--porcelain", "--untracked-files=no"], text=True
    )
    assert environment.git_commit() == commit + ("-dirty" if changed else "")


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_commit() is None


def test_processor_is_the_first_cores():
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


def test_where_there_is_no_proc_less_is_noted(monkeypatch, tmp_path):
    """As on Windows; the processor has a name there, too, or at least a kind."""
    monkeypatch.setattr(environment, "PROC", tmp_path / "proc")
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert environment.cpu_info() == {}
    assert environment.versions()["processor"]
    assert environment.peak_memory().keys() <= {"gpu_peak_gb"}


def test_odd_line_about_the_processor_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PROC", tmp_path)
    (tmp_path / "cpuinfo").write_text("model name : odd: very\nno colon\n\nmodel name : other\n")
    assert environment.cpu_info() == {"model name": "odd: very"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_peak_memory_is_at_least_what_the_process_has_had():
    block = np.ones(25_000_000)  # 0.2 GB
    with_block = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    del block
    peak = environment.peak_memory()["peak_gb"]
    assert with_block / 1e9 - 0.01 <= peak < 16
