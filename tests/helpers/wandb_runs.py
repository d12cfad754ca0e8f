"""Reading of W&B's offline runs."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest


class WandbRun(NamedTuple):
    """The contents of a W&B run's file."""

    summary: dict  # state, config, metrics
    records: list[dict]

    @property
    def rows(self) -> list[dict]:
        """The logged values, one row per call."""
        return [r["history"]["item"] for r in self.records if r["type"] == "history"]

    @property
    def started(self) -> dict:
        """The settings of the run."""
        (run,) = (r["run"] for r in self.records if r["type"] == "run" and "project" in r["run"])
        return run


@functools.cache
def leet_inspect_command() -> list[str] | None:
    """Return W&B's command that prints a run's file; None if the installed version has none."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect"]
    done = subprocess.run([*command, "--help"], capture_output=True, timeout=60)
    return None if done.returncode else command


def read_wandb_run(directory: Path) -> WandbRun:
    """Read the only W&B run in a directory; skip the test if W&B cannot read it."""
    (run,) = directory.glob("wandb/offline-run-*")
    if not leet_inspect_command():
        pytest.skip("needs `wandb leet inspect`")
    command = [*leet_inspect_command(), "--json", str(run)]
    summary, records = (
        subprocess.check_output([*command, *options], text=True, cwd=directory)
        for options in (["--summary"], [])
    )
    return WandbRun(json.loads(summary), [json.loads(line) for line in records.splitlines()])
