"""Reading of W&B's offline runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import wandb


class WandbRun(NamedTuple):
    """The contents of a W&B run's file."""

    summary: dict  # state, config, metrics
    records: list[dict]

    @property
    def rows(self) -> list[dict]:
        """The logged values, one row per call."""
        return [r["history"]["item"] for r in self.records if r["type"] == "history"]

    def artifacts(self, kind: str) -> list[dict]:
        """The logged artifacts of a type."""
        artifacts = [r["artifact"] for r in self.records if r["type"] == "artifact"]
        return [artifact for artifact in artifacts if artifact["type"] == kind]


def read_wandb_run(directory: Path) -> WandbRun:
    """Read the only W&B run in a directory; skip the test if W&B cannot read it."""
    (run,) = directory.glob("wandb/offline-run-*")
    if tuple(map(int, wandb.__version__.split(".")[:2])) < (0, 31):
        pytest.skip("needs `wandb leet inspect`")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    summary, records = (
        subprocess.check_output([*command, *options], text=True, cwd=directory)
        for options in (["--summary"], [])
    )
    return WandbRun(json.loads(summary), [json.loads(line) for line in records.splitlines()])
