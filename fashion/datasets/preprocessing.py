"""Preprocessing of photos to Fashion-MNIST's format: light garment on black, gray, 28×28.

The steps follow those of the data set's authors (Xiao, Rasul, Vollgraf 2017, section 2), without
sharpening; only images with a light background are inverted. Image folders and `--predict` use the
same steps.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import SAMPLEFORMAT, TiffImageFile

PREPROCESSING_VERSION = 4  # raise it if the resulting pixels change: it keys the image cache
IMAGE_SIZE = 28
MAX_WORKING_SIZE = 1024  # pixels; more would only take time
BACKGROUND_TOLERANCE = 0.05 * 255  # the authors trim edges that differ less from the background


def load_image(path: Path) -> Image.Image:
    """Load an image as RGB, 8 bits, upright, at most `MAX_WORKING_SIZE` pixels wide and high.

    Raises:
        OSError: If the file does not exist, or is damaged.
        ValueError: If Pillow does not know its format, or it has more pixels than Pillow's limit,
            89 million.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on metadata, without the name of the file
        # Up to twice the limit, Pillow only warns, and even a small file can have that many pixels.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            file = Image.open(path)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ValueError("it has more than 89 million pixels; make it smaller") from None
        except UnidentifiedImageError:
            raise ValueError(
                "Pillow does not know its format; if it is an image, convert it to JPEG or PNG"
            ) from None
        with file:
            file.load()
            try:
                image = ImageOps.exif_transpose(file)
            except Exception:  # damaged metadata; Pillow raises many types
                image = file.copy()
    if image.mode[0] in "IF":  # more than 8 bits, which Pillow would clip to 255
        values = np.asarray(image)
        if isinstance(file, TiffImageFile) and file.tag_v2.get(SAMPLEFORMAT, (1,)) == (1,):
            values = values.view(values.dtype.str.replace("i", "u"))  # Pillow reads them as signed
        image = Image.fromarray(scale_to_8_bits(values))
    image.thumbnail((MAX_WORKING_SIZE, MAX_WORKING_SIZE))
    if image.has_transparency_data:
        # Transparent pixels become white, the background of catalog photos, or black if most of
        # the garment itself is white.
        image = image.convert("RGBA")
        opaque = np.asarray(image.convert("L"))[np.asarray(image.getchannel("A")) > 127]
        is_white = opaque.size and np.median(opaque) >= 255 - BACKGROUND_TOLERANCE
        background = Image.new("RGBA", image.size, "black" if is_white else "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def scale_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale gray values of any range, (height, width), to uint8.

    Black is 0, or the smallest value if that is negative. White is 1 for fractions, some of which
    may be slightly larger, else the largest value of the smallest bit depth that fits: 8, 10, 12,
    14, 15, 16, 31 or 32 bits.
    """
    is_float = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype("float64"), posinf=0, neginf=0)
    black, largest = min(float(values.min()), 0.0), float(values.max())
    if is_float and largest < 2:
        white = 1.0
    else:
        whites = (*(2.0**bits - 1 for bits in (8, 10, 12, 14, 15, 16, 31, 32)), largest)
        white = next(white for white in whites if white >= largest)
    return ((values - black) * (255 / (white - black))).clip(0, 255).astype("uint8")


def preprocess_image(image: Image.Image) -> np.ndarray:
    """Convert an RGB image to uint8 (28, 28), a light garment on black.

    Raises:
        ValueError: If no pixel differs from the background.
    """
    gray = np.asarray(image.convert("L"), "float32")
    return center_on_canvas(resize_to_fit(crop(darken_background(gray))))


def background_level(gray: np.ndarray) -> float:
    """Return the gray level of the background, the median of the border pixels, in [0, 255]."""
    border = gray[0], gray[-1], gray[:, 0], gray[:, -1]
    return float(np.median(np.concatenate(border)))


def darken_background(gray: np.ndarray) -> np.ndarray:
    """Invert an image with a light background, and make the background black."""
    if background_level(gray) > 127:  # the authors invert all images: their photos are on white
        gray = 255 - gray
    level = background_level(gray)
    return np.clip(gray - level, 0, None) * (255 / (255 - level))


def crop(gray: np.ndarray) -> np.ndarray:
    """Trim edges that are as dark as the background.

    Raises:
        ValueError: If nothing is left.
    """
    garment = gray > BACKGROUND_TOLERANCE
    if not garment.any():
        raise ValueError("nothing differs from the background")
    rows, columns = np.flatnonzero(garment.any(axis=1)), np.flatnonzero(garment.any(axis=0))
    return gray[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def resize_to_fit(gray: np.ndarray) -> np.ndarray:
    """Scale the longer side to 28 pixels, keeping the aspect ratio."""
    height, width = gray.shape
    scale = IMAGE_SIZE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(gray).resize(size, Image.Resampling.BOX))


def center_on_canvas(gray: np.ndarray) -> np.ndarray:
    """Center an image, float (height, width) of at most 28, on black: uint8 (28, 28)."""
    height, width = gray.shape
    canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE), "uint8")
    top, left = (IMAGE_SIZE - height) // 2, (IMAGE_SIZE - width) // 2
    canvas[top : top + height, left : left + width] = gray.clip(0, 255).round()
    return canvas
