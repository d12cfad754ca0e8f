"""The feature cache: contents, growth, damaged files, full disks, several processes."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from fashion.backbones import feature_cache
from fashion.backbones.feature_cache import FeatureCache
from fashion.datasets.splits import Split
from fashion.errors import UserError

import numpy as np
import pytest
from helpers.scripts import directory_contents, file_size_limit

pytestmark = pytest.mark.usefixtures("small_chunks")


class Extractor:
    """A stand-in for a Keras model; records the number of images of each call.

    A feature is an image's first three pixels times a factor by name.
    """

    FACTORS = {"one": 1, "two": -2, "three": 3}  # noqa: RUF012

    def __init__(self, *names):
        self.output = {name: SimpleNamespace(shape=(None, 3)) for name in names}
        self.steps = []

    def compute(self, images):
        pixels = images[:, 0, :3].astype("float16")
        return {name: pixels * self.FACTORS[name] for name in self.output}

    def predict_on_batch(self, images):
        assert images.flags.c_contiguous
        self.steps.append(len(images))
        return self.compute(images)


def make_split(size, num_images=110):
    images = np.random.default_rng(0).integers(0, 256, (num_images, 28, 28), dtype="uint8")
    zeros = np.zeros(num_images, "int32")
    return Split(images, zeros[:size], np.arange(num_images)[:size], 10)


@pytest.fixture
def split():
    """70 of 110 images: 4 files, the last of which contains 10 images that are not selected."""
    return make_split(70)


@pytest.fixture
def cache(tmp_path):
    """An empty cache that reads the features "two" and "one"."""
    return FeatureCache(tmp_path / "cache", Extractor("one", "two"), ("two", "one"))


def wide_cache(cache, *names):
    """Return a cache in the directory of `cache` whose extractor has one more feature."""
    return FeatureCache(cache.directory, Extractor("one", "two", "three"), names)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("is_stored", [False, True])
def test_features_are_the_outputs_of_the_extractor_for_each_view(
    flip, is_stored, cache, split, capsys, monkeypatch
):
    if not is_stored:
        cache.directory = None
    for num_loads in 1, 2:
        features = cache.load(split, flip)
        assert features.dtype == np.float16 and features.shape == (70, 1 + flip, 6)
        for view, images in enumerate([split.images, split.images[:, :, ::-1]][: 1 + flip]):
            values = cache.extractor.compute(images)
            np.testing.assert_array_equal(
                features[:, view], np.hstack([values["two"], values["one"]])
            )
        assert cache.extractor.steps == [20] * 4 * (1 + flip) * (1 if is_stored else num_loads)
        monkeypatch.setattr(feature_cache.files, "staging_dir", None)  # as another user's cache
    out = capsys.readouterr().out
    assert f"extracting {80 * (1 + flip)} images" in out or not is_stored
    assert out.count("Features: all cached in ") == is_stored


def test_files_contain_complete_chunks_in_numpy_format(cache, split):
    cache.load(split, flip=True)
    paths = [path for path in cache.directory.rglob("*") if path.is_file()]
    assert {path.name for path in paths} == {
        f"{start:06}-{name}{view}.npy"
        for start in range(0, 80, 20)
        for name in ("one", "two")
        for view in ("", "-flipped")
    }
    (path,) = cache.directory.rglob("000060-one.npy")  # 10 of 20 images are selected
    np.testing.assert_array_equal(np.load(path), split.all_images[60:80, 0, :3])
    assert path.parent.name == split.images_sha256[:16]
    # Shared as the umask permits.
    (cache.directory / "directory").mkdir()
    (cache.directory / "file").touch()
    assert path.parent.stat().st_mode == (cache.directory / "directory").stat().st_mode
    assert {path.stat().st_mode for path in paths} == {(cache.directory / "file").stat().st_mode}


def test_cache_is_reused_for_subsets_and_grows(cache, split, capsys):
    cache.load(split, flip=False)
    before = directory_contents(cache.directory)
    capsys.readouterr()
    cache.load(make_split(30), flip=False)
    out = capsys.readouterr().out
    assert out == f"Features: all cached in {cache.directory} (30 images)\n"
    assert directory_contents(cache.directory) == before
    cache.load(make_split(110), flip=False)
    assert "Features: extracting 30 images" in capsys.readouterr().out
    assert cache.extractor.steps[4:] in ([20, 10], [10, 20])
    after = directory_contents(cache.directory)
    assert len(after) == 4 + len(before) and before.items() <= after.items()
    cache.load(split, flip=True)  # only the flips are missing
    assert "Features: extracting 80 images" in capsys.readouterr().out
    # An interrupted run may have written a part of a chunk.
    complete = directory_contents(cache.directory)
    (path,) = cache.directory.rglob("000020-one.npy")
    path.unlink()
    cache.load(split, flip=False)
    assert "Features: extracting 20 images" in capsys.readouterr().out
    assert directory_contents(cache.directory) == complete


def test_only_missing_features_are_written(cache, split, capsys):
    cache.load(split, flip=False)
    before = {path: path.stat().st_ino for path in cache.directory.rglob("*.npy")}
    wide_cache(cache, "two", "three").load(split, flip=False)
    after = {path: path.stat().st_ino for path in cache.directory.rglob("*.npy")}
    assert len(after) == 12 and before.items() <= after.items()
    # Another feature of the extractor need not exist if it is not read.
    next(cache.directory.rglob("*-three.npy")).unlink()
    one = wide_cache(cache, "one")
    one.load(split, flip=False)
    assert not one.extractor.steps


def test_features_that_are_read_are_written_last(cache, split, monkeypatch):
    """If they exist, the chunk is complete, also after a kill."""
    names = []
    monkeypatch.setattr(feature_cache, "_write", lambda path, values: names.append(path.stem))
    wide_cache(cache, "one").load(split, flip=False)
    assert [name.endswith("-one") for name in names] == [False, False, True] * 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_raise_and_are_not_cached(value, cache, split, monkeypatch):
    monkeypatch.setattr(Extractor, "FACTORS", {"one": value, "two": 1})
    message = "^features of some images are not finite; try --precision float32 or other --weights"
    with pytest.raises(UserError, match=message), np.errstate(invalid="ignore"):
        cache.load(split, flip=False)
    assert not directory_contents(cache.directory)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:150] + bytes([content[150] ^ 1]) + content[151:],
        lambda content: content[:-100],
        lambda content: b"",
        lambda content: content.replace(b"(20, 3)", b"(19, 3)"),
    ],
    ids=["bit", "truncated", "empty", "shape"],
)
def test_damaged_file_is_recomputed_with_warning(damage, cache, split, capsys):
    expected = cache.load(split, flip=False)
    intact = directory_contents(cache.directory)
    (path,) = cache.directory.rglob("000020-one.npy")
    path.write_bytes(damage(path.read_bytes()))
    assert directory_contents(cache.directory) != intact
    np.testing.assert_array_equal(cache.load(split, flip=False), expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path} is damaged (") and line.endswith("); recomputing it.")
    assert directory_contents(cache.directory) == intact
    assert len(cache.extractor.steps) == 5


def test_processes_that_start_together_share_the_work(tmp_path):
    class SlowExtractor(Extractor):
        def compute(self, images):
            time.sleep(0.02)
            return super().compute(images)

    split = make_split(800, 800)  # 40 chunks
    caches = [FeatureCache(tmp_path / "both", SlowExtractor("one"), ("one",)) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda cache: cache.load(split, flip=False), caches))
    assert sum(len(cache.extractor.steps) for cache in caches) < 60
    alone = FeatureCache(tmp_path / "alone", Extractor("one"), ("one",)).load(split, flip=False)
    for features in results:
        np.testing.assert_array_equal(features, alone)
    assert directory_contents(tmp_path / "both") == directory_contents(tmp_path / "alone")


def test_rate_counts_computed_images_without_the_first_chunk(cache, split, monkeypatch):
    times = iter([0, 100, 200, 202, 300, 302, 400, 402])
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(feature_cache, "time", clock)
    logged = []
    cache.log = logged.append
    for part in make_split(40), split:  # the second one is partly cached
        cache.load(part, flip=False)
    assert [row["features/images"] for row in logged] == [20, 40, 60, 80]
    assert [row["features/seconds"] for row in logged] == [100, 102, 104, 106]
    rates = [row.get("features/images_per_second") for row in logged]
    assert rates == [None, 10, 10, 10] and cache.images_per_second == 10


def test_too_small_disk_raises_before_extraction(cache, split, monkeypatch, capsys):
    sizes = []

    def check_disk_space(directory, size, option):
        sizes.append(size)
        if len(sizes) == 1:
            raise UserError(f"{option}: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(feature_cache.files, "check_disk_space", check_disk_space)
    with pytest.raises(UserError, match=r"^--cache-dir: No space left on device"):
        cache.load(split, flip=False)
    assert "Features: extracting 80 images (flips included), 0 MB, to " in capsys.readouterr().out
    assert not cache.extractor.steps and not directory_contents(cache.directory)
    cache.load(split, flip=False)
    wide_cache(cache, "three").load(split, flip=False)
    assert sizes == [960, 960, 480]  # 80 images · 3 float16 values · the missing features


@pytest.mark.parametrize("limit", [50, 180])  # in the header of a file, or in its values
def test_disk_that_is_full_after_the_check_leaves_only_complete_files(
    limit, cache, split, monkeypatch, capsys
):
    monkeypatch.setattr(feature_cache.files, "check_disk_space", lambda *args: None)
    with file_size_limit(limit), pytest.raises(UserError, match=r"^--cache-dir: .*too large"):
        cache.load(split, flip=False)
    assert not directory_contents(cache.directory)
