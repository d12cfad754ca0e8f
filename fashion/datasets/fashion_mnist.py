"""Where the four files of Fashion-MNIST come from: folders, caches, a Debian package, a download.

Whatever the source, each file is verified by the SHA-256 of its decompressed content before it is
used or kept.
"""

import gzip
import hashlib
import http.client
import math
import re
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fashion import environment
from fashion.datasets.dataset import CLASS_NAMES, Files, checked_names
from fashion.errors import UserError

import numpy as np

# SHA-256 of the decompressed files, in the order of `Files`: the .gz around them differ between
# distributors.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


class _BadData(Exception):
    """Why a source of the data set cannot be used."""


def find(data_dir: Path | None) -> Files:
    """The files of the first source that works, or those of `data_dir`.

    A `data_dir` with a `SHA256SUMS` file is held to that (another data set in the same format, such
    as a sample); any other must hold Fashion-MNIST. Its `classes.txt` has the names of the classes,
    one a line; without it they are "0", "1" …, of Fashion-MNIST alone its own.

    Raises:
        UserError: no source works; the message lists each with its reason.
    """
    return _read_folder(data_dir) if data_dir else _find_fashion_mnist()


def _read_folder(folder: Path) -> Files:
    """The files of `--data-dir`."""
    expected, source = FASHION_MNIST_SHA256, f"{folder} (--data-dir)"
    try:
        if (sums := folder / "SHA256SUMS").exists():
            lines = re.findall(r"^(\w+) [ *](\S+)$", sums.read_text(), re.MULTILINE)
            expected = {name: digest for digest, name in lines}
            source = f"{folder} (--data-dir, by its own SHA256SUMS)"
            if expected.keys() != FASHION_MNIST_SHA256.keys():
                raise _BadData(f"{sums} must name {', '.join(FASHION_MNIST_SHA256)}")
        return _read_files(folder, expected, source)
    except FileNotFoundError as error:
        more = "" if any(folder.glob("*-ubyte*")) else ", nor a folder for each class of pictures"
        raise UserError(f"--data-dir: {error}{more}") from None
    except (_BadData, OSError, ValueError) as error:
        raise UserError(f"--data-dir: {error}") from None


def _find_fashion_mnist() -> Files:
    """The files of the first source that works."""
    cache = environment.keras_home() / "datasets" / "fashion-mnist"  # as keras.datasets has it
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
            return _read_files(folder, FASHION_MNIST_SHA256, f"{folder} ({name})")
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


def _read_files(folder: Path, expected: dict[str, str], source: str) -> Files:
    """The four verified files of a folder, each `NAME.gz` or `NAME`.

    Raises:
        FileNotFoundError: a file is not there.
        _BadData: a file is not what it should be.
    """
    arrays = []
    for name in FASHION_MNIST_SHA256:
        path = folder / f"{name}.gz"
        if not path.exists() and not (path := folder / name).exists():
            raise FileNotFoundError(f"there is no {folder / name}.gz")
        arrays.append(_parse_idx(path.read_bytes(), expected[name], path))
    train_images, train_labels, test_images, test_labels = arrays
    for part, images, labels in (
        ("train", train_images, train_labels),
        ("t10k", test_images, test_labels),
    ):
        if images.shape != (len(labels), 28, 28) or not labels.size:
            raise _BadData(f"{folder}: {part} has images {images.shape}, labels {labels.shape}")
    classes = 1 + max(int(train_labels.max()), int(test_labels.max()))
    class_names = _class_names(folder, classes, expected)
    return Files(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        source=source,
        sha256=expected,
        name="Fashion-MNIST" if class_names == CLASS_NAMES else folder.resolve().name,
        class_names=class_names,
    )


def _class_names(folder: Path, classes: int, sha256: dict[str, str]) -> tuple[str, ...]:
    """The names of so many classes: those of `classes.txt`, Fashion-MNIST's, or numbers.

    Raises:
        UserError: they would be of no use.
        _BadData: the file cannot be read, or has not so many.
    """
    path = folder / "classes.txt"
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        numbers = map(str, range(classes))
        return CLASS_NAMES if sha256 == FASHION_MNIST_SHA256 else checked_names(numbers, folder)
    except UnicodeDecodeError:
        raise _BadData(f"{path} is not UTF-8") from None
    if len(names) != classes:
        raise _BadData(f"{path} names {len(names)} classes, but labels are from 0 to {classes - 1}")
    return checked_names((name.strip() for name in names), path)


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


def _download() -> Iterator[tuple[str, bytes]]:
    """The four files from where `keras.datasets` has them."""
    environment.check_reachable(KERAS_URL + "train-images-idx3-ubyte.gz")
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
        apt_get = ["apt-get", "-qq", *(f"-o{value}" for value in settings)]
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
            path = root / "files" / DEBIAN_FOLDER.relative_to("/") / f"{name}.gz"
            yield name, path.read_bytes()
