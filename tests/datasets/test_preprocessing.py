"""What becomes of pictures of many kinds."""

from fashion.datasets import preprocessing

import numpy as np
from PIL import Image, ImageOps


def shape(width=30, height=20):
    """A dark rectangle on white, with a light corner at its upper left."""
    picture = np.full((100, 120), 255, "uint8")
    picture[40 : 40 + height, 50 : 50 + width] = 50
    picture[40 : 40 + height // 2, 50 : 50 + width // 2] = 155
    return picture


# What `shape` becomes: 28 wide, 19 high (28 · 20 / 30 = 18.7), in the middle.
EXPECTED = np.zeros((28, 28))
EXPECTED[4:23] = 205
EXPECTED[4:13, :14] = 100
# A row between the two halves, and at the corner's edge.
SURE = np.ones((28, 28), bool)
SURE[13] = SURE[12] = SURE[22] = SURE[4] = False


def check(picture_or_path):
    image = preprocessing.to_fashion_mnist(preprocessing.read(picture_or_path))
    assert image.shape == (28, 28) and image.dtype == np.uint8
    assert np.abs(image - EXPECTED)[SURE].max() <= 12  # of 255: JPEG's, and palettes'


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


def test_kinds_of_pictures_become_the_same(tmp_path):
    gray = Image.fromarray(shape())
    wide = np.asarray(gray).astype("uint16") * 257
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90° clockwise
    transparent = gray.convert("RGBA")
    pixels = np.array(transparent)
    pixels[pixels[..., 0] == 255] = 0  # black, and transparent
    white = np.full((*gray.size[::-1], 4), 255, "uint8")
    white[..., 3] = np.where(shape() == 255, 0, 255)
    colour = Image.merge("RGB", [gray] * 3)
    for path in (
        saved(tmp_path / "gray.png", gray),
        saved(tmp_path / "black.png", ImageOps.invert(gray)),
        saved(tmp_path / "sixteen.png", Image.fromarray(wide)),
        saved(tmp_path / "palette.gif", gray.convert("P")),
        saved(tmp_path / "alpha.png", Image.fromarray(pixels)),
        saved(tmp_path / "cmyk.jpg", colour.convert("CMYK"), quality=95),
        saved(tmp_path / "bits.tiff", Image.fromarray(wide.astype("int32"))),
        saved(tmp_path / "float.tiff", Image.fromarray(shape().astype("float32") / 255)),
        saved(
            tmp_path / "turned.jpg",
            colour.transpose(Image.Transpose.ROTATE_90),
            **{"exif": turned, "quality": 95},
        ),
    ):
        check(path)
    path = saved(tmp_path / "white.png", Image.fromarray(white))
    image = preprocessing.to_fashion_mnist(preprocessing.read(path))
    assert np.array_equal(image[SURE], 255 * (EXPECTED > 0)[SURE])
    y, x = (coordinates[len(coordinates) // 2] for coordinates in np.nonzero(white[..., 3]))
    white[y, x, :3] = 90  # a button
    button = saved(tmp_path / "button.png", Image.fromarray(white))
    seen = preprocessing.to_fashion_mnist(preprocessing.read(button))
    assert np.mean(seen != image) < 0.01


def test_an_image_of_the_data_set_stays_nearly_as_it_is(tmp_path, sample):
    changes = []
    for image in sample.test.images[:50]:
        path = saved(tmp_path / "image.png", Image.fromarray(image))
        ours = preprocessing.to_fashion_mnist(preprocessing.read(path))
        changes.append(np.abs(ours - image.astype(int)))
    assert np.median(np.mean(changes, axis=(1, 2))) < 3
