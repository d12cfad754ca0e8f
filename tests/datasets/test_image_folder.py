"""Image folders: loading, splits, checks, and complete runs on them."""

import csv
import shutil
import unicodedata

from fashion.datasets import image_folder, preprocessing
from fashion.datasets.dataset import CLASS_NAMES

import keras
import numpy as np
import pytest
import wandb
from helpers.data import load_sample
from helpers.scripts import SAMPLE, directory_contents
from PIL import Image, ImageOps

import cnn_basic
import common
import resnet50_fashion

COUNTS = {"boots": 30, "caps": 12, "socks": 5}


def to_photo(image):
    """Convert an image to a photo: dark on white, upscaled, with a margin."""
    garment = ImageOps.invert(Image.fromarray(image)).resize((84, 84), Image.Resampling.BICUBIC)
    photo = Image.new("L", (110, 100), "white")
    photo.paste(garment, (20, 4))
    return photo


def write_photos(directory, images):
    """Write images as numbered photos."""
    directory.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        to_photo(image).save(directory / f"{i:04}.png")


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory, sample):
    """An image folder with the classes of `COUNTS`; do not change it."""
    directory = tmp_path_factory.mktemp("folder") / "images"
    for label, (name, count) in enumerate(COUNTS.items()):
        images = sample.train.images[sample.train.labels == 7 + label]
        write_photos(directory / name, images[:count])
    return directory


@pytest.fixture
def directory(image_dir, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(image_dir, tmp_path / "images")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def load(cache_dir):
    return lambda directory: load_sample(directory, cache_dir=cache_dir)


def filenames(split):
    return [split.image_name(i) for i in range(split.size)]


def count_by_class(split):
    return np.bincount(split.labels, minlength=len(COUNTS)).tolist()


def test_classes_and_counts_equal_keras_loader(directory, load, capsys):
    (directory / "boots" / "more").mkdir()
    (directory / "boots" / "0000.png").rename(directory / "boots" / "more" / "0000.PNG")
    (directory / ".hidden").mkdir()
    (directory / "notes.txt").write_text("ignored")
    reference = keras.utils.image_dataset_from_directory(directory, verbose=False, batch_size=None)
    data = load(directory)
    assert list(data.class_names) == reference.class_names == list(COUNTS)
    expected = np.bincount([int(label) for _, label in reference])
    assert (sum(np.array(count_by_class(s)) for s in data.splits.values()) == expected).all()
    assert data.name == "images"
    out = capsys.readouterr().out
    assert f"test images from {directory} (--data-dir, 3 classes)" in out
    assert data.metadata()["classes"] == list(COUNTS)


def test_images_are_preprocessed_as_for_predict(image_dir, load):
    data, names = load(image_dir), []
    for split in data.splits.values():
        for row, name in enumerate(filenames(split)):
            expected = preprocessing.preprocess_image(preprocessing.load_image(image_dir / name))
            np.testing.assert_array_equal(split.images[row], expected)
            assert data.class_names[split.labels[row]] == name.split("/")[0]
            names.append(name)
    assert sorted(names) == [
        str(p.relative_to(image_dir)) for p in sorted(image_dir.glob("*/*.png"))
    ]


def test_holdout_is_as_in_earlier_versions(image_dir, load):
    data = load(image_dir)
    assert count_by_class(data.test) == [30 // 6, 12 // 6, 1]
    assert count_by_class(data.validation) == [25 // 12, 1, 1]
    assert count_by_class(data.train) == [23, 9, 3]
    # Otherwise runs of different versions would not be comparable.
    numbers = {"boots": (2, 8, 15, 17, 28), "caps": (2, 7), "socks": (4,)}
    expected = [f"{name}/{number:04}.png" for name, group in numbers.items() for number in group]
    assert sorted(filenames(data.test)) == expected
    expected = ["boots/0003.png", "boots/0010.png", "caps/0008.png", "socks/0003.png"]
    assert sorted(filenames(data.validation)) == expected


def test_another_image_of_a_class_keeps_the_splits_of_other_classes(directory, load, sample):
    before = load(directory)
    write_photos(directory / "boots", sample.train.images[sample.train.labels == 7][:31])
    after = load(directory)
    for split, earlier in zip(after.splits.values(), before.splits.values(), strict=True):
        others = [{n for n in filenames(s) if not n.startswith("boots")} for s in (split, earlier)]
        assert others[0] == others[1]


def test_every_prefix_is_as_balanced_as_possible(image_dir, load):
    labels = load(image_dir).train.labels.tolist()
    assert [sorted(labels[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert [sorted(labels[i : i + 2]) for i in range(9, 21, 2)] == [[0, 1]] * 6
    assert set(labels[21:]) == {0}
    small = load_sample(image_dir, train_size=6)
    assert count_by_class(small.train) == [2, 2, 2]


def test_split_directories_define_the_splits(image_dir, load, tmp_path, capsys):
    shutil.copytree(image_dir, tmp_path / "Train")
    for name in COUNTS:
        for split, number in ("Test", 1), ("val", 2):
            (tmp_path / split / name).mkdir(parents=True)
            picture = tmp_path / "Train" / name / f"000{number}.png"
            picture.rename(tmp_path / split / name / f"{split}.png")
    (tmp_path / "__MACOSX").mkdir()
    data = load(tmp_path)
    for split, filename in (data.test, "Test.png"), (data.validation, "val.png"):
        assert sorted(filenames(split)) == [f"{name}/{filename}" for name in COUNTS]
    assert sum(count_by_class(data.train)) == sum(COUNTS.values()) - 6
    assert capsys.readouterr().err == ""
    expected = preprocessing.preprocess_image(
        preprocessing.load_image(tmp_path / "val/socks/val.png")
    )
    row = filenames(data.validation).index("socks/val.png")
    np.testing.assert_array_equal(data.validation.images[row], expected)
    # Without val/, a twelfth of the training images is held out. Other directories are ignored.
    for name in COUNTS:
        (tmp_path / "val" / name / "val.png").rename(tmp_path / "Train" / name / "0002.png")
        (tmp_path / "val" / name).rmdir()
    write_photos(tmp_path / "more", data.test.images[:1])
    data = load(tmp_path)
    assert sorted(filenames(data.test)) == [f"{name}/Test.png" for name in COUNTS]
    assert count_by_class(data.validation) == [29 // 12, 1, 1]
    assert (
        capsys.readouterr().err == f"WARNING: {tmp_path}: ignored, because not a split: more, val\n"
    )
    # Only train/: a sixth is held out for testing as well.
    shutil.rmtree(tmp_path / "Test")
    shutil.rmtree(tmp_path / "more")
    shutil.copytree(image_dir, tmp_path / "Train", dirs_exist_ok=True)
    assert filenames(load(tmp_path).test) == filenames(load(image_dir).test)


def test_split_directories_without_classes_raise(image_dir, tmp_path):
    """They are not classes."""
    for split in "train", "test":
        shutil.copytree(image_dir / "boots", tmp_path / split)
    with pytest.raises(
        common.UserError,
        match=r"create train/ with one subdirectory of training images per class$",
    ):
        load_sample(tmp_path)


def test_class_names_are_compared_in_unicode_normal_form(image_dir, load, tmp_path):
    """macOS decomposes umlauts; other systems do not."""
    for split, name in ("train", "M\u00fctze"), ("test", "Mu\u0308tze"):
        shutil.copytree(image_dir / "boots", tmp_path / split / "boots")
        shutil.copytree(image_dir / "caps", tmp_path / split / name)
    assert load(tmp_path).class_names == ("M\u00fctze", "boots")


def test_classes_may_have_the_names_of_splits(directory, load):
    (directory / "boots").rename(directory / "train")
    (directory / "caps").rename(directory / "test")
    assert load(directory).class_names == ("socks", "test", "train")


def test_cache_stores_each_image_once_by_checksum(directory, tmp_path, monkeypatch):
    shutil.copy(directory / "socks" / "0000.png", directory / "socks" / "duplicate.png")
    first = load_sample(directory, cache_dir=tmp_path / "cache")
    cached_paths = sorted((tmp_path / "cache").rglob("*.png"))
    assert len(cached_paths) == sum(COUNTS.values())
    contents = {np.asarray(Image.open(path)).tobytes() for path in cached_paths}
    assert contents == {i.tobytes() for s in first.splits.values() for i in s.images}
    cached_paths[0].write_bytes(b"damaged")
    calls = []
    preprocess_image = preprocessing.preprocess_image
    monkeypatch.setattr(
        preprocessing, "preprocess_image", lambda image: calls.append(1) or preprocess_image(image)
    )
    reloaded = load_sample(directory, cache_dir=tmp_path / "cache")
    assert len(calls) == 1  # the damaged file
    assert [s.images_sha256 for s in reloaded.splits.values()] == [
        s.images_sha256 for s in first.splits.values()
    ]


def test_unusable_files_are_skipped_with_a_message(directory, load, capsys):
    (directory / "boots" / "bad.jpg").write_text("no image")
    Image.new("L", (50, 50), "gray").save(directory / "caps" / "empty.png")
    for name in "a.heic", "b.heic", "notes", ".DS_Store":
        (directory / "socks" / name).write_text("")
    data = load(directory)
    assert sum(split.size for split in data.splits.values()) == sum(COUNTS.values())
    heic, notes, bad, empty = capsys.readouterr().err.splitlines()
    assert bad.startswith(f"{directory / 'boots' / 'bad.jpg'}: skipped: Pillow does not know")
    assert empty.startswith(f"{directory / 'caps' / 'empty.png'}: skipped: nothing differs")
    assert heic.startswith(f"{directory / 'socks'}: skipped 2 files of a kind that Pillow cannot")
    assert "1 file of a kind that Pillow cannot open, without an extension;" in notes


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


def test_equal_images_of_two_classes_are_reported(directory, load, capsys):
    names = sorted(path.name for path in directory.iterdir() if path.is_dir())[:2]
    image = Image.open(directory / names[0] / "0000.png")
    image.save(directory / names[1] / "copy.bmp")
    load(directory)
    assert (
        f"WARNING: equal images in different classes: {names[0]}/0000.png and {names[1]}/copy.bmp\n"
        in capsys.readouterr().err.replace(
            f"{names[1]}/copy.bmp and {names[0]}/0000.png",
            f"{names[0]}/0000.png and {names[1]}/copy.bmp",
        )
    )


def remove_all_but(directory, name, num_left):
    for path in sorted((directory / name).iterdir())[num_left:]:
        path.unlink()


def test_too_few_images_of_a_class_raise_with_its_name(directory, command_line):
    remove_all_but(directory, "socks", 4)
    remove_all_but(directory, "caps", 0)
    done = command_line(cnn_basic, "--data-dir", directory)
    assert done.code == 1
    needed = "each class needs at least 5 usable images"
    assert done.err == (
        f"cnn_basic.py: error: {directory}: {needed}; too few: caps (0), socks (4)\n"
    )


def test_too_few_classes_raise_with_their_names(directory, command_line):
    shutil.rmtree(directory / "socks")
    shutil.rmtree(directory / "caps")
    done = command_line(cnn_basic, "--data-dir", directory)
    assert done.code == 1
    assert done.err == (
        f"cnn_basic.py: error: {directory}: expected one subdirectory of images per class, found "
        "only 'boots'; give the directory that contains those of the classes\n"
    )


def test_splits_must_have_equal_classes_with_images(image_dir, load, tmp_path):
    shutil.copytree(image_dir, tmp_path / "train")
    shutil.copytree(image_dir, tmp_path / "test")
    remove_all_but(tmp_path / "test", "caps", 0)
    needed = "each class needs at least 1 usable image"
    with pytest.raises(common.UserError, match=rf"test: {needed}; too few: caps \(0\)$"):
        load(tmp_path)
    remove_all_but(tmp_path / "train", "socks", 1)
    needed = "each class needs at least 2 usable images"
    with pytest.raises(common.UserError, match=rf"train: {needed}; too few: socks \(1\)$"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "test" / "boots")
    (tmp_path / "test" / "hats").mkdir()
    with pytest.raises(
        common.UserError,
        match=r"train/ and test/ must contain the same classes; only in one of them: boots, hats$",
    ):
        load(tmp_path)


@pytest.mark.parametrize("option", ["--output-dir", "--cache-dir", "WANDB_DIR"])
def test_output_inside_data_dir_raises_usage_error(
    option, directory, command_line, monkeypatch, tmp_path
):
    """An output directory would become a class of the next run."""
    before, argv = directory_contents(directory), ["--data-dir", directory, "--wandb", "offline"]
    if option == "WANDB_DIR":
        monkeypatch.setenv(option, str(directory))
        wandb.teardown()  # W&B reads its settings once
    else:
        argv += [option, directory / "new"]
    done = command_line(cnn_basic, *argv)
    assert done.code == 2
    assert done.err.startswith(f"cnn_basic.py: error: {option}: ")
    assert done.err.endswith(
        "lies inside --data-dir, where each directory is a class; use another directory\n"
    )
    assert directory_contents(directory) == before
    wandb.teardown()


def test_directories_of_systems_are_no_classes(directory, load):
    for name in "lost+found", "$RECYCLE.BIN", "@eaDir":
        (directory / name).mkdir()
    (directory / "boots" / "@eaDir" / "0.png").mkdir(parents=True)
    shutil.copy(
        directory / "boots" / "0000.png", directory / "boots" / "@eaDir" / "0.png" / "THUMB.jpg"
    )
    data = load(directory)
    assert data.class_names == tuple(COUNTS)
    assert sum(split.size for split in data.splits.values()) == sum(COUNTS.values())


def test_images_beside_the_classes_are_reported(directory, load, capsys):
    shutil.copy(directory / "boots" / "0000.png", directory / "loose.png")
    load(directory)
    expected = f"WARNING: {directory}: ignored 1 images that are in no class directory"
    assert expected in capsys.readouterr().err.splitlines()


def test_class_names_that_look_the_same_are_reported(directory, load, capsys):
    shutil.copytree(directory / "boots", directory / "Boots")
    load(directory)
    expected = "WARNING: the classes 'Boots' and 'boots' look the same"
    assert expected in capsys.readouterr().err.splitlines()


def test_two_spellings_of_one_class_raise(directory, load):
    """A disk that Linux and macOS share."""
    for form in "NFC", "NFD":
        shutil.copytree(directory / "boots", directory / unicodedata.normalize(form, "schön"))
    with pytest.raises(common.UserError, match=r"two directories are named 'schön'; merge them$"):
        load(directory)


def test_directory_above_the_classes_raises(directory, load, tmp_path):
    with pytest.raises(
        common.UserError, match=r"per class, found only 'images'; give the directory that contains"
    ):
        load(tmp_path)


def test_directory_without_classes_or_idx_files_raises(tmp_path):
    assert not image_folder.is_image_folder(SAMPLE) and not image_folder.is_image_folder(
        tmp_path / "absent"
    )
    with pytest.raises(
        common.UserError, match=r"^--data-dir: .* does not exist; expected the four IDX "
    ):
        load_sample(tmp_path)


def test_unwritable_cache_raises(directory, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(common.UserError, match=r"^--cache-dir: "):
        load_sample(directory, cache_dir=tmp_path / "file")


# ----------------------------------------------------------------------------- complete runs


def test_train_and_predict(directory, command_line, tmp_path):
    argv = ("--data-dir", directory, "--cache-dir", tmp_path / "cache", "--wandb", "disabled")
    done = command_line(cnn_basic, *argv, "--epochs", 30, "--batch-size", 4)
    assert done.code == 0, done.err
    assert list((tmp_path / "cache").rglob("*.png"))
    output = tmp_path / "outputs" / "cnn_basic"
    with open(output / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row in rows:
        assert (directory / row["file"]).exists()
        assert list(COUNTS)[int(row["label"])] == row["file"].split("/")[0]
    assert "<h1>cnn_basic on images</h1>" in (output / "report.html").read_text()
    # --predict preprocesses images as training does, so the predictions are equal.
    done = command_line(cnn_basic, "--predict", *(directory / row["file"] for row in rows))
    lines = [line for line in done.out.splitlines() if ".png  " in line]
    predictions = [line.split(".png  ")[1].split()[0] for line in lines]
    assert predictions == [list(COUNTS)[int(row["predicted"])] for row in rows]


@pytest.mark.slow
@pytest.mark.versions
def test_resnet50_shares_its_cache_with_fine_tuning(
    image_dir, run_main, small_resnet, tmp_path, capsys
):
    argv = ("--data-dir", image_dir, "--weights", "none", "--image-size", 64, "--epochs", 2)
    argv = (*argv, "--cache-dir", tmp_path / "cache")
    frozen = run_main(resnet50_fashion, *argv, "--output-dir", "frozen")
    fine_tuning = ("--fine-tune-blocks", 1, "--fine-tune-epochs", 1)
    result = run_main(resnet50_fashion, *argv, *fine_tuning, "--output-dir", "tuned")
    assert "Features: all cached in" in capsys.readouterr().out  # from the first run
    assert frozen.model.output_shape == result.model.output_shape == (None, 3)
    # Another class makes another data set.
    changed = shutil.copytree(image_dir, tmp_path / "changed")
    shutil.copytree(changed / "socks", changed / "ties")
    argv = (*argv, *fine_tuning, "--resume", "--output-dir", "tuned", "--data-dir", changed)
    with pytest.raises(common.UsageError, match=r"differ from the checkpoint in .*: the data "):
        run_main(resnet50_fashion, *argv)


@pytest.fixture(scope="module")
def photos(sample, tmp_path_factory):
    """The sample as photos in train/ and test/."""
    directory = tmp_path_factory.mktemp("photos")
    for name, splits in ("train", [sample.train, sample.validation]), ("test", [sample.test]):
        for label, title in enumerate(CLASS_NAMES):
            images = np.concatenate([split.images[split.labels == label] for split in splits])
            # Sorted names give the labels of the IDX files.
            write_photos(directory / name / f"{label} {title.replace('/', ' ')}", images)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(("script", "num_seeds"), [(cnn_basic, 3), (resnet50_fashion, 1)])
def test_training_on_photos_is_as_accurate_as_on_their_images(
    script, num_seeds, photos, sample, run_main, shared_cache_dir, tmp_path, request
):
    """Accuracy is equal within 3 percentage points."""
    argv = ["--cache-dir", shared_cache_dir, "--output-dir", tmp_path / "output"]
    if script is resnet50_fashion:
        weights = request.getfixturevalue("imagenet_weights")
        argv += ["--weights", weights, "--recipe", "fast", "--image-size", 64]
    accuracies = {}
    for source in SAMPLE, photos:
        for seed in range(num_seeds):
            result = run_main(script, "--data-dir", source, "--seed", seed, *argv)
            assert result.metrics["data"]["test"] == 400
            assert result.metrics["data"]["train"] == sample.train.size
            accuracies.setdefault(source, []).append(result.metrics["test"]["accuracy"])
    from_images, from_photos = (np.mean(values) for values in accuracies.values())
    assert abs(from_images - from_photos) <= 0.03, accuracies
