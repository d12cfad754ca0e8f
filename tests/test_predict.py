"""`--predict`: what comes of pictures of many kinds, and how the command fails."""

import re
import shutil

import numpy as np
import predict
import pytest
from conftest import SAMPLE, run_script
from PIL import Image, ImageOps

import common

PHOTOS = 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which the baseline has been trained on the sample."""
    folder = tmp_path_factory.mktemp("trained")
    options = "--data-dir", SAMPLE, "--epochs", 20, "--wandb", "disabled"
    assert run_script(folder, "cnn_basic.py", *options).returncode == 0
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory, sample):
    """Test images as photos: 300×400, dark on white, off-centre; every fourth with an alpha."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, image in enumerate(sample.test.images[:PHOTOS]):
        garment = ImageOps.invert(Image.fromarray(image)).resize((220, 220), Image.BICUBIC)
        photo = Image.new("L", (300, 400), "white")
        corner = int(rng.integers(0, 80)), int(rng.integers(0, 180))
        photo.paste(garment, corner)
        if i % 4:
            photo.save(folder / f"{i:03}.jpg", quality=90)
            continue
        alpha = Image.new("L", photo.size, 0)  # what is black beneath it must not be seen
        alpha.paste(255, (*corner, corner[0] + 220, corner[1] + 220))
        photo.paste(0, mask=ImageOps.invert(alpha))
        photo.putalpha(alpha)
        photo.save(folder / f"{i:03}.png")
    return folder


def classes(output):
    """{name of a picture: the likeliest class}, as printed."""
    found = re.findall(r"^(\S+)\s+(\D+) [\d.]+%, .+ [\d.]+%, .+ [\d.]+%$", output, re.MULTILINE)
    return {name.rsplit("/", 1)[-1]: common.CLASS_NAMES.index(label) for name, label in found}


def check_photos(folder, script, photos, sample, model):
    done = run_script(folder, script, "--predict", photos)
    assert done.returncode == 0, done.stderr
    predicted = [label for _, label in sorted(classes(done.stdout).items())]
    assert len(predicted) == PHOTOS
    labels = sample.test.labels[:PHOTOS]
    of_originals = model.predict(sample.test.images[:PHOTOS], verbose=0).argmax(axis=1)
    of_photos = np.mean(predicted == labels)
    assert of_photos >= np.mean(of_originals == labels) - 0.05
    with Image.open(folder / "outputs" / script.removesuffix(".py") / "predictions.png") as png:
        assert png.width == 1400


def load(folder, name):
    import keras

    return keras.saving.load_model(folder / "outputs" / name / "model.keras")


def test_baseline_on_photos(trained, photos, sample):
    check_photos(trained, "cnn_basic.py", photos, sample, load(trained, "cnn_basic"))


def test_resnet50_on_photos(subset_run, photos, sample):
    model = load(subset_run, "resnet50_fashion")
    check_photos(subset_run, "resnet50_fashion.py", photos, sample, model)
    (subset_run / "outputs" / "resnet50_fashion" / "predictions.png").unlink()


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
    image = predict.to_fashion_mnist(predict.read(picture_or_path))
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
    image = predict.to_fashion_mnist(predict.read(path))
    assert np.array_equal(image[SURE], 255 * (EXPECTED > 0)[SURE])


def test_an_image_of_the_data_set_stays_nearly_as_it_is(tmp_path, sample):
    changes = []
    for image in sample.test.images[:50]:
        path = saved(tmp_path / "image.png", Image.fromarray(image))
        changes.append(np.abs(predict.to_fashion_mnist(predict.read(path)) - image.astype(int)))
    assert np.median(np.mean(changes, axis=(1, 2))) < 3


def test_what_cannot_be_used_is_named_and_the_rest_is_done(trained, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    saved(folder / "a.png", Image.fromarray(shape()))
    (folder / "b.png").write_text("no picture")
    saved(folder / "c.png", Image.new("L", (50, 50), "gray"))
    saved(folder / "d.png", Image.new("1", (10_000, 9_000)))  # 90 million pixels
    (folder / "notes.txt").write_text("not looked at")
    done = run_script(trained, "cnn_basic.py", "--predict", folder, tmp_path / "absent.jpg")
    assert done.returncode == 1
    assert list(classes(done.stdout)) == ["a.png"]
    lines = [line for line in done.stderr.splitlines() if "not used:" in line or "error:" in line]
    assert [line.split(":")[0].rsplit("/", 1)[-1] for line in lines[:-1]] == [
        *("b.png", "c.png", "d.png", "absent.jpg")
    ]
    assert lines[-1] == "cnn_basic.py: error: 4 of 5 pictures could not be used"
    assert "Traceback" not in done.stderr and "notes.txt" not in done.stderr


@pytest.mark.parametrize("script", ["cnn_basic.py", "resnet50_fashion.py"])
def test_without_a_model_it_says_how_to_make_one(script, tmp_path):
    done = run_script(tmp_path, script, "--predict", "shoe.jpg", "--output-dir", "mine")
    assert done.returncode == 1
    expected = f"there is no mine/model.keras: `python {script} --output-dir mine` makes one"
    assert done.stderr.splitlines()[-1] == f"{script}: error: {expected}"
    assert not (tmp_path / "mine").exists() and not (tmp_path / "outputs").exists()


def test_a_damaged_model_or_an_empty_folder_is_an_error(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run_script(trained, "cnn_basic.py", "--predict", tmp_path / "empty")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("empty has no picture files")
    outputs = tmp_path / "outputs" / "cnn_basic"
    shutil.copytree(trained / "outputs" / "cnn_basic", outputs)
    (outputs / "model.keras").write_bytes(b"damaged")
    done = run_script(tmp_path, "cnn_basic.py", "--predict", "shoe.jpg")
    assert done.returncode == 1
    assert "model.keras cannot be read" in done.stderr.splitlines()[-1]
