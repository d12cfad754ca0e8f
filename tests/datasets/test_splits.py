"""The three splits: their images, the order of these, and names of classes."""

import dataclasses
import gzip
import hashlib

from fashion.datasets import splits
from fashion.datasets.fashion_mnist import FASHION_MNIST_SHA256
from fashion.datasets.splits import CLASS_NAMES, validate_class_names
from fashion.errors import UsageError, UserError

import numpy as np
import pytest
from helpers.scripts import SAMPLE, SAMPLE_SIZES


def unzip(path):
    return gzip.decompress(path.read_bytes())


def test_splits_contain_the_images_and_labels_of_the_files(sample):
    assert list(sample.splits) == ["train", "validation", "test"]
    assert sample.num_classes == 10
    for name, split in sample.splits.items():
        assert split is getattr(sample, name)
        assert split.images.shape == (SAMPLE_SIZES[name], 28, 28)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert set(np.bincount(split.labels)) == {SAMPLE_SIZES[name] // 10}
        part = "t10k" if name == "test" else "train"
        images = unzip(SAMPLE / f"{part}-images-idx3-ubyte.gz")[16:]
        labels = unzip(SAMPLE / f"{part}-labels-idx1-ubyte.gz")[8:]
        for image, label, index in zip(split.images, split.labels, split.indices, strict=True):
            assert images[784 * index : 784 * (index + 1)] == image.tobytes()
            assert labels[index] == label
        assert split.image_name(3) == f"image {split.indices[3]}"
        assert split.images_sha256 == hashlib.sha256(split.images.tobytes()).hexdigest()
    indices = np.concatenate([sample.train.indices, sample.validation.indices])
    np.testing.assert_array_equal(np.sort(indices), range(1920))
    np.testing.assert_array_equal(np.sort(sample.test.indices), range(400))
    # Otherwise runs of different versions would not be comparable.
    assert sample.train.images_sha256.startswith("3208bca95d6aeb28")
    assert sample.validation.images_sha256.startswith("20bc0bee2d89678a")


def test_subsets_are_class_balanced_and_nested(sample, load):
    small = load(SAMPLE, train_size=330, validation_size=40, test_size=25)
    assert set(np.bincount(small.train.labels)) == {33}
    assert set(np.bincount(small.validation.labels)) == {4}
    assert set(np.bincount(small.test.labels)) == {2, 3}
    for name, split in small.splits.items():
        full = sample.splits[name]
        np.testing.assert_array_equal(split.images, full.images[: split.size])
        np.testing.assert_array_equal(split.labels, full.labels[: split.size])
        np.testing.assert_array_equal(split.indices, full.indices[: split.size])
        assert split.images_sha256 == full.images_sha256  # subsets share cached features
        assert split.one_hot.dtype == np.float32 and split.one_hot.shape == (split.size, 10)
        np.testing.assert_array_equal(split.one_hot.argmax(axis=1), split.labels)
        assert (np.sort(split.one_hot, axis=1) == [0] * 9 + [1]).all()
    with pytest.raises(UsageError, match="--test-size 401: there are only 400 test images"):
        load(SAMPLE, test_size=401)


@pytest.mark.parametrize(
    ("counts", "held_out", "train_size", "warnings"),
    [
        ((1000, 30), (83, 2), None, []),
        ((30, 12, 5), (2, 1, 1), None, []),
        ((1000, 30), (83, 2), 10, ["train images of b"]),
        ((1, 30, 30), (0, 2, 2), None, ["validation images of a"]),
        ((2,) * 13, (1,) * 13, 2, ["train images of c, d, e, f, g, h, i, j, k, l and 1 more"]),
    ],
)
def test_splits_keep_the_proportions_of_the_classes(counts, held_out, train_size, warnings, capsys):
    labels = np.random.default_rng(0).permutation(np.repeat(range(len(counts)), counts))
    arrays = {"images": np.zeros((len(labels), 28, 28), "uint8"), "labels": labels}
    raw = splits.RawDataset(
        **{f"{part}_{kind}": array for part in ("train", "test") for kind, array in arrays.items()},
        **{"source": "here", "sha256": {}, "name": "rare"},
        class_names=tuple("abcdefghijklm"[: len(counts)]),
        validation_indices=splits.hold_out(splits.shuffle_by_class(labels), 12),
    )
    data = splits.make_splits(raw, train_size, None, None)
    assert capsys.readouterr().err == "".join(f"WARNING: no {text}\n" for text in warnings)
    sizes = {"train": np.subtract(counts, held_out), "validation": held_out, "test": counts}
    for name, split in data.splits.items():
        expected = np.outer(range(1, split.size + 1), np.divide(sizes[name], sum(sizes[name])))
        assert split.size in (train_size, sum(sizes[name]))
        found = split.one_hot.cumsum(axis=0)  # the counts of every prefix
        assert np.abs(found - expected).max() < 1


def test_complete_data_set_is_always_split_in_the_same_way(fashion_mnist_dir, load):
    fashion_mnist = load(fashion_mnist_dir)
    sizes = {name: split.size for name, split in fashion_mnist.splits.items()}
    assert sizes == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert set(np.bincount(fashion_mnist.train.labels)) == {5_500}
    assert set(np.bincount(fashion_mnist.validation.labels)) == {500}
    checksums = [split.images_sha256[:16] for split in fashion_mnist.splits.values()]
    assert checksums == ["00f40012b2b30b2a", "cf5e29118d81cdc5", "3ea4787d206308a1"]
    assert fashion_mnist.sha256 == FASHION_MNIST_SHA256
    assert fashion_mnist.class_names == CLASS_NAMES and fashion_mnist.name == "Fashion-MNIST"
    # Those of the first versions, so that their results stay comparable.
    indices = [split.indices.astype("<i8").tobytes() for split in fashion_mnist.splits.values()]
    checksums = [hashlib.sha256(content).hexdigest()[:16] for content in indices]
    assert checksums == ["a07235390756061f", "136db428e6638bec", "f5f147008c6e4b61"]


def test_metadata_contains_source_sizes_and_checksums(sample):
    metadata = sample.metadata()
    assert metadata["sha256"] == {
        path.stem: hashlib.sha256(unzip(path)).hexdigest() for path in SAMPLE.glob("*-ubyte.gz")
    }
    assert {name: metadata[name] for name in SAMPLE_SIZES} == SAMPLE_SIZES
    assert metadata["source"] == f"{SAMPLE} (--data-dir)"
    assert metadata["classes"] == list(CLASS_NAMES) and sample.name == "Fashion-MNIST"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "here: at least 2 classes are needed, but none was found"),
        (["a", " "], "here: the name of class 1, ' ', is empty or unprintable; rename it"),
        (["a", "\udcff"], r"here: the name of class 1, '\\udcff', is empty or unprintable; rename"),
        (["a", "b", "a"], "here: two classes have the name 'a'; rename one"),
        ([f"{i:0200}" for i in range(400)], "here: the 400 class names are too long; shorten them"),
    ],
)
def test_only_invalid_class_names_raise(names, message):
    with pytest.raises(UserError, match=f"^{message}"):
        validate_class_names(names, "here")
    names = ["T-shirt/top", "Straße", "鞋", "$x$", "<b>", "a b"]
    assert validate_class_names(iter(names), "here") == tuple(names)


def test_slug_is_a_wandb_artifact_name(sample):
    names = "Fashion-MNIST", "Meine Schuhe (2)", "鞋"
    slugs = [dataclasses.replace(sample, name=name).slug for name in names]
    assert slugs == ["fashion-mnist", "meine-schuhe-2", "data"]


def test_unprintable_characters_are_replaced():
    assert splits.replace_unprintable("a\tb\ud800ä.png") == "a\ufffdb\ufffdä.png"
