"""Loading of image files, and the cache of preprocessed images."""

from fashion.datasets import image_cache, preprocessing
from fashion.datasets.image_cache import ImageCache, load_images

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def directory(tmp_path, sample):
    """Three images of two classes, one of them in a subdirectory of its class."""
    names = "a/1.png", "b/2.png", "b/more/3.PNG"
    for name, image in zip(names, sample.test.images, strict=False):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


@pytest.fixture
def load(directory, tmp_path):
    cache = ImageCache(tmp_path / "cache")
    return lambda: load_images(directory, [directory / "a", directory / "b"], cache)


def test_load_images_returns_preprocessed_images_labels_and_names(load, directory):
    loaded = load()
    assert loaded.filenames == ("a/1.png", "b/2.png", "b/more/3.PNG")
    assert loaded.labels.tolist() == [0, 1, 1]
    for image, name in zip(loaded.images, loaded.filenames, strict=True):
        expected = preprocessing.preprocess_image(preprocessing.load_image(directory / name))
        np.testing.assert_array_equal(image, expected)


def test_select_and_concatenate(load):
    loaded = load()
    last, first = loaded.select(np.array([False, False, True])), loaded.select(np.arange(3) == 0)
    both = last.concatenate(first)
    assert both.filenames == ("b/more/3.PNG", "a/1.png") and both.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(both.images, loaded.images[[2, 0]])
    # The checksum depends on the order.
    assert both.sha256("x") != loaded.select(np.arange(3) != 1).sha256("x")


def test_cached_images_are_preprocessed_again_only_if_damaged(load, tmp_path, monkeypatch):
    loaded = load()
    cached_paths = sorted((tmp_path / "cache").rglob("*.png"))
    assert len(cached_paths) == 3
    cached_paths[0].write_bytes(b"damaged")
    calls, preprocess_image = [], preprocessing.preprocess_image
    monkeypatch.setattr(
        preprocessing, "preprocess_image", lambda image: calls.append(1) or preprocess_image(image)
    )
    np.testing.assert_array_equal(load().images, loaded.images)
    assert len(calls) == 1


def test_cache_directory_is_that_of_earlier_releases(tmp_path, monkeypatch):
    """Version 1 has the names of earlier releases, here with two versions of Pillow."""
    monkeypatch.setattr(preprocessing, "PREPROCESSING_VERSION", 1)
    for pillow_version, name in (
        ("10.1.0", "pictures-c431a49a9c926b46"),
        ("12.0.0", "pictures-1abf02e46c25d0c6"),
    ):
        monkeypatch.setattr(image_cache.PIL, "__version__", pillow_version)
        assert ImageCache(tmp_path).directory == tmp_path / name


def test_cache_directory_changes_with_the_version(tmp_path, monkeypatch):
    directories = []
    for version in 1, 2, 3:
        monkeypatch.setattr(preprocessing, "PREPROCESSING_VERSION", version)
        directories.append(ImageCache(tmp_path).directory)
    assert len(set(directories)) == 3
