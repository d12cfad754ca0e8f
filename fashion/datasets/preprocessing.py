"""From one's own picture to what Fashion-MNIST is made of: a light garment on black, gray, 28×28.

The steps are those by which the data set's authors made theirs (Xiao, Rasul, Vollgraf 2017, section
2). Pictures to train on and pictures to classify go through the same.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIDE = 28  # of the data set's images
WORKING_SIDE = 1024  # pixels: more would only take time
CLOSE = 0.05 * 255  # to the background: what the authors trim away


def is_picture(path: Path) -> bool:
    """Whether a file is named like one that Pillow knows."""
    return path.suffix.lower() in Image.registered_extensions()


def read(path: Path) -> Image.Image:
    """A picture as one sees it: RGB, 8 bits, upright, at most `WORKING_SIDE` pixels wide or high.

    Raises:
        OSError: Pillow cannot read it, or it is not there.
        Image.DecompressionBombError: it has more pixels than Pillow's limit, 89 million.
    """
    with warnings.catch_warnings():
        # Pillow only warns of up to twice the limit, and a small file can hold that many.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    if image.mode[0] in "IF":  # 16 or 32 bits: Pillow would cut off what is above 255
        values = np.asarray(image, "float32")
        largest = float(values.max())
        if largest > 255 or (image.mode == "F" and largest <= 1):
            values = values * (255 / (1 if largest <= 1 else max(65535, largest)))
        image = Image.fromarray(values.clip(0, 255).astype("uint8"))
    image.thumbnail((WORKING_SIDE, WORKING_SIDE))
    if image.has_transparency_data:
        # What is transparent becomes white, the background of the catalogue's photos, or black
        # where most of the garment itself is white.
        image = image.convert("RGBA")
        opaque = np.asarray(image.convert("L"))[np.asarray(image.getchannel("A")) > 127]
        white = opaque.size and np.median(opaque) >= 255 - CLOSE
        background = Image.new("RGBA", image.size, "black" if white else "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def to_fashion_mnist(picture: Image.Image) -> np.ndarray:
    """An RGB picture → uint8 (28, 28), a light garment on black.

    Raises:
        ValueError: it shows nothing.
    """
    gray = np.asarray(picture.convert("L"), "float32")
    return centre(fit(crop(darken_background(gray))))


def border_level(gray: np.ndarray) -> float:
    """How light the background is: the median of the outermost pixels, from 0 to 255."""
    border = gray[0], gray[-1], gray[:, 0], gray[:, -1]
    return float(np.median(np.concatenate(border)))


def darken_background(gray: np.ndarray) -> np.ndarray:
    """Inverts a picture with a light background, and makes the background black."""
    if border_level(gray) > 127:  # the authors inverted all: their photos were on white
        gray = 255 - gray
    level = border_level(gray)
    return np.clip(gray - level, 0, None) * (255 / (255 - level))


def crop(gray: np.ndarray) -> np.ndarray:
    """Trims the edges that are as dark as the background: position and distance tell nothing.

    Raises:
        ValueError: nothing is left.
    """
    garment = gray > CLOSE
    if not garment.any():
        raise ValueError("it shows nothing that differs from its border")
    rows, columns = np.flatnonzero(garment.any(axis=1)), np.flatnonzero(garment.any(axis=0))
    return gray[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def fit(gray: np.ndarray) -> np.ndarray:
    """Scales the longer side to 28 pixels, as it is in the data set, and keeps the shape."""
    height, width = gray.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(gray).resize(size, Image.Resampling.BOX))


def centre(gray: np.ndarray) -> np.ndarray:
    """Puts it into the middle of black: float (h, w), the longer 28 → uint8 (28, 28)."""
    height, width = gray.shape
    image = np.zeros((SIDE, SIDE), "uint8")
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    image[top : top + height, left : left + width] = gray.clip(0, 255).round()
    return image
