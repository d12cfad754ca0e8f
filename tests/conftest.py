"""Shared by the tests: data, networks, and ways to run a script and to read what it left."""

import collections
import csv
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from fashion import errors
from fashion.backbones import architectures, feature_cache
from fashion.datasets import fashion_mnist
from fashion.environment import keras_home
from fashion.options import Options
from fashion.reporting import plot_style
from fashion.tracking.run import OUTPUT_FILES, Run

import keras
import numpy as np
import pytest

import cnn_basic
import common
import resnet50_fashion

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "tests" / "data"
SAMPLE_SIZES = {"train": 1760, "validation": 160, "test": 400}

# Tests' processes share a GPU: none takes all its memory.
os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
for name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[name]  # no setting of the user's reaches a test


@pytest.fixture(scope="session", autouse=True)
def wandb_files_elsewhere(tmp_path_factory) -> Iterator[None]:
    """Keeps what W&B stages in this process out of the folder in which the tests are run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(tmp_path_factory.mktemp("wandb")))
        yield


@pytest.fixture(scope="session", autouse=True)
def go_on_after_a_scripts_end() -> Iterator[None]:
    """Has a script that runs within this process not end it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "end", lambda code, at_once=False: sys.exit(code))
        yield


# ------------------------------------------------------------------------------------ scripts


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """An environment in which no account, key or cache of the user's is found."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return ours | {"NETRC": str(folder / "netrc"), "HOME": str(folder)} | changes


def run_script(
    folder: Path, script: str, *words: object, **changes: str
) -> subprocess.CompletedProcess:
    """Runs a script as a user would, with `folder` as the current one."""
    return subprocess.run(
        [sys.executable, ROOT / script, *map(str, words)],
        cwd=folder,
        env=environment(folder, **changes),
        capture_output=True,
        text=True,
        timeout=1500,
    )


def parse(script: ModuleType, *words: object) -> Options:
    """The options of a script's command line."""
    return common.parse(script.Options, script.__doc__, list(map(str, words)))


def contents(folder: Path) -> dict[Path, bytes]:
    """The files in a folder and below."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Result:
    """What a run left in its output folder."""

    def __init__(self, folder: Path):
        files = {path.name for path in folder.iterdir()} - {"checkpoint"}  # of a fine-tuning
        assert files == set(OUTPUT_FILES)
        self.folder = folder
        self.metrics = json.loads((folder / "metrics.json").read_text())
        with open(folder / "history.csv") as file:
            self.history = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]

    @functools.cached_property
    def model(self) -> keras.Model:
        return keras.saving.load_model(self.folder / "model.keras", safe_mode=True)

    def without_time(self) -> tuple[dict, list[dict]]:
        """All that must be the same for the same seed."""
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in self.history]
        return {k: self.metrics[k] for k in ("train", "validation", "test", "best_epoch")}, history


def train(script: ModuleType, *words: object) -> Result:
    """Runs a script's `main` within this process, where TensorFlow is imported already."""
    parsed = parse(script, "--wandb", "disabled", *words)
    with pytest.MonkeyPatch.context() as patch:
        make_pictures_fast(patch)
        script.main(parsed)
    return Result(parsed.results.output_dir)


def make_pictures_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a short run, half of the time would be its pictures': here they are not laid out."""
    monkeypatch.setitem(plot_style.STYLE, "figure.constrained_layout.use", False)


@pytest.fixture
def run_main(tmp_path, monkeypatch) -> Callable[..., Result]:
    """`train` in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return train


class Ended(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command_line(tmp_path, monkeypatch, capfd) -> Callable[..., Ended]:
    """Runs a script's command line from its words to its exit code, within this process."""
    monkeypatch.chdir(tmp_path)

    def run(script: ModuleType, *words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [f"/some/where/{script.__name__}.py", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            common.run_script(script.main, script.Options, script.__doc__)
        return Ended(end.value.code, *capfd.readouterr())

    return run


# --------------------------------------------------------------------------------------- data


def load(folder: Path = SAMPLE, **sizes: int) -> common.FashionMNIST:
    """The data set of a folder; of each split only so many images, if `train_size=…` says so."""
    return common.load_fashion_mnist(common.DataOptions(data_dir=folder, **sizes))


@pytest.fixture(scope="session")
def sample() -> common.FashionMNIST:
    return load()


def write_idx(folder: Path, data: common.FashionMNIST, classes: range) -> Path:
    """Some classes of a data set as one of its own, without names, in the files of a folder."""
    sums = []
    for part, splits in ("train", [data.validation, data.train]), ("t10k", [data.test]):
        images = np.concatenate([split.images for split in splits])
        labels = np.concatenate([split.labels for split in splits])
        chosen = np.isin(labels, classes)
        labels = (labels[chosen] - classes.start).astype("uint8")
        for kind, array in ("images-idx3", images[chosen]), ("labels-idx1", labels):
            header = np.array([0x800 + array.ndim, *array.shape], ">u4")
            payload = header.tobytes() + array.tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(payload)
            sums.append(f"{hashlib.sha256(payload).hexdigest()}  {part}-{kind}-ubyte\n")
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


@pytest.fixture(scope="session")
def whole_folder() -> Path:
    """A folder with the whole data set."""
    for folder in keras_home() / "datasets" / "fashion-mnist", fashion_mnist.DEBIAN_FOLDER:
        if (folder / "train-images-idx3-ubyte.gz").exists():
            return folder
    pytest.skip("needs the whole data set: apt-get install dataset-fashion-mnist")


@pytest.fixture(scope="session")
def imagenet_weights() -> str:
    """A weights file of an ImageNet-trained ResNet50 without its top."""
    if path := os.environ.get("RESNET50_WEIGHTS"):
        return path
    path = keras_home() / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    if not path.exists():
        pytest.skip("needs ImageNet weights: in Keras' cache, or a file named by $RESNET50_WEIGHTS")
    return str(path)


# ----------------------------------------------------------------------------------- networks


@functools.cache
def random_network(name: str, image_size: int) -> keras.Model:
    """A network of random weights, those of its BatchNormalizations included."""
    network = architectures.load_network(name, image_size, "none", seed=0)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.beta.shape[0]
            gamma = [rng.uniform(0.5, 1.5, n)] if layer.scale else []
            means = rng.normal(0, 0.3, n), rng.normal(0, 0.3, n)
            layer.set_weights([*gamma, *means, rng.uniform(0.5, 2, n)])
    return network


@pytest.fixture
def random_backbone(monkeypatch) -> Callable[[str, int, str], architectures.Backbone]:
    """Makes a `Backbone` of `random_network`, in a precision."""

    def load_backbone(name: str, image_size: int, precision: str) -> architectures.Backbone:
        words = ("--backbone", name, "--image-size", image_size, "--precision", precision)
        network = random_network(name, image_size)
        with monkeypatch.context() as patch:
            patch.setattr(architectures, "load_network", lambda *of: network)
            return resnet50_fashion.load_backbone(parse(resnet50_fashion, *words))

    return load_backbone


def build_small_resnet(include_top: bool, weights: None, input_shape: tuple) -> keras.Model:
    """A ResNet50 but for its size: 6 narrow blocks in place of 16; the layers' names are the same.

    `include_top` and `weights` are Keras' arguments.
    """
    layers = keras.layers

    def convolve(x: keras.KerasTensor, filters: int, size: int, stride: int, name: str):
        x = layers.Conv2D(filters, size, stride, padding="same", name=f"{name}_conv")(x)
        return layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_bn")(x)

    inputs = keras.Input(input_shape)
    x = layers.Activation("relu", name="conv1_relu")(convolve(inputs, 8, 7, 2, "conv1"))
    x = layers.MaxPooling2D(3, 2, padding="same", name="pool1_pool")(x)
    for stage, blocks in (2, 1), (3, 1), (4, 1), (5, 3):
        for block in range(1, blocks + 1):
            name, stride = f"conv{stage}_block{block}", 2 if block == 1 and stage > 2 else 1
            shortcut = convolve(x, 8 * stage, 1, stride, f"{name}_0") if block == 1 else x
            x = convolve(x, 8, 1, stride, f"{name}_1")
            x = layers.Activation("relu", name=f"{name}_1_relu")(x)
            x = convolve(x, 8, 3, 1, f"{name}_2")
            x = layers.Activation("relu", name=f"{name}_2_relu")(x)
            x = layers.Add(name=f"{name}_add")(
                [shortcut, convolve(x, 8 * stage, 1, 1, f"{name}_3")]
            )
            x = layers.Activation("relu", name=f"{name}_out")(x)
    return keras.Model(inputs, x, name="small_resnet")


def make_resnet_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `--backbone resnet50` mean a small network of its kind."""
    small = architectures.ARCHITECTURES["resnet50"]._replace(build=build_small_resnet)
    monkeypatch.setitem(architectures.ARCHITECTURES, "resnet50", small)


def make_files_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the cache keep 20 images a file, so that few images make several files."""
    monkeypatch.setattr(feature_cache, "CHUNK", 20)


@pytest.fixture
def small_resnet(monkeypatch) -> None:
    """`make_resnet_small` for one test."""
    make_resnet_small(monkeypatch)


@pytest.fixture
def small_files(monkeypatch) -> None:
    """`make_files_small` for one test."""
    make_files_small(monkeypatch)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> Path:
    """A cache of features for the tests that are not about it."""
    return tmp_path_factory.mktemp("cache")


# --------------------------------------------------------------------------------------- runs


@pytest.fixture
def open_run(tmp_path, sample) -> Iterator[Run]:
    """A run whose W&B run is disabled, on the sample, with nothing trained yet."""
    words = ("--data-dir", SAMPLE, "--wandb", "disabled", "--output-dir", tmp_path / "output")
    with Run(parse(cnn_basic, *words)) as run:
        common.start_wandb(run, sample)
        yield run


class WandbRun(NamedTuple):
    """What a W&B run's file has."""

    summary: dict  # state, config, metrics
    records: list[dict]

    @property
    def rows(self) -> list[dict]:
        """What was logged, one call a row."""
        return [r["history"]["item"] for r in self.records if r["type"] == "history"]

    @property
    def started(self) -> dict:
        """What it was opened with."""
        (run,) = (r["run"] for r in self.records if r["type"] == "run" and "project" in r["run"])
        return run


@functools.cache
def inspector() -> list[str] | None:
    """W&B's command that tells what is in a run's file; None where it is too old to have it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect"]
    done = subprocess.run([*command, "--help"], capture_output=True, timeout=60)
    return None if done.returncode else command


def read_wandb_run(folder: Path) -> WandbRun:
    """The only W&B run in a folder; skips the test where W&B cannot read it."""
    (run,) = folder.glob("wandb/offline-run-*")
    if not inspector():
        pytest.skip("needs `wandb leet inspect`")
    command = [*inspector(), "--json", str(run)]
    summary, records = (
        subprocess.check_output([*command, *more], text=True, cwd=folder)
        for more in (["--summary"], [])
    )
    return WandbRun(json.loads(summary), [json.loads(line) for line in records.splitlines()])


@dataclass(frozen=True)
class Done:
    """A script's process that has ended well, with an offline W&B run."""

    folder: Path  # in which it ran
    out: str
    err: str
    result: Result

    @functools.cached_property
    def wandb(self) -> WandbRun:
        return read_wandb_run(self.folder)


@pytest.fixture(scope="session")
def offline_runs(tmp_path_factory) -> dict[str, Done]:
    """Both scripts as a user without a W&B account runs them, resnet50_fashion first."""
    folder = tmp_path_factory.mktemp("runs")
    words = ("--data-dir", SAMPLE, "--epochs", 3, "--project", "mine")
    # One of the two knows nothing.
    subset = ("--train-size", 125, "--validation-size", 125, "--weights", "none")
    runs = {}
    for script, more in ("resnet50_fashion", (*subset, "--image-size", 64)), ("cnn_basic", ()):
        (folder / script).mkdir()
        output = folder / "outputs" / script
        more = (*more, "--output-dir", output)
        done = run_script(
            folder / script, f"{script}.py", *words, *more, XDG_CACHE_HOME=str(folder)
        )
        assert done.returncode == 0, done.stderr
        runs[script] = Done(
            folder=folder / script,
            out=done.stdout,
            err=done.stderr,
            result=Result(output),
        )
    return runs


@pytest.fixture(params=["cnn_basic", "resnet50_fashion"])
def offline_run(request, offline_runs) -> Done:
    """Either of `offline_runs`."""
    return offline_runs[request.param]


@pytest.fixture
def metrics(offline_run):
    return offline_run.result.metrics


@pytest.fixture
def wandb_records(offline_run):
    """Summary, {history key: value}, and artifacts by type, of a script's W&B run."""
    history = {}
    for row in offline_run.wandb.rows:
        history |= row
    artifacts = collections.defaultdict(list)
    for record in offline_run.wandb.records:
        if record["type"] == "artifact":
            artifacts[record["artifact"]["type"]].append(record["artifact"])
    return offline_run.wandb.summary, history, artifacts


@pytest.fixture
def run_folder(offline_run):
    """The folder of a script's W&B run."""
    (folder,) = offline_run.folder.glob("wandb/offline-run-*")
    return folder


@pytest.fixture
def tables(run_folder, wandb_records):
    """The rows, as dictionaries, of each table of a script's W&B run."""
    _, history, _ = wandb_records
    tables = {}
    for key, path in history.items():
        if key.endswith(".path") and path.endswith(".table.json"):
            table = json.loads((run_folder / "files" / path).read_text())
            rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
            tables[key.removesuffix(".path")] = rows
    return tables


@pytest.fixture(scope="session")
def subset_run(whole_folder, imagenet_weights, tmp_path_factory) -> Result:
    """README's quick start: a part of the real data, and real weights."""
    folder = tmp_path_factory.mktemp("subset")
    sizes = ("--train-size", 5000, "--validation-size", 2000, "--test-size", 2000)
    done = run_script(
        folder,
        "resnet50_fashion.py",
        *("--data-dir", whole_folder, "--weights", imagenet_weights, *sizes),
        *("--recipe", "fast", "--image-size", 64, "--require-accuracy", 0.905),
        *("--cache-dir", folder / "cache", "--wandb", "disabled"),
    )
    assert done.returncode == 0, done.stderr
    return Result(folder / "outputs" / "resnet50_fashion")
