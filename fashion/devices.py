"""GPUs, precision, memory errors, loss scaling and batched inference.

This is the only module that deals with TensorFlow's distribution strategy.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from fashion import environment
from fashion.errors import UsageError, UserError
from fashion.options import GpuCount

import keras
import numpy as np
import tensorflow as tf

# Precision → Keras dtype policy.
DTYPE_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Hardware and numerical precision."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """precision of backbone and head; auto: bfloat16 if the hardware supports it, float16 on GPUs
    that only support float16, else float32"""
    gpus: GpuCount = "all"
    """use all GPUs or the first N, data-parallel; 0: CPU only"""


def configure_gpus(gpus: int | str) -> None:
    """Use all GPUs or the first N; several GPUs run data-parallel with MirroredStrategy.

    Operations are made deterministic: runs with equal seeds give equal results.

    Args:
        gpus: "all" or N.

    Raises:
        UsageError: If there are fewer than N.
    """
    devices = tf.config.list_physical_devices("GPU")
    if gpus != "all":
        if int(gpus) > len(devices):
            raise UsageError(
                f"--gpus {gpus}: TensorFlow finds {len(devices)} GPUs; use at most "
                "that number, or --gpus all"
            )
        devices = devices[: int(gpus)]
        tf.config.set_visible_devices(devices, "GPU")
    if len(devices) > 1:
        tf.distribute.experimental_set_strategy(tf.distribute.MirroredStrategy())
    make_deterministic()


def make_deterministic() -> None:
    """Enable deterministic ops if a GPU is used (CPU ops are deterministic anyway)."""
    if tf.config.get_visible_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


def resolve_precision(precision: str) -> str:
    """Replace "auto" with the fastest precision that the first GPU, or the CPU, supports.

    The matrix units of GPUs support float16 from compute capability 7.0 on, bfloat16 from 8.0 on.
    On CPUs, float16 is not faster than float32.
    """
    if precision != "auto":
        return precision
    if gpus := tf.config.get_visible_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpus[0])
        capability = details.get("compute_capability", (0, 0))
        if (7, 0) <= capability < (8, 0):
            return "float16"
        has_bfloat16 = capability >= (8, 0)
    else:
        flags = environment.cpu_info().get("flags", "").split()
        has_bfloat16 = bool({"avx512_bf16", "amx_bf16"}.intersection(flags))
    return "bfloat16" if has_bfloat16 else "float32"


def with_loss_scaling(optimizer: keras.Optimizer, layer: keras.Layer) -> keras.Optimizer:
    """Wrap the optimizer in a `LossScaleOptimizer` if `layer` computes in float16.

    Without loss scaling, small gradients underflow to 0. Keras adds it by itself only if the
    dtype policy of the model is "mixed_float16", not if only the policies of its layers are.

    Args:
        optimizer: Optimizer to compile the model with.
        layer: A trainable layer of the model.
    """
    if layer.compute_dtype != "float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


@contextlib.contextmanager
def handle_out_of_memory(stage: str, to_reduce: str) -> Iterator[None]:
    """Turn out-of-memory errors of the GPU or the CPU into a `UserError`.

    Args:
        stage: Name of the stage that the block runs.
        to_reduce: Option to reduce, for the message.

    Raises:
        UserError: If memory runs out.
    """
    try:
        yield
    except (tf.errors.ResourceExhaustedError, tf.errors.InternalError, MemoryError) as error:
        # TensorFlow reports a batch that does not fit as an InternalError with this message.
        is_full = "Dst tensor is not initialized" in str(error)
        if isinstance(error, tf.errors.InternalError) and not is_full:
            raise
        raise UserError(f"out of memory (stage: {stage}); try a smaller {to_reduce}") from None


def warn_if_memory_is_low(needed: float, to_reduce: str) -> None:
    """Warn if the CPU's memory is less than `needed` bytes; GPUs have their own.

    Args:
        needed: Estimate of the bytes that will be allocated.
        to_reduce: Option to reduce, for the message.
    """
    available = environment.available_memory()
    if tf.config.get_visible_devices("GPU") or available is None or available >= needed:
        return
    print(
        f"WARNING: training needs about {environment.format_bytes(needed)} of memory, but only "
        f"{environment.format_bytes(available)} are available; a smaller {to_reduce} needs less",
        file=sys.stderr,
    )


def predict_in_batches(
    model: keras.Model, inputs: np.ndarray, batch_size: int = 1000
) -> np.ndarray:
    """Return the model's outputs for all inputs, as float32.

    `model.predict` converts float16 inputs to float32, all of them at once; this function does not.
    """
    batches = [inputs[i : i + batch_size] for i in range(0, len(inputs), batch_size)]
    outputs: list[np.ndarray] = []
    for i in range(0, len(batches), num_replicas()):
        group = batches[i : i + num_replicas()]
        outputs += [output.astype("float32") for output in predict_on_replicas(model, group)]
    return np.concatenate(outputs)


def num_replicas() -> int:
    """Return the number of devices that share the work: the number of GPUs, at least 1."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def predict_on_replicas(model: keras.Model, batches: list[np.ndarray]) -> list[Any]:
    """Return the model's outputs for each batch, computed at once, one batch per device.

    Each device gets a complete batch, so the outputs do not depend on the number of devices.

    Args:
        model: Model to call in inference mode.
        batches: At most `num_replicas()` batches.
    """
    strategy = tf.distribute.get_strategy()
    if num_replicas() == 1:
        return [model.predict_on_batch(batch) for batch in batches]
    if not batches:
        return []
    # Every device must take part, so devices without a batch repeat the last one.
    inputs = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(
            batches[min(context.replica_id_in_sync_group, len(batches) - 1)]
        )
    )
    outputs = _replica_predict_fn(model)(inputs)

    def replica_outputs(i: int) -> object:
        return tf.nest.map_structure(
            lambda values: strategy.experimental_local_results(values)[i].numpy(), outputs
        )

    return [replica_outputs(i) for i in range(len(batches))]


@lru_cache(maxsize=4)
def _replica_predict_fn(model: keras.Model) -> Callable:
    """Return a compiled function that runs the model on each device's inputs."""
    strategy = tf.distribute.get_strategy()
    return tf.function(
        lambda inputs: strategy.run(lambda batch: model(batch, training=False), (inputs,)),
        reduce_retracing=True,
    )
