"""Fashion-MNIST's four IDX files: directories, caches, a Debian package, downloads.

Each file is verified by the SHA-256 of its decompressed content before it is used or cached,
whatever its source.
"""

import http.client
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from fashion import environment
from fashion.datasets import idx_files
from fashion.datasets.dataset import (
    CLASS_NAMES,
    RawDataset,
    validate_class_names,
    warn_about_classes,
)
from fashion.datasets.idx_files import DataFileError, parse_idx
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


def load_idx_dataset(data_dir: Path | None, download: bool = True) -> RawDataset:
    """Load Fashion-MNIST from the first available source, or the IDX files in `data_dir`.

    With a `SHA256SUMS` file, `data_dir` may contain another data set in the same format, which is
    verified against it; without one, it must contain Fashion-MNIST. `classes.txt` in `data_dir`
    contains one class name per line; without it, the classes are "0", "1" …, or Fashion-MNIST's.

    Raises:
        UserError: If no source works; the message lists each with its reason.
    """
    return _load_directory(data_dir) if data_dir else _load_first_available(download)


def _load_directory(directory: Path) -> RawDataset:
    """Load and verify the IDX files of `--data-dir`."""
    checksums, source = FASHION_MNIST_SHA256, f"{directory} (--data-dir)"
    try:
        if directory.exists() and not directory.is_dir():
            raise DataFileError(f"{directory} is a file; expected a directory")
        directory = idx_files.find_data_dir(root := directory) or directory
        if path := _find_in("SHA256SUMS", directory, root):
            checksums = idx_files.read_checksums(path)
            source = f"{directory} (--data-dir, verified by its SHA256SUMS)"
            if checksums.keys() != FASHION_MNIST_SHA256.keys():
                raise DataFileError(f"{path} must list {', '.join(FASHION_MNIST_SHA256)}")
        return _load_files(directory, checksums, source, root)
    except FileNotFoundError as error:
        hint = (
            ""
            if idx_files.find_data_dir(directory)
            else "; expected the four IDX files, or one subdirectory of images per class"
        )
        raise UserError(f"--data-dir: {error}{hint}") from None
    except (DataFileError, OSError, ValueError) as error:
        raise UserError(f"--data-dir: {error}") from None


def _find_in(name: str, *directories: Path | None) -> Path | None:
    """Return the file of this name in the first directory that contains one, or None."""
    paths = [directory / name for directory in directories if directory]
    return next((path for path in paths if path.exists()), None)


def _load_first_available(download: bool) -> RawDataset:
    """Try each source of Fashion-MNIST in turn, those on the internet only if `download`."""
    cache = environment.keras_home() / "datasets" / "fashion-mnist"  # shared with keras.datasets
    failures = []
    for name, directory, fetch in (
        ("Keras' cache", cache, None),
        (f"Debian package {DEBIAN_PACKAGE}", DEBIAN_DIR, None),
        ("Keras' download", cache, _download),
        (f"apt-get download {DEBIAN_PACKAGE}", cache, _fetch_debian_package),
    ):
        if fetch and not download:
            continue
        try:
            if fetch:
                print(f"Fetching Fashion-MNIST, 30 MB: {name} …", flush=True)
                _store_verified(directory, fetch)
            return _load_files(directory, FASHION_MNIST_SHA256, f"{directory} ({name})")
        except (DataFileError, OSError, http.client.HTTPException) as error:
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


def _load_files(
    directory: Path, checksums: dict[str, str], source: str, root: Path | None = None
) -> RawDataset:
    """Load and verify the four files of a directory, which may be a subdirectory of `root`.

    Raises:
        FileNotFoundError: If a file is missing.
        DataFileError: If a file is damaged, or shapes do not match.
    """
    paths = [idx_files.find_file(directory, name) for name in FASHION_MNIST_SHA256]
    arrays = [
        parse_idx(path.read_bytes(), checksums[name], path)
        for name, path in zip(FASHION_MNIST_SHA256, paths, strict=True)
    ]
    train_images, test_images = (
        idx_files.check_images(arrays[i], f"{directory}: {paths[i].name}") for i in (0, 2)
    )
    train_labels, test_labels = (
        idx_files.check_labels(arrays[i], len(arrays[i - 1]), f"{directory}: {paths[i].name}")
        for i in (1, 3)
    )
    first_label, class_names = _load_class_names(
        directory, root, (train_labels, test_labels), checksums
    )
    train_labels, test_labels = train_labels - first_label, test_labels - first_label
    warn_about_classes(class_names, {"training": train_labels, "test": test_labels})
    return RawDataset(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        source=source,
        sha256=checksums,
        name="Fashion-MNIST" if class_names == CLASS_NAMES else (root or directory).resolve().name,
        class_names=class_names,
        first_label=first_label,
    )


def _load_class_names(
    directory: Path,
    root: Path | None,
    labels: tuple[np.ndarray, np.ndarray],
    checksums: dict[str, str],
) -> tuple[int, tuple[str, ...]]:
    """Return the first label and the class names in `classes.txt`, Fashion-MNIST's, or numbers.

    The first label is 1 if no label is smaller (and, with `classes.txt`, the number of names fits),
    else 0.

    Raises:
        UserError: If the names are invalid.
        DataFileError: If the file cannot be read, or has another number of names.
    """
    smallest, largest = (int(f([f(part) for part in labels])) for f in (np.min, np.max))
    path = _find_in("classes.txt", directory, root)
    if not path:
        if checksums == FASHION_MNIST_SHA256:
            return 0, CLASS_NAMES
        first = int(smallest == 1)
        return first, validate_class_names(map(str, range(first, largest + 1)), directory)
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise DataFileError(f"{path} is not in UTF-8; save it as UTF-8") from None
    first = int(smallest >= 1 and len(names) == largest)
    if len(names) != largest + 1 - first:
        expected = f"labels are from {smallest if smallest == 1 else 0} to {largest}"
        raise DataFileError(f"{path} contains {len(names)} class names, but {expected}")
    return first, validate_class_names((name.strip() for name in names), path)


def _store_verified(directory: Path, fetch: Callable[[], Iterator[tuple[str, bytes]]]) -> None:
    """Store the .gz files that `fetch` yields; each is verified before it is moved into place."""
    with environment.staging_dir(directory) as temporary_dir:
        for name, content in fetch():
            parse_idx(content, FASHION_MNIST_SHA256[name], f"the fetched {name}.gz")
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
    """Run a command; raise a `DataFileError` if it fails or takes longer than `timeout` seconds."""
    title = f"`{command[0]} … {command[-1]}`"
    try:
        subprocess.run(
            command, cwd=directory, timeout=timeout, check=True, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        raise DataFileError(f"{title} took more than {timeout} s") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip() or f"exit code {error.returncode}"
        raise DataFileError(f"{title}: {reason.splitlines()[-1]}") from None
