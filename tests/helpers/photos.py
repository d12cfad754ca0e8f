"""Photos of garments."""

import csv
import re

from fashion import predict
from fashion.datasets.photos import load_image, preprocess_image
from fashion.datasets.splits import CLASS_NAMES

import keras
import numpy as np
from PIL import Image, ImageOps

import cnn_basic


def draw_garment(width=30, height=20):
    """Draw a dark rectangle on white, with a light upper left quarter: uint8 (100, 120)."""
    image = np.full((100, 120), 255, "uint8")
    image[40 : 40 + height, 50 : 50 + width] = 50
    image[40 : 40 + height // 2, 50 : 50 + width // 2] = 155
    return image


def save_image(path, image, **options):
    """Save a Pillow image and return its path."""
    image.save(path, **options)
    return path


def printed_classes(output):
    """Return {file name: most likely class} from the printed lines."""
    matches = re.findall(r"^(\S+)\s+(\D+) [\d.]+%, .+ [\d.]+%, .+ [\d.]+%$", output, re.MULTILINE)
    return {name.rsplit("/", 1)[-1]: CLASS_NAMES.index(label) for name, label in matches}


def check_photos(command_line, script, output_dir, photos_dir, test):
    """Check that 200 test images are classified nearly as well from photos of them.

    The photos, in the empty `photos_dir`, are 300×400, dark on white and off-center. `output_dir`
    contains the script's model.
    """
    images, labels = test.images[:200], test.labels[:200]
    rng = np.random.default_rng(0)
    for i, image in enumerate(images):
        garment = ImageOps.invert(Image.fromarray(image)).resize((220, 220), Image.BICUBIC)
        photo = Image.new("L", (300, 400), "white")
        photo.paste(garment, (int(rng.integers(0, 80)), int(rng.integers(0, 180))))
        photo.save(photos_dir / f"{i:03}.jpg", quality=90)
    done = command_line(script, "--predict", photos_dir, "--output-dir", output_dir)
    assert done.code == 0, done.err
    predicted = [label for _, label in sorted(printed_classes(done.out).items())]
    assert len(predicted) == 200
    model = keras.saving.load_model(output_dir / "model.keras")
    original_predictions = model.predict(images, verbose=0).argmax(axis=1)
    accuracy = np.mean(predicted == labels)
    assert accuracy >= np.mean(original_predictions == labels) - 0.05
    table, figure = output_dir / "user_predictions.csv", output_dir / "user_predictions.png"
    assert done.out.endswith(
        f"\nAll probabilities: {table}\n"
        f"Model inputs and top classes: {figure} (first {predict.MAX_PLOTTED} images)\n"
    )
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [CLASS_NAMES.index(row["predicted"]) for row in rows] == predicted
    paths = sorted(photos_dir.iterdir())
    assert [row["file"] for row in rows] == list(map(str, paths))
    inputs = np.stack([preprocess_image(load_image(path)) for path in paths])
    written = [[float(row[f"p({name})"]) for name in CLASS_NAMES] for row in rows]
    # In bfloat16, probabilities depend on the batch size.
    atol = 1e-6 if script is cnn_basic else 0.02
    np.testing.assert_allclose(written, model.predict(inputs, verbose=0), atol=atol)
    table.unlink()
    figure.unlink()
