"""One's own pictures in a folder for each class: what becomes of them, and how they are split."""

import csv
import shutil

from fashion.datasets import image_folder, preprocessing
from fashion.datasets.dataset import CLASS_NAMES

import keras
import numpy as np
import pytest
from conftest import SAMPLE, contents, load
from PIL import Image, ImageOps

import cnn_basic
import common
import resnet50_fashion

COUNTS = {"boots": 30, "caps": 12, "socks": 5}


def photo(image):
    """An image as a photo: dark on white, enlarged, with a margin."""
    garment = ImageOps.invert(Image.fromarray(image)).resize((84, 84), Image.Resampling.BICUBIC)
    picture = Image.new("L", (110, 100), "white")
    picture.paste(garment, (20, 4))
    return picture


def write(folder, images):
    """Photos of images, numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        photo(image).save(folder / f"{i:04}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory, sample):
    """A folder for each of `COUNTS`; the images of a class are all of one."""
    folder = tmp_path_factory.mktemp("own") / "pictures"
    for label, (name, count) in enumerate(COUNTS.items()):
        images = sample.train.images[sample.train.labels == 7 + label]
        write(folder / name, images[:count])
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "pictures")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture
def read(cache_dir):
    return lambda folder: load(folder, cache_dir=cache_dir)


def files(split):
    return [split.title(row) for row in range(split.size)]


def by_class(split):
    return np.bincount(split.labels, minlength=len(COUNTS)).tolist()


def test_classes_and_counts_are_keras(folder, read, capsys):
    (folder / "boots" / "more").mkdir()
    (folder / "boots" / "0000.png").rename(folder / "boots" / "more" / "0000.PNG")
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("not looked at")
    theirs = keras.utils.image_dataset_from_directory(folder, verbose=False, batch_size=None)
    data = read(folder)
    assert list(data.class_names) == theirs.class_names == list(COUNTS)
    expected = np.bincount([int(label) for _, label in theirs])
    assert (sum(np.array(by_class(s)) for s in data.splits.values()) == expected).all()
    assert data.name == "pictures"
    out = capsys.readouterr().out
    assert f"test images from {folder} (--data-dir, 3 classes)" in out
    assert data.record()["classes"] == list(COUNTS)


def test_each_image_is_what_predict_makes_of_its_file(made, read):
    data, seen = read(made), []
    for split in data.splits.values():
        for row, name in enumerate(files(split)):
            expected = preprocessing.to_fashion_mnist(preprocessing.read(made / name))
            np.testing.assert_array_equal(split.images[row], expected)
            assert data.class_names[split.labels[row]] == name.split("/")[0]
            seen.append(name)
    assert sorted(seen) == [str(p.relative_to(made)) for p in sorted(made.glob("*/*.png"))]


def test_a_sixth_and_a_twelfth_of_the_rest_are_set_aside_the_same_for_ever(made, read):
    data = read(made)
    assert by_class(data.test) == [30 // 6, 12 // 6, 1]
    assert by_class(data.validation) == [25 // 12, 1, 1]
    assert by_class(data.train) == [23, 9, 3]
    # Else two runs with different versions of this script would not compare.
    numbers = {"boots": (2, 8, 15, 17, 28), "caps": (2, 7), "socks": (4,)}
    expected = [f"{name}/{number:04}.png" for name, of in numbers.items() for number in of]
    assert sorted(files(data.test)) == expected
    expected = ["boots/0003.png", "boots/0010.png", "caps/0008.png", "socks/0003.png"]
    assert sorted(files(data.validation)) == expected


def test_another_picture_of_a_class_moves_none_of_the_others(folder, read, sample):
    before = read(folder)
    write(folder / "boots", sample.train.images[sample.train.labels == 7][:31])
    after = read(folder)
    for split, earlier in zip(after.splits.values(), before.splits.values(), strict=True):
        others = [{n for n in files(s) if not n.startswith("boots")} for s in (split, earlier)]
        assert others[0] == others[1]


def test_every_prefix_is_as_balanced_as_can_be(made, read):
    labels = read(made).train.labels.tolist()
    assert [sorted(labels[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert [sorted(labels[i : i + 2]) for i in range(9, 21, 2)] == [[0, 1]] * 6
    assert set(labels[21:]) == {0}
    small = load(made, train_size=6)
    assert by_class(small.train) == [2, 2, 2]


def test_folders_of_splits_are_heeded(made, read, tmp_path, capsys):
    shutil.copytree(made, tmp_path / "Train")
    for name in COUNTS:
        for split, number in ("Test", 1), ("val", 2):
            (tmp_path / split / name).mkdir(parents=True)
            picture = tmp_path / "Train" / name / f"000{number}.png"
            picture.rename(tmp_path / split / name / f"{split}.png")
    (tmp_path / "__MACOSX").mkdir()
    data = read(tmp_path)
    for split, there in (data.test, "Test.png"), (data.validation, "val.png"):
        assert sorted(files(split)) == [f"{name}/{there}" for name in COUNTS]
    assert sum(by_class(data.train)) == sum(COUNTS.values()) - 6
    assert capsys.readouterr().err == ""
    expected = preprocessing.to_fashion_mnist(preprocessing.read(tmp_path / "val/socks/val.png"))
    row = files(data.validation).index("socks/val.png")
    np.testing.assert_array_equal(data.validation.images[row], expected)
    # Without val/: a twelfth of what is for training. What is in no split is not looked at.
    for name in COUNTS:
        (tmp_path / "val" / name / "val.png").rename(tmp_path / "Train" / name / "0002.png")
        (tmp_path / "val" / name).rmdir()
    write(tmp_path / "more", data.test.images[:1])
    data = read(tmp_path)
    assert sorted(files(data.test)) == [f"{name}/Test.png" for name in COUNTS]
    assert by_class(data.validation) == [29 // 12, 1, 1]
    assert capsys.readouterr().err == f"{tmp_path}: not looked at: more, val\n"
    # Only train: a sixth of it is for testing, too.
    shutil.rmtree(tmp_path / "Test")
    shutil.rmtree(tmp_path / "more")
    shutil.copytree(made, tmp_path / "Train", dirs_exist_ok=True)
    assert files(read(tmp_path).test) == files(read(made).test)


def test_folders_of_splits_without_classes_are_an_error(made, tmp_path):
    """They are not taken for classes."""
    for split in "train", "test":
        shutil.copytree(made / "boots", tmp_path / split)
    with pytest.raises(common.UserError, match=r"no train/ with a folder for each class in it$"):
        load(tmp_path)


def test_a_letter_may_be_written_in_two_ways(made, read, tmp_path):
    """As macOS does, and all others."""
    for split, name in ("train", "M\u00fctze"), ("test", "Mu\u0308tze"):
        shutil.copytree(made / "boots", tmp_path / split / "boots")
        shutil.copytree(made / "caps", tmp_path / split / name)
    assert read(tmp_path).class_names == ("M\u00fctze", "boots")


def test_classes_may_be_named_train_and_test(folder, read):
    (folder / "boots").rename(folder / "train")
    (folder / "caps").rename(folder / "test")
    assert read(folder).class_names == ("socks", "test", "train")


def test_pictures_are_held_in_the_cache_once_by_their_digest(folder, tmp_path, monkeypatch):
    shutil.copy(folder / "socks" / "0000.png", folder / "socks" / "twin.png")
    first = load(folder, cache_dir=tmp_path / "cache")
    kept = sorted((tmp_path / "cache").rglob("*.png"))
    assert len(kept) == sum(COUNTS.values())
    contents = {np.asarray(Image.open(path)).tobytes() for path in kept}
    assert contents == {i.tobytes() for s in first.splits.values() for i in s.images}
    kept[0].write_bytes(b"damaged")
    prepared = []
    to_fashion_mnist = preprocessing.to_fashion_mnist
    monkeypatch.setattr(
        preprocessing, "to_fashion_mnist", lambda p: prepared.append(1) or to_fashion_mnist(p)
    )
    again = load(folder, cache_dir=tmp_path / "cache")
    assert len(prepared) == 1  # the damaged one
    assert [s.digest for s in again.splits.values()] == [s.digest for s in first.splits.values()]


def test_what_cannot_be_used_is_named_and_left_out(folder, read, capsys):
    (folder / "boots" / "bad.jpg").write_text("no picture")
    Image.new("L", (50, 50), "gray").save(folder / "caps" / "empty.png")
    for name in "a.heic", "b.heic", "notes", ".DS_Store":
        (folder / "socks" / name).write_text("")
    data = read(folder)
    assert sum(split.size for split in data.splits.values()) == sum(COUNTS.values())
    others, bad, empty = capsys.readouterr().err.splitlines()
    assert bad.startswith(f"{folder / 'boots' / 'bad.jpg'}: not used: cannot identify")
    assert empty.startswith(f"{folder / 'caps' / 'empty.png'}: not used: it shows nothing")
    expected = f"{folder / 'socks'}: not used, since not named as pictures: .heic (2), notes (1)"
    assert others == expected


def test_identical_pictures_on_both_sides_are_counted(folder, read, capsys):
    read(folder)
    assert capsys.readouterr().err == ""
    image = Image.open(folder / "socks" / "0000.png")
    for i in range(5):  # the same picture in another file
        image.save(folder / "socks" / f"{i:04}.bmp")
    for i in range(1, 5):
        (folder / "socks" / f"{i:04}.png").unlink()
    read(folder)
    assert capsys.readouterr().err == (
        "Identical pictures: 1 of 4 for validation are also for training, "
        "and 1 of 8 for testing also for one of these\n"
    )


def remove(folder, name, left):
    for path in sorted((folder / name).iterdir())[left:]:
        path.unlink()


def test_too_few_pictures_of_a_class_are_an_error_that_names_it(folder, command_line):
    remove(folder, "socks", 4)
    remove(folder, "caps", 0)
    done = command_line(cnn_basic, "--data-dir", folder)
    assert done.code == 1
    needed = "each class needs at least 5 pictures that can be used"
    assert done.err == (
        f"cnn_basic.py: error: {folder}: {needed}; too few are in caps (0), socks (4)\n"
    )


def test_too_few_classes_are_an_error_that_names_them(folder, command_line):
    shutil.rmtree(folder / "socks")
    shutil.rmtree(folder / "caps")
    done = command_line(cnn_basic, "--data-dir", folder)
    assert done.code == 1
    assert done.err == (
        f"cnn_basic.py: error: {folder}: at least 2 classes are needed, and there is only 'boots'\n"
    )


def test_train_and_test_must_have_the_same_classes_and_some_of_each(made, read, tmp_path):
    shutil.copytree(made, tmp_path / "train")
    shutil.copytree(made, tmp_path / "test")
    remove(tmp_path / "test", "caps", 0)
    needed = "each class needs at least 1 picture that can be used"
    with pytest.raises(common.UserError, match=rf"test: {needed}; too few are in caps \(0\)$"):
        read(tmp_path)
    remove(tmp_path / "train", "socks", 1)
    needed = "each class needs at least 2 pictures that can be used"
    with pytest.raises(common.UserError, match=rf"train: {needed}; too few are in socks \(1\)$"):
        read(tmp_path)
    shutil.rmtree(tmp_path / "test" / "boots")
    (tmp_path / "test" / "hats").mkdir()
    with pytest.raises(common.UserError, match=r"in only one of train/ and test/: boots, hats$"):
        read(tmp_path)


@pytest.mark.parametrize("option", ["--output-dir", "--cache-dir", "WANDB_DIR"])
def test_nothing_is_written_among_the_classes(option, folder, command_line, monkeypatch, tmp_path):
    """The next run would take it for a class."""
    before, words = contents(folder), ["--data-dir", folder, "--wandb", "offline"]
    if option == "WANDB_DIR":
        monkeypatch.setenv(option, str(folder))
    else:
        words += [option, folder / "new"]
    done = command_line(cnn_basic, *words)
    assert done.code == 2
    assert done.err.startswith(f"cnn_basic.py: error: {option}: ")
    assert done.err.endswith("within --data-dir, where a folder is a class: use another\n")
    assert contents(folder) == before


def test_a_folder_of_neither_kind_is_an_error(tmp_path):
    assert not image_folder.are_in(SAMPLE) and not image_folder.are_in(tmp_path / "absent")
    with pytest.raises(common.UserError, match=r"^--data-dir: there is no .*, nor a folder for "):
        load(tmp_path)


def test_cache_that_cannot_be_written_is_an_error(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(common.UserError, match=r"^--cache-dir: "):
        load(folder, cache_dir=tmp_path / "file")


# -------------------------------------------------------------------------------- whole runs


def test_from_folders_to_predict(folder, command_line, tmp_path):
    words = ("--data-dir", folder, "--cache-dir", tmp_path / "cache", "--wandb", "disabled")
    done = command_line(cnn_basic, *words, "--epochs", 30, "--batch-size", 4)
    assert done.code == 0, done.err
    assert list((tmp_path / "cache").rglob("*.png"))
    output = tmp_path / "outputs" / "cnn_basic"
    with open(output / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row in rows:
        assert (folder / row["file"]).exists()
        assert list(COUNTS)[int(row["label"])] == row["file"].split("/")[0]
    assert "<h1>cnn_basic on pictures</h1>" in (output / "report.html").read_text()
    # Use sees the same as training: the answers are those of the run.
    done = command_line(cnn_basic, "--predict", *(folder / row["file"] for row in rows))
    answers = [line.split(".png  ")[1].split()[0] for line in done.out.splitlines()[:-1]]
    assert answers == [list(COUNTS)[int(row["predicted"])] for row in rows]


def test_resnet_its_cache_and_fine_tuning(made, run_main, small_resnet, tmp_path, capsys):
    words = ("--data-dir", made, "--weights", "none", "--image-size", 64, "--epochs", 2)
    words = (*words, "--cache-dir", tmp_path / "cache")
    plain = run_main(resnet50_fashion, *words, "--output-dir", "plain")
    tuned = ("--fine-tune-blocks", 1, "--fine-tune-epochs", 1)
    result = run_main(resnet50_fashion, *words, *tuned, "--output-dir", "tuned")
    assert "Features: all in" in capsys.readouterr().out  # from the first run
    assert plain.model.output_shape == result.model.output_shape == (None, 3)
    # Another class is another data set.
    changed = shutil.copytree(made, tmp_path / "changed")
    shutil.copytree(changed / "socks", changed / "ties")
    words = (*words, *tuned, "--resume", "--output-dir", "tuned", "--data-dir", changed)
    with pytest.raises(common.UsageError, match="had another data_sha256"):
        run_main(resnet50_fashion, *words)


@pytest.mark.slow
@pytest.mark.parametrize("script", [cnn_basic, resnet50_fashion])
def test_photos_train_to_what_their_images_do(script, sample, run_main, tmp_path, request):
    """The sample's, to within 3 points on the same test images, as photos in `test/`."""
    for name, splits in ("train", [sample.train, sample.validation]), ("test", [sample.test]):
        for label, title in enumerate(CLASS_NAMES):
            images = np.concatenate([split.images[split.labels == label] for split in splits])
            # As the IDX files' order is: sorted names are sorted labels.
            write(tmp_path / "photos" / name / f"{label} {title.replace('/', ' ')}", images)
    words = ["--cache-dir", tmp_path / "cache", "--output-dir", tmp_path / "output"]
    if script is resnet50_fashion:
        weights = request.getfixturevalue("imagenet_weights")
        words += ["--weights", weights, "--recipe", "fast", "--image-size", 64]
    accuracies = {}
    for source in SAMPLE, tmp_path / "photos":
        for seed in range(3):
            result = run_main(script, "--data-dir", source, "--seed", seed, *words)
            assert result.metrics["data"]["test"] == 400
            assert result.metrics["data"]["train"] == sample.train.size
            accuracies.setdefault(source, []).append(result.metrics["test"]["accuracy"])
    of_sample, of_photos = (np.mean(values) for values in accuracies.values())
    assert abs(of_sample - of_photos) <= 0.03, accuracies
