"""Fashion-MNIST's four IDX files: directories, caches, a Debian package, downloads.

Each file is verified by the SHA-256 of its decompressed content before it is used or cached,
whatever its source.
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
from fashion.datasets.dataset import CLASS_NAMES, RawDataset, validate_class_names
from fashion.errors import UserError

import numpy as np

# SHA-256 of the decompressed files, in the order of `RawDataset`'s fields. The .gz files differ
# between distributors.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")


class _SourceError(Exception):
    """A source of the data set that cannot be used; the message gives the reason."""


def load_idx_dataset(data_dir: Path | None) -> RawDataset:
    """Load Fashion-MNIST from the first available source, or the IDX files in `data_dir`.

    A `data_dir` with a `SHA256SUMS` file is verified against it (another data set in the same
    format, such as a sample); any other must contain Fashion-MNIST. Its `classes.txt` contains one
    class name per line; without it, the classes are "0", "1" …, or Fashion-MNIST's.

    Raises:
        UserError: If no source works; the message lists each with its reason.
    """
    return _load_directory(data_dir) if data_dir else _load_first_available()


def _load_directory(directory: Path) -> RawDataset:
    """Load and verify the IDX files of `--data-dir`."""
    checksums, source = FASHION_MNIST_SHA256, f"{directory} (--data-dir)"
    try:
        if (path := directory / "SHA256SUMS").exists():
            lines = re.findall(r"^(\w+) [ *](\S+)$", path.read_text(), re.MULTILINE)
            checksums = {name: sha256 for sha256, name in lines}
            source = f"{directory} (--data-dir, verified by its SHA256SUMS)"
            if checksums.keys() != FASHION_MNIST_SHA256.keys():
                raise _SourceError(f"{path} must list {', '.join(FASHION_MNIST_SHA256)}")
        return _load_files(directory, checksums, source)
    except FileNotFoundError as error:
        has_idx = any(directory.glob("*-ubyte*"))
        hint = "" if has_idx else ", and there is no directory of images per class"
        raise UserError(f"--data-dir: {error}{hint}") from None
    except (_SourceError, OSError, ValueError) as error:
        raise UserError(f"--data-dir: {error}") from None


def _load_first_available() -> RawDataset:
    """Try each source of Fashion-MNIST in turn."""
    cache = environment.keras_home() / "datasets" / "fashion-mnist"  # shared with keras.datasets
    failures = []
    for name, directory, fetch in (
        ("Keras' cache", cache, None),
        (f"Debian package {DEBIAN_PACKAGE}", DEBIAN_DIR, None),
        ("Keras' download", cache, _download),
        (f"apt-get download {DEBIAN_PACKAGE}", cache, _fetch_debian_package),
    ):
        try:
            if fetch:
                print(f"Fetching Fashion-MNIST, 30 MB: {name} …", flush=True)
                _store_verified(directory, fetch)
            return _load_files(directory, FASHION_MNIST_SHA256, f"{directory} ({name})")
        except (_SourceError, OSError, http.client.HTTPException) as error:
            failures.append(f"{name}: {error}")
            if not isinstance(error, FileNotFoundError) and not fetch:
                print(f"Skipped: {error}", file=sys.stderr)
    raise UserError(
        "could not find Fashion-MNIST:\n  "
        + "\n  ".join(failures)
        + f"\nEither `apt-get install {DEBIAN_PACKAGE}` (Debian, Ubuntu), or copy the four files "
        "of https://github.com/zalandoresearch/fashion-mnist to a directory and pass it as "
        "--data-dir."
    )


def _load_files(directory: Path, checksums: dict[str, str], source: str) -> RawDataset:
    """Load and verify the four files of a directory, each `NAME.gz` or `NAME`.

    Raises:
        FileNotFoundError: If a file is missing.
        _SourceError: If a file is damaged, or shapes do not match.
    """
    arrays = []
    for name in FASHION_MNIST_SHA256:
        path = directory / f"{name}.gz"
        if not path.exists() and not (path := directory / name).exists():
            raise FileNotFoundError(f"{directory / name}.gz does not exist")
        arrays.append(_parse_idx(path.read_bytes(), checksums[name], path))
    train_images, train_labels, test_images, test_labels = arrays
    for prefix, images, labels in (
        ("train", train_images, train_labels),
        ("t10k", test_images, test_labels),
    ):
        if images.shape != (len(labels), 28, 28) or not labels.size:
            shapes = f"images {images.shape} and labels {labels.shape}"
            raise _SourceError(f"{directory}: shapes of {prefix} do not match: {shapes}")
    num_classes = 1 + max(int(train_labels.max()), int(test_labels.max()))
    class_names = _load_class_names(directory, num_classes, checksums)
    return RawDataset(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        source=source,
        sha256=checksums,
        name="Fashion-MNIST" if class_names == CLASS_NAMES else directory.resolve().name,
        class_names=class_names,
    )


def _load_class_names(
    directory: Path, num_classes: int, checksums: dict[str, str]
) -> tuple[str, ...]:
    """Return the class names in `classes.txt`, Fashion-MNIST's, or numbers.

    Raises:
        UserError: If the names are invalid.
        _SourceError: If the file cannot be read, or has another number of names.
    """
    path = directory / "classes.txt"
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        if checksums == FASHION_MNIST_SHA256:
            return CLASS_NAMES
        return validate_class_names(map(str, range(num_classes)), directory)
    except UnicodeDecodeError:
        raise _SourceError(f"{path} is not UTF-8") from None
    if len(names) != num_classes:
        labels = f"labels are from 0 to {num_classes - 1}"
        raise _SourceError(f"{path} contains {len(names)} class names, but {labels}")
    return validate_class_names((name.strip() for name in names), path)


def _parse_idx(content: bytes, sha256: str, origin: object) -> np.ndarray:
    """Verify and parse an IDX file of uint8, gzipped or not (yann.lecun.com/exdb/mnist).

    Raises:
        _SourceError: If the file is damaged, has another checksum, or is not IDX.
    """
    try:
        payload = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise _SourceError(f"{origin} is damaged: {error}") from None
    if (found := hashlib.sha256(payload).hexdigest()) != sha256:
        raise _SourceError(f"{origin} has SHA-256 {found}, expected {sha256}")
    num_dimensions = payload[3] if payload[:3] == b"\0\0\x08" else 0  # 8: uint8
    shape = np.frombuffer(payload, ">u4", num_dimensions, offset=4)
    header_size = 4 + 4 * num_dimensions
    if not num_dimensions or len(payload) != header_size + math.prod(shape.tolist()):
        raise _SourceError(f"{origin} is not an IDX file of unsigned bytes")
    return np.frombuffer(payload, np.uint8, offset=header_size).reshape(shape)


def _store_verified(directory: Path, fetch: Callable[[], Iterator[tuple[str, bytes]]]) -> None:
    """Store the .gz files that `fetch` yields; each is verified before it is moved into place."""
    with environment.staging_dir(directory) as temporary_dir:
        for name, content in fetch():
            _parse_idx(content, FASHION_MNIST_SHA256[name], f"the fetched {name}.gz")
            tmp_path = temporary_dir / name
            tmp_path.write_bytes(content)
            tmp_path.replace(directory / f"{name}.gz")


def _download() -> Iterator[tuple[str, bytes]]:
    """Download the four files from the server that `keras.datasets` uses."""
    environment.check_reachable(KERAS_URL + "train-images-idx3-ubyte.gz")
    for name in FASHION_MNIST_SHA256:
        with urllib.request.urlopen(f"{KERAS_URL}{name}.gz", timeout=10) as response:
            yield name, response.read()


def _fetch_debian_package() -> Iterator[tuple[str, bytes]]:
    """Extract the four files of the Debian package, without root and without installing it."""
    with tempfile.TemporaryDirectory() as temporary_dir:
        root = Path(temporary_dir)
        for subdir in "lists/partial", "cache/archives/partial", "package", "files":
            (root / subdir).mkdir(parents=True)
        private_dirs = (f"Dir::State::Lists={root}/lists", f"Dir::Cache={root}/cache")
        settings = ("Debug::NoLocking=1", "Acquire::Languages=none", "Acquire::Retries=0")
        apt_get = ["apt-get", "-qq", *(f"-o{value}" for value in (*private_dirs, *settings))]
        _run_command([*apt_get, "update"], root / "package", timeout=10)
        _run_command([*apt_get, "download", DEBIAN_PACKAGE], root / "package", timeout=600)
        _run_command(["sh", "-c", "dpkg-deb -x *.deb ../files"], root / "package", timeout=60)
        for name in FASHION_MNIST_SHA256:
            path = root / "files" / DEBIAN_DIR.relative_to("/") / f"{name}.gz"
            yield name, path.read_bytes()


def _run_command(command: list[str], directory: Path, timeout: int) -> None:
    """Run a command; raise a `_SourceError` if it fails or takes longer than `timeout` seconds."""
    title = f"`{command[0]} … {command[-1]}`"
    try:
        subprocess.run(
            command, cwd=directory, timeout=timeout, check=True, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        raise _SourceError(f"{title} took more than {timeout} s") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip() or f"exit code {error.returncode}"
        raise _SourceError(f"{title}: {reason.splitlines()[-1]}") from None
