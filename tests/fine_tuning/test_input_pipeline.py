"""Batches of images, and of activations from the cache."""

import shutil

from fashion.backbones import feature_cache
from fashion.backbones.feature_cache import FeatureCache
from fashion.backbones.progress import Progress
from fashion.fine_tuning.input_pipeline import Batches

import keras
import numpy as np
import pytest
from conftest import load

import common


@pytest.fixture
def model():
    """Takes the two values that are in `cache`."""
    inputs = {
        name: keras.Input((3,), dtype="float16", name=name) for name in ("activations", "other")
    }
    outputs = keras.layers.Dense(10, activation="softmax")(inputs["activations"] + inputs["other"])
    return keras.Model(inputs, outputs)


@pytest.fixture
def data():
    return load(train_size=70, validation_size=20, test_size=30)


@pytest.fixture
def cache(open_run, data, small_files, tmp_path):
    """The activations of `data`, of which the first is the image's mean, in files of 20 images."""
    images = keras.Input((28, 28), dtype="uint8")
    means = keras.ops.mean(keras.ops.cast(images, "float32"), axis=(1, 2), keepdims=True)[..., 0]
    values = keras.ops.repeat(means, 3, axis=1)
    outputs = {
        name: feature_cache.to_float16(value)
        for name, value in {"activations": values, "other": -values, "unused": values}.items()
    }
    cache = FeatureCache(tmp_path / "activations", keras.Model(images, outputs))
    cache.fill(data.splits.values(), Progress("Activations", open_run.wandb_run))
    return cache


def rows(batches):
    """(mean of the image, label) of each, and the sizes of the batches."""
    found, sizes = [], []
    for inputs, one_hot in batches:
        means = inputs["activations"][:, 0] if isinstance(inputs, dict) else None
        if means is None:
            means = inputs.numpy().mean(axis=(1, 2)).astype("float16")
        else:
            np.testing.assert_array_equal(inputs["other"][:, 0], -means)
            assert inputs.keys() == {"activations", "other"}
        assert set(np.ravel(one_hot)) == {0, 1} and np.all(np.sum(one_hot, axis=1) == 1)
        found += zip(np.array(means).tolist(), np.argmax(one_hot, axis=1).tolist(), strict=True)
        sizes.append(len(one_hot))
    return found, sizes


def expected_rows(split):
    means = split.images.mean(axis=(1, 2)).astype("float32").astype("float16")
    return list(zip(means.tolist(), split.labels.tolist(), strict=True))


def test_batches_have_each_image_in_use_once_in_order(model, cache, data):
    for split in data.splits.values():
        batches = Batches(model, cache, batch_size=16).of(split)
        found, sizes = rows(batches)
        assert found == expected_rows(split)
        assert sizes == [16] * (split.size // 16) + [split.size % 16]
        assert len(batches) == len(sizes)
        assert rows(batches)[0] == found  # again


def test_batches_of_images_are_those_of_activations(model, cache, data):
    inputs = keras.Input((28, 28), dtype="uint8")
    images = keras.Model(inputs, keras.layers.Flatten()(inputs))
    for seed in None, [0, 1]:
        of_images = Batches(images, None, batch_size=16).of(data.train, seed)
        of_activations = Batches(model, cache, batch_size=16).of(data.train, seed)
        ours, theirs = rows(of_images), rows(of_activations)
        assert [label for _, label in ours[0]] == [label for _, label in theirs[0]]
        means = [[mean for mean, _ in found] for found, _ in (ours, theirs)]
        np.testing.assert_allclose(*means, rtol=2e-3)


def test_shuffled_batches_are_the_seeds(model, cache, data):
    batches = Batches(model, cache, batch_size=16)
    seeds = [0, 3], [0, 3], [0, 4]
    first, same, other = (rows(batches.of(data.train, seed))[0] for seed in seeds)
    assert first == same
    assert sorted(first) == sorted(other) == sorted(expected_rows(data.train))
    assert first != other and first != expected_rows(data.train)
    # Not only within files of 20, nor only whole files.
    numbers = [expected_rows(data.train).index(row) for row in first]
    assert len({number // 20 for number in numbers[:20]}) > 1
    assert max(abs(numbers.index(i) - i) for i in set(numbers)) > 20


def test_images_of_far_files_come_together(sample, small_files):
    """Of 88 files: those of eight are shuffled at a time, and which these are is shuffled, too."""
    inputs = keras.Input((28, 28), dtype="uint8")
    images = keras.Model(inputs, keras.layers.Flatten()(inputs))
    batches = Batches(images, None, batch_size=100)
    (first, _), *_ = batches.of(sample.train, [0, 0])
    every = {image.tobytes(): i // 20 for i, image in enumerate(sample.train.images)}
    files = {every[image.tobytes()] for image in first.numpy()}
    assert len(files) >= 8 and max(files) > 60


def damage(path):
    content = bytearray(path.read_bytes())
    content[150] ^= 1
    path.write_bytes(content)


def test_damaged_activations_are_computed_anew(model, cache, data, capfd):
    expected = rows(Batches(model, cache, batch_size=16).of(data.train))
    path = cache.path(data.train, 40)
    intact = path.read_bytes()
    damage(path)
    assert rows(Batches(model, cache, batch_size=16).of(data.train)) == expected
    assert f"{path} is damaged" in capfd.readouterr().err
    assert path.read_bytes() == intact


def test_error_of_the_cache_is_raised_as_its_own(model, cache, data):
    """And not as TensorFlow's, of whose data pipeline the reading is a part."""
    model.compile("adam", "categorical_crossentropy")
    folder = cache.path(data.train, 40).parent
    shutil.rmtree(folder)
    folder.touch()  # so that nothing can be read, nor written anew
    for use in (
        lambda batches: model.fit(batches.of(data.train, [0, 0]), shuffle=False, verbose=0),
        lambda batches: model.predict(batches.of(data.train), verbose=0),
    ):
        batches = Batches(model, cache, batch_size=16)
        with pytest.raises(common.UserError, match=r"^--cache-dir: "), batches.errors():
            use(batches)
    with batches.errors():
        assert len(model.predict(batches.of(data.test), verbose=0)) == 30


def test_other_errors_stay_what_they_are(model, cache):
    class OtherError(Exception):
        pass

    with pytest.raises(OtherError), Batches(model, cache, 16).errors():
        raise OtherError
