"""The feature cache: contents, growth, damaged files, full disks."""

from types import SimpleNamespace

from fashion.backbones import feature_cache
from fashion.backbones.feature_cache import FeatureCache
from fashion.backbones.pooling import to_float16
from fashion.backbones.progress import Progress

import keras
import numpy as np
import pytest
from helpers.data import load_sample
from helpers.scripts import cached_files

import common

pytestmark = pytest.mark.usefixtures("small_chunks")  # 20 images per file


def build_extractor(*names):
    """Build an extractor: uint8 (N, 28, 28) → {name: float16 (N, 3)}, with weights by name."""
    images = keras.Input((28, 28), dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))

    def values(name):
        seed = sum(name.encode())
        kernel = keras.initializers.GlorotUniform(seed)
        return to_float16(keras.layers.Dense(3, kernel_initializer=kernel)(flat))

    return keras.Model(images, {name: values(name) for name in names})


@pytest.fixture
def cache(tmp_path):
    """An empty cache of the features "one" and "two"."""
    return FeatureCache(tmp_path / "cache", build_extractor("one", "two"))


@pytest.fixture
def data():
    """70 training, 20 validation and 30 test images: 4, 1 and 2 files, of 140 images."""
    return load_sample(train_size=70, validation_size=20, test_size=30)


@pytest.fixture
def fill(open_run, data):
    """Fill a cache with the features of a data set; return the rate."""

    def fill_cache(cache, data=data):
        progress = Progress("Features", open_run.wandb_run)
        cache.compute_missing(data.splits.values(), progress)
        return progress.rate

    return fill_cache


def read(cache, split, names):
    """Read features, concatenated."""
    return feature_cache.read_views({"": cache}, split, names)


def test_cached_features_equal_the_extractors_outputs(fill, cache, data):
    assert fill(cache) > 0
    for split in data.splits.values():
        expected = cache.extractor.predict(split.images, verbose=0)
        for names in ("one",), ("two", "one"):
            values = read(cache, split, names)
            assert values.dtype == np.float16
            np.testing.assert_array_equal(values, np.hstack([expected[name] for name in names]))
    assert fill(cache) is None  # nothing is missing


def test_read_views_appends_the_views(fill, cache, data):
    """The views' features have their own names in common files."""
    images = keras.Input((28, 28), dtype="uint8")
    negative = {f"{name}_flipped": -values for name, values in cache.extractor(images).items()}
    other = feature_cache.FeatureCache(cache.directory, keras.Model(images, negative))
    fill(cache), fill(other)
    both = feature_cache.read_views({"": cache, "_flipped": other}, data.train, ("two", "one"))
    first = read(cache, data.train, ("two", "one"))
    np.testing.assert_array_equal(both, np.concatenate([first, -first]))


def test_files_contain_complete_chunks_and_reading_selects_images(fill, cache, data):
    fill(cache)
    assert len(cached_files(cache.directory)) == 4 + 1 + 2
    with np.load(cache.chunk_path(data.train, 60)) as file:  # 10 of 20 images are selected
        assert {name: file[name].shape for name in file} == {"one": (20, 3), "two": (20, 3)}
    chunk = cache.read_chunk(data.train, 60)
    assert {name: values.shape for name, values in chunk.items()} == {
        "one": (10, 3),
        "two": (10, 3),
    }
    assert read(cache, data.train, ("one",)).shape == (70, 3)


def test_cache_is_reused_for_subsets_and_grows(fill, cache, capsys):
    fill(cache)
    before = cached_files(cache.directory)
    capsys.readouterr()
    fill(cache, load_sample(train_size=30, validation_size=20, test_size=10))
    assert capsys.readouterr().out.endswith(f"\nFeatures: all cached in {cache.directory}\n")
    assert cached_files(cache.directory) == before
    fill(cache, load_sample(train_size=90, validation_size=20, test_size=10))
    assert "20 images, each processed once" in capsys.readouterr().out
    after = cached_files(cache.directory)
    assert len(after) == 1 + len(before) and before.items() <= after.items()


def test_extraction_adds_features_to_existing_files(fill, cache, data, capsys):
    """The files do not depend on the order of the extractions."""
    directory = cache.directory
    fill(FeatureCache(directory, build_extractor("two", "three")))
    first = cached_files(directory)
    capsys.readouterr()
    fill(FeatureCache(directory, build_extractor("two", "one")))
    assert "140 images, each processed once" in capsys.readouterr().out
    both = cached_files(directory)
    assert both.keys() == first.keys() and not both.items() & first.items()
    for names in ("two", "three"), ("one",), ("one", "two"):
        fill(FeatureCache(directory, build_extractor(*names)))
        assert "Features: all cached in" in capsys.readouterr().out
    assert cached_files(directory) == both
    other = FeatureCache(directory.with_name("other"), build_extractor("one", "two", "three"))
    fill(other)
    assert cached_files(other.directory) == both
    # A cache reads only the features of its extractor.
    assert cache.read_chunk(data.train, 0).keys() == {"one", "two"}


def test_nan_features_raise_and_are_not_cached(fill, tmp_path):
    """As for a network whose activations exceed the range of float16."""
    images = keras.Input((28, 28), dtype="uint8")
    largest = keras.ops.max(keras.ops.cast(images, "float32"), axis=(1, 2))
    infinite = largest[:, None] * float("inf")
    cache = FeatureCache(tmp_path / "nan", keras.Model(images, {"one": infinite - infinite}))
    message = "^features are NaN for some images; try --precision float32, or "
    with pytest.raises(common.UserError, match=message):
        fill(cache)
    assert not list(cache.directory.rglob("*.npz"))


def test_extraction_resumes_from_partial_cache(fill, cache, data, capsys):
    fill(cache)
    complete = cached_files(cache.directory)
    missing = [cache.chunk_path(data.train, 20), cache.chunk_path(data.test, 0)]
    for path in missing:
        path.unlink()
    # A file that the interrupted run was writing.
    partial = missing[0].parent / ".incomplete-x" / missing[0].name
    partial.parent.mkdir()
    partial.write_bytes(b"half")
    capsys.readouterr()
    fill(cache)
    assert "40 images, each processed once" in capsys.readouterr().out
    partial.unlink()
    assert cached_files(cache.directory) == complete


def test_files_written_by_another_process_are_not_computed_again(fill, cache, monkeypatch):
    other = FeatureCache(cache.directory.with_name("other"), cache.extractor)
    fill(other)
    complete = cached_files(other.directory)
    predict, steps = feature_cache.devices.predict_on_replicas, []

    def predict_and_fill(model, batches):
        steps.append(len(batches))
        if len(steps) == 2:
            for path in complete:
                (cache.directory / path).parent.mkdir(exist_ok=True)
                (cache.directory / path).write_bytes(complete[path])
        return predict(model, batches)

    monkeypatch.setattr(feature_cache.devices, "predict_on_replicas", predict_and_fill)
    fill(cache)
    assert len(steps) == 2
    assert cached_files(cache.directory) == complete


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[150] ^= 1
    path.write_bytes(content)


def remove_an_image(path):
    with np.load(path) as file:
        np.savez(path, **{name: file[name][:-1] for name in file})


@pytest.mark.parametrize("damage", [flip_a_bit, remove_an_image])
def test_damaged_file_is_recomputed_with_warning(damage, fill, cache, data, capsys):
    fill(cache)
    expected, intact = read(cache, data.train, ("one", "two")), cached_files(cache.directory)
    path = cache.chunk_path(data.train, 20)
    damage(path)
    capsys.readouterr()
    np.testing.assert_array_equal(read(cache, data.train, ("one", "two")), expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path} is damaged (") and line.endswith("); recomputing it.")
    assert cached_files(cache.directory) == intact


def test_damaged_feature_keeps_other_features_of_the_file(fill, cache, data, capsys):
    one, two = (FeatureCache(cache.directory, build_extractor(name)) for name in ("one", "two"))
    fill(one), fill(two)
    intact, path = cached_files(cache.directory), cache.chunk_path(data.train, 20)
    flip_a_bit(path)  # damages the first feature
    capsys.readouterr()
    read(one, data.train, ("one",)), read(two, data.train, ("two",))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path} is damaged (")
    assert cached_files(cache.directory) == intact


def test_truncated_file_is_recomputed_by_the_extraction(fill, cache, data, capsys):
    fill(cache)
    intact = cached_files(cache.directory)
    path = cache.chunk_path(data.train, 0)
    path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    fill(cache)
    assert "20 images, each processed once" in capsys.readouterr().out
    assert cached_files(cache.directory) == intact


def test_too_small_disk_raises_before_extraction(fill, cache, monkeypatch):
    free = SimpleNamespace(free=1679)  # 140 images · 2 features · 3 float16 values need 1680 bytes
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: free)
    with pytest.raises(
        common.UserError,
        match=r"^Features of 140 images need 0 MB, but .* has only 0 MB left; use another --cache",
    ):
        fill(cache)
    assert not cached_files(cache.directory)
    free.free = 1680
    assert fill(cache) > 0
    free.free = 839  # only the missing feature is counted
    more = FeatureCache(cache.directory, build_extractor("one", "two", "three"))
    with pytest.raises(common.UserError, match=r"^Features of 140 images need 0 MB"):
        fill(more)
    free.free = 840
    assert fill(more) > 0


def test_cache_dir_that_is_a_file_raises(fill, cache):
    cache.directory.touch()
    with pytest.raises(common.UserError, match=r"^--cache-dir: "):
        fill(cache)


def test_unwritable_split_directory_raises(fill, cache, data):
    cache.directory.mkdir()
    (cache.directory / data.train.images_sha256[:16]).touch()  # in place of its directory
    with pytest.raises(common.UserError, match=r"^--cache-dir: "):
        fill(cache)
