"""What only a GPU can show: precision, the same figures for the same seed, too little memory."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import SAMPLE, Result, run_script

GPUS = tf.config.list_physical_devices("GPU")
pytestmark = pytest.mark.skipif(not GPUS, reason="needs a GPU")

FAST = (
    *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--wandb", "disabled"),
    *("--train-size", 200, "--validation-size", 100, "--test-size", 100, "--epochs", 3),
)
TUNED = (*FAST, "--fine-tune-blocks", 2, "--fine-tune-epochs", 2)


def run(folder, script, *words):
    """Runs a script in a folder, whose result is in `output` and whose features in `cache`."""
    folder.mkdir(exist_ok=True)
    words = (*words, "--output-dir", folder / "output")
    if script == "resnet50_fashion.py":
        words = (*words, "--cache-dir", folder / "cache")
    return run_script(folder, script, *words)


def run_well(folder, script, *words):
    done = run(folder, script, *words)
    assert done.returncode == 0, done.stderr
    return Result(folder / "output")


def test_auto_is_what_the_first_gpu_has(tmp_path):
    details = tf.config.experimental.get_device_details(GPUS[0])
    major, _ = details["compute_capability"]
    expected = "bfloat16" if major >= 8 else "float16" if major == 7 else "float32"
    metrics = run_well(tmp_path, "resnet50_fashion.py", *FAST).metrics
    assert metrics["weights"]["precision"] == expected
    assert metrics["versions"]["gpus"][0] == details["device_name"]
    assert metrics["memory"]["gpu_peak_gb"] > 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("cnn_basic.py", ("--data-dir", SAMPLE, "--epochs", 3, "--wandb", "disabled")),
        ("resnet50_fashion.py", FAST),
        ("resnet50_fashion.py", TUNED),
        ("resnet50_fashion.py", (*TUNED, "--fine-tune-inputs", "augmented")),
        ("resnet50_fashion.py", (*TUNED, "--precision", "float16")),
        # Its convolutions by channel are the last for which GPUs learnt it.
        ("resnet50_fashion.py", (*TUNED, "--backbone", "mobilenetv2")),
    ],
    ids=["cnn_basic", "frozen", "tuned", "augmented", "float16", "mobilenetv2"],
)
def test_same_seed_gives_the_same_figures_and_features(script, words, tmp_path):
    one, other = (run_well(tmp_path / name, script, *words) for name in ("one", "other"))
    assert one.without_time() == other.without_time()
    features = [
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*.npz"))}
        for name in ("one", "other")
    ]
    assert features[0] == features[1]
    assert bool(features[0]) == (script == "resnet50_fashion.py")


def test_features_are_the_processors_in_each_precision(tmp_path):
    """As closely as the precision has bits: float32's products may be TensorFloat-32's, of 11."""
    features = {}
    for place, precision in (
        ("processor", "float32"),
        ("gpu", "float32"),
        ("gpu", "bfloat16"),
        ("gpu", "float16"),
    ):
        more = ("--precision", precision, *(("--gpus", 0) if place == "processor" else ()))
        folder = tmp_path / f"{place}-{precision}"
        run_well(folder, "resnet50_fashion.py", *FAST, *more)
        paths = sorted((folder / "cache").rglob("*.npz"))
        features[place, precision] = np.concatenate([np.load(p)["conv5_avg"] for p in paths])
    expected = features.pop(("processor", "float32")).astype("float32")
    for (_, precision), values in features.items():
        tolerance = 0.1 if precision == "bfloat16" else 0.02
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)


def test_too_little_memory_is_a_line_and_nothing_is_lost(tmp_path):
    """A batch of all images at full size, all blocks trained: far more than a GPU has."""
    words = (
        *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 448, "--wandb", "disabled"),
        *("--train-size", 1600, "--validation-size", 10, "--test-size", 10, "--epochs", 1),
        *("--fine-tune-blocks", 16, "--fine-tune-inputs", "computed", "--fine-tune-epochs", 1),
    )
    done = run(tmp_path, "resnet50_fashion.py", *words, "--fine-tune-batch-size", 1600)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("resnet50_fashion.py: error: out of memory during fine-tuning: ")
    assert line.endswith("a lower --fine-tune-batch-size, and --resume")
    done = run(tmp_path, "resnet50_fashion.py", *words, "--fine-tune-batch-size", 8, "--resume")
    assert done.returncode == 0, done.stderr
    assert "Features: all in" in done.stdout
    assert "Resuming after epoch 1." in done.stdout
