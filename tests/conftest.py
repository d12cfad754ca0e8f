"""Fixtures shared by the tests."""

import contextlib
import fcntl
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

from fashion import errors, machine
from fashion.backbones.backbone import ARCHITECTURES
from fashion.datasets import fashion_mnist
from fashion.datasets.splits import ImageDataset

import keras
import pytest
import wandb
from helpers import forkserver
from helpers.data import load_sample
from helpers.networks import use_small_chunks, use_small_resnet
from helpers.scripts import ROOT, CommandResult, Result, run_script, train_in_process

import common

# Processes of the tests share a GPU, so none may take all its memory.
os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
for name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[name]  # the user's settings must not reach a test

# In tests, a figure or dashboard that cannot be made is an error.
WARN_ON_FAILURE = errors.warn_on_failure
errors.warn_on_failure = lambda subject: contextlib.nullcontext()

# The slowest files, slowest first. If a worker started one of them last, the others would wait.
SLOWEST_FILES = (
    "test_export.py",
    "test_online.py",  # waits for servers while others compute
    "test_training.py",
    "test_faults.py",
    "test_resnet50_fashion.py",
    "test_benchmarks.py",
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
def reset_libraries() -> Iterator[None]:
    """Kill what a failed test left, restore Keras' dtype policy, and end W&B's session."""
    yield
    forkserver.kill_remaining_processes()
    keras.config.set_dtype_policy("float32")
    wandb.teardown()  # it would keep its settings


@pytest.fixture
def home(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty home and working directory; the test may change `os.environ`."""
    monkeypatch.chdir(tmp_path)
    variables = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    with mock.patch.dict(os.environ, variables):
        yield tmp_path


@pytest.fixture
def only_warn(monkeypatch) -> None:
    """Make the failure of a figure or dashboard a warning, as outside of the tests."""
    monkeypatch.setattr(errors, "warn_on_failure", WARN_ON_FAILURE)


@pytest.fixture
def run_main(tmp_path, monkeypatch) -> Callable[..., Result]:
    """`train_in_process` in a directory of the test."""
    monkeypatch.chdir(tmp_path)
    return train_in_process


@pytest.fixture
def command_line(tmp_path, monkeypatch, capfd) -> Callable[..., CommandResult]:
    """Run a script's command line, from arguments to exit code, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(errors, "SIGNALS", [])  # no handlers in the process of pytest
    monkeypatch.setattr(gc, "freeze", lambda: None)

    def run(script: ModuleType, *argv: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", [f"/some/where/{script.__name__}.py", *map(str, argv)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            common.run_script(script.main, script.Options, script.__doc__)
        return CommandResult(exit_info.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Start the server that scripts' processes are forked from."""
    forkserver.SERVER.set_forkserver_preload(["helpers.forkserver"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
        (process := forkserver.SERVER.Process(target=time.sleep, args=(0,))).start()
        process.join()


@pytest.fixture(scope="session")
def sample() -> ImageDataset:
    return load_sample()


@pytest.fixture(scope="session")
def fashion_mnist_dir() -> Path:
    """A directory with the complete data set."""
    keras_cache = machine.keras_home() / "datasets" / "fashion-mnist"
    for directory in keras_cache, fashion_mnist.DEBIAN_DIR:
        if (directory / "train-images-idx3-ubyte.gz").exists():
            return directory
    pytest.skip("needs the complete data set: apt-get install dataset-fashion-mnist")


@pytest.fixture(scope="session")
def imagenet_weights() -> str:
    """A weights file of an ImageNet-trained ResNet50 without its top."""
    if path := os.environ.get("RESNET50_WEIGHTS"):
        return path
    filename = ARCHITECTURES["resnet50"].weights_url.rsplit("/", 1)[1]
    cached = machine.keras_home() / "models" / filename
    if not cached.exists():
        pytest.skip("needs ImageNet weights: in Keras' cache, or a file named by $RESNET50_WEIGHTS")
    return str(cached)


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


@pytest.fixture(scope="session")
def subset_run(fashion_mnist_dir, imagenet_weights, tmp_path_factory) -> Result:
    """The quick run of README: a subset of the real data, and real weights."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # shared by all workers
    output_dir = root / "subset" / "outputs" / "resnet50_fashion"
    with open(root / "subset.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        if not (output_dir / "model.keras").exists():
            (root / "subset").mkdir(exist_ok=True)
            done = run_script(
                root / "subset",
                "resnet50_fashion.py",
                *("--data-dir", fashion_mnist_dir, "--weights", imagenet_weights),
                *("--train-size", 5000, "--validation-size", 2000, "--test-size", 2000),
                *("--recipe", "fast", "--image-size", 64, "--require-accuracy", 0.905),
                *("--cache-dir", "cache", "--wandb", "disabled"),
            )
            assert done.returncode == 0, done.stderr
    return Result(output_dir)
