"""Photos of users, converted to the format of Fashion-MNIST: light garment on black, gray, 28×28.

The steps follow those of the data set's authors (Xiao, Rasul, Vollgraf 2017, section 2), without
sharpening; only images with a light background are inverted. Image folders and `--predict` use the
same steps.
"""

import collections
import io
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from fashion.files import describe_kind

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import SAMPLEFORMAT, TiffImageFile

PREPROCESSING_VERSION = 5  # raise it if the resulting pixels change: it keys the image cache
IMAGE_SIZE = 28
# Application segments of JPEG, except Exif with the orientation and Adobe with the color model.
JPEG_METADATA = set(range(0xE0, 0xF0)) - {0xE1, 0xEE}
MAX_WORKING_SIZE = 1024  # pixels; more would only take time
BACKGROUND_TOLERANCE = 0.05 * 255  # the authors trim edges that differ less from the background
SYSTEM_NAMES = {  # files and directories that operating systems create, in lower case
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "@eadir",
    "#recycle",
    "lost+found",
    "$recycle.bin",
    "system volume information",
}
NOT_DECODED = {"MPEG", "BUFR", "GRIB", "HDF5"}  # formats that Pillow only recognizes


def is_hidden(path: Path) -> bool:
    """Return whether a file or directory is hidden, or created by an operating system."""
    return path.name.startswith(".") or path.name.lower() in SYSTEM_NAMES


def is_image_file(path: Path) -> bool:
    """Return whether a file has an extension of a format that Pillow can open."""
    file_format = Image.registered_extensions().get(path.suffix.lower())
    return file_format in Image.OPEN and file_format not in NOT_DECODED


def find_image_files(directory: Path) -> list[Path]:
    """Return the image files below a directory, in sorted order.

    Links to files and directories are followed; each directory is read once. Hidden files and
    directories are skipped, such as macOS's `._IMG.jpg`, and `SYSTEM_NAMES`. A message on stderr
    counts the other files by extension.
    """
    image_files: list[Path] = []
    skipped: collections.Counter[str] = collections.Counter()
    for path in walk(directory):
        if is_image_file(path):
            image_files.append(path)
        else:
            # The number of "frame.0001" is no extension.
            extension = "" if path.suffix[1:].isdigit() else path.suffix.lower()
            skipped[extension or "other"] += 1
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        print(
            f"{directory}: skipped files without an image extension ({kinds}); if these are "
            "images, convert them to JPEG or PNG, or add the right extension",
            file=sys.stderr,
        )
    return sorted(image_files)


def walk(directory: Path, visited: set[Path] | None = None) -> Iterator[Path]:
    """Yield the visible files below a directory, or the file itself; read each directory once."""
    visited = visited or {directory.resolve(), *directory.resolve().parents}
    for path in [directory] if directory.is_file() else sorted(directory.iterdir()):
        if is_hidden(path):
            continue
        if path.is_dir():
            if (resolved := path.resolve()) not in visited:
                visited.add(resolved)
                yield from walk(path, visited)
        elif path.is_file() or path.is_symlink():  # broken links too; no pipes, no sockets
            yield path


def load_image(path: Path) -> Image.Image:
    """Load an image as RGB, 8 bits, upright, at most `MAX_WORKING_SIZE` pixels wide and high.

    Raises:
        OSError: If the file does not exist, or is damaged.
        ValueError: If Pillow does not know its format, or it has more pixels than Pillow's limit,
            89 million.
    """
    content = remove_metadata(path.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on metadata, without the name of the file
        # Up to twice the limit, Pillow only warns, and even a small file can have that many pixels.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            file = Image.open(io.BytesIO(content))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ValueError("it has more than 89 million pixels; make it smaller") from None
        except UnidentifiedImageError:
            other = "Pillow does not know its format; if it is an image, convert it to JPEG or PNG"
            raise ValueError(describe_kind(content, other)) from None
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


def remove_metadata(content: bytes) -> bytes:
    """Remove metadata, which may be damaged, from PNG and JPEG, unless they change the image."""
    kept, start = bytearray(), 0
    if content.startswith(b"\x89PNG"):
        kept, start = bytearray(content[:8]), 8
        while chunk := content[start : start + 12 + int.from_bytes(content[start : start + 4])]:
            name, is_sound = chunk[4:8], zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
            if name == b"tRNS":  # its length depends on the color type
                lengths = {b"\0": [2], b"\2": [6]}.get(content[25:26], range(1, 257))
                is_sound = is_sound and len(chunk) - 12 in lengths
            if name[:1].isupper() or (name in (b"tRNS", b"eXIf") and is_sound):
                kept += chunk
            start += len(chunk)
    elif content.startswith(b"\xff\xd8"):
        kept, start = bytearray(content[:2]), 2
        while b"\xff\xbf" < content[start : start + 2] not in (b"\xff\xda", b"\xff\xff"):  # headers
            end = start + 2 + int.from_bytes(content[start + 2 : start + 4])
            if content[end : end + 1] != b"\xff":  # a damaged length: leave it to Pillow
                break
            number, is_complete = content[start + 1], end - start > 15  # the size for Adobe
            if number not in JPEG_METADATA and (number != 0xEE or is_complete):
                kept += content[start:end]
            start = end
    return bytes(kept + content[start:])


def scale_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale gray values of any range, (height, width), to uint8.

    Black is 0, or the smallest value if that is negative. White is the largest value of the
    smallest bit depth that fits: 8, 10, 12, 14, 15, 16, 31 or 32. Of floating-point values, it is 1
    (fractions may be slightly larger) or 255 if that fits, else the largest value.
    """
    is_float = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype("float64"), posinf=0, neginf=0)
    black, largest = min(float(values.min()), 0.0), float(values.max())
    if is_float:
        white = 1.0 if largest < 2 else max(255.0, largest)
    else:
        white = next(2.0**n - 1 for n in (8, 10, 12, 14, 15, 16, 31, 32) if largest < 2.0**n)
    return ((values - black) * (255 / (white - black))).clip(0, 255).astype("uint8")


def preprocess_image(image: Image.Image) -> np.ndarray:
    """Convert an RGB image to uint8 (28, 28), a light garment on black.

    Raises:
        ValueError: If no pixel differs from the background.
    """
    gray = np.asarray(image.convert("L"), "float32")
    if background_level(gray) > 127:  # the authors invert all images: their photos are on white
        gray = 255 - gray
    level = background_level(gray)
    gray = np.clip(gray - level, 0, None) * (255 / (255 - level))
    # Trim edges that are as dark as the background.
    is_garment = gray > BACKGROUND_TOLERANCE
    if not is_garment.any():
        raise ValueError("nothing differs from the background")
    rows, columns = (np.flatnonzero(is_garment.any(axis)) for axis in (1, 0))
    gray = gray[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Scale the longer side to 28 pixels, and center the image on a black square.
    scale = IMAGE_SIZE / max(gray.shape)
    height, width = (max(1, round(side * scale)) for side in gray.shape)
    resized = np.asarray(Image.fromarray(gray).resize((width, height), Image.Resampling.BOX))
    top, left = (IMAGE_SIZE - height) // 2, (IMAGE_SIZE - width) // 2
    canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE), "uint8")
    canvas[top : top + height, left : left + width] = resized.clip(0, 255).round()
    return canvas


def background_level(gray: np.ndarray) -> float:
    """Return the gray level of the background, the median of the border pixels, in [0, 255]."""
    border = gray[0], gray[-1], gray[:, 0], gray[:, -1]
    return float(np.median(np.concatenate(border)))
