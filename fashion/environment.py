"""What a run is computed with: versions, commit, processor, memory."""

import contextlib
import http.client
import os
import platform
import re
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

PROC = Path("/proc")  # Linux has it; Windows and macOS have not


def cpu_info() -> dict[str, str]:
    """`/proc/cpuinfo` of the first core: {"model name": …, "flags": …}; {} where there is none."""
    with contextlib.suppress(OSError):
        lines = (PROC / "cpuinfo").read_text().split("\n\n")[0].splitlines()
        return dict(re.split(r"\s*:\s?", line, maxsplit=1) for line in lines if ":" in line)
    return {}


def versions() -> dict[str, object]:
    """What a run is computed with: software, the scripts' git commit, processor, GPUs."""
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


def git_commit() -> str | None:
    """The commit of the scripts' repository, with "-dirty" after it if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    return None


def peak_memory() -> dict[str, float]:
    """The most memory, in GB, that this process has had so far; {} where that is not known."""
    peak = {}
    # On Linux: `ru_maxrss` would be at least what the process that started this one had.
    with contextlib.suppress(OSError, IndexError):
        status = (PROC / "self" / "status").read_text()
        peak["peak_gb"] = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    if not peak and platform.system() == "Darwin":
        import resource

        peak["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    if tf.config.get_visible_devices("GPU"):
        peak["gpu_peak_gb"] = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
    return {name: round(value, 2) for name, value in peak.items()}


def megabytes(size: int) -> str:
    """Such as "1.2 GB" or "35 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def keras_home() -> Path:
    """Keras' folder for downloads."""
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras")))


def check_reachable(url: str, seconds: int = 8) -> None:
    """Raises an `OSError` or `HTTPException` unless a URL answers within so many seconds.

    A plain connection attempt is no such check: where a firewall drops packets it waits for its
    timeout once per address of the host, which adds up to minutes.
    """
    errors: list[Exception] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except (OSError, http.client.HTTPException) as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer from {urllib.parse.urlsplit(url).hostname} in {seconds} s")
    if errors:
        raise errors[0]


@contextlib.contextmanager
def staging_dir(directory: Path) -> Iterator[Path]:
    """Yield a temporary directory inside `directory`, which is created if needed.

    Files are written there and then moved to their final names, so that other processes, and later
    runs, only ever see complete files. What is not moved is deleted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".incomplete-") as path:
        yield Path(path)
