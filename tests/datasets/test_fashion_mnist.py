"""Sources of the data set: complete, damaged or missing files, class names."""

import gzip
import hashlib
import os
import shutil
from pathlib import Path

from fashion.datasets import fashion_mnist
from fashion.datasets.dataset import CLASS_NAMES

import pytest
from helpers.data import load_sample
from helpers.scripts import SAMPLE

import common

FILES = tuple(fashion_mnist.FASHION_MNIST_SHA256)


def unzip(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


@pytest.fixture
def keras_cache_offline(tmp_path, monkeypatch):
    """Keras' empty cache, on a machine without network, package or apt-get."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # refuses connections
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "usr-share")
    return tmp_path / "keras" / "datasets" / "fashion-mnist"


@pytest.fixture
def copy(tmp_path):
    """A copy of the sample that a test may damage."""
    return shutil.copytree(SAMPLE, tmp_path / "copy")


def test_damaged_file_raises_with_both_checksums(copy):
    path = copy / f"{FILES[0]}.gz"
    payload = bytearray(unzip(path))
    payload[5000] ^= 1
    path.write_bytes(gzip.compress(bytes(payload)))
    expected = hashlib.sha256(unzip(SAMPLE / f"{FILES[0]}.gz")).hexdigest()
    with pytest.raises(common.UserError) as error:
        load_sample(copy)
    for part in str(path), expected, hashlib.sha256(payload).hexdigest():
        assert part in str(error.value)


def test_truncated_or_missing_file_raises(copy):
    path = copy / f"{FILES[1]}.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(common.UserError, match=f"{FILES[1]}.gz is damaged"):
        load_sample(copy)
    path.unlink()
    with pytest.raises(common.UserError, match=f"{FILES[1]}.gz does not exist"):
        load_sample(copy)


def test_data_dir_without_checksums_must_be_fashion_mnist(copy):
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(common.UserError, match=fashion_mnist.FASHION_MNIST_SHA256[FILES[0]]):
        load_sample(copy)


def test_checksums_must_list_all_four_files(copy):
    lines = (copy / "SHA256SUMS").read_text().splitlines()
    (copy / "SHA256SUMS").write_text("\n".join(lines[:3]))
    with pytest.raises(common.UserError, match=rf"SHA256SUMS must list {', '.join(FILES)}"):
        load_sample(copy)


def test_matching_checksum_of_another_format_raises(copy):
    payload = b"not an IDX file"
    (copy / f"{FILES[0]}.gz").write_bytes(gzip.compress(payload))
    lines = (copy / "SHA256SUMS").read_text().splitlines()
    lines[0] = f"{hashlib.sha256(payload).hexdigest()}  {FILES[0]}"
    (copy / "SHA256SUMS").write_text("\n".join(lines))
    with pytest.raises(common.UserError, match="is not an IDX file"):
        load_sample(copy)


def test_uncompressed_files_are_loaded(copy, sample):
    for name in FILES:
        path = copy / f"{name}.gz"
        (copy / name).write_bytes(unzip(path))
        path.unlink()
    assert load_sample(copy).train.images_sha256 == sample.train.images_sha256


def test_no_source_raises_with_each_reason_and_what_to_do(keras_cache_offline):
    with pytest.raises(common.UserError) as error:
        load_sample(None)
    for part in str(keras_cache_offline), "usr-share", "Connection refused", "'apt-get'":
        assert part in str(error.value)
    assert "--data-dir" in str(error.value)
    assert "apt-get install dataset-fashion-mnist" in str(error.value)
    assert not list(keras_cache_offline.iterdir())  # nothing half-written


def test_invalid_cached_file_is_skipped_with_a_message(
    fashion_mnist_dir, keras_cache_offline, capsys, monkeypatch
):
    shutil.copytree(SAMPLE, keras_cache_offline)  # other files than expected
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", fashion_mnist_dir)
    assert load_sample(None).source.startswith(str(fashion_mnist_dir))
    assert f"{keras_cache_offline / FILES[0]}.gz has SHA-256" in capsys.readouterr().err


def test_keras_cache_is_the_first_source(
    fashion_mnist_dir, keras_cache_offline, monkeypatch, capsys
):
    shutil.copytree(fashion_mnist_dir, keras_cache_offline)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", fashion_mnist_dir)
    assert load_sample(None).source == f"{keras_cache_offline} (Keras' cache)"
    assert capsys.readouterr().err == ""


def test_download_is_verified_before_it_is_cached(fashion_mnist_dir, tmp_path):
    def truncated():
        yield FILES[1], (fashion_mnist_dir / f"{FILES[1]}.gz").read_bytes()
        yield FILES[0], (fashion_mnist_dir / f"{FILES[0]}.gz").read_bytes()[:-100]

    with pytest.raises(Exception, match=f"the fetched {FILES[0]}.gz is damaged"):
        fashion_mnist._store_verified(tmp_path / "cache", truncated)
    assert os.listdir(tmp_path / "cache") == [f"{FILES[1]}.gz"]


# -------------------------------------------------------------------------------- class names


def test_class_names_are_read_from_classes_txt(copy):
    lines = [f" Klasse {i}ß\r\n" for i in range(10)]
    (copy / "classes.txt").write_bytes("".join(lines).encode("utf-8-sig"))
    data = load_sample(copy)
    assert data.class_names == tuple(f"Klasse {i}ß" for i in range(10))
    assert data.name == "copy"


def test_class_names_default_to_numbers(copy):
    (copy / "classes.txt").unlink()
    data = load_sample(copy)
    assert data.class_names == tuple("0123456789")
    assert data.name == "copy"


def test_fashion_mnist_has_built_in_class_names(fashion_mnist_dir, sample, tmp_path):
    assert not (fashion_mnist_dir / "classes.txt").exists()
    data = load_sample(fashion_mnist_dir)
    assert data.class_names == sample.class_names == CLASS_NAMES
    assert data.name == sample.name == "Fashion-MNIST"
    # classes.txt wins.
    for path in fashion_mnist_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "classes.txt").write_text("\n".join("abcdefghij"))
    assert load_sample(tmp_path).class_names == tuple("abcdefghij")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "--data-dir: .*classes.txt contains 2 class names, but labels are from 0 to 9"),
        (
            b"a\n" * 11,
            "--data-dir: .*classes.txt contains 11 class names, but labels are from 0 to 9",
        ),
        (b"a\nb\nc\n\ne\nf\ng\nh\ni\nj", ".*classes.txt: the name of class 3, '', is empty"),
        (b"a\nb\nc\na\ne\nf\ng\nh\ni\nj", ".*classes.txt: two classes have the name 'a'"),
        (b"\xff\xfea", "--data-dir: .*classes.txt is not in UTF-8"),
    ],
)
def test_invalid_classes_txt_raises(copy, content, message):
    (copy / "classes.txt").write_bytes(content)
    with pytest.raises(common.UserError, match=f"^{message}"):
        load_sample(copy)
