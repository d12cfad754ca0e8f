"""Models that an older Keras saved are loaded by the installed one, with equal predictions.

Called with a directory, this file saves such models there: PYTHONPATH=.:tests, oldest packages.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.data import load_sample
from helpers.networks import use_small_resnet
from helpers.scripts import ROOT, SAMPLE, run_python, train_in_process

import cnn_basic
import resnet50_fashion

SMALL = ("--weights", "random", "--image-size", 64, "--batch-size", 32)
MODELS = {
    "basic": (cnn_basic,),
    "frozen": (resnet50_fashion, *SMALL, "--precision", "float32", "--features", "conv3+conv4"),
    "fine_tuned": (
        resnet50_fashion,
        *SMALL,
        *("--precision", "bfloat16", "--flip", "--fine-tune-blocks", 1, "--fine-tune-epochs", 1),
    ),
}
LOADING = """
import sys
import fashion  # suppresses TensorFlow's lines on stderr
import keras
import numpy as np
for name in sys.argv[2:]:
    model = keras.saving.load_model(f"{sys.argv[1]}/{name}/model.keras")
    np.save(f"{name}.npy", model.predict(np.load("images.npy"), verbose=0))
"""


def images() -> np.ndarray:
    """Two test images of each class."""
    return load_sample(test_size=20).test.images


def save_models(directory: Path) -> None:
    """Train and save the models, and their predictions for `images`."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_resnet(patch)
        for name, (script, *argv) in MODELS.items():
            argv += ["--epochs", 5, "--cache-dir", directory, "--output-dir", directory / name]
            result = train_in_process(script, "--data-dir", SAMPLE, *argv)
            predictions = result.model.predict(images(), verbose=0)
            np.save(directory / name / "predictions.npy", predictions)


@pytest.fixture
def models_dir():
    if path := os.environ.get("OLDER_KERAS_MODELS"):
        return Path(path)
    pytest.skip("needs models of an older Keras, saved by this file, in $OLDER_KERAS_MODELS")


def test_models_of_an_older_keras_predict_equally_without_warnings(models_dir, tmp_path):
    np.save(tmp_path / "images.npy", images())
    done = run_python(tmp_path, "-c", LOADING, models_dir, *MODELS, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for name, argv in MODELS.items():
        expected = np.load(models_dir / name / "predictions.npy")
        assert np.ptp(expected, axis=0).max() > 0.1  # predictions depend on the images
        # In 16 bits, the order of a sum shows in its few digits.
        bound = 0.02 if "bfloat16" in argv else 1e-4
        predictions = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(predictions, expected, rtol=0, atol=bound, err_msg=name)


if __name__ == "__main__":
    save_models(Path(sys.argv[1]))
