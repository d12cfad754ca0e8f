"""Shared by the tests: the sample data, and ways to run a script and read what it left."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import keras
import pytest
import report

import common

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "tests" / "data"

SAMPLE_SIZES = {"train": 1760, "validation": 160, "test": 400}


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """An environment in which no account, key or cache of the user's is found."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return ours | {"NETRC": str(folder / "netrc"), "HOME": str(folder)} | changes


def run_script(
    folder: Path, script: str, *options: object, **changes: str
) -> subprocess.CompletedProcess:
    """Runs a script as a user would, with `folder` as the current one."""
    return subprocess.run(
        [sys.executable, ROOT / script, *map(str, options)],
        cwd=folder,
        env=environment(folder, **changes),
        capture_output=True,
        text=True,
        timeout=1500,
    )


class Result:
    """What a run left in its output folder."""

    def __init__(self, folder: Path):
        files = {path.name for path in folder.iterdir()} - {"checkpoint"}  # of a fine-tuning
        assert files == set(report.OUTPUT_FILES)
        self.metrics = json.loads((folder / "metrics.json").read_text())
        with open(folder / "history.csv") as file:
            self.history = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        self.model = keras.saving.load_model(folder / "model.keras", safe_mode=True)

    def without_time(self) -> tuple[dict, list[dict]]:
        """All that must be the same for the same seed."""
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in self.history]
        return {k: self.metrics[k] for k in ("train", "validation", "test", "best_epoch")}, history


@pytest.fixture
def run_main(tmp_path, monkeypatch):
    """Runs a script's `main` within this process, where TensorFlow is imported already."""
    monkeypatch.chdir(tmp_path)

    def run(script: ModuleType, *options: object) -> Result:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, options)])
        script.main()
        return Result(tmp_path / "outputs" / script.__name__)

    return run


def read_wandb_run(folder: Path) -> tuple[dict, list[dict]]:
    """The summary (state, config, metrics) and the records of the only W&B run in a folder."""
    (run,) = folder.glob("wandb/*run-*")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", run]
    inspect = [
        subprocess.check_output([*command, *more], text=True) for more in (["--summary"], [])
    ]
    return json.loads(inspect[0]), [json.loads(line) for line in inspect[1].splitlines()]


@pytest.fixture(scope="session")
def sample() -> common.FashionMNIST:
    return common.load_fashion_mnist(SAMPLE)


@pytest.fixture(scope="session")
def whole_folder() -> Path:
    """A folder with the whole data set."""
    for folder in common.keras_home() / "datasets" / "fashion-mnist", common.DEBIAN_FOLDER:
        if (folder / "train-images-idx3-ubyte.gz").exists():
            return folder
    pytest.skip("needs the whole data set: apt-get install dataset-fashion-mnist")


@pytest.fixture(scope="session")
def imagenet_weights() -> str:
    """A weights file of an ImageNet-trained ResNet50 without its top."""
    if path := os.environ.get("RESNET50_WEIGHTS"):
        return path
    path = common.keras_home() / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    if not path.exists():
        pytest.skip("needs ImageNet weights: in Keras' cache, or a file named by $RESNET50_WEIGHTS")
    return str(path)


@pytest.fixture(scope="session")
def subset_run(whole_folder, imagenet_weights, tmp_path_factory) -> Path:
    """The folder of a run of resnet50_fashion.py on a part of the real data and real weights."""
    folder = tmp_path_factory.mktemp("subset")
    sizes = ("--train-size", 3000, "--validation-size", 1500, "--test-size", 1500)
    done = run_script(
        folder,
        "resnet50_fashion.py",
        *("--data-dir", whole_folder, "--weights", imagenet_weights, *sizes),
        *("--features", "conv4", "--cache-dir", folder / "cache", "--wandb", "disabled"),
        *("--require-accuracy", 0.885),
    )
    assert done.returncode == 0, done.stderr
    return folder
