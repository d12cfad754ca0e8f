"""Preprocessing of images of many kinds."""

import struct
import zlib

from fashion.datasets import preprocessing

import numpy as np
import pytest
from helpers.photos import draw_garment, save_image
from PIL import Image, ImageOps

# The preprocessed garment: 28 wide, 19 high (28 · 20 / 30 = 18.7), centered.
EXPECTED = np.zeros((28, 28))
EXPECTED[4:23] = 205
EXPECTED[4:13, :14] = 100
# Pixels that are not on an edge, where values are interpolated.
INNER = np.ones((28, 28), bool)
INNER[13] = INNER[12] = INNER[22] = INNER[4] = False


def check(path):
    image = preprocessing.preprocess_image(preprocessing.load_image(path))
    assert image.shape == (28, 28) and image.dtype == np.uint8
    assert np.abs(image - EXPECTED)[INNER].max() <= 12  # of 255: errors of JPEG and palettes


def test_images_of_all_kinds_give_equal_results(tmp_path):
    gray = Image.fromarray(draw_garment())
    wide = np.asarray(gray).astype("uint16") * 257
    turned = Image.Exif()
    turned[0x0112] = 6  # rotate by 90° clockwise
    transparent = gray.convert("RGBA")
    pixels = np.array(transparent)
    pixels[pixels[..., 0] == 255] = 0  # black and transparent
    white = np.full((*gray.size[::-1], 4), 255, "uint8")
    white[..., 3] = np.where(draw_garment() == 255, 0, 255)
    color = Image.merge("RGB", [gray] * 3)
    for path in (
        save_image(tmp_path / "gray.png", gray),
        save_image(tmp_path / "black.png", ImageOps.invert(gray)),
        save_image(tmp_path / "sixteen.png", Image.fromarray(wide)),
        save_image(tmp_path / "palette.gif", gray.convert("P")),
        save_image(tmp_path / "alpha.png", Image.fromarray(pixels)),
        save_image(tmp_path / "cmyk.jpg", color.convert("CMYK"), quality=95),
        save_image(tmp_path / "bits.tiff", Image.fromarray(wide.astype("int32"))),
        save_image(
            tmp_path / "float.tiff", Image.fromarray(draw_garment().astype("float32") / 255)
        ),
        save_image(
            tmp_path / "turned.jpg",
            color.transpose(Image.Transpose.ROTATE_90),
            **{"exif": turned, "quality": 95},
        ),
    ):
        check(path)
    # A TIFF file of unsigned numbers, which Pillow cannot write: SampleFormat 1 instead of 2.
    unsigned = Image.fromarray((draw_garment().astype("uint32") << 24).view("int32"))
    content = save_image(tmp_path / "signed.tiff", unsigned).read_bytes()
    entry = struct.pack("<HHI", 339, 3, 1)
    assert content.count(entry) == 1
    (tmp_path / "unsigned.tiff").write_bytes(content.replace(entry + b"\2", entry + b"\1"))
    check(tmp_path / "unsigned.tiff")
    path = save_image(tmp_path / "white.png", Image.fromarray(white))
    image = preprocessing.preprocess_image(preprocessing.load_image(path))
    assert np.array_equal(image[INNER], 255 * (EXPECTED > 0)[INNER])
    y, x = (coordinates[len(coordinates) // 2] for coordinates in np.nonzero(white[..., 3]))
    white[y, x, :3] = 90  # a button
    button = save_image(tmp_path / "button.png", Image.fromarray(white))
    with_button = preprocessing.preprocess_image(preprocessing.load_image(button))
    assert np.mean(with_button != image) < 0.01


def test_images_of_the_data_set_hardly_change(tmp_path, sample):
    changes = []
    for image in sample.test.images[:50]:
        path = save_image(tmp_path / "image.png", Image.fromarray(image))
        result = preprocessing.preprocess_image(preprocessing.load_image(path))
        changes.append(np.abs(result - image.astype(int)))
    assert np.median(np.mean(changes, axis=(1, 2))) < 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 4000]], "uint16"), [[0, 249]]),  # 12 bits in 16
        (np.array([[0, 65535]], "uint16"), [[0, 255]]),
        (np.array([[0, 200]], "uint16"), [[0, 200]]),
        (np.array([[0, 1000]], "int32"), [[0, 249]]),  # 10 bits
        (np.array([[0, 2**31 - 1]], "int32"), [[0, 255]]),
        (np.array([[0, 2**15 - 1]], "uint16"), [[0, 255]]),  # signed 16 bits
        (np.array([[0, 2**32 - 1]], "uint32"), [[0, 255]]),
        (np.array([[0, 0.5, 1.2]], "float32"), [[0, 127, 255]]),  # resampling overshoots
        (np.array([[-1000, 0, 1023]], "int32"), [[0, 126, 255]]),
        (np.array([[0, 0.5, 1]], "float32"), [[0, 127, 255]]),
        (np.array([[0, 200.0]], "float32"), [[0, 200]]),
        (np.array([[0, np.nan, 1]], "float32"), [[0, 0, 255]]),
    ],
)
def test_scale_to_8_bits_finds_the_range(values, expected):
    scaled = preprocessing.scale_to_8_bits(values)
    assert scaled.dtype == np.uint8
    np.testing.assert_array_equal(scaled, expected)


def test_twelve_bits_in_a_16_bit_file_give_the_image_of_8_bits(tmp_path):
    gray = np.full((100, 120), 250, "uint8")
    gray[26:74, 30:90] = 60
    results = []
    for name, image in ("8.png", gray), ("12.png", gray.astype("uint16") * 16):
        Image.fromarray(image).save(tmp_path / name)
        results.append(preprocessing.preprocess_image(preprocessing.load_image(tmp_path / name)))
    np.testing.assert_allclose(*(result.astype(int) for result in results), atol=2)


def test_file_of_another_kind_is_named_as_such(tmp_path):
    """Such as a HEIC file with the extension .jpg, or an error page of a server."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(ValueError, match=r"Pillow does not know its format; .*convert it to JPEG"):
        preprocessing.load_image(path)


def test_damaged_metadata_do_not_matter(tmp_path):
    """An orientation tag whose value is missing."""
    gray = np.full((40, 40), 250, "uint8")
    gray[10:30, 15:25] = 60
    path, damaged = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(gray).save(path)
    content, exif = path.read_bytes(), b"eXIf" + b"\x00\x08\x00\x02\x01\x12\x00\x03"
    chunk = struct.pack(">I", len(exif) - 4) + exif + struct.pack(">I", zlib.crc32(exif))
    damaged.write_bytes(content[:33] + chunk + content[33:])
    images = [preprocessing.load_image(p) for p in (path, damaged)]
    np.testing.assert_array_equal(*images)
