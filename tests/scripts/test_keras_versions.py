"""Models saved by Keras 3.10 are loaded by the installed version with equal predictions.

With Keras 3.10, `PYTHONPATH=.:tests python tests/scripts/test_keras_versions.py` creates the files.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from fashion.backbones import architectures

import keras
import numpy as np
import pytest
from helpers.data import load_sample
from helpers.scripts import ROOT, SAMPLE, process_environment, run_script, train_in_process
from PIL import Image

import cnn_basic
import resnet50_fashion

MODELS_DIR = SAMPLE / "models"
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
    return load_sample(test_size=20).test.images


def build_tiny_resnet(include_top: bool, weights: None, input_shape: tuple) -> keras.Model:
    """Build a network of one layer per stage with ResNet50's names; arguments are Keras'."""
    x = inputs = keras.Input(input_shape)
    for stage in range(2, 6):
        name = f"conv{stage}_block1"
        x = keras.layers.Conv2D(4, 3, 2, padding="same", name=f"{name}_1_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{name}_1_bn")(x)
        x = keras.layers.Activation("relu", name=f"{name}_out")(x)
    return keras.Model(inputs, x, name="tiny_resnet")


def make() -> None:
    """Train and save the models, and their predictions for `images`."""
    MODELS_DIR.mkdir(exist_ok=True)
    predictions = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        tiny = architectures.ARCHITECTURES["resnet50"]._replace(build=build_tiny_resnet)
        patch.setitem(architectures.ARCHITECTURES, "resnet50", tiny)
        for name, (script, *argv) in MODELS.items():
            argv += ["--output-dir", Path(folder) / name, "--cache-dir", folder, "--epochs", 5]
            result = train_in_process(script, "--data-dir", SAMPLE, *argv)
            predictions[name] = result.model.predict(images(), verbose=0)
            (MODELS_DIR / f"{name}.keras").write_bytes(
                (result.directory / "model.keras").read_bytes()
            )
    np.savez(MODELS_DIR / "answers.npz", **predictions)


LOADING = """
import sys
import fashion  # suppresses TensorFlow's lines on stderr
import keras
import numpy as np
predictions = {}
for name in sys.argv[2:]:
    model = keras.saving.load_model(f"{sys.argv[1]}/{name}.keras")
    predictions[name] = model.predict(np.load("images.npy"), verbose=0)
np.savez("predictions.npz", **predictions)
"""


@pytest.mark.parametrize(
    "names",
    [
        ["mirrored"],
        pytest.param(
            ["basic", "frozen", "fine_tuned"], marks=[pytest.mark.slow, pytest.mark.versions]
        ),
    ],
    ids=",".join,
)
def test_keras_3_10_models_predict_identically_without_warnings(names, tmp_path):
    np.save(tmp_path / "images.npy", images())
    done = subprocess.run(
        [sys.executable, "-c", LOADING, MODELS_DIR, *names],
        cwd=tmp_path,
        env=process_environment(tmp_path, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    predictions = np.load(tmp_path / "predictions.npz")
    for name in names:
        expected = np.load(MODELS_DIR / "answers.npz")[name]
        assert np.ptp(expected, axis=0).max() > 0.1  # predictions depend on the images
        # In 16 bits, the order of a sum shows in its few digits.
        bound = 0.02 if "bfloat16" in MODELS[name] else 1e-4
        np.testing.assert_allclose(predictions[name], expected, rtol=0, atol=bound, err_msg=name)


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("name", ["basic", "mirrored"])
def test_predict_with_keras_3_10_model_prints_no_warnings(name, tmp_path):
    script = MODELS[name][0].__name__
    (tmp_path / "model.keras").write_bytes((MODELS_DIR / f"{name}.keras").read_bytes())
    Image.fromarray(images()[0]).save(tmp_path / "image.png")
    argv = ("--predict", tmp_path / "image.png", "--output-dir", tmp_path)
    done = run_script(tmp_path, f"{script}.py", *argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(tmp_path / "image.png"))


if __name__ == "__main__":
    make()
