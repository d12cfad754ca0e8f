"""The cache of features: what is in it, how it grows, what becomes of damage."""

from types import SimpleNamespace

from fashion.backbones import feature_cache
from fashion.backbones.feature_cache import FeatureCache
from fashion.backbones.progress import Progress

import keras
import numpy as np
import pytest
from conftest import contents, load

import common

pytestmark = pytest.mark.usefixtures("small_files")  # of 20 images each


def build_network(*names):
    """A small network: uint8 (N, 28, 28) → {name: float16 (N, 3)}, each of its own weights."""
    images = keras.Input((28, 28), dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))

    def values(name):
        seed = sum(name.encode())
        kernel = keras.initializers.GlorotUniform(seed)
        return feature_cache.to_float16(keras.layers.Dense(3, kernel_initializer=kernel)(flat))

    return keras.Model(images, {name: values(name) for name in names})


@pytest.fixture
def cache(tmp_path):
    """The cache of a network that gives "one" and "two"; it is empty."""
    return FeatureCache(tmp_path / "cache", build_network("one", "two"))


@pytest.fixture
def data():
    """70 training, 20 validation and 30 test images: 4, 1 and 2 files, of 140 images."""
    return load(train_size=70, validation_size=20, test_size=30)


@pytest.fixture
def fill(open_run, data):
    """Fills a cache with what it has of these images; gives the rate."""

    def fill_it(cache, of=data):
        progress = Progress("Features", open_run.wandb_run)
        cache.fill(of.splits.values(), progress)
        return progress.rate

    return fill_it


def read(cache, split, names):
    """The named features, side by side."""
    return feature_cache.read_copies({"": cache}, split, names)


def test_pooled_are_averages_and_maxima():
    values = np.random.default_rng(0).normal(size=(5, 4, 4, 6)).astype("float32")
    pooled = feature_cache.pool(keras.ops.convert_to_tensor(values))
    assert pooled.keys() == {"avg", "max", "3x3", "4x4"}
    np.testing.assert_allclose(pooled["avg"], values.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled["max"], values.max(axis=(1, 2)))


@pytest.mark.parametrize("fields", [3, 4])
@pytest.mark.parametrize("side", [4, 7, 14, 28])
def test_grid_is_of_averages_over_its_fields(side, fields):
    """Row by row; all positions are in a field, and fields overlap where they must."""
    values = np.random.default_rng(0).normal(size=(5, side, side, 6)).astype("float32")
    pooled = feature_cache.pool(keras.ops.convert_to_tensor(values))[f"{fields}x{fields}"]
    step = side // fields
    parts = [slice(i * step, i * step + side - (fields - 1) * step) for i in range(fields)]
    assert set().union(*(range(side)[part] for part in parts)) == set(range(side))
    expected = [values[:, y, x].mean(axis=(1, 2)) for y in parts for x in parts]
    assert pooled.shape[1] == fields * fields * 6
    np.testing.assert_allclose(pooled, np.hstack(expected), rtol=1e-5, atol=1e-6)


def test_float16_of_what_is_out_of_its_range_is_its_largest_number():
    values = keras.ops.convert_to_tensor([1e6, -1e6, 65504, 0.1, 1e-9])
    halves = keras.ops.convert_to_numpy(feature_cache.to_float16(values))
    assert halves.dtype == np.float16
    assert halves.tolist() == [65504, -65504, 65504, np.float16(0.1), 0]


def test_cache_gives_what_the_network_does(fill, cache, data):
    assert fill(cache) > 0
    for split in data.splits.values():
        expected = cache.network.predict(split.images, verbose=0)
        for names in ("one",), ("two", "one"):
            values = read(cache, split, names)
            assert values.dtype == np.float16
            np.testing.assert_array_equal(values, np.hstack([expected[name] for name in names]))
    assert fill(cache) is None  # nothing was to be done


def test_copies_are_read_below_each_other(fill, cache, data, tmp_path):
    """Each under names of its own, in the file that has the others' features."""
    images = keras.Input((28, 28), dtype="uint8")
    negative = {f"{name}_copy": -values for name, values in cache.network(images).items()}
    other = feature_cache.FeatureCache(cache.folder, keras.Model(images, negative))
    fill(cache), fill(other)
    both = feature_cache.read_copies({"": cache, "_copy": other}, data.train, ("two", "one"))
    alone = read(cache, data.train, ("two", "one"))
    np.testing.assert_array_equal(both, np.concatenate([alone, -alone]))


def test_file_holds_whole_steps_and_reading_gives_only_the_images_in_use(fill, cache, data):
    fill(cache)
    assert len(contents(cache.folder)) == 4 + 1 + 2
    with np.load(cache.path(data.train, 60)) as file:  # of 70
        assert {name: file[name].shape for name in file} == {"one": (20, 3), "two": (20, 3)}
    chunk = cache.read_chunk(data.train, 60)
    assert {name: values.shape for name, values in chunk.items()} == {
        "one": (10, 3),
        "two": (10, 3),
    }
    assert read(cache, data.train, ("one",)).shape == (70, 3)


def test_cache_holds_for_subsets_and_grows(fill, cache, capsys):
    fill(cache)
    before = contents(cache.folder)
    capsys.readouterr()
    fill(cache, load(train_size=30, validation_size=20, test_size=10))
    assert capsys.readouterr().out.endswith(f"\nFeatures: all in {cache.folder}\n")
    assert contents(cache.folder) == before
    fill(cache, load(train_size=90, validation_size=20, test_size=10))
    assert "extracting 20 images" in capsys.readouterr().out
    after = contents(cache.folder)
    assert len(after) == 1 + len(before) and before.items() <= after.items()


def test_pass_adds_its_features_to_those_that_are_there(fill, cache, data, capsys):
    """In whatever order the passes come, the files are the same in the end."""
    folder = cache.folder
    fill(FeatureCache(folder, build_network("two", "three")))
    one_pass = contents(folder)
    capsys.readouterr()
    fill(FeatureCache(folder, build_network("two", "one")))
    assert "extracting 140 images" in capsys.readouterr().out
    both = contents(folder)
    assert both.keys() == one_pass.keys() and not both.items() & one_pass.items()
    for names in ("two", "three"), ("one",), ("one", "two"):
        fill(FeatureCache(folder, build_network(*names)))
        assert "Features: all in" in capsys.readouterr().out
    assert contents(folder) == both
    other = FeatureCache(folder.with_name("other"), build_network("one", "two", "three"))
    fill(other)
    assert contents(other.folder) == both
    # What a cache gives is what its own network has.
    assert cache.read_chunk(data.train, 0).keys() == {"one", "two"}


def test_features_that_are_no_numbers_are_an_error_and_not_kept(fill, tmp_path):
    """As those of a network whose activations float16 cannot hold."""
    images = keras.Input((28, 28), dtype="uint8")
    largest = keras.ops.max(keras.ops.cast(images, "float32"), axis=(1, 2))
    infinite = largest[:, None] * float("inf")
    cache = FeatureCache(tmp_path / "nan", keras.Model(images, {"one": infinite - infinite}))
    message = "the network makes no numbers of some images: features are NaN; try --precision"
    with pytest.raises(common.UserError, match=message):
        fill(cache)
    assert not list(cache.folder.rglob("*.npz"))


def test_what_a_killed_run_leaves_is_gone_on_with(fill, cache, data, capsys):
    fill(cache)
    whole = contents(cache.folder)
    missing = [cache.path(data.train, 20), cache.path(data.test, 0)]
    for path in missing:
        path.unlink()
    # What such a run was writing.
    unfinished = missing[0].parent / ".incomplete-x" / missing[0].name
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"half")
    capsys.readouterr()
    fill(cache)
    assert "extracting 40 images" in capsys.readouterr().out
    unfinished.unlink()
    assert contents(cache.folder) == whole


def test_what_another_process_makes_meanwhile_is_not_made_again(fill, cache, monkeypatch):
    other = FeatureCache(cache.folder.with_name("other"), cache.network)
    fill(other)
    whole = contents(other.folder)
    predict, steps = feature_cache.devices.predict_batches, []

    def predict_while_another_fills(model, batches):
        steps.append(len(batches))
        if len(steps) == 2:
            for path in whole:
                (cache.folder / path).parent.mkdir(exist_ok=True)
                (cache.folder / path).write_bytes(whole[path])
        return predict(model, batches)

    monkeypatch.setattr(feature_cache.devices, "predict_batches", predict_while_another_fills)
    fill(cache)
    assert len(steps) == 2
    assert contents(cache.folder) == whole


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[150] ^= 1
    path.write_bytes(content)


def remove_an_image(path):
    with np.load(path) as file:
        np.savez(path, **{name: file[name][:-1] for name in file})


@pytest.mark.parametrize("damage", [flip_a_bit, remove_an_image])
def test_damaged_file_is_computed_anew_with_a_word(damage, fill, cache, data, capsys):
    fill(cache)
    expected, intact = read(cache, data.train, ("one", "two")), contents(cache.folder)
    path = cache.path(data.train, 20)
    damage(path)
    capsys.readouterr()
    np.testing.assert_array_equal(read(cache, data.train, ("one", "two")), expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path} is damaged (") and line.endswith(") and computed anew.")
    assert contents(cache.folder) == intact


def test_damage_of_a_feature_costs_none_of_another_network(fill, cache, data, capsys):
    one, two = (FeatureCache(cache.folder, build_network(name)) for name in ("one", "two"))
    fill(one), fill(two)
    intact, path = contents(cache.folder), cache.path(data.train, 20)
    flip_a_bit(path)  # of the first feature
    capsys.readouterr()
    read(one, data.train, ("one",)), read(two, data.train, ("two",))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path} is damaged (")
    assert contents(cache.folder) == intact


def test_truncated_file_is_computed_anew_by_the_pass(fill, cache, data, capsys):
    fill(cache)
    intact = contents(cache.folder)
    path = cache.path(data.train, 0)
    path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    fill(cache)
    assert "extracting 20 images" in capsys.readouterr().out
    assert contents(cache.folder) == intact


def test_disk_without_room_is_an_error_before_the_work(fill, cache, monkeypatch):
    free = SimpleNamespace(free=1679)  # of 140 images, 2 · 3 float16 each: 1680 bytes
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(
        common.UserError,
        match=r"^Features of 140 images take 0 MB, but .* has only 0 MB left: use another --cache",
    ):
        fill(cache)
    assert not contents(cache.folder)
    free.free = 1680
    assert fill(cache) > 0
    free.free = 839  # of what is there already, no more is needed
    more = FeatureCache(cache.folder, build_network("one", "two", "three"))
    with pytest.raises(common.UserError, match=r"^Features of 140 images take 0 MB"):
        fill(more)
    free.free = 840
    assert fill(more) > 0


def test_folder_that_cannot_be_is_an_error(fill, cache):
    cache.folder.touch()
    with pytest.raises(common.UserError, match=r"^--cache-dir: "):
        fill(cache)


def test_folder_that_cannot_be_written_to_is_an_error(fill, cache, data):
    cache.folder.mkdir()
    (cache.folder / data.train.digest[:16]).touch()  # where its folder would be
    with pytest.raises(common.UserError, match=r"^--cache-dir: "):
        fill(cache)
