"""Precision, memory errors, inference in batches, one device and two."""

from fashion import devices, environment

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.forkserver import SMALL_WITHOUT_FIGURES, ForkedScript
from helpers.scripts import SAMPLE, Result

import common

FAST = (
    *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32"),
    *("--train-size", 300, "--validation-size", 100, "--test-size", 100, "--epochs", 2),
    *("--fine-tune-blocks", 3, "--fine-tune-epochs", 2, "--fine-tune-batch-size", 50),
    *("--fine-tune-learning-rate", 0.01),  # so that each step shows in the losses
    # One batch for all training images: several devices shuffle differently.
    *("--batch-size", 300, "--dropout", 0, "--wandb", "disabled"),
)


def test_configure_gpus_with_too_many_raises_usage_error():
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    with pytest.raises(common.UsageError, match=f"--gpus 99: TensorFlow finds {num_gpus} GPUs"):
        devices.configure_gpus(99)


@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="needs a machine without a GPU"
)
def test_configure_gpus_without_gpu_uses_one_replica():
    for gpus in "all", 0:
        devices.configure_gpus(gpus)
        assert devices.num_replicas() == 1


@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="needs a machine without a GPU"
)
def test_resolve_precision_follows_cpu_flags(monkeypatch):
    for flags, expected in (
        ("fpu avx2 avx512_bf16 sse", "bfloat16"),
        ("amx_tile amx_bf16", "bfloat16"),
        ("fpu avx2 avx512f", "float32"),
        ("", "float32"),
    ):
        info = {"flags": flags} if flags else {}
        monkeypatch.setattr(environment, "cpu_info", lambda info=info: info)
        assert devices.resolve_precision("auto") == expected
        for precision in "float32", "bfloat16":
            assert devices.resolve_precision(precision) == precision


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
def test_resolve_precision_follows_compute_capability(capability, expected, monkeypatch):
    """With simulated GPUs; `test_gpu.py` uses a real one."""
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a GPU", "another"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: capability)
    assert devices.resolve_precision("auto") == expected
    for precision in devices.DTYPE_POLICIES:
        assert devices.resolve_precision(precision) == precision


def test_configure_gpus_enables_determinism_only_with_gpus(monkeypatch):
    calls, visible = [], []
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: visible)
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: calls.append(list(visible))
    )
    devices.configure_gpus("all")
    assert calls == []
    visible.append("a GPU")
    devices.configure_gpus("all")
    assert calls == [["a GPU"]]


def enable_determinism(patch):
    tf.config.experimental.enable_op_determinism()


@pytest.mark.slow
def test_runs_support_deterministic_ops(fork_server, tmp_path):
    """On a CPU, this shows that each random operation has a seed."""
    tuned = (*FAST, "--cache-dir", tmp_path, "--fine-tune-inputs")
    basic = ("--data-dir", SAMPLE, "--epochs", 1, "--wandb", "disabled")
    command_lines = {
        "cached": ("resnet50_fashion", *tuned, "cached"),
        "augmented": ("resnet50_fashion", *tuned, "augmented"),
        "basic": ("cnn_basic", *basic),
    }
    for name, (script, *argv) in command_lines.items():
        argv += ["--output-dir", tmp_path / name]
        patches = (enable_determinism, *SMALL_WITHOUT_FIGURES)
        process = ForkedScript(script, tmp_path, *argv, patches=patches)
        assert process.wait() == 0, process.err
        assert Result(tmp_path / name).history


def build_one_weight_model(dtype):
    """Build a model with one weight: (N, 1) → (N, 1)."""
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype=dtype)
    return keras.Sequential([keras.Input((1,)), dense])


@pytest.mark.parametrize("precision", devices.DTYPE_POLICIES)
def test_with_loss_scaling_keeps_small_float16_gradients(precision):
    """The gradient is 1e-3 · 1e-6, and the smallest float16 number is 6e-8."""
    model = build_one_weight_model(devices.DTYPE_POLICIES[precision])
    optimizer = devices.with_loss_scaling(keras.optimizers.SGD(1e9), model.layers[0])
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "float16")
    model.compile(optimizer, loss=lambda true, predicted: 1e-6 * predicted)
    model.train_on_batch(np.full((1, 1), 1e-3), np.zeros((1, 1)))
    assert model.layers[0].kernel.numpy().item() == pytest.approx(1 - 1, abs=0.02)


def test_float16_without_loss_scaling_loses_small_gradients():
    """Show that the test above can fail."""
    model = build_one_weight_model("mixed_float16")
    model.compile(keras.optimizers.SGD(1e9), loss=lambda true, predicted: 1e-6 * predicted)
    model.train_on_batch(np.full((1, 1), 1e-3), np.zeros((1, 1)))
    assert model.layers[0].kernel.numpy().item() == 1


def test_handle_out_of_memory_names_the_option():
    message = r"^out of memory \(stage: a test\); try a smaller --batch-size$"
    with (
        pytest.raises(common.UserError, match=message),
        devices.handle_out_of_memory("a test", to_reduce="--batch-size"),
    ):
        tf.zeros([10**14])  # 400 TB


def test_warn_if_memory_is_low_prints_needed_and_available_memory(monkeypatch, capsys):
    for available, err in (
        (8_000_000_000, ""),
        (None, ""),  # unknown
        (
            1_600_000_000,
            "WARNING: training needs about 2.5 GB of memory, but only 1.6 GB are available; a "
            "smaller --batch-size needs less\n",
        ),
    ):
        monkeypatch.setattr(environment, "available_memory", lambda value=available: value)
        devices.warn_if_memory_is_low(2.5e9, "--batch-size")
        assert capsys.readouterr().err == err


def test_handle_out_of_memory_propagates_other_internal_errors():
    full = "Failed copying input tensor from CPU:0 to GPU:0: Dst tensor is not initialized."
    for text, expected in (full, common.UserError), ("something", tf.errors.InternalError):
        with (
            pytest.raises(expected),
            devices.handle_out_of_memory("a test", to_reduce="--batch-size"),
        ):
            raise tf.errors.InternalError(None, None, text)


def test_dtype_policies_compute_in_their_precision():
    for precision, name in devices.DTYPE_POLICIES.items():
        policy = keras.dtype_policies.get(name)
        assert policy.compute_dtype == precision
        assert policy.variable_dtype == "float32"


@pytest.mark.parametrize("num_inputs", [1, 999, 1000, 2345])
def test_predict_in_batches_equals_predict(num_inputs):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(num_inputs, 7)).astype("float16")
    model = keras.Sequential([keras.Input((7,), dtype="float16"), keras.layers.Dense(3)])
    outputs = devices.predict_in_batches(model, inputs)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, model.predict(inputs, verbose=0), rtol=1e-5, atol=1e-5)
    fewer = devices.predict_in_batches(model, inputs, batch_size=100)
    np.testing.assert_allclose(fewer, outputs, rtol=1e-5, atol=1e-5)


def test_predict_on_replicas_keeps_output_names():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, {"twice": 2 * inputs, "minus": -inputs})
    batch = np.arange(8, dtype="float32").reshape(4, 2)
    (outputs,) = devices.predict_on_replicas(model, [batch])
    np.testing.assert_array_equal(outputs["twice"], 2 * batch)
    np.testing.assert_array_equal(outputs["minus"], -batch)
    assert devices.predict_on_replicas(model, []) == []


def use_two_devices(patch):
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    tf.distribute.experimental_set_strategy(two)
    assert devices.num_replicas() == 2


@pytest.mark.slow
def test_two_devices_equal_one(fork_server, tmp_path):
    """Features bit for bit; losses within float32 rounding without dropout.

    Trained batch normalization uses the statistics of the batches of both devices.
    """
    for name, patches in ("one", ()), ("two", (use_two_devices,)):
        for batch_norm in "frozen", "trained":
            process = ForkedScript(
                *("resnet50_fashion", tmp_path, *FAST, "--fine-tune-batch-norm", batch_norm),
                *("--cache-dir", tmp_path / name),
                *("--output-dir", tmp_path / f"{name}-{batch_norm}"),
                patches=(*patches, *SMALL_WITHOUT_FIGURES),
            )
            assert process.wait() == 0, process.err
    caches = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.npz")}
        for name in ("one", "two")
    ]
    assert len(caches[0]) == 2 * 500 // 20 and caches[0] == caches[1]
    losses = {}
    for batch_norm in "frozen", "trained":
        one, two = (Result(tmp_path / f"{name}-{batch_norm}").history for name in ("one", "two"))
        for expected, row in zip(one, two, strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=0.01)
            assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=0.01)
        losses[batch_norm] = one[-1]["loss"]
    assert losses["frozen"] != pytest.approx(losses["trained"], rel=0.01)
