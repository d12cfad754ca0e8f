"""Fixtures shared by the tests."""

import collections
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from fashion import environment, errors
from fashion.backbones import architectures
from fashion.cli import command_line as script_command_line
from fashion.datasets import fashion_mnist
from fashion.tracking.run import Run

import filelock
import pytest
import wandb
from helpers import forkserver
from helpers.data import load_sample
from helpers.forkserver import ForkedScript
from helpers.networks import random_network, use_small_chunks, use_small_resnet
from helpers.scripts import (
    SAMPLE,
    CommandResult,
    CompletedRun,
    Result,
    parse_options,
    run_script,
    train_in_process,
)

import cnn_basic
import common
import resnet50_fashion

# Processes of the tests share a GPU, so none may take all its memory.
os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
for name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[name]  # the user's settings must not reach a test

# The slowest files, slowest first. If a worker started one of them last, the others would wait.
SLOWEST_FILES = (
    "test_export.py",
    "test_online.py",  # waits for servers while others compute
    "test_fine_tuner.py",
    "test_faults.py",
    "test_resnet50_fashion.py",
    "test_benchmarks.py",
    "test_runners.py",
    "test_devices.py",
    "test_image_folder.py",
    "test_freezing.py",
    "test_checkpoint.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start `SLOWEST_FILES` first."""
    order = {name: position for position, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session", autouse=True)
def isolate_wandb_dir(tmp_path_factory) -> Iterator[None]:
    """Keep W&B's files of this process out of the directory in which the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(tmp_path_factory.mktemp("wandb")))
        yield


@pytest.fixture(autouse=True)
def end_wandb_session() -> Iterator[None]:
    """End W&B's session, which would ignore, with a warning, the variables of the next test."""
    yield
    wandb.teardown()


@pytest.fixture(scope="session", autouse=True)
def keep_pytest_alive_after_exit() -> Iterator[None]:
    """Make a script that runs in this process raise SystemExit instead of ending the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "exit_process", lambda code, immediately=False: sys.exit(code))
        yield


# ------------------------------------------------------------------------------------ scripts


@pytest.fixture
def run_main(tmp_path, monkeypatch) -> Callable[..., Result]:
    """`train_in_process` in a directory of the test."""
    monkeypatch.chdir(tmp_path)
    return train_in_process


@pytest.fixture
def command_line(tmp_path, monkeypatch, capfd) -> Callable[..., CommandResult]:
    """Run a script's command line, from arguments to exit code, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(script: ModuleType, *argv: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", [f"/some/where/{script.__name__}.py", *map(str, argv)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            script_command_line.run_script(script.main, script.Options, script.__doc__)
        return CommandResult(exit_info.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Start the server that scripts' processes are forked from."""
    forkserver.start_server()


# --------------------------------------------------------------------------------------- data


@pytest.fixture(scope="session")
def sample() -> common.ImageDataset:
    return load_sample()


@pytest.fixture(scope="session")
def fashion_mnist_dir() -> Path:
    """A directory with the complete data set."""
    keras_cache = environment.keras_home() / "datasets" / "fashion-mnist"
    for directory in keras_cache, fashion_mnist.DEBIAN_DIR:
        if (directory / "train-images-idx3-ubyte.gz").exists():
            return directory
    pytest.skip("needs the complete data set: apt-get install dataset-fashion-mnist")


@pytest.fixture(scope="session")
def imagenet_weights() -> str:
    """A weights file of an ImageNet-trained ResNet50 without its top."""
    if path := os.environ.get("RESNET50_WEIGHTS"):
        return path
    url = architectures.ARCHITECTURES["resnet50"].weights_url
    path = environment.keras_home() / "models" / url.rsplit("/", 1)[1]
    if not path.exists():
        pytest.skip("needs ImageNet weights: in Keras' cache, or a file named by $RESNET50_WEIGHTS")
    return str(path)


# ----------------------------------------------------------------------------------- networks


@pytest.fixture
def random_backbone(monkeypatch) -> Callable[[str, int, str], architectures.Backbone]:
    """Build a `Backbone` of `random_network` with a precision."""

    def load_backbone(name: str, image_size: int, precision: str) -> architectures.Backbone:
        argv = ("--backbone", name, "--image-size", image_size, "--precision", precision)
        network = random_network(name, image_size)
        with monkeypatch.context() as patch:
            patch.setattr(architectures, "build_network", lambda *args: network)
            return resnet50_fashion.load_backbone(parse_options(resnet50_fashion, *argv))

    return load_backbone


@pytest.fixture
def small_resnet(monkeypatch) -> None:
    """`use_small_resnet` for one test."""
    use_small_resnet(monkeypatch)


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """`use_small_chunks` for one test."""
    use_small_chunks(monkeypatch)


@pytest.fixture(scope="session")
def shared_cache_dir(tmp_path_factory) -> Path:
    """A feature cache for tests that do not test it."""
    return tmp_path_factory.mktemp("cache")


# --------------------------------------------------------------------------------------- runs


@pytest.fixture
def open_run(tmp_path, sample) -> Iterator[Run]:
    """A run on the sample without epochs, whose W&B run is disabled."""
    argv = ("--data-dir", SAMPLE, "--wandb", "disabled", "--output-dir", tmp_path / "output")
    with Run(parse_options(cnn_basic, *argv)) as run:
        common.start_wandb(run, sample)
        yield run


OFFLINE_SCRIPTS = {
    "resnet50_fashion": (
        *("--train-size", 125, "--validation-size", 125, "--weights", "none", "--image-size", 64),
    ),
    "cnn_basic": (),
}


def run_offline(directory: Path) -> None:
    """Run both scripts like a user without a W&B account, resnet50_fashion (small) first."""
    argv = ("--data-dir", SAMPLE, "--epochs", 3, "--project", "mine")
    for script, script_argv in OFFLINE_SCRIPTS.items():
        output_dir = directory / "outputs" / script
        process = ForkedScript(
            *(script, directory / script, *argv, *script_argv),
            *("--output-dir", output_dir, "--cache-dir", directory / "cache"),
        )
        assert process.wait() == 0, process.err


@pytest.fixture(scope="session")
def run_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Fill a directory in one of the workers of pytest-xdist, and return it in all of them."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def directory_of(name: str, fill: Callable[[Path], None]) -> Path:
        directory, is_complete = root / name, root / f"{name}-complete"
        with filelock.FileLock(root / f"{name}.lock"):
            if not is_complete.exists():
                directory.mkdir()
                fill(directory)
                is_complete.touch()
        return directory

    return directory_of


@pytest.fixture(scope="session")
def offline_runs(run_once, fork_server) -> dict[str, CompletedRun]:
    """Finished processes of both scripts."""
    directory = run_once("offline-runs", run_offline)
    return {
        script: CompletedRun(
            directory=directory / script,
            out=(directory / script / "out").read_text(),
            err=(directory / script / "err").read_text(),
            result=Result(directory / "outputs" / script),
        )
        for script in OFFLINE_SCRIPTS
    }


@pytest.fixture(params=["cnn_basic", "resnet50_fashion"])
def offline_run(request, offline_runs) -> CompletedRun:
    """Each of `offline_runs`."""
    return offline_runs[request.param]


@pytest.fixture
def metrics(offline_run):
    """metrics.json of an offline run."""
    return offline_run.result.metrics


@pytest.fixture
def wandb_records(offline_run):
    """Summary, {history key: value} and artifacts by type of an offline run."""
    history = {}
    for row in offline_run.wandb.rows:
        history |= row
    artifacts = collections.defaultdict(list)
    for record in offline_run.wandb.records:
        if record["type"] == "artifact":
            artifacts[record["artifact"]["type"]].append(record["artifact"])
    return offline_run.wandb.summary, history, artifacts


@pytest.fixture
def wandb_run_dir(offline_run):
    """W&B's directory of an offline run."""
    (directory,) = offline_run.directory.glob("wandb/offline-run-*")
    return directory


@pytest.fixture
def wandb_tables(wandb_run_dir, wandb_records):
    """The rows, as dictionaries, of each table of an offline run."""
    _, history, _ = wandb_records
    tables = {}
    for key, path in history.items():
        if key.endswith(".path") and path.endswith(".table.json"):
            table = json.loads((wandb_run_dir / "files" / path).read_text())
            rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
            tables[key.removesuffix(".path")] = rows
    return tables


@pytest.fixture(scope="session")
def subset_run(fashion_mnist_dir, imagenet_weights, run_once) -> Result:
    """The quick run of README: a subset of the real data, and real weights."""

    def run(directory: Path) -> None:
        sizes = ("--train-size", 5000, "--validation-size", 2000, "--test-size", 2000)
        done = run_script(
            directory,
            "resnet50_fashion.py",
            *("--data-dir", fashion_mnist_dir, "--weights", imagenet_weights, *sizes),
            *("--recipe", "fast", "--image-size", 64, "--require-accuracy", 0.905),
            *("--cache-dir", directory / "cache", "--wandb", "disabled"),
        )
        assert done.returncode == 0, done.stderr

    return Result(run_once("subset", run) / "outputs" / "resnet50_fashion")
