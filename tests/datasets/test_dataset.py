"""The three splits: which images are in them, and in which order."""

import dataclasses
import gzip
import hashlib

from fashion.datasets.dataset import CLASS_NAMES, Files, UserError, checked_names, split_files

import numpy as np
import pytest
from conftest import SAMPLE, SAMPLE_SIZES, load

import common


def unzip(path):
    return gzip.decompress(path.read_bytes())


def test_sample_is_read_and_split(sample):
    assert list(sample.splits) == ["train", "validation", "test"]
    for name, split in sample.splits.items():
        assert split is getattr(sample, name)
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


def test_positions_are_the_images_numbers_in_the_files(sample):
    for name, split in sample.splits.items():
        part = "t10k" if name == "test" else "train"
        images = unzip(SAMPLE / f"{part}-images-idx3-ubyte.gz")[16:]
        for image, position in zip(split.images, split.positions, strict=True):
            assert images[784 * position : 784 * (position + 1)] == image.tobytes()


def test_subsets_are_class_balanced_and_nested(sample):
    small = load(train_size=330, validation_size=40, test_size=25)
    assert set(np.bincount(small.train.labels)) == {33}
    assert set(np.bincount(small.validation.labels)) == {4}
    assert set(np.bincount(small.test.labels)) == {2, 3}
    for name, split in small.splits.items():
        whole = sample.splits[name]
        np.testing.assert_array_equal(split.images, whole.images[: split.size])
        np.testing.assert_array_equal(split.labels, whole.labels[: split.size])
        np.testing.assert_array_equal(split.positions, whole.positions[: split.size])
        assert split.digest == whole.digest  # so that a subset finds the features of the whole
    with pytest.raises(common.UsageError, match="--test-size 401: there are 400 test images"):
        load(test_size=401)


def test_every_prefix_is_class_balanced(sample):
    for split in sample.splits.values():
        counts = np.cumsum(np.eye(10, dtype=int)[split.labels], axis=0)
        assert (counts.max(axis=1) - counts.min(axis=1)).max() == 1


def test_digest_is_of_all_images_in_their_order(sample):
    for split in sample.splits.values():
        assert split.digest == hashlib.sha256(split.images.tobytes()).hexdigest()
    # Else two runs with different versions of the scripts would not compare.
    assert sample.validation.digest.startswith("20bc0bee2d89678a")


def test_whole_data_set_is_split_the_same_for_ever(whole_folder):
    fashion_mnist = load(whole_folder)
    sizes = {name: split.size for name, split in fashion_mnist.splits.items()}
    assert sizes == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert set(np.bincount(fashion_mnist.train.labels)) == {5_500}
    assert set(np.bincount(fashion_mnist.validation.labels)) == {500}
    # Else two runs with different versions of this script would not compare.
    assert fashion_mnist.validation.digest.startswith("cf5e29118d81cdc5")


def test_record_names_source_sizes_and_digests(sample):
    sums = (SAMPLE / "SHA256SUMS").read_text()
    sums = dict(reversed(line.split()) for line in sums.splitlines())
    record = sample.record()
    assert record["sha256"] == sums
    assert {name: record[name] for name in SAMPLE_SIZES} == SAMPLE_SIZES
    assert record["source"].startswith(str(SAMPLE))
    assert load(test_size=30).record()["test"] == 30
    assert record["classes"] == list(CLASS_NAMES)


def test_too_few_training_images_are_an_error():
    images, labels = np.zeros((11, 28, 28), "uint8"), np.arange(11, dtype="uint8") % 10
    files = Files(images, labels, images, labels, "here", {}, "mine", CLASS_NAMES)
    with pytest.raises(UserError, match="here: 11 training images are too few to split"):
        split_files(files, None, None, None)


def test_class_names_are_the_authors():
    # https://github.com/zalandoresearch/fashion-mnist#labels
    assert (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ) == CLASS_NAMES


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "here: at least 2 classes are needed, and there is only 'a'"),
        (["a", " "], "here: the name of class 1, ' ', is empty or unprintable"),
        (["a\tb", "c"], r"here: the name of class 0, 'a\\tb', is empty or unprintable"),
        (["a", "\udcff"], r"here: the name of class 1, '\\udcff', is empty or unprintable"),
        (["a", "b", "a"], "here: 'a' is the name of two classes"),
        ([f"{i:0200}" for i in range(400)], "here: the names of all 400 classes are too long"),
    ],
)
def test_names_that_would_be_of_no_use_are_an_error(names, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        checked_names(names, "here")


def test_names_of_many_kinds_are_taken():
    names = ["T-shirt/top", "Straße", "鞋", "$x$", "<b>", "a b"]
    assert checked_names(iter(names), "here") == tuple(names)


@pytest.mark.parametrize(
    ("name", "slug"),
    [("Fashion-MNIST", "fashion-mnist"), ("Meine Schuhe (2)", "meine-schuhe-2"), ("鞋", "data")],
)
def test_name_as_wandb_takes_it(name, slug, sample):
    assert dataclasses.replace(sample, name=name).slug == slug
