"""Photos: which files are images, and how images of many kinds are preprocessed."""

import os
import struct
import zlib

from fashion.datasets import photos
from fashion.datasets.photos import find_image_files, load_image, preprocess_image

import numpy as np
import pytest
from helpers.photos import draw_garment, save_image
from PIL import Image, ImageOps


def touch(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()


def test_directories_are_searched_and_hidden_files_and_pipes_skipped(tmp_path, capsys):
    touch(tmp_path, "b.png", "a.JPG", "more/c.png", "more/deep/d.png", "album.png/e.png")
    touch(tmp_path, "._a.JPG", ".DS_Store", ".hidden/f.png", "__MACOSX/g.png", "more/._c.png")
    touch(tmp_path, "Thumbs.db", "more/desktop.ini", "more/@eaDir/c.png/SYNOPHOTO_THUMB_M.jpg")
    os.mkfifo(tmp_path / "pipe.png")
    names = [path.relative_to(tmp_path).as_posix() for path in find_image_files(tmp_path)]
    assert names == ["a.JPG", "album.png/e.png", "b.png", "more/c.png", "more/deep/d.png"]
    assert capsys.readouterr().err == ""


def test_image_files_are_those_that_pillow_opens(tmp_path, capsys):
    images = [f"a.{extension}" for extension in ("JPEG", "bmp", "gif", "jpg", "png", "tif", "webp")]
    # Pillow can write PDF files, and recognizes films, but opens neither.
    others = "1.heic", "more/2.HEIC", "a.pdf", "a.mpg", "a.NEF", "notes", "jpg", "frame.001", "f.2"
    touch(tmp_path, *images, *others)
    assert [path.name for path in find_image_files(tmp_path)] == images
    assert capsys.readouterr().err == (
        f"{tmp_path}: skipped files without an image extension (2 .heic, 1 .mpg, 1 .nef, 1 .pdf, "
        "4 other); if these are images, convert them to JPEG or PNG, or add the right extension\n"
    )


def test_links_are_followed_and_each_directory_is_read_once(tmp_path):
    directory, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    touch(directory, "a.png")
    touch(elsewhere, "b.png", "more/c.png")
    for link, target in (
        ("images/disk", elsewhere),
        ("images/more-again", elsewhere / "more"),
        ("images/self", directory),
        ("images/file.png", elsewhere / "b.png"),
        ("images/up", tmp_path),
        ("elsewhere/more/back", directory),
    ):
        (tmp_path / link).symlink_to(target)
    names = [path.relative_to(directory).as_posix() for path in find_image_files(directory)]
    assert names == ["a.png", "disk/b.png", "disk/more/c.png", "file.png"]


# The preprocessed garment: 28 wide, 19 high (28 · 20 / 30 = 18.7), centered.
EXPECTED = np.zeros((28, 28))
EXPECTED[4:23] = 205
EXPECTED[4:13, :14] = 100
# Pixels that are not on an edge, where values are interpolated.
INNER = np.ones((28, 28), bool)
INNER[13] = INNER[12] = INNER[22] = INNER[4] = False


def check(path):
    image = preprocess_image(load_image(path))
    assert image.shape == (28, 28) and image.dtype == np.uint8
    assert np.abs(image - EXPECTED)[INNER].max() <= 12  # of 255: errors of JPEG and palettes


def test_images_of_all_kinds_give_equal_results(tmp_path):
    garment = draw_garment()
    gray = Image.fromarray(garment)
    turned = Image.Exif()
    turned[0x0112] = 6  # rotate by 90° clockwise
    transparent = np.array(gray.convert("RGBA"))
    transparent[garment == 255] = 0  # black below
    wide = garment.astype("uint16")
    for name, image, options in (
        ("gray.png", gray, {}),
        ("black.png", ImageOps.invert(gray), {}),
        ("twelve.png", Image.fromarray(wide * 16), {}),
        ("sixteen.png", Image.fromarray(wide * 257), {}),
        ("palette.gif", gray.convert("P"), {}),
        ("transparent.png", Image.fromarray(transparent), {}),
        ("cmyk.jpg", gray.convert("CMYK"), {"quality": 95}),
        ("bits.tiff", Image.fromarray((wide * 257).astype("int32")), {}),
        ("float.tiff", Image.fromarray(garment.astype("float32") * (2000 / 255)), {}),
        ("fraction.tiff", Image.fromarray(garment.astype("float32") / 255), {}),
        ("turned.jpg", gray.transpose(Image.Transpose.ROTATE_90), {"exif": turned, "quality": 95}),
    ):
        check(save_image(tmp_path / name, image, **options))
    # A TIFF file of unsigned numbers, which Pillow cannot write: SampleFormat 1 instead of 2.
    unsigned = Image.fromarray((garment.astype("uint32") << 24).view("int32"))
    content = save_image(tmp_path / "signed.tiff", unsigned).read_bytes()
    entry = struct.pack("<HHI", 339, 3, 1)
    assert content.count(entry) == 1
    (tmp_path / "unsigned.tiff").write_bytes(content.replace(entry + b"\2", entry + b"\1"))
    check(tmp_path / "unsigned.tiff")


def test_transparent_pixels_of_a_white_garment_become_black(tmp_path):
    white = np.full((100, 120, 4), 255, "uint8")
    white[..., 3] = np.where(draw_garment() == 255, 0, 255)
    image = preprocess_image(load_image(save_image(tmp_path / "a.png", Image.fromarray(white))))
    assert np.array_equal(image[INNER], 255 * (EXPECTED > 0)[INNER])
    white[50, 65, :3] = 90  # a button
    button = preprocess_image(load_image(save_image(tmp_path / "b.png", Image.fromarray(white))))
    assert 0 < np.mean(button != image) < 0.01


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("int32", [0, 1000], [0, 249]),  # 10 bits
        ("float32", [0, 200.0], [0, 200]),
        ("uint16", [0, 2**15 - 1], [0, 255]),  # signed 16 bits
        ("uint32", [0, 2**32 - 1], [0, 255]),
        ("float32", [0, 0.5, 1.2], [0, 127, 255]),  # resampling overshoots
        ("int32", [-1000, 0, 1023], [0, 126, 255]),
        ("float32", [0, np.nan, 1], [0, 0, 255]),
    ],
)
def test_scale_to_8_bits_finds_the_range(dtype, values, expected):
    scaled = photos.scale_to_8_bits(np.array([values], dtype))
    assert scaled.dtype == np.uint8
    np.testing.assert_array_equal(scaled, [expected])


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


LARGE_TEXT = zlib.compress(bytes(2_000_000))
EXIF = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)  # orientation 6


@pytest.mark.parametrize(
    ("extension", "metadata"),
    [
        ("png", png_chunk(b"zTXt", b"parameters\0\0" + LARGE_TEXT)),
        ("png", png_chunk(b"pHYs", b"\0\0\1")),  # truncated
        ("png", png_chunk(b"tEXt", b"Title\0x")[:-1] + b"?"),  # a wrong checksum
        ("png", png_chunk(b"tRNS", b"\0")),
        ("jpg", b"\xff\xe0\x00\x06JFIF"),
        ("jpg", b"\xff\xfe\x00\x04hi\xff\xe2\x00\x0eICC_PROFILE\0"),  # after a comment
        ("jpg", b"\xff\xee\x00\x07Adobe"),
        ("jpg", b"\xff\xed\x00\x16Photoshop 3.0\x008BIM\x04\x04"),
    ],
)
def test_damaged_or_large_metadata_do_not_matter_and_the_orientation_stays(
    extension, metadata, tmp_path
):
    turned = Image.fromarray(draw_garment()).transpose(Image.Transpose.ROTATE_90)
    path = save_image(tmp_path / f"a.{extension}", turned, quality=95)
    content, start = path.read_bytes(), {"png": 33, "jpg": 2}[extension]  # after the header
    exif = {"png": png_chunk(b"eXIf", EXIF), "jpg": b"\xff\xe1\x00\x22Exif\0\0" + EXIF}[extension]
    path.write_bytes(content[:start] + metadata + exif + content[start:])
    check(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError):
        load_image(path)


def test_damaged_orientation_does_not_matter(tmp_path):
    path = save_image(tmp_path / "a.png", Image.fromarray(draw_garment()))
    content, chunk = path.read_bytes(), png_chunk(b"eXIf", b"\x00\x08\x00\x02\x01\x12\x00\x03")
    for damaged in chunk, png_chunk(b"eXIf", EXIF)[:-1] + b"?":  # a wrong checksum
        path.write_bytes(content[:33] + damaged + content[33:])
        check(path)


def test_git_lfs_pointer_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    with pytest.raises(ValueError, match=r"^this is a pointer of Git LFS"):
        load_image(tmp_path / "a.jpg")
