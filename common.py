"""What both scripts share: errors, options, the data, 224×224 RGB images, batches.

Read it from top to bottom, in that order.
"""

import argparse
import contextlib
import gzip
import hashlib
import http.client
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NoReturn

START = time.perf_counter()  # before the slow imports: a user waits for them, too

# Set before Keras is imported: the scripts need TensorFlow underneath, whatever keras.json says,
# and TensorFlow's notes on absent GPU drivers and CPU features would bury the results.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

tf.get_logger().setLevel("ERROR")  # or it warns that several models' functions are compiled
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")

# ------------------------------------------------------------------------ errors and options


class UserError(Exception):
    """What the user can put right: the message says what is wrong and what to do."""

    exit_code = 1


class UsageError(UserError):
    """A value on the command line that cannot be used."""

    exit_code = 2


def run_script(main: Callable[[], None]) -> NoReturn:
    """Calls `main` and ends the process: exit code 0; 1 or 2 for an error; 130 for Ctrl-C."""
    script = Path(sys.argv[0]).name
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(errors="backslashreplace")  # a terminal that has no "…" or "×"
    try:
        main()
        sys.exit(0)
    except UserError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        warnings.simplefilter("ignore")  # asyncio's, on what was not awaited within wandb
        print(f"\n{script}: interrupted", file=sys.stderr)
        sys.exit(130)


def _number(convert: type, accepts: Callable[[float], bool], expected: str) -> Callable:
    """An `argparse` type that says what it expected."""

    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan  # fails every comparison
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


whole_number = _number(int, lambda value: 0 <= value < 2**31, "a whole number from 0")
positive_int = _number(int, lambda value: 1 <= value < 2**31, "a whole number from 1")
seed_int = _number(int, lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
positive_float = _number(float, lambda value: 0 < value < math.inf, "a number above 0")
dropout_rate = _number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
accuracy_share = _number(
    float, lambda value: 0 < value <= 1, "an accuracy between 0 and 1, such as 0.9"
)


def all_or_count(text: str) -> str | int:
    """An `argparse` type: "all" or a whole number from 0."""
    return text if text == "all" else whole_number(text)


def option_parser(description: str, model: str) -> argparse.ArgumentParser:
    """The options that both scripts have; `model` is the script's name.

    A script adds its own and sets the defaults of `--epochs` and the like by `set_defaults`.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(model=model)

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-dir",
        type=Path,
        help="folder with the four IDX files (default: Keras' cache or the Debian package's "
        "folder, else downloaded)",
    )
    for split, whole in ("train", "55,000"), ("validation", "5,000"), ("test", "10,000"):
        data.add_argument(
            f"--{split}-size",
            type=positive_int,
            metavar="N",
            help=f"use N class-balanced {split} images (default: all, {whole})",
        )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs", type=positive_int, help="passes over the training images (default: %(default)s)"
    )
    training.add_argument(
        "--batch-size", type=positive_int, help="images per training step (default: %(default)s)"
    )
    training.add_argument(
        "--learning-rate",
        type=positive_float,
        default=1e-3,
        help="Adam's, at the start (default: %(default)s)",
    )
    training.add_argument(
        "--seed",
        type=seed_int,
        default=0,
        help="of initial weights, shuffling and dropout (default: %(default)s)",
    )

    use = parser.add_argument_group("use of the model")
    use.add_argument(
        "--predict",
        type=Path,
        nargs="+",
        metavar="PICTURE",
        help="do not train: classify these picture files, or those of a folder, by the model in"
        " --output-dir",
    )

    results = parser.add_argument_group("results")
    results.add_argument(
        "--output-dir",
        type=Path,
        default=Path("outputs") / model,
        help="gets the model, its results, pictures and report.html (default: %(default)s)",
    )
    results.add_argument(
        "--require-accuracy",
        type=accuracy_share,
        metavar="X",
        help="exit with 1 if the validation accuracy ends below X (0.9 is 90 %%)"
        " (default: no such check)",
    )
    results.add_argument(
        "--wandb",
        choices=("auto", "online", "offline", "disabled"),
        default="auto",
        help="Weights & Biases; auto is online where a key is configured, else offline"
        " (default: %(default)s)",
    )
    results.add_argument(
        "--project",
        type=project_name,
        default="fashion-mnist",
        help="W&B project (default: %(default)s)",
    )
    return parser


def project_name(text: str) -> str:
    """An `argparse` type: what W&B takes for a project."""
    if not text or re.search(r"[/\\#?%:]", text):
        raise argparse.ArgumentTypeError(rf"expected a name without / \ # ? % :, got {text!r}")
    return text


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line; `--batch_size` (as a W&B sweep writes it) is `--batch-size`."""
    return parser.parse_args(
        re.sub("^--[^=]*", lambda name: name[0].replace("_", "-"), word) for word in sys.argv[1:]
    )


# -------------------------------------------------------------------------------------- data

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# SHA-256 of the decompressed files: the .gz around them differ between distributors.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

SPLIT_SEED = 2017  # the data set's year; fixed, so that every run validates on the same images


@dataclass(frozen=True)
class Split:
    """One of train, validation and test, in an order in which every prefix is class-balanced.

    A subset is a prefix, so smaller subsets are nested in larger ones, and what is computed for
    each image of a subset is of use to every other subset.
    """

    all_images: np.ndarray  # uint8 (M, 28, 28)
    all_labels: np.ndarray  # int32 (M,)
    all_positions: np.ndarray  # int64 (M,): the image's number in the data set's file, from 0
    size: int  # N <= M: how many of them are used

    @property
    def images(self) -> np.ndarray:
        """The images in use, uint8 (N, 28, 28)."""
        return self.all_images[: self.size]

    @property
    def labels(self) -> np.ndarray:
        """Their labels, int32 (N,), from 0 to 9."""
        return self.all_labels[: self.size]

    @property
    def positions(self) -> np.ndarray:
        """Their numbers in the data set's file, by which anybody can find them."""
        return self.all_positions[: self.size]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all M images, in their order."""
        return hashlib.sha256(self.all_images).hexdigest()


@dataclass(frozen=True)
class FashionMNIST:
    """The three splits, and what they were read from."""

    train: Split
    validation: Split
    test: Split
    source: str
    sha256: dict[str, str]  # of each file, decompressed

    @property
    def splits(self) -> dict[str, Split]:
        """The three by name, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def record(self) -> dict[str, object]:
        """What a run notes about its data."""
        sizes = {name: split.size for name, split in self.splits.items()}
        return {"source": self.source, **sizes, "sha256": self.sha256}


class _BadData(Exception):
    """Why a source of the data set cannot be used."""


def load_fashion_mnist(
    data_dir: Path | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
) -> FashionMNIST:
    """Finds, verifies and splits Fashion-MNIST; prints a line that says where it was found.

    A twelfth of the 60,000 training images (5,000, 500 of each class) is the validation split,
    the same for every run.

    Args:
        data_dir: the only folder to look in. One with a `SHA256SUMS` file is held to that (another
            data set in the same format, such as a sample); any other must hold Fashion-MNIST.
        train_size, validation_size, test_size: use only so many images, class-balanced.

    Raises:
        UserError: no source works; the message lists each with its reason.
        UsageError: a size is larger than its split.
    """
    arrays, source, sha256 = _read_folder(data_dir) if data_dir else _find_fashion_mnist()

    def split(name: str, file: str, order: np.ndarray, size: int | None) -> Split:
        if size and size > len(order):
            raise UsageError(f"--{name}-size {size}: there are {len(order)} {name} images")
        images, labels = arrays[f"{file}-images-idx3-ubyte"], arrays[f"{file}-labels-idx1-ubyte"]
        return Split(images[order], labels[order].astype("int32"), order, size or len(order))

    order = _class_balanced_order(arrays["train-labels-idx1-ubyte"])
    held_out = len(order) // 12
    if not held_out:
        raise UserError(f"{source}: {len(order)} training images are too few to split")
    data = FashionMNIST(
        split("train", "train", order[held_out:], train_size),
        split("validation", "train", order[:held_out], validation_size),
        split("test", "t10k", _class_balanced_order(arrays["t10k-labels-idx1-ubyte"]), test_size),
        source,
        sha256,
    )
    print(
        f"Data: {data.train.size:,} training, {data.validation.size:,} validation and "
        f"{data.test.size:,} test images from {source}"
    )
    return data


def _class_balanced_order(labels: np.ndarray) -> np.ndarray:
    """A shuffled order that takes one image of each class in turn, as long as there are any."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    turn = np.concatenate([np.arange(count) for count in np.bincount(labels)])
    return by_class[np.argsort(turn, kind="stable")]


def _read_folder(folder: Path) -> tuple[dict[str, np.ndarray], str, dict[str, str]]:
    """The arrays of `--data-dir`, its description and the digests it was held to."""
    expected, source = FASHION_MNIST_SHA256, f"{folder} (--data-dir)"
    try:
        if (sums := folder / "SHA256SUMS").exists():
            lines = re.findall(r"^(\w+) [ *](\S+)$", sums.read_text(), re.MULTILINE)
            expected = {name: digest for digest, name in lines}
            source = f"{folder} (--data-dir, by its own SHA256SUMS)"
            if expected.keys() != FASHION_MNIST_SHA256.keys():
                raise _BadData(f"{sums} must name {', '.join(FASHION_MNIST_SHA256)}")
        return _read_files(folder, expected), source, expected
    except (_BadData, OSError, ValueError) as error:
        raise UserError(f"--data-dir: {error}") from None


def keras_home() -> Path:
    """Keras' folder for downloads."""
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras")))


def _find_fashion_mnist() -> tuple[dict[str, np.ndarray], str, dict[str, str]]:
    """The arrays of the first source that works, its description and its digests."""
    cache = keras_home() / "datasets" / "fashion-mnist"  # as keras.datasets has it
    tried = []
    for name, folder, fetch in (
        ("Keras' cache", cache, None),
        (f"Debian package {DEBIAN_PACKAGE}", DEBIAN_FOLDER, None),
        ("Keras' download", cache, _download),
        (f"apt-get download {DEBIAN_PACKAGE}", cache, _fetch_debian_package),
    ):
        try:
            if fetch:
                print(f"Fetching Fashion-MNIST, 30 MB: {name} …", flush=True)
                _store(folder, fetch)
            arrays = _read_files(folder, FASHION_MNIST_SHA256)
            return arrays, f"{folder} ({name})", FASHION_MNIST_SHA256
        except (_BadData, OSError, http.client.HTTPException) as error:
            tried.append(f"{name}: {error}")
            if not isinstance(error, FileNotFoundError) and not fetch:
                print(f"Not used: {error}", file=sys.stderr)
    raise UserError(
        "Fashion-MNIST was not found:\n  "
        + "\n  ".join(tried)
        + f"\nEither `apt-get install {DEBIAN_PACKAGE}` (Debian, Ubuntu), or put the four "
        "files of https://github.com/zalandoresearch/fashion-mnist into a folder and give it "
        "as --data-dir."
    )


def _read_files(folder: Path, expected: dict[str, str]) -> dict[str, np.ndarray]:
    """The four verified arrays of a folder, from `NAME.gz` or `NAME`.

    Raises:
        FileNotFoundError: a file is not there.
        _BadData: a file is not what it should be.
    """
    arrays = {}
    for name, sha256 in expected.items():
        path = folder / f"{name}.gz"
        if not path.exists() and not (path := folder / name).exists():
            raise FileNotFoundError(f"there is no {folder / name}.gz")
        arrays[name] = _parse_idx(path.read_bytes(), sha256, path)
    for part in "train", "t10k":
        images, labels = arrays[f"{part}-images-idx3-ubyte"], arrays[f"{part}-labels-idx1-ubyte"]
        if images.shape != (len(labels), 28, 28) or labels.max() >= len(CLASS_NAMES):
            raise _BadData(f"{folder}: {part} has images {images.shape}, labels {labels.shape}")
    return arrays


def _parse_idx(content: bytes, sha256: str, origin: object) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped or not. Format: yann.lecun.com/exdb/mnist.

    Raises:
        _BadData: it is damaged, has another SHA-256 than expected, or is not IDX.
    """
    try:
        payload = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise _BadData(f"{origin} is damaged: {error}") from None
    if (found := hashlib.sha256(payload).hexdigest()) != sha256:
        raise _BadData(f"{origin} has SHA-256 {found}, expected {sha256}")
    dimensions = payload[3] if payload[:3] == b"\0\0\x08" else 0  # 8: unsigned bytes
    shape = np.frombuffer(payload, ">u4", dimensions, offset=4)
    if not dimensions or len(payload) != 4 + 4 * dimensions + math.prod(shape.tolist()):
        raise _BadData(f"{origin} is not an IDX file of unsigned bytes")
    return np.frombuffer(payload, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _store(folder: Path, fetch: Callable[[], Iterator[tuple[str, bytes]]]) -> None:
    """Puts fetched .gz files into a folder, each verified first and then moved into place whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as temporary:
        for name, content in fetch():
            _parse_idx(content, FASHION_MNIST_SHA256[name], f"the fetched {name}.gz")
            part = Path(temporary) / name
            part.write_bytes(content)
            part.replace(folder / f"{name}.gz")


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


def _download() -> Iterator[tuple[str, bytes]]:
    """The four files from where `keras.datasets` has them."""
    check_reachable(KERAS_URL + "train-images-idx3-ubyte.gz")
    for name in FASHION_MNIST_SHA256:
        with urllib.request.urlopen(f"{KERAS_URL}{name}.gz", timeout=10) as response:
            yield name, response.read()


def _fetch_debian_package() -> Iterator[tuple[str, bytes]]:
    """The four files from the Debian package, without root: nothing on the system changes."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for folder in "lists/partial", "cache/archives/partial", "package", "files":
            (root / folder).mkdir(parents=True)
        private = (f"Dir::State::Lists={root}/lists", f"Dir::Cache={root}/cache")
        settings = (*private, "Debug::NoLocking=1", "Acquire::Languages=none", "Acquire::Retries=0")
        apt_get = ["apt-get", "-qq", *(word for value in settings for word in ("-o", value))]
        for command, timeout in (
            ([*apt_get, "update"], 10),
            ([*apt_get, "download", DEBIAN_PACKAGE], 600),
            (["sh", "-c", "dpkg-deb -x *.deb ../files"], 60),
        ):
            short = f"`{command[0]} … {command[-1]}`"
            try:
                subprocess.run(
                    command,
                    cwd=root / "package",
                    timeout=timeout,
                    check=True,
                    capture_output=True,
                    text=True,
                )
            except subprocess.TimeoutExpired:
                raise _BadData(f"{short} took more than {timeout} s") from None
            except subprocess.CalledProcessError as error:
                reason = error.stderr.strip() or f"exit code {error.returncode}"
                raise _BadData(f"{short}: {reason.splitlines()[-1]}") from None
        for name in FASHION_MNIST_SHA256:
            yield (
                name,
                (root / "files" / DEBIAN_FOLDER.relative_to("/") / f"{name}.gz").read_bytes(),
            )


# ------------------------------------------------------------------------------------ images


def to_rgb(images: keras.KerasTensor, size: int) -> keras.KerasTensor:
    """Enlarges gray images as a part of a model: uint8 (N, 28, 28) → float32 (N, size, size, 3).

    Bilinear with half-pixel centres (as Pillow and `tf.image` do it), values still from 0 to 255,
    the gray channel three times: what a backbone's `preprocess_input` expects.
    """
    gray = keras.layers.Rescaling(1.0, dtype="float32")(images)
    gray = keras.layers.Reshape((*images.shape[1:], 1), dtype="float32")(gray)
    gray = keras.layers.Resizing(size, size, interpolation="bilinear", dtype="float32")(gray)
    return keras.ops.repeat(gray, 3, axis=-1)


# ---------------------------------------------------------------------------------- training


def shuffled_batches(
    inputs: np.ndarray, labels: np.ndarray, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Batches of inputs and labels, in a new order each epoch.

    `fit` does nearly the same with arrays, but turns float16 to float32, and its tf.data pipeline
    tunes itself in a thread whose sleep (10 ms, then 20, then 40 …) the end of each epoch awaits.
    """
    arrays = tf.constant(inputs), tf.constant(labels)
    order = tf.data.Dataset.range(len(labels)).shuffle(len(labels), seed).batch(batch_size)
    batches = order.map(lambda rows: tuple(tf.gather(array, rows) for array in arrays))
    settings = tf.data.Options()
    settings.autotune.enabled = False
    return batches.prefetch(16).with_options(settings)


def best_epoch(patience: int) -> keras.callbacks.EarlyStopping:
    """Ends a training after `patience` epochs that bring no better validation accuracy.

    The weights are those of the best epoch, whether or not the training ended early.
    """
    return keras.callbacks.EarlyStopping(
        "val_accuracy", mode="max", patience=patience, restore_best_weights=True
    )


def predict(model: keras.Model, inputs: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """The model's outputs for all inputs, as an array of a dtype.

    `model.predict` does the same, but turns float16 inputs to float32, all of them at once.
    """
    batches = [inputs[i : i + 1000] for i in range(0, len(inputs), 1000)]
    outputs = []
    for i in range(0, len(batches), devices()):
        outputs += [o.astype(dtype) for o in predict_each(model, batches[i : i + devices()])]
    return np.concatenate(outputs)


def devices() -> int:
    """How many devices share the work: GPUs, if there are several, else one."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def predict_each(model: keras.Model, batches: list[np.ndarray]) -> list:
    """The model's outputs for each of at most as many batches as there are devices, at once.

    A device has a whole batch, so that the outputs do not depend on how many devices there are.
    """
    strategy = tf.distribute.get_strategy()
    if devices() == 1:
        return [model.predict_on_batch(batch) for batch in batches]
    if not batches:
        return []
    # Every device must take part: those without a batch of their own repeat the last.
    inputs = strategy.experimental_distribute_values_from_function(
        lambda device: tf.constant(batches[min(device.replica_id_in_sync_group, len(batches) - 1)])
    )
    outputs = distributed_call(model)(inputs)

    def of_device(i: int) -> object:
        return tf.nest.map_structure(
            lambda values: strategy.experimental_local_results(values)[i].numpy(), outputs
        )

    return [of_device(i) for i in range(len(batches))]


@lru_cache(maxsize=4)
def distributed_call(model: keras.Model) -> Callable:
    """The model's inference on each device's own inputs, as a compiled function."""
    strategy = tf.distribute.get_strategy()
    return tf.function(
        lambda inputs: strategy.run(lambda batch: model(batch, training=False), (inputs,)),
        reduce_retracing=True,
    )


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long the block took, in seconds, as `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


def cpu_info() -> dict[str, str]:
    """`/proc/cpuinfo` of the first core: {"model name": …, "flags": …}; {} where there is none."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return dict(re.split(r"\s*:\s?", line, maxsplit=1) for line in lines)
    return {}
