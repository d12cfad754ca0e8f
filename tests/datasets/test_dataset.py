"""The three splits: their images, and the order of these."""

import dataclasses
import gzip
import hashlib

from fashion.datasets.dataset import (
    CLASS_NAMES,
    RawDataset,
    UserError,
    make_splits,
    validate_class_names,
)

import numpy as np
import pytest
from helpers.data import load_sample
from helpers.scripts import SAMPLE, SAMPLE_SIZES

import common


def unzip(path):
    return gzip.decompress(path.read_bytes())


def test_sample_is_loaded_and_split(sample):
    assert list(sample.splits) == ["train", "validation", "test"]
    for name, split in sample.splits.items():
        assert split is getattr(sample, name)
        assert split.images.shape == (SAMPLE_SIZES[name], 28, 28)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert set(np.bincount(split.labels)) == {SAMPLE_SIZES[name] // 10}
    # Compare with the raw bytes: each image with its label, in any order.
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


def test_indices_are_positions_in_the_files(sample):
    for name, split in sample.splits.items():
        part = "t10k" if name == "test" else "train"
        images = unzip(SAMPLE / f"{part}-images-idx3-ubyte.gz")[16:]
        for image, index in zip(split.images, split.indices, strict=True):
            assert images[784 * index : 784 * (index + 1)] == image.tobytes()


def test_subsets_are_class_balanced_and_nested(sample):
    small = load_sample(train_size=330, validation_size=40, test_size=25)
    assert set(np.bincount(small.train.labels)) == {33}
    assert set(np.bincount(small.validation.labels)) == {4}
    assert set(np.bincount(small.test.labels)) == {2, 3}
    for name, split in small.splits.items():
        full = sample.splits[name]
        np.testing.assert_array_equal(split.images, full.images[: split.size])
        np.testing.assert_array_equal(split.labels, full.labels[: split.size])
        np.testing.assert_array_equal(split.indices, full.indices[: split.size])
        assert split.images_sha256 == full.images_sha256  # subsets share cached features
    with pytest.raises(common.UsageError, match="--test-size 401: there are only 400 test images"):
        load_sample(test_size=401)


def test_every_prefix_is_class_balanced(sample):
    for split in sample.splits.values():
        counts = np.cumsum(np.eye(10, dtype=int)[split.labels], axis=0)
        assert (counts.max(axis=1) - counts.min(axis=1)).max() == 1


def test_images_sha256_is_the_checksum_of_all_images(sample):
    for split in sample.splits.values():
        assert split.images_sha256 == hashlib.sha256(split.images.tobytes()).hexdigest()
    # Otherwise runs of different versions would not be comparable.
    assert sample.validation.images_sha256.startswith("20bc0bee2d89678a")


def test_complete_data_set_is_split_as_in_earlier_versions(fashion_mnist_dir):
    fashion_mnist = load_sample(fashion_mnist_dir)
    sizes = {name: split.size for name, split in fashion_mnist.splits.items()}
    assert sizes == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert set(np.bincount(fashion_mnist.train.labels)) == {5_500}
    assert set(np.bincount(fashion_mnist.validation.labels)) == {500}
    # Otherwise runs of different versions would not be comparable.
    assert fashion_mnist.validation.images_sha256.startswith("cf5e29118d81cdc5")


def test_metadata_contains_source_sizes_and_checksums(sample):
    checksums = (SAMPLE / "SHA256SUMS").read_text()
    checksums = dict(reversed(line.split()) for line in checksums.splitlines())
    metadata = sample.metadata()
    assert metadata["sha256"] == checksums
    assert {name: metadata[name] for name in SAMPLE_SIZES} == SAMPLE_SIZES
    assert metadata["source"].startswith(str(SAMPLE))
    assert load_sample(test_size=30).metadata()["test"] == 30
    assert metadata["classes"] == list(CLASS_NAMES)


def test_make_splits_of_too_few_images_raises():
    images, labels = np.zeros((11, 28, 28), "uint8"), np.arange(11, dtype="uint8") % 10
    raw = RawDataset(images, labels, images, labels, "here", {}, "mine", CLASS_NAMES)
    message = r"here: 11 training images are too few; at least 12 are needed$"
    with pytest.raises(UserError, match=message):
        make_splits(raw, None, None, None)


def test_class_names_are_the_published_ones():
    # https://github.com/zalandoresearch/fashion-mnist#labels
    assert (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ) == CLASS_NAMES


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "here: at least 2 classes are needed, but only 'a' was found"),
        (["a", " "], "here: the name of class 1, ' ', is empty or unprintable; rename it"),
        (["a\tb", "c"], r"here: the name of class 0, 'a\\tb', is empty or unprintable; rename it"),
        (["a", "\udcff"], r"here: the name of class 1, '\\udcff', is empty or unprintable; rename"),
        (["a", "b", "a"], "here: two classes have the name 'a'; rename one"),
        ([f"{i:0200}" for i in range(400)], "here: the 400 class names are too long; shorten them"),
    ],
)
def test_invalid_class_names_raise(names, message):
    with pytest.raises(UserError, match=f"^{message}"):
        validate_class_names(names, "here")


def test_valid_class_names_are_returned():
    names = ["T-shirt/top", "Straße", "鞋", "$x$", "<b>", "a b"]
    assert validate_class_names(iter(names), "here") == tuple(names)


@pytest.mark.parametrize(
    ("name", "slug"),
    [("Fashion-MNIST", "fashion-mnist"), ("Meine Schuhe (2)", "meine-schuhe-2"), ("鞋", "data")],
)
def test_slug_is_a_wandb_artifact_name(name, slug, sample):
    assert dataclasses.replace(sample, name=name).slug == slug
