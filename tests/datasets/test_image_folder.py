"""Image folders: loading, splits, checks and the cache of preprocessed images."""

import shutil
import unicodedata

from fashion.datasets import image_folder, photos
from fashion.datasets.image_folder import (
    check_outputs_outside_data_dir,
    is_image_folder,
    load_preprocessed,
)
from fashion.datasets.photos import load_image, preprocess_image
from fashion.errors import UsageError, UserError

import keras
import numpy as np
import pytest
from helpers.scripts import SAMPLE
from PIL import Image, ImageOps

COUNTS = {"boots": 30, "caps": 12, "socks": 5}


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory, sample):
    """An image folder with the classes of `COUNTS`; do not change it."""
    directory = tmp_path_factory.mktemp("folder") / "images"
    for label, (name, count) in enumerate(COUNTS.items()):
        (directory / name).mkdir(parents=True)
        images = sample.train.images[sample.train.labels == 7 + label]
        for i, image in enumerate(images[:count]):  # dark on white
            ImageOps.invert(Image.fromarray(image)).save(directory / name / f"{i:04}.png")
    return directory


@pytest.fixture
def directory(image_dir, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(image_dir, tmp_path / "images")


def filenames(split):
    return [split.image_name(i) for i in range(split.size)]


def count_by_class(split):
    return np.bincount(split.labels, minlength=len(COUNTS)).tolist()


def test_classes_and_counts_equal_keras_loader_and_images_are_preprocessed(directory, load):
    (directory / "boots" / "more").mkdir()
    (directory / "boots" / "0000.png").rename(directory / "boots" / "more" / "0000.PNG")
    reference = keras.utils.image_dataset_from_directory(directory, verbose=False, batch_size=None)
    data = load(directory)
    assert list(data.class_names) == reference.class_names == list(COUNTS)
    labels = np.concatenate([split.labels for split in data.splits.values()])
    assert sorted(labels) == sorted(int(label) for _, label in reference)
    assert data.name == "images"
    assert data.source == f"{directory} (--data-dir, 3 classes)"
    names = []
    for split in data.splits.values():
        for row, name in enumerate(filenames(split)):
            expected = preprocess_image(load_image(directory / name))
            np.testing.assert_array_equal(split.images[row], expected)
            assert data.class_names[split.labels[row]] == name.split("/")[0]
            names.append(name)
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert sorted(names) == sorted(str(path.relative_to(directory)) for path in files)


def test_holdout_is_always_the_same(image_dir, load):
    """A sixth and then a twelfth of each class, but at least one image."""
    data = load(image_dir)
    # Otherwise runs of different versions would not be comparable.
    numbers = {"boots": (2, 8, 15, 17, 28), "caps": (2, 7), "socks": (4,)}
    expected = [f"{name}/{number:04}.png" for name, group in numbers.items() for number in group]
    assert sorted(filenames(data.test)) == expected
    expected = ["boots/0003.png", "boots/0010.png", "caps/0008.png", "socks/0003.png"]
    assert sorted(filenames(data.validation)) == expected


def test_split_directories_define_the_splits(image_dir, load, tmp_path, capsys):
    shutil.copytree(image_dir, tmp_path / "Train")
    (tmp_path / "__MACOSX").mkdir()
    held_out = {"Test": "0001.png", "val": "0002.png"}
    for split, filename in held_out.items():
        for name in COUNTS:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / "Train" / name / filename).rename(tmp_path / split / name / filename)
    data = load(tmp_path)
    for split, filename in zip((data.test, data.validation), held_out.values(), strict=True):
        assert sorted(filenames(split)) == [f"{name}/{filename}" for name in COUNTS]
    assert sum(count_by_class(data.train)) == sum(COUNTS.values()) - 6
    assert capsys.readouterr().err == ""
    # Without val/, a twelfth of the training images is held out. Other directories are ignored.
    shutil.copytree(tmp_path / "val", tmp_path / "Train", dirs_exist_ok=True)
    (tmp_path / "val").rename(tmp_path / "more")
    data = load(tmp_path)
    assert sorted(filenames(data.test)) == [f"{name}/0001.png" for name in COUNTS]
    assert count_by_class(data.validation) == [29 // 12, 1, 1]
    warning = f"WARNING: {tmp_path}: ignored, since no split with class directories: more\n"
    assert capsys.readouterr().err == warning
    # Only train/: a sixth is held out for testing as well.
    shutil.copytree(tmp_path / "Test", tmp_path / "Train", dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "Test")
    shutil.rmtree(tmp_path / "more")
    assert filenames(load(tmp_path).test) == filenames(load(image_dir).test)


def test_split_directories_without_classes_are_no_classes(image_dir, load, tmp_path):
    for split in "train", "test":
        shutil.copytree(image_dir / "boots", tmp_path / split)
    message = r"create train/ with one subdirectory of training images per class$"
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_unusable_files_and_directories_of_systems_are_skipped(directory, load, capsys):
    (directory / "boots" / "heic.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    Image.new("L", (50, 50), "gray").save(directory / "caps" / "empty.png")
    for name in "socks/a.heic", "socks/b.heic", "socks/notes", "socks/.DS_Store", "loose.png":
        (directory / name).touch()
    for name in "lost+found", "$RECYCLE.BIN", "@eaDir", ".hidden":
        (directory / name).mkdir()
    data = load(directory)
    assert data.class_names == tuple(COUNTS)
    assert sum(split.size for split in data.splits.values()) == sum(COUNTS.values())
    loose, others, heic, empty = capsys.readouterr().err.splitlines()
    assert loose == f"WARNING: {directory}: ignored 1 images that are in no class directory"
    skipped = "skipped files without an image extension (2 .heic, 1 other); if these are"
    assert others.startswith(f"{directory / 'socks'}: {skipped}")
    assert heic.startswith(f"{directory / 'boots' / 'heic.jpg'}: skipped: Pillow does not know")
    assert heic.endswith("; if it is an image, convert it to JPEG or PNG")
    assert empty.startswith(f"{directory / 'caps' / 'empty.png'}: skipped: nothing differs")


def test_duplicate_images_across_splits_are_counted(directory, load, capsys):
    load(directory)
    assert capsys.readouterr().err == ""
    image = Image.open(directory / "socks" / "0000.png")
    for i in range(5):  # duplicates in other files
        image.save(directory / "socks" / f"{i:04}.bmp")
    for i in range(1, 5):
        (directory / "socks" / f"{i:04}.png").unlink()
    load(directory)
    assert capsys.readouterr().err == (
        "WARNING: duplicate images: 1 of 4 validation images also occur in the training set; 1 of "
        "8 test images also occur in the training or validation set.\n"
    )


def test_equal_images_of_different_classes_are_named(directory, load, capsys):
    for name in "a", "b", "c", "d":
        shutil.copy(directory / "boots" / "0000.png", directory / "socks" / f"{name}.png")
    load(directory)
    pairs = ", ".join(f"boots/0000.png and socks/{name}.png" for name in ("a", "b", "c"))
    expected = f"WARNING: equal images in different classes: {pairs}; 1 more"
    assert expected in capsys.readouterr().err.splitlines()


def test_too_few_images_raise_with_counts(image_dir, load, tmp_path):
    needed = "each class needs at least 5 usable images, and one in each split; too few"
    for split, counts in ("train", (6, 1, 4)), ("test", (1, 4, 0)):
        for name, count in zip(COUNTS, counts, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            for path in sorted((image_dir / name).iterdir())[:count]:
                shutil.copy(path, tmp_path / split / name)
    message = r"caps \(1 train, 0 validation, 4 test\), socks \(3 train, 1 validation, 0 test\)$"
    with pytest.raises(UserError, match=f"^{tmp_path}: {needed}: {message}"):
        load(tmp_path)
    (tmp_path / "test" / "socks").rename(tmp_path / "test" / "hats")
    message = "train/ and test/ must contain the same classes; only in one of them: hats, socks$"
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_directories_whose_names_look_equal_raise(image_dir, load, tmp_path):
    """Otherwise, one of the two classes would be lost."""
    for form in "NFC", "NFD":
        shutil.copytree(image_dir / "boots", tmp_path / unicodedata.normalize(form, "Mäntel"))
    with pytest.raises(UserError, match="two directories are named 'Mäntel'; merge them"):
        load(tmp_path)


def test_outputs_inside_data_dir_raise(image_dir, tmp_path):
    """An output directory would become a class of the next run."""
    check_outputs_outside_data_dir(None, {"--output-dir": image_dir})
    check_outputs_outside_data_dir(SAMPLE, {"--output-dir": SAMPLE / "outputs"})
    check_outputs_outside_data_dir(image_dir, {"--output-dir": image_dir.parent})
    (tmp_path / "link").symlink_to(image_dir)
    for path in image_dir / "new", tmp_path / "link" / "boots":
        with pytest.raises(UsageError, match=rf"^WANDB_DIR: {path} lies inside --data-dir, where"):
            check_outputs_outside_data_dir(image_dir, {"--output-dir": tmp_path, "WANDB_DIR": path})


def test_image_folder_has_classes_and_no_idx_files(image_dir, tmp_path, load):
    assert is_image_folder(image_dir)
    with pytest.raises(UserError, match="at least 2 classes are needed, but only 'images' was fou"):
        load(image_dir.parent)
    assert not is_image_folder(SAMPLE)
    assert not is_image_folder(tmp_path) and not is_image_folder(tmp_path / "absent")


def test_preprocessed_images_are_cached_by_checksum(image_dir, tmp_path):
    path, cache_dir = image_dir / "socks" / "0000.png", tmp_path / "cache"
    expected = preprocess_image(load_image(path))
    image = load_preprocessed(path, cache_dir)
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == np.uint8
    (cached_path,) = (file for file in cache_dir.rglob("*") if file.is_file())
    assert [file.name for file in cached_path.parent.iterdir()] == [cached_path.name]
    complete = cached_path.read_bytes()
    Image.new("L", (28, 28), 7).save(cached_path)
    copy = shutil.copy(path, tmp_path / "copy.png")
    assert (load_preprocessed(copy, cache_dir) == 7).all()  # read, not preprocessed again
    # Damaged files, an empty one and one of another size are written again.
    Image.new("L", (27, 28)).save(tmp_path / "27.png")
    for content in b"damaged", b"", (tmp_path / "27.png").read_bytes():
        cached_path.write_bytes(content)
        np.testing.assert_array_equal(load_preprocessed(path, cache_dir), expected)
        assert cached_path.read_bytes() == complete
    with pytest.raises(UserError, match=r"^--cache-dir: cannot write to "):
        load_preprocessed(path, path)  # a file


def test_each_version_has_a_directory(image_dir, tmp_path, monkeypatch):
    for module, attribute in (photos, "PREPROCESSING_VERSION"), (image_folder.PIL, "__version__"):
        load_preprocessed(image_dir / "caps" / "0000.png", tmp_path)
        monkeypatch.setattr(module, attribute, 99)
    load_preprocessed(image_dir / "caps" / "0000.png", tmp_path)
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 3 and all(name.startswith("images-") for name in names)
