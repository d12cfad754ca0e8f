"""IDX files of MNIST-like data sets: names, checksums, format (yann.lecun.com/exdb/mnist)."""

import gzip
import hashlib
import math
import re
import zlib
from pathlib import Path

import numpy as np

# Element types by their code in the header; all are big-endian.
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# Directories below `--data-dir` in which other tools store the files, such as torchvision.
SUBDIRS = ("raw", "FashionMNIST/raw", "MNIST/raw", "*/raw", "fashion-mnist")
MAX_LABEL = 9999  # larger ones are no classes, and would take gigabytes


class DataFileError(Exception):
    """A file that cannot be used; the message gives the reason."""


def find_file(directory: Path, name: str) -> Path:
    """Find an IDX file, compressed or not, by its standard name or a variant of it.

    Other tools write dots for hyphens, "test" for "t10k", and prefixes such as "emnist-letters-".

    Args:
        directory: Directory to search.
        name: Standard name, such as "train-images-idx3-ubyte".

    Raises:
        FileNotFoundError: If there is none.
        DataFileError: If there are several.
    """
    for path in directory / f"{name}.gz", directory / name:
        if path.is_file():
            return path
    paths = [path for path in _idx_files(directory) if standard_name(path.name) == name]
    if not paths:  # each file in a directory of its name, as unpacked by 7-Zip and on Kaggle
        subdirs = [path for path in sorted(directory.glob("*")) if standard_name(path.name) == name]
        paths = [path for subdir in subdirs for path in _idx_files(subdir)]
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise DataFileError(f"{directory} contains {names}; keep one of them")
    if not paths:
        raise FileNotFoundError(f"{directory / name}.gz does not exist")
    return paths[0]


def _idx_files(directory: Path) -> list[Path]:
    """Return the files of a directory that are named like IDX files."""
    paths = sorted(directory.glob("*"))
    return [path for path in paths if path.is_file() and standard_name(path.name)]


def standard_name(filename: str) -> str | None:
    """Return the standard name of a variant, such as "t10k-labels-idx1-ubyte"; None for others."""
    pattern = (
        r"(?:.*[-_.])?(train|t10k|test)[-_.](images|labels)[-_.]idx[123][-_.](?:ubyte|int)"
        r"(?:[ -]?\(?\d\)?)?(\.gz)?"  # such as " (1)", of a second download
    )
    match = re.fullmatch(pattern, filename, re.IGNORECASE)
    if not match or filename.startswith("."):  # such as macOS's "._train-images-idx3-ubyte"
        return None
    split, kind, _ = (part and part.lower() for part in match.groups())
    split = "train" if split == "train" else "t10k"
    return f"{split}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"


def find_data_dir(directory: Path) -> Path | None:
    """Return `directory`, or its subdirectory, that contains IDX files; None if none does."""
    subdirs = [path for pattern in SUBDIRS for path in sorted(directory.glob(pattern))]
    for path in directory, *subdirs:
        if any(standard_name(child.name) for child in path.glob("*")):
            return path
    return None


def read_checksums(path: Path) -> dict[str, str]:
    """Return {standard name: SHA-256} of a checksum file.

    Each line contains a digest and a file name, in any order, as `sha256sum`, `sha256sum --tag` and
    PowerShell's `Get-FileHash` write them.

    Raises:
        DataFileError: If the file is not text.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    checksums = {}
    try:
        lines = content.decode(encoding).splitlines()
    except UnicodeDecodeError:
        raise DataFileError(f"{path} is not in UTF-8; save it as UTF-8") from None
    for line in lines:
        digest = re.search(r"\b[0-9a-fA-F]{64}\b", line)
        names = [standard_name(word) for word in re.split(r"[\s*()/\\]+", line)]
        if digest and any(names):
            checksums[next(filter(None, names))] = digest[0].lower()
    return checksums


def parse_idx(content: bytes, sha256: str, origin: object) -> np.ndarray:
    """Verify and parse an IDX file, gzipped or not.

    Args:
        content: Contents of the file.
        sha256: SHA-256 of the decompressed content, or of the file, in lower case.
        origin: Name of the file, for messages.

    Raises:
        DataFileError: If the file is damaged, has another checksum, or is not IDX.
    """
    try:
        payload = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(f"{origin} is damaged: {error}") from None
    found = hashlib.sha256(payload).hexdigest()
    if found != sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise DataFileError(
            f"{origin} has SHA-256 {found}, expected {sha256}; copy it again if it is damaged; "
            "if it is of another data set, list its checksums in a SHA256SUMS file beside it"
        )
    dtype = DTYPES.get(payload[2]) if len(payload) >= 4 and payload[:2] == b"\0\0" else None
    num_dimensions = payload[3] if dtype else 0
    header_size = 4 + 4 * num_dimensions
    if not dtype or not num_dimensions or len(payload) < header_size:
        raise DataFileError(f"{origin} is not an IDX file")
    shape = np.frombuffer(payload, ">u4", num_dimensions, offset=4).tolist()
    expected = header_size + math.prod(shape) * np.dtype(dtype).itemsize
    if len(payload) != expected:
        raise DataFileError(f"{origin} has {len(payload)} bytes, but its header says {expected}")
    return np.frombuffer(payload, dtype, offset=header_size).reshape(shape)


def check_images(images: np.ndarray, origin: object) -> np.ndarray:
    """Return images as uint8 (N, 28, 28).

    Raises:
        DataFileError: If they have another shape or type.
    """
    if images.ndim < 2 or math.prod(images.shape[1:]) != 28 * 28 or not len(images):
        raise DataFileError(
            f"{origin} has the shape {images.shape}; expected N images of 28×28 pixels"
        )
    if images.dtype != np.uint8:
        raise DataFileError(f"{origin} contains {images.dtype.name}; expected unsigned bytes")
    return images.reshape(len(images), 28, 28)


def check_labels(labels: np.ndarray, num_images: int, origin: object) -> np.ndarray:
    """Return labels as int32 (N,).

    QMNIST's have eight columns: the class, and details on the writer and the image.

    Raises:
        DataFileError: If they are not one non-negative integer per image.
    """
    if labels.shape[1:] == (8,) and labels.dtype == ">i4":
        labels = labels[:, 0]
    if labels.shape not in ((num_images,), (num_images, 1)):
        raise DataFileError(
            f"{origin} has the shape {labels.shape}; expected one label for each of the "
            f"{num_images} images"
        )
    integers = labels.astype("int32").ravel()
    if not np.array_equal(integers, labels.ravel()) or integers.min() < 0:
        raise DataFileError(f"{origin} contains labels that are not integers >= 0")
    if integers.max() > MAX_LABEL:
        raise DataFileError(
            f"{origin} contains the label {integers.max()}; expected numbers of classes, at "
            f"most {MAX_LABEL}"
        )
    return integers
