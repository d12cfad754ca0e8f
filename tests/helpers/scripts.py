"""Running a script, in this process or in its own, and reading what it wrote."""

import contextlib
import csv
import functools
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

from fashion.datasets.splits import ImageDataset
from fashion.options import SharedOptions, parse
from fashion.results import evaluation, figures
from fashion.results.output import OUTPUT_FILES

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests" / "data"
SAMPLE_SIZES = {"train": 1760, "validation": 160, "test": 400}


def process_environment(home: Path, **changes: str) -> dict[str, str]:
    """Return an environment without the user's account, API key and caches."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return inherited | {"NETRC": str(home / "netrc"), "HOME": str(home)} | changes


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let this process write no file of more than `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def run_python(
    directory: Path, *argv: object, encoding: str | None = None, **changes: str
) -> subprocess.CompletedProcess:
    """Run a fresh interpreter, with `directory` as working and home directory."""
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=directory,
        env=process_environment(directory, **changes),
        capture_output=True,
        encoding=encoding,
        text=True,
        timeout=1500,
    )


def run_script(
    directory: Path, script: str, *argv: object, **changes: str
) -> subprocess.CompletedProcess:
    """Run a script as `run_python` does."""
    return run_python(directory, ROOT / script, *argv, **changes)


def parse_options(script: ModuleType, *argv: object) -> SharedOptions:
    """Parse a script's command line."""
    return parse(script.Options, script.__doc__, list(map(str, argv)))


def directory_contents(directory: Path) -> dict[Path, str]:
    """Return the SHA-256 of all files below a directory, by relative path."""
    return {
        path.relative_to(directory): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


class Result:
    """The files in a run's output directory."""

    def __init__(self, directory: Path):
        names = {path.name for path in directory.iterdir()}
        assert names >= set(OUTPUT_FILES)  # tests of --predict and --export share runs
        self.directory = directory
        self.metrics = json.loads((directory / "metrics.json").read_text())
        with open(directory / "history.csv") as file:
            self.history = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]

    @functools.cached_property
    def model(self) -> keras.Model:
        return keras.saving.load_model(self.directory / "model.keras", safe_mode=True)

    def deterministic_metrics(self) -> tuple[dict, list[dict]]:
        """Return everything that depends on the seed only."""
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in self.history]
        names = "train", "validation", "test", "best_epoch"
        return {name: self.metrics[name] for name in names}, history


def train_in_process(script: ModuleType, *argv: object) -> Result:
    """Call a script's `main` in this process, which has imported TensorFlow already."""
    options = parse_options(script, "--wandb", "disabled", *argv)
    with pytest.MonkeyPatch.context() as patch:
        skip_figures(patch)
        script.main(options)
    return Result(options.output_dir)


def check_calibration(run: Callable[[], Result], data: ImageDataset) -> None:
    """Check that the temperature of the validation images is in the model and its predictions."""
    with mock.patch.object(evaluation, "fit_temperature", return_value=0.5) as fit:
        result = run()
    ((predictions, split),) = (call.args for call in fit.call_args_list)
    np.testing.assert_array_equal(split.images, data.validation.images[: split.size])
    assert len(predictions.probabilities) == split.size == result.metrics["data"]["validation"]
    rows = np.loadtxt(result.directory / "predictions.csv", delimiter=",", skiprows=1)
    probabilities = result.model.predict(data.test.images[: len(rows)], verbose=0)
    np.testing.assert_allclose(probabilities, rows[:, 4:], atol=1e-4, rtol=2e-3)


def skip_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save figures empty, after a short t-SNE: they take half of the time of a short run."""
    monkeypatch.setattr(figures, "MAX_TSNE_IMAGES", 20)
    monkeypatch.setattr(Figure, "draw", lambda figure, renderer: None)


class CommandResult(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str
