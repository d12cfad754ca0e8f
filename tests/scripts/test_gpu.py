"""Tests that need a GPU: precision, determinism, memory errors."""

import pytest
import tensorflow as tf
from helpers.scripts import SAMPLE, Result, run_script

GPUS = tf.config.list_physical_devices("GPU")
pytestmark = pytest.mark.skipif(not GPUS, reason="needs a GPU")

FAST = (
    *("--data-dir", SAMPLE, "--weights", "random", "--image-size", 64, "--wandb", "disabled"),
    *("--train-size", 200, "--validation-size", 100, "--test-size", 100, "--epochs", 3),
)
FINE_TUNED = (*FAST, "--fine-tune-blocks", 2, "--fine-tune-epochs", 2)


def run(directory, script, *argv):
    """Run a script in a directory, with its result in `output` and its features in `cache`."""
    directory.mkdir(exist_ok=True)
    directories = ("--output-dir", directory / "output", "--cache-dir", directory / "cache")
    return run_script(directory, script, *argv, *directories)


def run_successfully(directory, script, *argv):
    done = run(directory, script, *argv)
    assert done.returncode == 0, done.stderr
    return Result(directory / "output")


def test_auto_precision_follows_the_gpu(tmp_path):
    details = tf.config.experimental.get_device_details(GPUS[0])
    major, _ = details["compute_capability"]
    expected = "bfloat16" if major >= 8 else "float16" if major == 7 else "float32"
    metrics = run_successfully(tmp_path, "resnet50_fashion.py", *FAST).metrics
    assert metrics["weights"]["precision"] == expected
    assert metrics["versions"]["gpus"][0] == details["device_name"]
    assert metrics["memory"]["gpu_peak_gb"] > 0


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("cnn_basic.py", ("--data-dir", SAMPLE, "--epochs", 3, "--wandb", "disabled")),
        ("resnet50_fashion.py", FINE_TUNED),
        ("resnet50_fashion.py", (*FINE_TUNED, "--precision", "float16")),
        # Deterministic depthwise convolutions came last to TensorFlow.
        ("resnet50_fashion.py", (*FINE_TUNED, "--backbone", "mobilenetv2")),
    ],
    ids=["cnn_basic", "fine-tuned", "float16", "mobilenetv2"],
)
def test_equal_seeds_give_equal_metrics_and_features(script, argv, tmp_path):
    one, other = (run_successfully(tmp_path / name, script, *argv) for name in ("one", "other"))
    assert one.deterministic_metrics() == other.deterministic_metrics()
    features = [
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("cache/**/*.npy")}
        for name in ("one", "other")
    ]
    assert features[0] == features[1]
    assert bool(features[0]) == (script == "resnet50_fashion.py")


def test_out_of_memory_is_an_error_and_can_be_resumed(tmp_path):
    """A batch of all images at 448×448 with all blocks trained does not fit on a GPU."""
    argv = (
        *("--data-dir", SAMPLE, "--weights", "random", "--image-size", 448, "--wandb", "disabled"),
        *("--train-size", 1600, "--validation-size", 10, "--test-size", 10, "--epochs", 1),
        *("--fine-tune-blocks", 16, "--fine-tune-epochs", 1),
    )
    done = run(tmp_path, "resnet50_fashion.py", *argv, "--fine-tune-batch-size", 1600)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("resnet50_fashion.py: error: out of memory during ")
    assert line.endswith("--fine-tune-batch-size, then continue with --resume")
    done = run(tmp_path, "resnet50_fashion.py", *argv, "--fine-tune-batch-size", 8, "--resume")
    assert done.returncode == 0, done.stderr
    assert "Features: all cached in" in done.stdout
    assert "Resuming after epoch 1." in done.stdout
