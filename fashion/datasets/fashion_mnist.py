"""Fashion-MNIST, or another data set in the IDX format of MNIST or the CSV format of Kaggle.

Fashion-MNIST is recognized by the SHA-256 of its decompressed files. Without `--data-dir`, files
are verified by these checksums before they are used or cached; `--data-dir` takes any data set.
"""

import gzip
import hashlib
import http.client
import io
import math
import re
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from pathlib import Path

from fashion import machine
from fashion.datasets import splits
from fashion.datasets.photos import walk
from fashion.datasets.splits import CLASS_NAMES, RawDataset
from fashion.errors import UserError
from fashion.files import describe_kind, replacing

import numpy as np

# SHA-256 of the decompressed files. The .gz files differ between distributors.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
# Directories below `--data-dir` in which other tools store the files, such as torchvision.
SUBDIRS = ("raw", "FashionMNIST/raw", "MNIST/raw", "*/raw", "fashion-mnist")
# Element types by their code in the header; all are big-endian.
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_LABEL = 9999  # larger ones are no classes, and would take gigabytes


def load_files(root: Path, origin: str, verify: bool = False) -> RawDataset:
    """Load the IDX or CSV files in a directory or in one of its subdirectories.

    `root` names the data set; `origin` is its option or source, for the user. With `verify`, the
    files must be those of Fashion-MNIST. `classes.txt` in `root` contains one class name per line.
    Without it, the names are `CLASS_NAMES` if the files are Fashion-MNIST's, else numbers.
    """
    directory = find_data_dir(root)
    files = [] if directory else list(walk(root))
    train_csv = [path for path in files if path.name.lower().endswith("train.csv")]
    test_csv = [path for path in files if path.name.lower().endswith("test.csv")]
    if directory:
        arrays, sha256 = _read_idx(directory, verify)
    elif len(train_csv) == len(test_csv) == 1 and not verify:
        arrays, sha256 = _read_csv(train_csv + test_csv)
    else:
        found = ", ".join(path.name for path in files[:3]) or "nothing"
        raise FileNotFoundError(
            f"{root} contains neither the four IDX files, nor one …train.csv and one …test.csv, "
            f"nor one directory of images per class, but {found}; unpack or convert them"
        )
    train_images, train_labels, test_images, test_labels = arrays
    first_label, class_names = 0, CLASS_NAMES
    names_path = (directory or root) / "classes.txt"
    if not names_path.exists():
        names_path = root / "classes.txt"
    if names_path.exists() or sha256 != FASHION_MNIST_SHA256:
        labels = np.concatenate([train_labels, test_labels])
        first_label, class_names = _load_class_names(names_path, labels)
        train_labels, test_labels = train_labels - first_label, test_labels - first_label
    return RawDataset(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        source=f"{directory or root} ({origin})",
        sha256=sha256,
        name="Fashion-MNIST" if class_names == CLASS_NAMES else root.resolve().name,
        class_names=class_names,
        first_label=first_label,
        validation_indices=splits.hold_out(splits.shuffle_by_class(train_labels), 12),
    )


def _read_idx(directory: Path, verify: bool) -> tuple[list[np.ndarray], dict[str, str]]:
    """Return images and labels of training and test, and the SHA-256 of each file."""
    arrays: list[np.ndarray] = []
    sha256: dict[str, str] = {}
    for name, expected in FASHION_MNIST_SHA256.items():
        path = find_file(directory, name)
        content = path.read_bytes()
        payload, sha256[name] = decompress(content, path, expected if verify else None)
        array = parse_idx(payload, path)
        if "images" in name:
            arrays.append(check_images(array, path))
        else:
            arrays.append(check_labels(array, len(arrays[-1]), path))
    return arrays, sha256


def _read_csv(paths: list[Path]) -> tuple[list[np.ndarray], dict[str, str]]:
    """Return what `_read_idx` does, from files with a label and 784 pixels per row."""
    arrays: list[np.ndarray] = []
    sha256: dict[str, str] = {}
    for path in paths:
        content, sha256[path.name] = decompress(path.read_bytes(), path)
        content = content.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        skiprows = 0 if content[:1].isdigit() else 1  # the header
        try:
            if content.rstrip().count(b"\n") < skiprows:
                raise ValueError("this file has no rows")
            table = np.loadtxt(io.BytesIO(content), "i2", delimiter=",", skiprows=skiprows, ndmin=2)
            if table.min() < 0 or table.max() > 255:
                raise ValueError("values must be from 0 to 255")
        except ValueError as error:
            raise UserError(f"{path}: {describe_kind(content, str(error))}") from None
        arrays += [check_images(table[:, 1:].astype("u1"), path), table[:, 0].astype("int32")]
    return arrays, sha256


def _load_class_names(path: Path, labels: np.ndarray) -> tuple[int, tuple[str, ...]]:
    """Return the first label and the class names in `classes.txt`, by default numbers.

    The first label is 0 or 1. It is 1 if no label is 0 and `path` has as many names as the largest
    label, or, without `path`, if the smallest label is 1.
    """
    smallest, largest = int(labels.min()), int(labels.max())
    if not path.exists():
        first = int(smallest == 1)
        return first, splits.validate_class_names(map(str, range(first, largest + 1)), path.parent)
    names = splits.read_class_names(path)
    first = int(smallest >= 1 and len(names) == largest)
    if len(names) != largest + 1 - first:
        raise UserError(
            f"{path} contains {len(names)} class names, but labels are from {smallest} to {largest}"
        )
    return first, names


def load_first_available(download: bool) -> RawDataset:
    """Try each source of Fashion-MNIST in turn, those on the internet only if `download`."""
    cache = machine.keras_home() / "datasets" / "fashion-mnist"  # shared with keras.datasets
    failures = []
    for name, directory, fetch in (
        ("Keras cache", cache, None),
        (f"Debian package {DEBIAN_PACKAGE}", DEBIAN_DIR, None),
        ("Keras download", cache, _download),
        (f"apt-get download {DEBIAN_PACKAGE}", cache, _fetch_debian_package),
    ):
        if fetch and not download:
            continue
        try:
            if fetch:
                print(f"Fetching Fashion-MNIST, 30 MB: {name} …", flush=True)
                _store_verified(fetch(), directory)
            return load_files(directory, name, verify=True)
        except (OSError, UserError, http.client.HTTPException) as error:
            failures.append(f"{name}: {error}")
            if not isinstance(error, FileNotFoundError) and not fetch:
                print(f"Skipped: {error}", file=sys.stderr)
    reasons = "\n  ".join(failures)
    raise UserError(
        f"could not find Fashion-MNIST:\n  {reasons}\nEither `apt-get install {DEBIAN_PACKAGE}` "
        "(Debian, Ubuntu), or copy the four files of "
        "https://github.com/zalandoresearch/fashion-mnist to a directory and pass it as --data-dir."
    )


def _store_verified(contents: dict[str, bytes], directory: Path) -> None:
    """Store the content of the four .gz files, by name, if all of them are those expected."""
    for name, content in contents.items():
        decompress(content, f"the fetched {name}.gz", FASHION_MNIST_SHA256[name])
    for name, content in contents.items():
        with replacing(directory / f"{name}.gz", "KERAS_HOME") as temporary_path:
            temporary_path.write_bytes(content)


def _download() -> dict[str, bytes]:
    """Download the four files from the server that `keras.datasets` uses."""
    machine.check_reachable(f"{KERAS_URL}train-images-idx3-ubyte.gz")
    contents = {}
    for name in FASHION_MNIST_SHA256:
        with urllib.request.urlopen(f"{KERAS_URL}{name}.gz", timeout=10) as response:
            contents[name] = response.read()
    return contents


def _fetch_debian_package() -> dict[str, bytes]:
    """Extract the four files of the Debian package, without root and without installing it."""
    with tempfile.TemporaryDirectory() as temporary_dir:
        root = Path(temporary_dir)
        for subdir in "lists/partial", "cache/archives/partial", "package", "files":
            (root / subdir).mkdir(parents=True)
        private_dirs = (f"Dir::State::Lists={root}/lists", f"Dir::Cache={root}/cache")
        settings = ("Debug::NoLocking=1", "Acquire::Languages=none", "Acquire::Retries=0")
        apt_get = ["apt-get", "-qq", *(f"-o{value}" for value in (*private_dirs, *settings))]
        for command, seconds in (
            ([*apt_get, "update"], 10),
            ([*apt_get, "download", DEBIAN_PACKAGE], 600),
            (["sh", "-c", "dpkg-deb -x *.deb ../files"], 60),
        ):
            title = f"`{command[0]} … {command[-1]}`"
            try:
                done = subprocess.run(
                    command, cwd=root / "package", timeout=seconds, capture_output=True, text=True
                )
            except subprocess.TimeoutExpired:
                raise UserError(f"{title} took more than {seconds} s") from None
            if done.returncode:
                reason = done.stderr.strip() or f"exit code {done.returncode}"
                raise UserError(f"{title}: {reason.splitlines()[-1]}")
        directory = root / "files" / DEBIAN_DIR.relative_to("/")
        return {name: (directory / f"{name}.gz").read_bytes() for name in FASHION_MNIST_SHA256}


def find_data_dir(directory: Path) -> Path | None:
    """Return `directory`, or its subdirectory, that contains IDX files; None if none does."""
    subdirs = [path for pattern in SUBDIRS for path in sorted(directory.glob(f"{pattern}/"))]
    for path in directory, *subdirs:
        if any(standard_name(child.name) for child in path.glob("*")):
            return path
    return None


def find_file(directory: Path, name: str) -> Path:
    """Find the one IDX file, compressed or not, with a standard name or a variant of it."""
    # 7-Zip and Kaggle unpack each file into a directory of its name.
    for pattern in f"{name}.gz", name, "*", "*idx*/*":
        files = [path for path in sorted(directory.glob(pattern)) if path.is_file()]
        matches = [path for path in files if standard_name(path.name) == name]
        if len(matches) > 1:
            names = " and ".join(path.name for path in matches)
            raise UserError(f"{directory} contains {names}; keep one of them")
        if matches:
            return matches[0]
    raise FileNotFoundError(f"{directory / name}.gz does not exist")


def standard_name(filename: str) -> str | None:
    """Return the standard name of a variant, such as "t10k-labels-idx1-ubyte"; None for others.

    Other tools write dots for hyphens, "test" for "t10k", and prefixes such as "emnist-letters-".
    """
    pattern = (
        r"(?:.*[-_.])?(train|t10k|test)[-_.](images|labels)[-_.]idx[123][-_.](?:ubyte|int)"
        r"(?:[ -]?\(?\d\)?)?(?:\.gz)?"  # such as " (1)", of a second download
    )
    match = re.fullmatch(pattern, filename, re.IGNORECASE)
    if not match or filename.startswith("."):  # such as macOS's "._train-images-idx3-ubyte"
        return None
    split = "train" if match[1].lower() == "train" else "t10k"
    kind = "images-idx3" if match[2].lower() == "images" else "labels-idx1"
    return f"{split}-{kind}-ubyte"


def decompress(content: bytes, origin: object, expected: str | None = None) -> tuple[bytes, str]:
    """Return the content of a file, decompressed if it is gzipped, and its SHA-256.

    If `expected` is given, the SHA-256 must equal it.
    """
    try:
        payload = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{origin} is damaged: {error}") from None
    sha256 = hashlib.sha256(payload).hexdigest()
    if expected and sha256 != expected:
        raise UserError(f"{origin} has SHA-256 {sha256}, expected {expected}")
    return payload, sha256


def parse_idx(payload: bytes, origin: object) -> np.ndarray:
    """Parse the decompressed content of an IDX file."""
    dtype = DTYPES.get(payload[2]) if len(payload) >= 4 and payload[:2] == b"\0\0" else None
    num_dimensions = payload[3] if dtype else 0
    header_size = 4 + 4 * num_dimensions
    if not dtype or not num_dimensions or len(payload) < header_size:
        raise UserError(f"{origin}: {describe_kind(payload, 'this is no IDX file')}")
    shape = np.frombuffer(payload, ">u4", num_dimensions, offset=4).tolist()
    expected = header_size + math.prod(shape) * np.dtype(dtype).itemsize
    if len(payload) != expected:
        raise UserError(f"{origin} has {len(payload)} bytes, but its header says {expected}")
    return np.frombuffer(payload, dtype, offset=header_size).reshape(shape)


def check_images(images: np.ndarray, origin: object) -> np.ndarray:
    """Return images as uint8 (N, 28, 28)."""
    if images.ndim < 2 or math.prod(images.shape[1:]) != 28 * 28 or not len(images):
        raise UserError(f"{origin} has the shape {images.shape}; expected N images of 28×28 pixels")
    if images.dtype != np.uint8:
        raise UserError(f"{origin} contains {images.dtype.name}; expected unsigned bytes")
    return images.reshape(len(images), 28, 28)


def check_labels(labels: np.ndarray, num_images: int, origin: object) -> np.ndarray:
    """Return labels as int32 (N,)."""
    if labels.shape not in ((num_images,), (num_images, 1)):
        raise UserError(
            f"{origin} has the shape {labels.shape}; expected one label for each of the "
            f"{num_images} images"
        )
    integers = labels.astype("int32").ravel()
    is_valid = (integers == labels.ravel()) & (integers >= 0) & (integers <= MAX_LABEL)
    if not is_valid.all():
        raise UserError(f"{origin} contains labels that are not integers from 0 to {MAX_LABEL}")
    return integers
