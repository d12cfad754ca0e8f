"""IDX files as other tools leave them: names, checksum files, types, shapes, first label."""

import gzip
import hashlib
import struct

from fashion.datasets import fashion_mnist, idx_files
from fashion.datasets.idx_files import DataFileError
from fashion.errors import UserError

import numpy as np
import pytest

import common

NAMES = tuple(fashion_mnist.FASHION_MNIST_SHA256)
CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def encode(array):
    """Encode an array as an IDX file."""
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim])
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return header + shape + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def arrays():
    """24 training and 6 test images, of which the first pixel is the label."""
    arrays = []
    for n in 24, 6:
        labels = np.arange(n, dtype="uint8") % 3
        images = np.zeros((n, 28, 28), "uint8")
        images[:, 0, 0] = labels
        arrays += [images, labels]
    return arrays


def write(directory, arrays, names=NAMES):
    """Write the four files and their checksums; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, standard, array in zip(names, NAMES, arrays, strict=True):
        content = encode(array)
        compressed = gzip.compress(content) if name.endswith(".gz") else content
        (directory / name).write_bytes(compressed)
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {standard}\n")
    (directory / "SHA256SUMS").write_text("".join(lines))
    return directory


def load(directory):
    return common.load_fashion_mnist(common.DataOptions(data_dir=directory))


def check(data, arrays):
    """Compare a loaded data set with the arrays."""
    assert (data.train.size, data.validation.size, data.test.size) == (22, 2, 6)
    for split in data.splits.values():
        np.testing.assert_array_equal(split.images[:, 0, 0], split.labels)
    np.testing.assert_array_equal(data.test.labels, arrays[3][data.test.indices])


@pytest.mark.parametrize(
    "convert",
    [
        lambda name: name,
        lambda name: f"{name}.gz",
        lambda name: name.replace("-idx", ".idx"),  # 7-Zip
        lambda name: name.replace("t10k", "test").upper(),
        lambda name: f"emnist-letters-{name}.gz".replace("t10k", "test"),
        lambda name: f"qmnist_{name.replace('-', '_')}.GZ",
        lambda name: f"{name} (1).gz",  # a second download
        lambda name: f"{name}-2",
    ],
)
def test_variants_of_file_names_are_found(convert, arrays, tmp_path):
    check(load(write(tmp_path / "files", arrays, [convert(name) for name in NAMES])), arrays)


@pytest.mark.parametrize("subdir", ["raw", "FashionMNIST/raw"])
def test_directories_of_other_tools_are_found(subdir, arrays, tmp_path):
    write(tmp_path / subdir, arrays)
    check(load(tmp_path), arrays)


def test_each_file_in_a_directory_of_its_name_is_found(arrays, tmp_path):
    """As 7-Zip unpacks them; the archive of MNIST on Kaggle has both layouts."""
    write(tmp_path / "files", arrays)
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / "files" / name).rename(tmp_path / name / name)
    (tmp_path / "files" / "SHA256SUMS").rename(tmp_path / "SHA256SUMS")
    check(load(tmp_path), arrays)
    dotted = [name.replace("-idx", ".idx") for name in NAMES]
    write(tmp_path, arrays, dotted)
    check(load(tmp_path), arrays)


def test_hidden_files_are_skipped(arrays, tmp_path):
    names = [name.replace("-idx", ".idx") for name in NAMES]
    write(tmp_path, arrays, names)
    for name in names:
        (tmp_path / f"._{name}").write_bytes(b"AppleDouble")
    with open(tmp_path / "SHA256SUMS", "a") as file:
        file.write(f"{64 * '0'}  ./._{names[0]}\n")
    check(load(tmp_path), arrays)


def test_checksums_and_class_names_may_be_beside_the_subdirectory(arrays, tmp_path):
    write(tmp_path / "raw", arrays)
    (tmp_path / "raw" / "SHA256SUMS").rename(tmp_path / "SHA256SUMS")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    data = load(tmp_path)
    check(data, arrays)
    assert data.class_names == ("a", "b", "c")
    assert data.name == tmp_path.name


def test_data_dir_that_is_a_file_raises(tmp_path):
    (tmp_path / "data.npz").touch()
    with pytest.raises(UserError, match=r"^--data-dir: .*\.npz is a file; expected a directory$"):
        load(tmp_path / "data.npz")


def test_checksum_file_in_another_encoding_raises(arrays, tmp_path):
    write(tmp_path, arrays)
    (tmp_path / "SHA256SUMS").write_bytes("Prüfsummen".encode("latin-1"))
    with pytest.raises(UserError, match=r"^--data-dir: .*SHA256SUMS is not in UTF-8; save it as"):
        load(tmp_path)


def test_too_large_labels_raise(arrays, tmp_path):
    arrays[1] = arrays[1].astype("int32")
    arrays[1][3] = 2**31 - 1
    with pytest.raises(UserError, match="contains the label 2147483647; expected numbers of cl"):
        load(write(tmp_path, arrays))


def test_several_files_for_one_name_raise(arrays, tmp_path):
    write(tmp_path, arrays, [name.replace("-idx", ".idx") for name in NAMES])
    (tmp_path / "my-train-images-idx3-ubyte").touch()
    with pytest.raises(UserError, match=r"contains my-train.* and train-images\.idx3.*; keep one"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["train-images.png", "train.csv", "images-idx3-ubyte", "classes.txt"]
)
def test_other_files_are_no_idx_files(name):
    assert idx_files.standard_name(name) is None


CHECKSUM_LINES = {
    "sha256sum": "{digest}  {name}",
    "binary": "{digest} *./{name}",
    "tag": "SHA256 ({name}) = {digest}",
    "Get-FileHash": r"SHA256          {upper}       C:\data\{name}",
}


@pytest.mark.parametrize("form", CHECKSUM_LINES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_notations_of_checksums_are_read(form, encoding, tmp_path):
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in NAMES}
    lines = ["Algorithm       Hash       Path", "---------       ----       ----"]
    lines += [
        CHECKSUM_LINES[form].format(digest=digest, upper=digest.upper(), name=name)
        for name, digest in digests.items()
    ]
    path = tmp_path / "SHA256SUMS"
    path.write_text("\r\n".join(lines), encoding=encoding)
    assert idx_files.read_checksums(path) == digests


def test_checksums_of_compressed_files_are_accepted(arrays, tmp_path):
    write(tmp_path, arrays, [f"{name}.gz" for name in NAMES])
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in tmp_path.glob("*.gz")
    ]
    (tmp_path / "SHA256SUMS").write_text("".join(lines))
    check(load(tmp_path), arrays)
    path = tmp_path / f"{NAMES[0]}.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))
    with pytest.raises(UserError, match=r"images-idx3-ubyte.gz has SHA-256 .*, expected "):
        load(tmp_path)


@pytest.mark.parametrize("dtype", CODES)
def test_labels_of_each_type_and_as_a_column_are_read(dtype, arrays, tmp_path):
    converted = [arrays[0], arrays[1].astype(dtype), arrays[2], arrays[3].astype(dtype)[:, None]]
    check(load(write(tmp_path, converted)), arrays)


def test_labels_of_qmnist_are_read(arrays, tmp_path):
    """The first of eight columns is the class; the others are details on the image."""
    for i in 1, 3:
        details = np.full((len(arrays[i]), 7), 99)
        arrays[i] = np.column_stack([arrays[i], details]).astype("int32")
    names = [f"qmnist-{name}.gz".replace("labels-idx1-ubyte", "labels-idx2-int") for name in NAMES]
    data = load(write(tmp_path, arrays, names))
    arrays[3] = arrays[3][:, 0]
    check(data, arrays)


@pytest.mark.parametrize("shape", [(784,), (28, 28, 1), (1, 28, 28)])
def test_images_of_other_ranks_are_read(shape, arrays, tmp_path):
    arrays[0], arrays[2] = (x.reshape(len(x), *shape) for x in (arrays[0], arrays[2]))
    check(load(write(tmp_path, arrays)), arrays)


INVALID = {
    "labels are one-hot": (
        1,
        lambda x: np.eye(3, dtype="uint8")[x],
        "one label for each of the 24",
    ),
    "a label is missing": (3, lambda x: x[:-1], r"t10k-labels.* has the shape \(5,\)"),
    "labels are scalars": (1, lambda x: x[0], "is not an IDX file"),
    "labels are fractions": (1, lambda x: x.astype("float32") + 0.5, "not integers >= 0"),
    "labels are negative": (3, lambda x: x.astype("int16") - 1, "not integers >= 0"),
    "images are small": (2, lambda x: x[:, :14], r"shape \(6, 14, 28\); expected N images of 28"),
    "images are floats": (0, lambda x: x.astype("float32"), "contains float32; expected unsigned"),
    "there are no images": (0, lambda x: x[:0], r"shape \(0, 28, 28\)"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_arrays_raise_in_one_line(case, arrays, tmp_path):
    i, change, message = INVALID[case]
    arrays[i] = change(arrays[i])
    with pytest.raises(UserError, match=message) as error:
        load(write(tmp_path, arrays))
    assert str(error.value).startswith("--data-dir: ") and "\n" not in str(error.value)


def test_truncated_file_raises(arrays):
    content = encode(arrays[0])[:-1]
    with pytest.raises(DataFileError, match="x has 18831 bytes, but its header says 18832"):
        idx_files.parse_idx(content, hashlib.sha256(content).hexdigest(), "x")


@pytest.mark.parametrize("names", [None, "A\nB\nC\n"])
def test_labels_may_start_at_1(names, arrays, tmp_path):
    directory = write(tmp_path / "files", [x + 1 if x.ndim == 1 else x for x in arrays])
    if names:
        (directory / "classes.txt").write_text(names)
    data = load(directory)
    check(data, arrays)
    assert data.first_label == 1
    assert data.class_names == tuple(names.split() if names else "123")


def test_class_names_decide_whether_a_class_0_without_images_exists(arrays, tmp_path):
    directory = write(tmp_path / "files", [x + 1 if x.ndim == 1 else x for x in arrays])
    (directory / "classes.txt").write_text("none\nA\nB\nC\n")
    data = load(directory)
    assert data.first_label == 0 and len(data.class_names) == 4
    (directory / "classes.txt").write_text("A\nB\n")
    with pytest.raises(UserError, match="contains 2 class names, but labels are from 1 to 3"):
        load(directory)


def test_classes_of_one_split_and_similar_names_are_reported(arrays, tmp_path, capsys):
    arrays[1][:] = np.arange(24) % 2
    directory = write(tmp_path / "files", arrays)
    (directory / "classes.txt").write_text("Coat\nShirt\nshirt\n")
    load(directory)
    assert capsys.readouterr().err.splitlines() == [
        "WARNING: no training images of shirt",
        "WARNING: the classes 'Shirt' and 'shirt' look the same",
    ]
