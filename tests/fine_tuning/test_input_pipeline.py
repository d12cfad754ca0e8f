"""Input pipelines of images, and of cached activations."""

import shutil

from fashion.backbones.feature_cache import FeatureCache
from fashion.backbones.pooling import to_float16
from fashion.backbones.progress import Progress
from fashion.fine_tuning.input_pipeline import InputPipeline

import keras
import numpy as np
import pytest
from helpers.data import load_sample

import common


@pytest.fixture
def model():
    """A model of two of the features in `cache`."""
    inputs = {
        name: keras.Input((3,), dtype="float16", name=name) for name in ("activations", "other")
    }
    outputs = keras.layers.Dense(10, activation="softmax")(inputs["activations"] + inputs["other"])
    return keras.Model(inputs, outputs)


@pytest.fixture
def data():
    return load_sample(train_size=70, validation_size=20, test_size=30)


@pytest.fixture
def cache(open_run, data, small_chunks, tmp_path):
    """Activations of `data`, with the image's mean as values, in files of 20 images."""
    images = keras.Input((28, 28), dtype="uint8")
    means = keras.ops.mean(keras.ops.cast(images, "float32"), axis=(1, 2), keepdims=True)[..., 0]
    values = keras.ops.repeat(means, 3, axis=1)
    outputs = {
        name: to_float16(value)
        for name, value in {"activations": values, "other": -values, "unused": values}.items()
    }
    cache = FeatureCache(tmp_path / "activations", keras.Model(images, outputs))
    cache.compute_missing(data.splits.values(), Progress("Activations", open_run.wandb_run))
    return cache


def rows(batches):
    """Return (mean of the image, label) of each image, and the batch sizes."""
    pairs, sizes = [], []
    for inputs, one_hot in batches:
        means = inputs["activations"][:, 0] if isinstance(inputs, dict) else None
        if means is None:
            means = inputs.numpy().mean(axis=(1, 2)).astype("float16")
        else:
            np.testing.assert_array_equal(inputs["other"][:, 0], -means)
            assert inputs.keys() == {"activations", "other"}
        assert set(np.ravel(one_hot)) == {0, 1} and np.all(np.sum(one_hot, axis=1) == 1)
        pairs += zip(np.array(means).tolist(), np.argmax(one_hot, axis=1).tolist(), strict=True)
        sizes.append(len(one_hot))
    return pairs, sizes


def expected_rows(split):
    means = split.images.mean(axis=(1, 2)).astype("float32").astype("float16")
    return list(zip(means.tolist(), split.labels.tolist(), strict=True))


def test_dataset_contains_each_selected_image_once_in_order(model, cache, data):
    for split in data.splits.values():
        batches = InputPipeline(model, cache, batch_size=16).dataset(split)
        pairs, sizes = rows(batches)
        assert pairs == expected_rows(split)
        assert sizes == [16] * (split.size // 16) + [split.size % 16]
        assert len(batches) == len(sizes)
        assert rows(batches)[0] == pairs  # iterable again


def test_datasets_of_images_and_activations_have_equal_order(model, cache, data):
    inputs = keras.Input((28, 28), dtype="uint8")
    images = keras.Model(inputs, keras.layers.Flatten()(inputs))
    for seed in None, [0, 1]:
        image_dataset = InputPipeline(images, None, batch_size=16).dataset(data.train, seed)
        activation_dataset = InputPipeline(model, cache, batch_size=16).dataset(data.train, seed)
        pairs = [rows(image_dataset)[0], rows(activation_dataset)[0]]
        labels = [[label for _, label in split_pairs] for split_pairs in pairs]
        assert labels[0] == labels[1]
        means = [[mean for mean, _ in split_pairs] for split_pairs in pairs]
        np.testing.assert_allclose(*means, rtol=2e-3)


def test_shuffled_dataset_depends_on_the_seed(model, cache, data):
    pipeline = InputPipeline(model, cache, batch_size=16)
    seeds = [0, 3], [0, 3], [0, 4]
    first, equal, other = (rows(pipeline.dataset(data.train, seed))[0] for seed in seeds)
    assert first == equal
    assert sorted(first) == sorted(other) == sorted(expected_rows(data.train))
    assert first != other and first != expected_rows(data.train)
    # Images are shuffled across files of 20, and not only complete files.
    indices = [expected_rows(data.train).index(row) for row in first]
    assert len({index // 20 for index in indices[:20]}) > 1
    assert max(abs(indices.index(i) - i) for i in set(indices)) > 20


def test_shuffled_batch_contains_images_of_distant_files(sample, small_chunks):
    """The order of 88 files is shuffled, and then the images of eight files at a time."""
    inputs = keras.Input((28, 28), dtype="uint8")
    images = keras.Model(inputs, keras.layers.Flatten()(inputs))
    batches = InputPipeline(images, None, batch_size=100)
    (first, _), *_ = batches.dataset(sample.train, [0, 0])
    file_of_image = {image.tobytes(): i // 20 for i, image in enumerate(sample.train.images)}
    files = {file_of_image[image.tobytes()] for image in first.numpy()}
    assert len(files) >= 8 and max(files) > 60


def damage(path):
    content = bytearray(path.read_bytes())
    content[150] ^= 1
    path.write_bytes(content)


def test_damaged_activations_are_recomputed(model, cache, data, capfd):
    expected = rows(InputPipeline(model, cache, batch_size=16).dataset(data.train))
    path = cache.chunk_path(data.train, 40)
    intact = path.read_bytes()
    damage(path)
    assert rows(InputPipeline(model, cache, batch_size=16).dataset(data.train)) == expected
    assert f"{path} is damaged" in capfd.readouterr().err
    assert path.read_bytes() == intact


def test_cache_error_is_raised_without_tensorflows_wrapper(model, cache, data):
    model.compile("adam", "categorical_crossentropy")
    directory = cache.chunk_path(data.train, 40).parent
    shutil.rmtree(directory)
    directory.touch()  # files can be neither read nor written
    for use in (
        lambda pipeline: model.fit(pipeline.dataset(data.train, [0, 0]), shuffle=False, verbose=0),
        lambda pipeline: model.predict(pipeline.dataset(data.train), verbose=0),
    ):
        pipeline = InputPipeline(model, cache, batch_size=16)
        with (
            pytest.raises(common.UserError, match=r"^--cache-dir: "),
            pipeline.reraise_cache_errors(),
        ):
            use(pipeline)
    with pipeline.reraise_cache_errors():
        assert len(model.predict(pipeline.dataset(data.test), verbose=0)) == 30


def test_other_errors_propagate(model, cache):
    class OtherError(Exception):
        pass

    with pytest.raises(OtherError), InputPipeline(model, cache, 16).reraise_cache_errors():
        raise OtherError
