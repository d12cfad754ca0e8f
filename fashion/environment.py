"""The machine that a run uses: versions, CPU, memory, files, reachability of servers."""

import contextlib
import errno
import http.client
import os
import platform
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import wandb

PROC = Path("/proc")  # Linux only
CGROUP_MEMORY_LIMITS = (  # a container's, in versions 2 and 1 of cgroups
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
ROOT = Path(__file__).parents[1]
PROJECT_FILES = ("cnn_basic.py", "resnet50_fashion.py", "common.py", "fashion", "requirements.txt")

# ------------------------------------------------------------------------ versions and memory


def cpu_info() -> dict[str, str]:
    """Return the first core's `/proc/cpuinfo`, such as {"model name": …, "flags": …}, or {}."""
    with contextlib.suppress(OSError):
        lines = (PROC / "cpuinfo").read_text().split("\n\n")[0].splitlines()
        return dict(re.split(r"\s*:\s?", line, maxsplit=1) for line in lines if ":" in line)
    return {}


def environment_info() -> dict[str, object]:
    """Return package versions, the scripts' git commit, CPU and GPUs."""
    gpus = tf.config.get_visible_devices("GPU")
    return {
        "commit": git_commit(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "wandb": wandb.__version__,
        "platform": platform.platform(),
        "processor": cpu_info().get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": [tf.config.experimental.get_device_details(g).get("device_name") for g in gpus],
    }


def git_commit(root: Path = ROOT) -> str | None:
    """Return the commit of the scripts, with "-dirty" appended if project files have changes.

    None if no repository tracks the scripts, for example if they were copied to an ignored
    directory of another repository.
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", *PROJECT_FILES]
        # In a hook of another repository, git's variables name that repository.
        variables = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        return subprocess.check_output(
            command, cwd=root, env=variables, stderr=subprocess.DEVNULL, text=True, timeout=10
        )

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch")
        commit = git("rev-parse", "HEAD").split()[0]
        is_dirty = git("status", "--porcelain", "--untracked-files=no")
        return f"{commit}-dirty" if is_dirty else commit
    return None


def peak_memory() -> dict[str, float]:
    """Return this process' peak memory in GB, by device; {} if unknown."""
    peak = {}
    # Not `ru_maxrss`: on Linux it is at least the parent process' memory at the time of the fork.
    with contextlib.suppress(OSError, IndexError):
        status = (PROC / "self" / "status").read_text()
        peak["peak_gb"] = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    if not peak and platform.system() == "Darwin":
        import resource

        peak["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    if tf.config.get_visible_devices("GPU"):
        peak["gpu_peak_gb"] = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
    return {name: round(value, 2) for name, value in peak.items()}


def available_memory() -> int | None:
    """Return the bytes of memory that this process may still use, or None if unknown.

    That is the memory that the system has available, or what a container's limit leaves.
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        available = int((PROC / "meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
        used = int((PROC / "self" / "status").read_text().split("VmRSS:")[1].split()[0]) * 1024
        for path in CGROUP_MEMORY_LIMITS:
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                available = min(available, int(path.read_text()) - used)
        return max(available, 0)
    return None


# ------------------------------------------------------------------------ files and downloads


def format_bytes(size: float) -> str:
    """Format a size in bytes, such as "1.2 GB" or "35 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@contextlib.contextmanager
def staging_dir(directory: Path) -> Iterator[Path]:
    """Yield a temporary directory inside `directory`, which is created if needed.

    The caller writes files there and moves each to its final name when it is complete, so that
    other processes and later runs never see a partial file. Files that are left are deleted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f".incomplete-{secrets.token_hex(6)}"
    try:
        path.mkdir()  # inside the block, so that a signal right after it leaves nothing behind
        yield path
    finally:
        try:
            if path.exists():
                shutil.rmtree(path)
        except BaseException:  # Ctrl-C or SIGTERM while deleting
            shutil.rmtree(path, ignore_errors=True)
            raise


def check_disk_space(directory: Path, size: int) -> None:
    """Check that a file of `size` bytes fits on the disk.

    Unlike checking free disk space, allocating a file also respects quotas and file-size limits.

    Raises:
        OSError: If the file does not fit.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        elif size > shutil.disk_usage(directory).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def keras_home() -> Path:
    """Return Keras' directory for downloads."""
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras")))


def check_reachable(url: str, timeout: float = 8) -> None:
    """Check that a URL responds within `timeout` seconds.

    A plain connection attempt is not enough: where a firewall drops packets, it waits for its
    timeout once per address of the host, which adds up to minutes.

    Raises:
        OSError, http.client.HTTPException: If it does not.
    """
    errors: list[Exception] = []

    def send_request() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=timeout).close()
        except (OSError, http.client.HTTPException) as error:
            errors.append(error)

    thread = threading.Thread(target=send_request, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        host = urllib.parse.urlsplit(url).hostname
        raise TimeoutError(f"no response from {host} within {timeout} s")
    if errors:
        raise errors[0]
