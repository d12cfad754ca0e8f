"""Picture files as images, and the cache that holds them."""

from fashion.datasets import preprocessing
from fashion.datasets.image_cache import PictureCache, listed, read_pictures

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path, sample):
    """Three pictures of two classes, one of them in a folder within its class's."""
    for place, image in zip(
        ("a/1.png", "b/2.png", "b/more/3.PNG"), sample.test.images, strict=False
    ):
        path = tmp_path / "pictures" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def read(folder, tmp_path):
    cache = PictureCache(tmp_path / "cache")
    return lambda: read_pictures(folder, [folder / "a", folder / "b"], cache)


def test_pictures_have_their_folders_labels_and_names(read, folder):
    pictures = read()
    assert pictures.files == ("a/1.png", "b/2.png", "b/more/3.PNG")
    assert pictures.labels.tolist() == [0, 1, 1]
    for image, name in zip(pictures.images, pictures.files, strict=True):
        expected = preprocessing.to_fashion_mnist(preprocessing.read(folder / name))
        np.testing.assert_array_equal(image, expected)


def test_rows_and_what_comes_after_them(read):
    pictures = read()
    last, first = pictures.rows(np.array([False, False, True])), pictures.rows(np.arange(3) == 0)
    both = last.and_then(first)
    assert both.files == ("b/more/3.PNG", "a/1.png") and both.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(both.images, pictures.images[[2, 0]])
    assert both.digests("x") != pictures.rows(np.arange(3) != 1).digests("x")  # the order counts


def test_kept_pictures_are_not_prepared_again_unless_damaged(read, tmp_path, monkeypatch):
    pictures = read()
    kept = sorted((tmp_path / "cache").rglob("*.png"))
    assert len(kept) == 3
    kept[0].write_bytes(b"damaged")
    prepared, prepare = [], preprocessing.to_fashion_mnist
    monkeypatch.setattr(
        preprocessing, "to_fashion_mnist", lambda image: prepared.append(1) or prepare(image)
    )
    np.testing.assert_array_equal(read().images, pictures.images)
    assert len(prepared) == 1


def test_names_are_listed_in_order():
    assert listed({"b", "a", "c"}) == "a, b, c"
