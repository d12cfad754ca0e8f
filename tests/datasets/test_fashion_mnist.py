"""Where the data set comes from: folders that are whole, damaged, or not there."""

import gzip
import hashlib
import os
import shutil
from pathlib import Path

from fashion.datasets import fashion_mnist
from fashion.datasets.dataset import CLASS_NAMES

import pytest
from conftest import SAMPLE, load

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
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "usr-share")
    return tmp_path / "keras" / "datasets" / "fashion-mnist"


@pytest.fixture
def copy(tmp_path):
    """A copy of the sample that a test may damage."""
    return shutil.copytree(SAMPLE, tmp_path / "copy")


def test_damaged_file_is_named_with_both_digests(copy):
    path = copy / f"{FILES[0]}.gz"
    payload = bytearray(unzip(path))
    payload[5000] ^= 1
    path.write_bytes(gzip.compress(bytes(payload)))
    expected = hashlib.sha256(unzip(SAMPLE / f"{FILES[0]}.gz")).hexdigest()
    with pytest.raises(common.UserError) as error:
        load(copy)
    for part in str(path), expected, hashlib.sha256(payload).hexdigest():
        assert part in str(error.value)


def test_truncated_and_missing_files_are_named(copy):
    path = copy / f"{FILES[1]}.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(common.UserError, match=f"{FILES[1]}.gz is damaged"):
        load(copy)
    path.unlink()
    with pytest.raises(common.UserError, match=f"there is no .*{FILES[1]}"):
        load(copy)


def test_data_dir_without_sums_must_be_fashion_mnist(copy):
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(common.UserError, match=fashion_mnist.FASHION_MNIST_SHA256[FILES[0]]):
        load(copy)


def test_sums_must_name_all_four_files(copy):
    sums = (copy / "SHA256SUMS").read_text().splitlines()
    (copy / "SHA256SUMS").write_text("\n".join(sums[:3]))
    with pytest.raises(common.UserError, match=rf"SHA256SUMS must name {', '.join(FILES)}"):
        load(copy)


def test_right_digest_of_a_wrong_format_is_an_error(copy):
    payload = b"not an IDX file"
    (copy / f"{FILES[0]}.gz").write_bytes(gzip.compress(payload))
    sums = (copy / "SHA256SUMS").read_text().splitlines()
    sums[0] = f"{hashlib.sha256(payload).hexdigest()}  {FILES[0]}"
    (copy / "SHA256SUMS").write_text("\n".join(sums))
    with pytest.raises(common.UserError, match="not an IDX file of unsigned bytes"):
        load(copy)


def test_uncompressed_files_are_read(copy, sample):
    for name in FILES:
        path = copy / f"{name}.gz"
        (copy / name).write_bytes(unzip(path))
        path.unlink()
    assert load(copy).train.digest == sample.train.digest


def test_no_source_at_all_lists_every_place_and_the_ways_out(keras_cache_offline):
    with pytest.raises(common.UserError) as error:
        load(None)
    for part in str(keras_cache_offline), "usr-share", "Connection refused", "'apt-get'":
        assert part in str(error.value)
    assert "--data-dir" in str(error.value)
    assert "apt-get install dataset-fashion-mnist" in str(error.value)
    assert not list(keras_cache_offline.iterdir())  # nothing half-written


def test_bad_file_in_the_cache_is_reported_and_passed_over(
    whole_folder, keras_cache_offline, capsys, monkeypatch
):
    shutil.copytree(SAMPLE, keras_cache_offline)  # not the four files that belong there
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", whole_folder)
    assert load(None).source.startswith(str(whole_folder))
    assert f"{keras_cache_offline / FILES[0]}.gz has SHA-256" in capsys.readouterr().err


def test_keras_cache_comes_first(whole_folder, keras_cache_offline, monkeypatch, capsys):
    shutil.copytree(whole_folder, keras_cache_offline)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", whole_folder)
    assert load(None).source == f"{keras_cache_offline} (Keras' cache)"
    assert capsys.readouterr().err == ""


def test_download_is_verified_before_it_gets_into_the_cache(whole_folder, tmp_path):
    def truncated():
        yield FILES[1], (whole_folder / f"{FILES[1]}.gz").read_bytes()
        yield FILES[0], (whole_folder / f"{FILES[0]}.gz").read_bytes()[:-100]

    with pytest.raises(Exception, match=f"the fetched {FILES[0]}.gz is damaged"):
        fashion_mnist._store(tmp_path / "cache", truncated)
    assert os.listdir(tmp_path / "cache") == [f"{FILES[1]}.gz"]


# --------------------------------------------------------------------------- names of classes


def test_names_are_those_beside_the_files(copy):
    lines = [f" Klasse {i}ß\r\n" for i in range(10)]
    (copy / "classes.txt").write_bytes("".join(lines).encode("utf-8-sig"))
    data = load(copy)
    assert data.class_names == tuple(f"Klasse {i}ß" for i in range(10))
    assert data.name == "copy"


def test_without_names_classes_are_numbers(copy):
    (copy / "classes.txt").unlink()
    data = load(copy)
    assert data.class_names == tuple("0123456789")
    assert data.name == "copy"


def test_fashion_mnist_has_its_names_built_in(whole_folder, sample, tmp_path):
    assert not (whole_folder / "classes.txt").exists()
    data = load(whole_folder)
    assert data.class_names == sample.class_names == CLASS_NAMES
    assert data.name == sample.name == "Fashion-MNIST"
    # Unless one says otherwise.
    for path in whole_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "classes.txt").write_text("\n".join("abcdefghij"))
    assert load(tmp_path).class_names == tuple("abcdefghij")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "--data-dir: .*classes.txt names 2 classes, but labels are from 0 to 9"),
        (b"a\n" * 11, "--data-dir: .*classes.txt names 11 classes, but labels are from 0 to 9"),
        (b"a\nb\nc\n\ne\nf\ng\nh\ni\nj", ".*classes.txt: the name of class 3, '', is empty"),
        (b"a\nb\nc\na\ne\nf\ng\nh\ni\nj", ".*classes.txt: 'a' is the name of two classes"),
        (b"\xff\xfea", "--data-dir: .*classes.txt is not UTF-8"),
    ],
)
def test_unusable_names_are_an_error(copy, content, message):
    (copy / "classes.txt").write_bytes(content)
    with pytest.raises(common.UserError, match=f"^{message}"):
        load(copy)
