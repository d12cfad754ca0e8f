import gzip
import hashlib
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import SAMPLE, SAMPLE_SIZES
from PIL import Image

import common

FILES = tuple(common.FASHION_MNIST_SHA256)


def unzip(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine without network, package, cache or apt-get; gives Keras' empty cache."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # refuses connections
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(common, "DEBIAN_FOLDER", tmp_path / "usr-share")
    return tmp_path / "keras" / "datasets" / "fashion-mnist"


@pytest.fixture
def copy(tmp_path):
    """A copy of the sample that a test may damage."""
    return shutil.copytree(SAMPLE, tmp_path / "copy")


def test_sample_is_read_and_split(sample):
    for name, split in sample.splits.items():
        assert split.images.shape == (SAMPLE_SIZES[name], 28, 28)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert set(np.bincount(split.labels)) == {SAMPLE_SIZES[name] // 10}
    # Independently: the raw bytes, each image with its label, in any order.
    raw = {}
    for part in "train", "t10k":
        images = unzip(SAMPLE / f"{part}-images-idx3-ubyte.gz")[16:]
        labels = unzip(SAMPLE / f"{part}-labels-idx1-ubyte.gz")[8:]
        raw[part] = sorted((images[784 * i : 784 * (i + 1)], labels[i]) for i in range(len(labels)))

    def pairs(*splits):
        return sorted(
            (i.tobytes(), n) for s in splits for i, n in zip(s.images, s.labels, strict=True)
        )

    assert pairs(sample.train, sample.validation) == raw["train"]
    assert pairs(sample.test) == raw["t10k"]


def test_subsets_are_class_balanced_and_nested(sample):
    small = common.load_fashion_mnist(SAMPLE, train_size=330, validation_size=40, test_size=25)
    assert set(np.bincount(small.train.labels)) == {33}
    assert set(np.bincount(small.validation.labels)) == {4}
    assert set(np.bincount(small.test.labels)) == {2, 3}
    for name, split in small.splits.items():
        whole = sample.splits[name]
        np.testing.assert_array_equal(split.images, whole.images[: split.size])
        np.testing.assert_array_equal(split.labels, whole.labels[: split.size])
        assert split.digest == whole.digest  # so that a subset finds the features of the whole
    with pytest.raises(common.UsageError, match="--test-size 401: there are 400 test images"):
        common.load_fashion_mnist(SAMPLE, test_size=401)


def test_whole_data_set_is_split_the_same_for_ever(whole_folder):
    fashion_mnist = common.load_fashion_mnist(whole_folder)
    sizes = {name: split.size for name, split in fashion_mnist.splits.items()}
    assert sizes == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert set(np.bincount(fashion_mnist.train.labels)) == {5_500}
    assert set(np.bincount(fashion_mnist.validation.labels)) == {500}
    # Else two runs with different versions of this script would not compare.
    assert fashion_mnist.validation.digest.startswith("cf5e29118d81cdc5")


def test_damaged_file_is_named_with_both_digests(copy):
    path = copy / f"{FILES[0]}.gz"
    payload = bytearray(unzip(path))
    payload[5000] ^= 1
    path.write_bytes(gzip.compress(bytes(payload)))
    expected = hashlib.sha256(unzip(SAMPLE / f"{FILES[0]}.gz")).hexdigest()
    with pytest.raises(common.UserError) as error:
        common.load_fashion_mnist(copy)
    for part in str(path), expected, hashlib.sha256(payload).hexdigest():
        assert part in str(error.value)


def test_truncated_and_missing_files_are_named(copy):
    path = copy / f"{FILES[1]}.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(common.UserError, match=f"{FILES[1]}.gz is damaged"):
        common.load_fashion_mnist(copy)
    path.unlink()
    with pytest.raises(common.UserError, match=f"there is no .*{FILES[1]}"):
        common.load_fashion_mnist(copy)


def test_data_dir_without_sums_must_be_fashion_mnist(copy):
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(common.UserError, match=common.FASHION_MNIST_SHA256[FILES[0]]):
        common.load_fashion_mnist(copy)


def test_right_digest_of_a_wrong_format_is_an_error(copy):
    payload = b"not an IDX file"
    (copy / f"{FILES[0]}.gz").write_bytes(gzip.compress(payload))
    sums = (copy / "SHA256SUMS").read_text().splitlines()
    sums[0] = f"{hashlib.sha256(payload).hexdigest()}  {FILES[0]}"
    (copy / "SHA256SUMS").write_text("\n".join(sums))
    with pytest.raises(common.UserError, match="not an IDX file of unsigned bytes"):
        common.load_fashion_mnist(copy)


def test_uncompressed_files_are_read(copy, sample):
    for name in FILES:
        path = copy / f"{name}.gz"
        (copy / name).write_bytes(unzip(path))
        path.unlink()
    assert common.load_fashion_mnist(copy).train.digest == sample.train.digest


def test_no_source_at_all_lists_every_place_and_the_ways_out(offline):
    with pytest.raises(common.UserError) as error:
        common.load_fashion_mnist()
    for part in str(offline), "usr-share", "Connection refused", "'apt-get'", "--data-dir":
        assert part in str(error.value)
    assert "apt-get install dataset-fashion-mnist" in str(error.value)
    assert not list(offline.iterdir())  # nothing half-written


def test_bad_file_in_the_cache_is_reported_and_passed_over(
    whole_folder, offline, capsys, monkeypatch
):
    shutil.copytree(SAMPLE, offline)  # not the four files that belong there
    monkeypatch.setattr(common, "DEBIAN_FOLDER", whole_folder)
    assert common.load_fashion_mnist().source.startswith(str(whole_folder))
    assert f"{offline / FILES[0]}.gz has SHA-256" in capsys.readouterr().err


def test_download_is_verified_before_it_gets_into_the_cache(whole_folder, offline):

    def truncated():
        yield FILES[1], (whole_folder / f"{FILES[1]}.gz").read_bytes()
        yield FILES[0], (whole_folder / f"{FILES[0]}.gz").read_bytes()[:-100]

    with pytest.raises(Exception, match=f"the fetched {FILES[0]}.gz is damaged"):
        common._store(offline, truncated)
    assert os.listdir(offline) == [f"{FILES[1]}.gz"]


def test_rgb_is_what_pillow_makes_of_it(sample):
    images = sample.test.images[:20]
    inputs = keras.Input((28, 28), dtype="uint8")
    ours = keras.Model(inputs, common.to_rgb(inputs, 224)).predict(images, verbose=0)
    assert ours.dtype == np.float32 and ours.shape == (20, 224, 224, 3)
    for image, rgb in zip(images, ours, strict=True):
        by_pillow = Image.fromarray(image.astype("float32")).resize((224, 224), Image.BILINEAR)
        for channel in range(3):
            np.testing.assert_allclose(rgb[..., channel], np.asarray(by_pillow), atol=1e-3)
