"""What computes: precision, inference in batches, one device and two."""

import subprocess
import sys

from fashion import devices, environment

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SAMPLE, Result
from conftest import environment as process_environment

import common

FAST = (
    *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32"),
    *("--train-size", 300, "--validation-size", 100, "--test-size", 100, "--epochs", 2),
    *("--fine-tune-blocks", 1, "--fine-tune-epochs", 2, "--fine-tune-batch-size", 50),
    # All training images in one batch of the head, since several devices shuffle differently.
    *("--batch-size", 300, "--dropout", 0, "--wandb", "disabled"),
)


def test_more_gpus_than_there_are_is_a_usage_error():
    seen = len(tf.config.list_physical_devices("GPU"))
    with pytest.raises(common.UsageError, match=f"--gpus 99: TensorFlow sees {seen}"):
        devices.use(99)


@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="needs a machine without a GPU"
)
def test_without_gpus_the_processor_is_the_one_device():
    for gpus in "all", 0:
        devices.use(gpus)
        assert devices.count() == 1


@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="needs a machine without a GPU"
)
def test_precision_is_bfloat16_where_the_processor_has_it(monkeypatch):
    for flags, expected in (
        ("fpu avx2 avx512_bf16 sse", "bfloat16"),
        ("amx_tile amx_bf16", "bfloat16"),
        ("fpu avx2 avx512f", "float32"),
        ("", "float32"),
    ):
        info = {"flags": flags} if flags else {}
        monkeypatch.setattr(environment, "cpu_info", lambda info=info: info)
        assert devices.choose_precision("auto") == expected
        for asked_for in "float32", "bfloat16":
            assert devices.choose_precision(asked_for) == asked_for


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ({}, "float32"),
        ({"compute_capability": (6, 0)}, "float32"),  # P100
        ({"compute_capability": (7, 0)}, "float16"),  # V100
        ({"compute_capability": (7, 5)}, "float16"),  # T4
        ({"compute_capability": (8, 0)}, "bfloat16"),  # A100
        ({"compute_capability": (12, 0)}, "bfloat16"),
    ],
)
def test_precision_on_a_gpu_is_what_its_matrix_units_take(capability, expected, monkeypatch):
    """On a GPU that is not there: `test_gpu.py` asks one that is."""
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a GPU", "another"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: capability)
    assert devices.choose_precision("auto") == expected
    for asked_for in devices.DTYPES:
        assert devices.choose_precision(asked_for) == asked_for


def test_gpus_and_they_alone_are_made_deterministic(monkeypatch):
    calls, visible = [], []
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: visible)
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: calls.append(list(visible))
    )
    devices.use("all")
    assert calls == []
    visible.append("a GPU")
    devices.use("all")
    assert calls == [["a GPU"]]


DETERMINISTIC = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import fashion
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
import common, {{script}}
common.run_script({{script}}.main, {{script}}.Options, "")
"""


@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["cached", "augmented"])
def test_nothing_in_a_run_is_against_determinism(inputs, tmp_path):
    """As far as a processor can tell: each random operation has a seed."""
    words = {
        "resnet50_fashion": (*FAST, "--fine-tune-inputs", inputs, "--cache-dir", tmp_path),
        "cnn_basic": ("--data-dir", SAMPLE, "--epochs", 1, "--wandb", "disabled"),
    }
    for script, more in words.items():
        more = (*more, "--output-dir", tmp_path / script)
        subprocess.run(
            [sys.executable, "-c", DETERMINISTIC.format(script=script), *map(str, more)],
            cwd=tmp_path,
            env=process_environment(tmp_path),
            check=True,
        )
        assert Result(tmp_path / script).history


def build_line(dtype):
    """One weight, in a precision: (N, 1) → (N, 1)."""
    line = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype=dtype)
    return keras.Sequential([keras.Input((1,)), line])


@pytest.mark.parametrize("precision", devices.DTYPES)
def test_gradients_that_are_too_small_for_float16_are_not_lost(precision):
    """The weight's is 1e-3 · 1e-6, and float16's smallest number 6e-8."""
    model = build_line(devices.DTYPES[precision])
    optimizer = devices.scale_loss(keras.optimizers.SGD(1e9), model.layers[0])
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "float16")
    model.compile(optimizer, loss=lambda true, predicted: 1e-6 * predicted)
    model.train_on_batch(np.full((1, 1), 1e-3), np.zeros((1, 1)))
    assert model.layers[0].kernel.numpy().item() == pytest.approx(1 - 1, abs=0.02)


def test_without_a_scaled_loss_they_are_lost():
    """Of which the test above is not aware."""
    model = build_line("mixed_float16")
    model.compile(keras.optimizers.SGD(1e9), loss=lambda true, predicted: 1e-6 * predicted)
    model.train_on_batch(np.full((1, 1), 1e-3), np.zeros((1, 1)))
    assert model.layers[0].kernel.numpy().item() == 1


def test_too_little_memory_names_the_option_to_lower():
    message = "^out of memory during a rest: try it with a lower --batch-size$"
    with (
        pytest.raises(common.UserError, match=message),
        devices.enough_memory("a rest", lower="--batch-size"),
    ):
        tf.zeros([10**14])  # 400 TB


def test_full_gpu_is_too_little_memory_and_any_other_internal_error_is_a_bug():
    full = "Failed copying input tensor from CPU:0 to GPU:0: Dst tensor is not initialized."
    for text, expected in (full, common.UserError), ("something", tf.errors.InternalError):
        with pytest.raises(expected), devices.enough_memory("a rest", lower="--batch-size"):
            raise tf.errors.InternalError(None, None, text)


def test_each_precision_is_a_dtype_policy_of_keras():
    for precision, name in devices.DTYPES.items():
        policy = keras.dtype_policies.get(name)
        assert policy.compute_dtype == precision
        assert policy.variable_dtype == "float32"


@pytest.mark.parametrize("count", [1, 999, 1000, 2345])
def test_outputs_in_batches_are_those_of_predict(count):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, 7)).astype("float16")
    model = keras.Sequential([keras.Input((7,), dtype="float16"), keras.layers.Dense(3)])
    outputs = devices.predict_in_batches(model, inputs)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, model.predict(inputs, verbose=0), rtol=1e-5, atol=1e-5)
    fewer = devices.predict_in_batches(model, inputs, batch_size=100)
    np.testing.assert_allclose(fewer, outputs, rtol=1e-5, atol=1e-5)


def test_several_outputs_of_a_batch_keep_their_names():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, {"twice": 2 * inputs, "minus": -inputs})
    batch = np.arange(8, dtype="float32").reshape(4, 2)
    (outputs,) = devices.predict_batches(model, [batch])
    np.testing.assert_array_equal(outputs["twice"], 2 * batch)
    np.testing.assert_array_equal(outputs["minus"], -batch)
    assert devices.predict_batches(model, []) == []


TWO_DEVICES = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import fashion
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
tf.distribute.experimental_set_strategy(two)
import common, resnet50_fashion
common.run_script(resnet50_fashion.main, resnet50_fashion.Options, "")
"""


@pytest.mark.slow
def test_two_devices_compute_what_one_does(tmp_path):
    """Features bit for bit, training curves within float32's noise, where dropout is none."""
    scripts = {"one": [ROOT / "resnet50_fashion.py"], "two": ["-c", TWO_DEVICES]}
    for name, script in scripts.items():
        folders = ("--cache-dir", tmp_path / name, "--output-dir", tmp_path / f"{name}-output")
        words = (*script, *FAST, *folders)
        subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env=process_environment(tmp_path),
            check=True,
        )
    caches = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.npz")}
        for name in scripts
    ]
    assert len(caches[0]) == 2 * 5 and caches[0] == caches[1]
    one, two = (Result(tmp_path / f"{name}-output").history for name in scripts)
    for expected, row in zip(one, two, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.01)
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=0.01)
