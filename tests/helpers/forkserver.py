"""Processes of a script, forked from a server that has imported TensorFlow already.

A process starts in a fraction of a second instead of 6 s. By default, it uses a small ResNet50,
stores 20 images per file of the feature cache, and saves empty figures.
"""

import glob
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

# Preloaded in the server: importing it imports TensorFlow, but runs no operation.
import cnn_basic
import common
import resnet50_fashion
from helpers.networks import use_small_chunks, use_small_resnet
from helpers.scripts import process_environment, skip_figures

assert cnn_basic and resnet50_fashion

SERVER = multiprocessing.get_context("forkserver")


def _run(script, argv, directory, environment, limit, patches):
    """Run a script's command line in the forked process."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    # As a shell starts it, also if this process was started by `nohup … &`.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, name in (sys.stdout, "out"), (sys.stderr, "err"):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
        stream.reconfigure(line_buffering=True)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for patch in patches:
        patch(pytest.MonkeyPatch())
    sys.argv = [f"{script}.py", *map(str, argv)]
    module = importlib.import_module(script)
    common.run_script(module.main, module.Options, module.__doc__)


SMALL = (use_small_resnet, use_small_chunks)
SMALL_WITHOUT_FIGURES = (*SMALL, skip_figures)


class ForkedScript:
    """A script in its own process, with `directory` as working and home directory."""

    def __init__(
        self, script, directory, *argv, limit=None, patches=SMALL_WITHOUT_FIGURES, **changes
    ):
        """Start the process.

        Args:
            script: Name of the script without .py.
            directory: Working directory; it is created if needed.
            argv: Arguments of the script.
            limit: Maximum size of a file in bytes.
            patches: Functions that take a MonkeyPatch, called first in the process.
            changes: Changes of the environment.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        environment = process_environment(directory, **changes)
        arguments = (script, argv, directory, environment, limit, patches)
        self.process = SERVER.Process(target=_run, args=arguments)
        self.process.start()

    def wait(self):
        """Wait for the end; return the exit code, negative for the signal that ended it."""
        self.process.join(600)
        assert self.process.exitcode is not None, "the process hangs"
        return self.process.exitcode

    def wait_until(self, condition):
        """Wait until a condition holds, which it must before the process ends."""
        deadline = time.monotonic() + 600
        while not condition():
            assert self.process.is_alive(), self.err
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def wait_for_files(self, num_files):
        """Wait until the cache next to the run contains `num_files` files."""
        # Unlike Path.glob, glob.glob tolerates that a directory disappears meanwhile.
        pattern = str(self.directory / "cache/*/*/0*.npy")
        self.wait_until(lambda: len(glob.glob(pattern)) >= num_files)

    def wait_for_epochs(self, num_epochs):
        """Wait until the checkpoint contains `num_epochs` epochs."""
        self.wait_until(lambda: len(read_state(self.directory)["epochs"]) >= num_epochs)

    def send(self, signal_number):
        """Send a signal and wait for the end."""
        os.kill(self.process.pid, signal_number)
        return self.wait()

    @property
    def out(self):
        return (self.directory / "out").read_text()

    @property
    def err(self):
        return (self.directory / "err").read_text()


def read_state(directory: Path) -> dict:
    """Read the checkpoint's state of a run in `directory`/output, if there is one."""
    path = directory / "output" / "checkpoint" / "state.json"
    return json.loads(path.read_text()) if path.exists() else {"epochs": []}


def kill_remaining_processes() -> None:
    """Kill the processes that a failed test left."""
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
