"""Data sets of 28×28 gray images: Fashion-MNIST, other IDX files, image folders."""

from pathlib import Path

from fashion.datasets import fashion_mnist, image_folder
from fashion.datasets.splits import RawDataset
from fashion.errors import UserError


def load_raw_dataset(data_dir: Path | None, cache_dir: Path, download: bool = True) -> RawDataset:
    """Load the images before they are split, from IDX files or an image folder.

    Without `data_dir`, Fashion-MNIST is searched for, and downloaded if `download` is true.
    """
    if not data_dir:
        return fashion_mnist.load_first_available(download)
    if image_folder.is_image_folder(data_dir):
        return image_folder.load_image_folder(data_dir, cache_dir)
    try:
        return fashion_mnist.load_files(data_dir, "--data-dir")
    except (OSError, UserError) as error:
        raise UserError(f"--data-dir: {error}") from None
