"""Models that Keras 3.10 saved load and answer as before under the version that runs.

Under Keras 3.10, `PYTHONPATH=. python tests/test_keras_versions.py` makes those files anew.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from fashion.backbones import architectures

import keras
import numpy as np
import pytest
from conftest import ROOT, SAMPLE, environment, load, run_script, train
from PIL import Image

import cnn_basic
import resnet50_fashion

FOLDER = SAMPLE / "models"
SMALL = ("--weights", "none", "--image-size", 64)
MIRRORED = (*SMALL, "--precision", "bfloat16", "--mirror")
MODELS = {
    "basic": (cnn_basic, "--hidden-units", 4),
    "frozen": (resnet50_fashion, *SMALL, "--precision", "float32", "--features", "conv4"),
    "mirrored": (resnet50_fashion, *MIRRORED),
    "fine_tuned": (resnet50_fashion, *MIRRORED, "--fine-tune-blocks", 1, "--fine-tune-epochs", 1),
}


def images() -> np.ndarray:
    """Two test images of each class."""
    return load(test_size=20).test.images


def build_tiny_resnet(include_top: bool, weights: None, input_shape: tuple) -> keras.Model:
    """As few layers as there are stages, by the names of a ResNet50's; arguments are Keras'."""
    x = inputs = keras.Input(input_shape)
    for stage in range(2, 6):
        name = f"conv{stage}_block1"
        x = keras.layers.Conv2D(4, 3, 2, padding="same", name=f"{name}_1_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{name}_1_bn")(x)
        x = keras.layers.Activation("relu", name=f"{name}_out")(x)
    return keras.Model(inputs, x, name="tiny_resnet")


def make() -> None:
    """Trains and saves the models, and keeps what they say of `images`."""
    FOLDER.mkdir(exist_ok=True)
    answers = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        tiny = architectures.ARCHITECTURES["resnet50"]._replace(build=build_tiny_resnet)
        patch.setitem(architectures.ARCHITECTURES, "resnet50", tiny)
        for name, (script, *words) in MODELS.items():
            words += ["--output-dir", Path(folder) / name, "--cache-dir", folder, "--epochs", 5]
            result = train(script, "--data-dir", SAMPLE, *words)
            answers[name] = result.model.predict(images(), verbose=0)
            (FOLDER / f"{name}.keras").write_bytes((result.folder / "model.keras").read_bytes())
    np.savez(FOLDER / "answers.npz", **answers)


LOADING = """
import sys
import fashion  # holds back what TensorFlow writes when it is imported
import keras
import numpy as np
model = keras.saving.load_model(sys.argv[1])
np.save("answers.npy", model.predict(np.load("images.npy"), verbose=0))
"""


@pytest.mark.parametrize("name", MODELS)
def test_model_of_keras_3_10_answers_as_there_without_a_word(name, tmp_path):
    np.save(tmp_path / "images.npy", images())
    done = subprocess.run(
        [sys.executable, "-c", LOADING, FOLDER / f"{name}.keras"],
        cwd=tmp_path,
        env=environment(tmp_path, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    ours, theirs = np.load(tmp_path / "answers.npy"), np.load(FOLDER / "answers.npz")[name]
    assert np.ptp(theirs, axis=0).max() > 0.1  # they depend on the images
    # In 16 bits, sums in another order differ in the last of few digits.
    bound = 0.02 if "bfloat16" in MODELS[name] else 1e-4
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["basic", "mirrored"])
def test_predict_takes_a_model_of_keras_3_10_without_a_word(name, tmp_path):
    script = MODELS[name][0].__name__
    (tmp_path / "model.keras").write_bytes((FOLDER / f"{name}.keras").read_bytes())
    Image.fromarray(images()[0]).save(tmp_path / "picture.png")
    words = ("--predict", tmp_path / "picture.png", "--output-dir", tmp_path)
    done = run_script(tmp_path, f"{script}.py", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(tmp_path / "picture.png"))


if __name__ == "__main__":
    make()
