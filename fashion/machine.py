"""The machine that a run uses: precision, versions, memory, network."""

import contextlib
import os
import platform
import re
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf
import wandb

# Precision → Keras dtype policy.
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
ROOT = Path(__file__).parents[1]
PROJECT_FILES = ("cnn_basic.py", "resnet50_fashion.py", "common.py", "fashion", "requirements.txt")
T = TypeVar("T")


def set_precision(name: str) -> None:
    """Set the global dtype policy of Keras, and make operations on a GPU deterministic.

    `name` is a key of `PRECISIONS`, or "auto" for the fastest that the hardware supports.
    """
    if tf.config.list_physical_devices("GPU"):  # on CPUs, operations are deterministic anyway
        tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy(PRECISIONS[_fastest_precision() if name == "auto" else name])


def precision() -> str:
    """Return the precision of the current dtype policy, a key of `PRECISIONS`."""
    return keras.config.dtype_policy().compute_dtype


def _fastest_precision() -> str:
    """Return the fastest precision that the first GPU, or the CPU, supports.

    The matrix units of GPUs support float16 from compute capability 7.0 on, bfloat16 from 8.0 on.
    On CPUs, float16 is not faster than float32, and an emulated bfloat16 is slower.
    """
    if gpus := tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpus[0])
        capability = details.get("compute_capability", (0, 0))
        if (7, 0) <= capability < (8, 0):
            return "float16"
        return "bfloat16" if capability >= (8, 0) else "float32"
    flags = _cpu_info().get("flags", "").split()
    return "bfloat16" if {"avx512_bf16", "amx_bf16"}.intersection(flags) else "float32"


def _cpu_info() -> dict[str, str]:
    """Return the first core of /proc/cpuinfo, {"model name": …, "flags": …}; {} if not on Linux."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return dict(re.split(r"\s*:\s?", line, maxsplit=1) for line in lines if ":" in line)
    return {}


def environment_info() -> dict[str, object]:
    """Return package versions, the git commit of the scripts, CPU and GPUs."""
    gpus = tf.config.list_physical_devices("GPU")
    return {
        "commit": git_commit(),
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (tf, keras, np, wandb)},
        "platform": platform.platform(),
        "processor": _cpu_info().get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": [tf.config.experimental.get_device_details(g).get("device_name") for g in gpus],
    }


def git_commit(root: Path = ROOT) -> str | None:
    """Return the commit of the scripts, with "-dirty" appended if project files have changes.

    None if no repository tracks the scripts, for example if they were copied to an ignored
    directory of another repository.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments, "--", *PROJECT_FILES]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10)

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch")
        commit = git("rev-parse", "HEAD").split()[0]
        is_dirty = git("status", "--porcelain", "--untracked-files=no")
        return f"{commit}-dirty" if is_dirty else commit
    return None


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process in GB, by device; {} if unknown."""
    peak = {}
    # Not `ru_maxrss`: on Linux it is at least the memory of the parent process at the fork.
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        peak["peak_gb"] = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    if platform.system() == "Darwin":
        import resource  # not on Windows

        peak["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    if tf.config.list_physical_devices("GPU"):
        peak["gpu_peak_gb"] = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
    return {name: round(value, 2) for name, value in peak.items()}


def keras_home() -> Path:
    """Return the directory to which Keras downloads data sets and weights."""
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras"))


def call_with_timeout(function: Callable[[], T], timeout: float | None) -> T:
    """Return the result of a function or raise its exception; a `TimeoutError` if it blocks."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a daemon does not delay the exit
    return outcome.result(timeout)


def check_reachable(url: str, timeout: float = 8) -> None:
    """Raise an `OSError` or `HTTPException` unless a URL responds within `timeout` seconds.

    A plain connection attempt is not enough: where a firewall drops packets, it waits for its
    timeout once per address of the host, which adds up to minutes.
    """
    request = urllib.request.Request(url, method="HEAD")
    try:
        call_with_timeout(lambda: urllib.request.urlopen(request, timeout=timeout).close(), timeout)
    except TimeoutError:
        host = urllib.parse.urlsplit(url).hostname
        raise TimeoutError(f"no response from {host} within {timeout} s") from None
