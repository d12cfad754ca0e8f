"""Sources of Fashion-MNIST, and IDX files as other tools leave them."""

import gzip
import hashlib
import shutil
import struct

from fashion.datasets import fashion_mnist
from fashion.datasets.splits import CLASS_NAMES
from fashion.errors import UserError

import numpy as np
import pytest

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


def write(directory, arrays, convert=lambda name: [name]):
    """Write each of the four files to the paths that `convert` returns for its standard name."""
    for name, array in zip(NAMES, arrays, strict=True):
        for path in [directory / converted for converted in convert(name)]:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = encode(array)
            path.write_bytes(
                gzip.compress(content, mtime=0) if path.suffix.lower() == ".gz" else content
            )
            path.with_name(f"._{path.name}").write_bytes(b"AppleDouble")  # as macOS leaves
    return directory


def check(data, arrays):
    """Compare a loaded data set with the arrays."""
    assert (data.train.size, data.validation.size, data.test.size) == (21, 3, 6)
    for split in data.splits.values():
        np.testing.assert_array_equal(split.images[:, 0, 0], split.labels)
    np.testing.assert_array_equal(data.test.labels, arrays[3][data.test.indices])


# ------------------------------------------------------------------------------------ sources


@pytest.fixture
def keras_cache(tmp_path, monkeypatch):
    """The empty Keras cache of a machine without network, package or apt-get."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # refuses connections
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "usr-share")
    return tmp_path / "keras" / "datasets" / "fashion-mnist"


def test_no_source_raises_with_each_reason_and_what_to_do(keras_cache, load):
    with pytest.raises(UserError) as error:
        load(None)
    advice = "apt-get install dataset-fashion-mnist", "--data-dir"
    for part in str(keras_cache), "usr-share", "Connection refused", "'apt-get'", *advice:
        assert part in str(error.value)
    assert not keras_cache.exists()
    with pytest.raises(UserError) as error:
        fashion_mnist.load_first_available(download=False)
    assert "usr-share" in str(error.value) and "Connection refused" not in str(error.value)


@pytest.fixture
def stand_in(arrays, tmp_path, monkeypatch):
    """A directory of files that pass for the official ones, which take seconds to load."""
    sha256 = [hashlib.sha256(encode(array)).hexdigest() for array in arrays]
    checksums = dict(zip(NAMES, sha256, strict=True))
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_SHA256", checksums)
    return write(tmp_path / "official", arrays, lambda name: [f"{name}.gz"])


def test_keras_cache_is_used_unless_it_is_damaged(stand_in, keras_cache, load, monkeypatch, capsys):
    shutil.copytree(stand_in, keras_cache)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", stand_in)
    assert load(None).source == f"{keras_cache} (Keras cache)"
    assert "Skipped" not in capsys.readouterr().err
    path = keras_cache / f"{NAMES[2]}.gz"
    payload = bytearray(gzip.decompress(path.read_bytes()))
    payload[500] ^= 1
    path.write_bytes(gzip.compress(payload))
    assert load(None).source == f"{stand_in} (Debian package dataset-fashion-mnist)"
    expected = fashion_mnist.FASHION_MNIST_SHA256[NAMES[2]]
    checksums = f"{hashlib.sha256(payload).hexdigest()}, expected {expected}"
    assert f"Skipped: {path} has SHA-256 {checksums}\n" in capsys.readouterr().err


def test_download_is_stored_in_the_keras_cache(stand_in, keras_cache, load, monkeypatch, capsys):
    monkeypatch.setattr(fashion_mnist, "KERAS_URL", f"{stand_in.as_uri()}/")
    keras_cache.parent.parent.touch()  # a file instead of the directory
    with pytest.raises(UserError, match="Keras download: KERAS_HOME: cannot write to"):
        load(None)
    keras_cache.parent.parent.unlink()
    keras_cache.mkdir(parents=True)
    (keras_cache / f"{NAMES[0]}.gz").write_bytes(b"another")  # to be replaced
    assert load(None).source == f"{keras_cache} (Keras download)"
    assert "Fetching Fashion-MNIST, 30 MB: Keras download …" in capsys.readouterr().out
    assert not list(keras_cache.glob(".*"))
    shutil.rmtree(stand_in)
    assert load(None).source == f"{keras_cache} (Keras cache)"


def test_download_is_verified_before_it_is_stored(stand_in, keras_cache, load, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "KERAS_URL", f"{stand_in.as_uri()}/")
    path = stand_in / f"{NAMES[3]}.gz"
    for content, message in (
        (path.read_bytes()[:-10], "is damaged"),
        (gzip.compress(b"another"), "has SHA-256"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"Keras download: the fetched {path.name} {message}"):
            load(None)
        assert not keras_cache.exists()


def test_package_is_extracted_without_installing_it(
    stand_in, keras_cache, load, monkeypatch, tmp_path
):
    """With stand-ins of apt-get and dpkg-deb."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def write_command(name, script):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    write_command("apt-get", 'echo "more" >&2; echo "E: no package" >&2; exit 100')
    with pytest.raises(UserError, match=r"`apt-get … update`: E: no package\n"):
        load(None)
    write_command("apt-get", 'case "$*" in *download*) touch x.deb;; esac')
    target = f"$3/{fashion_mnist.DEBIAN_DIR.relative_to('/')}"
    write_command("dpkg-deb", f'mkdir -p "{target}" && cp "{stand_in}"/*.gz "{target}"')
    data = load(None)
    assert data.source == f"{keras_cache} (apt-get download dataset-fashion-mnist)"
    assert data.name == "Fashion-MNIST" and data.train.size == 21


# -------------------------------------------------------------------------------- class names


def test_fashion_mnist_is_recognized_by_its_checksums(stand_in, arrays, tmp_path, load):
    data = load(stand_in)
    assert data.class_names == CLASS_NAMES and data.name == "Fashion-MNIST"
    content = " Straße 1\r\n  Straße 2\r\nStraße 3\r\n".encode("utf-8-sig")
    (stand_in / "classes.txt").write_bytes(content)  # wins
    data = load(stand_in)
    assert data.class_names == ("Straße 1", "Straße 2", "Straße 3") and data.name == "official"
    arrays[0][0, 27, 27] = 1
    data = load(write(tmp_path / "files", arrays))
    assert data.class_names == ("0", "1", "2") and data.name == "files"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\nc\nd\n", "classes.txt contains 4 class names, but labels are from 0 to 2"),
        (b"a\n\nc", "classes.txt: the name of class 1, '', is empty"),
        (b"\xff\xfea", "classes.txt is not in UTF-8"),
    ],
)
def test_invalid_classes_txt_raises(content, message, arrays, tmp_path, load):
    (write(tmp_path, arrays) / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"^--data-dir: .*{message}"):
        load(tmp_path)


def test_labels_may_start_at_1(arrays, tmp_path, load):
    write(tmp_path, [x + 1 if x.ndim == 1 else x for x in arrays])
    for names in "123", "ABC":
        data = load(tmp_path)
        check(data, arrays)
        assert data.first_label == 1 and data.class_names == tuple(names)
        (tmp_path / "classes.txt").write_text("A\nB\nC\n")
    # The number of names decides whether there is a class 0 without images.
    (tmp_path / "classes.txt").write_text("none\nA\nB\nC\n")
    data = load(tmp_path)
    assert data.first_label == 0 and len(data.class_names) == 4


def test_classes_of_one_split_are_named(arrays, tmp_path, load, capsys):
    arrays[1][:] = np.arange(24) % 2  # without 2
    arrays[3][:] = 2  # without 0 and 1
    load(write(tmp_path, arrays))
    assert capsys.readouterr().err.splitlines() == [
        "WARNING: no train images of 2",
        "WARNING: no validation images of 2",
        "WARNING: no test images of 0, 1",
    ]


# ---------------------------------------------------------------------------------- IDX files


@pytest.mark.parametrize(
    "convert",
    [
        lambda name: [f"{name}.gz"],
        lambda name: [name, f"{name}.gz"],
        lambda name: [name.replace("-idx", ".idx")],  # 7-Zip
        lambda name: [name.replace("t10k", "test").upper()],
        lambda name: [f"emnist-letters-{name}.gz".replace("t10k", "test")],
        lambda name: [f"my_{name.replace('-', '_')}.GZ"],
        lambda name: [f"{name} (1).gz"],  # a second download
        lambda name: [f"raw/{name}"],  # torchvision
        lambda name: [f"FashionMNIST/raw/{name}", f"EMNIST/raw/emnist-letters-{name}"],
        lambda name: [f"some/raw/{name}"],
        lambda name: [f"{name}/{name}"],  # 7-Zip
        lambda name: [f"{name}/{name}", name.replace("-idx", ".idx")],  # MNIST on Kaggle
    ],
)
def test_files_are_found_where_other_tools_leave_them(convert, arrays, tmp_path, load):
    write(tmp_path, arrays, convert)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")  # not always next to the files
    data = load(tmp_path)
    check(data, arrays)
    assert data.class_names == ("a", "b", "c")
    assert data.name == tmp_path.name


def test_several_files_for_one_name_raise(arrays, tmp_path, load):
    write(tmp_path, arrays, lambda name: [name.replace("-idx", ".idx")])
    (tmp_path / "my-train-images-idx3-ubyte").touch()
    with pytest.raises(UserError, match=r"contains my-train.* and train-images\.idx3.*; keep one"):
        load(tmp_path)


def test_missing_directory_or_files_raise(arrays, tmp_path, load):
    path = write(tmp_path, arrays) / NAMES[1]
    path.unlink()
    with pytest.raises(UserError, match=rf"^--data-dir: {path}.gz does not exist$"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"^--data-dir: .*No such file or directory: .*/absent'$"):
        load(tmp_path / "absent")
    (tmp_path / "other").mkdir()
    for name in "train-images.png", "train.csv", "images-idx3-ubyte", "classes.txt":
        (tmp_path / "other" / name).touch()
    with pytest.raises(UserError, match=r"^--data-dir: .*/other contains neither the four IDX"):
        load(tmp_path / "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(bytes(500), mtime=0)[:-9], "is damaged: Compressed file ended"),
        (gzip.compress(bytes(500), mtime=0)[:-8] + bytes(8), "is damaged: CRC check failed"),
        (gzip.compress(b"not an IDX file", mtime=0), ": this is no IDX file"),
        (b"\0\0\x08\x03\0\0", ": this is no IDX file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", ": .* Git LFS; run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", ": this is a web page, as of a failed download"),
        (encode(np.zeros((2, 28, 28), "uint8"))[:-1], "has 1583 bytes, but its header says 1584"),
    ],
)
def test_damaged_file_or_one_of_another_format_raises(content, message, arrays, tmp_path, load):
    path = write(tmp_path, arrays) / f"{NAMES[0]}.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^--data-dir: {path} ?{message}") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_too_few_training_images_raise(arrays, tmp_path, load):
    write(tmp_path, [array[:3] for array in arrays])
    with pytest.raises(UserError, match="at least one class needs two training images"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", CODES)
def test_labels_of_each_type_and_as_a_column_are_read(dtype, arrays, tmp_path, load):
    converted = [arrays[0], arrays[1].astype(dtype), arrays[2], arrays[3].astype(dtype)[:, None]]
    check(load(write(tmp_path, converted)), arrays)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (3, lambda x: x[:-1], r"t10k-labels.* has the shape \(5,\)"),
        (1, lambda x: x[0], "this is no IDX file"),
        (1, lambda x: x.astype("float32") + 0.5, "labels that are not integers from 0"),
        (3, lambda x: x.astype("int16") - 1, "labels that are not integers from 0"),
        (1, lambda x: x.astype("int32") + 9998, "labels that are not integers from 0 to 9999"),
        (2, lambda x: x[:, :14], r"shape \(6, 14, 28\); expected N images of 28"),
        (0, lambda x: x.astype("float32"), "contains float32; expected unsigned"),
        (0, lambda x: x[:0], r"shape \(0, 28, 28\)"),
    ],
)
def test_invalid_arrays_raise_in_one_line(index, change, message, arrays, tmp_path, load):
    arrays[index] = change(arrays[index])
    with pytest.raises(UserError, match=message) as error:
        load(write(tmp_path, arrays))
    assert str(error.value).startswith("--data-dir: ") and "\n" not in str(error.value)


# ------------------------------------------------------------------- CSV files, other formats


@pytest.mark.parametrize(
    ("prefix", "header"),
    [("fashion-mnist_", "label,1x1,1x2"), ("", ""), ("archive/emnist-letters-", "\ufefflabel")],
)
def test_csv_files_of_kaggle_are_read(prefix, header, arrays, tmp_path, load):
    paths = [tmp_path / f"{prefix}{part}.csv" for part in ("train", "test")]
    paths[0].parent.mkdir(exist_ok=True)
    for path, images, labels in zip(paths, arrays[::2], arrays[1::2], strict=True):
        table = np.column_stack([labels, images.reshape(len(images), -1)])
        np.savetxt(path, table, "%d", ",", header=header, comments="")
        path.with_name(f"._{path.name}").touch()  # of macOS
    data = load(tmp_path)
    check(data, arrays)
    assert data.class_names == ("0", "1", "2") and data.name == tmp_path.name
    for content, message in (
        ("label,pixel1\n1,256", "values must be from 0 to 255"),
        ("1,2,3\n1,2,3", r"shape \(2, 2\); expected N images of 28"),
        ("version https://git-lfs.github.com/spec/v1\noid", "this is a pointer of Git LFS"),
    ):
        paths[0].write_text(content)
        with pytest.raises(UserError, match=f"^--data-dir: {paths[0]}.*{message}"):
            load(tmp_path)


@pytest.mark.parametrize("name", ["mnist.npz", "data/0.parquet", "train/1.0/a.tfrecord", "x.zip"])
def test_other_formats_raise_with_what_is_read(name, tmp_path, load):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"PK")
    for data_dir in tmp_path, tmp_path / name:
        message = (
            f"^--data-dir: {data_dir} contains neither .* but {(tmp_path / name).name}; unpack"
        )
        with pytest.raises(UserError, match=message):
            load(data_dir)
