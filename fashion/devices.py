"""What computes: GPUs, their memory, precision, loss scaling, inference in batches.

The one room that sets TensorFlow's distribution strategy and asks for it.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from fashion import environment
from fashion.errors import UsageError, UserError
from fashion.options import AllOrCount

import keras
import numpy as np
import tensorflow as tf

# Precision → Keras' dtype policy.
DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """What computes."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """of the frozen network; auto: bfloat16 where it is native, float16 on GPUs with that alone"""
    gpus: AllOrCount = "all"
    """use all GPUs or the first N, each with its share of the work; 0 is the processor alone"""


def use(gpus: int | str) -> None:
    """Uses "all" GPUs, or the first so many, each with its own share of each step.

    On them, too, the same seed gives the same figures.

    Raises:
        UsageError: there are fewer.
    """
    devices = tf.config.list_physical_devices("GPU")
    if gpus != "all":
        if int(gpus) > len(devices):
            raise UsageError(f"--gpus {gpus}: TensorFlow sees {len(devices)}")
        devices = devices[: int(gpus)]
        tf.config.set_visible_devices(devices, "GPU")
    if len(devices) > 1:
        tf.distribute.experimental_set_strategy(tf.distribute.MirroredStrategy())
    make_deterministic()


def make_deterministic() -> None:
    """Has GPUs, if any is used, add in the same order each time, as the processor does anyway."""
    if tf.config.get_visible_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


def choose_precision(precision: str) -> str:
    """Turns "auto" into the fastest of `DTYPES` that the first GPU, or the processor, has.

    A GPU's matrix units take float16 from compute capability 7.0 on, bfloat16 from 8.0 on. On a
    processor, float16 is no faster than float32.
    """
    if precision != "auto":
        return precision
    if gpus := tf.config.get_visible_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpus[0])
        capability = details.get("compute_capability", (0, 0))
        if (7, 0) <= capability < (8, 0):
            return "float16"
        native = capability >= (8, 0)
    else:
        flags = environment.cpu_info().get("flags", "").split()
        native = bool({"avx512_bf16", "amx_bf16"}.intersection(flags))
    return "bfloat16" if native else "float32"


def scale_loss(optimizer: keras.Optimizer, layer: keras.Layer) -> keras.Optimizer:
    """The same optimizer or, where layers compute in float16, one of a loss times a large factor.

    Else small gradients would be 0. The factor adapts itself; what is applied is divided by it.
    Keras does so by itself only where the dtype policy of the model, and not just that of its
    layers, is "mixed_float16".

    Args:
        optimizer: to be compiled with.
        layer: one of those that are trained.
    """
    if layer.compute_dtype != "float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


@contextlib.contextmanager
def enough_memory(work: str, lower: str) -> Iterator[None]:
    """Says what to do where a GPU's memory, or the processor's, is too small for the block.

    Args:
        work: what the block does.
        lower: the option that makes it need less.

    Raises:
        UserError: it is too small.
    """
    try:
        yield
    except (tf.errors.ResourceExhaustedError, tf.errors.InternalError, MemoryError) as error:
        # The latter is of many kinds; this one is of a batch for which there is no room.
        full = "Dst tensor is not initialized" in str(error)
        if isinstance(error, tf.errors.InternalError) and not full:
            raise
        raise UserError(f"out of memory during {work}: try it with a lower {lower}") from None


def predict_in_batches(
    model: keras.Model, inputs: np.ndarray, batch_size: int = 1000
) -> np.ndarray:
    """The model's outputs for all inputs, float32.

    `model.predict` does the same, but turns float16 inputs to float32, all of them at once.
    """
    batches = [inputs[i : i + batch_size] for i in range(0, len(inputs), batch_size)]
    outputs: list[np.ndarray] = []
    for i in range(0, len(batches), count()):
        outputs += [o.astype("float32") for o in predict_batches(model, batches[i : i + count()])]
    return np.concatenate(outputs)


def count() -> int:
    """How many devices share the work: GPUs, if there are several, else one."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def predict_batches(model: keras.Model, batches: list[np.ndarray]) -> list[Any]:
    """The model's outputs for each of at most as many batches as there are devices, at once.

    A device has a whole batch, so that the outputs do not depend on how many devices there are.
    """
    strategy = tf.distribute.get_strategy()
    if count() == 1:
        return [model.predict_on_batch(batch) for batch in batches]
    if not batches:
        return []
    # Every device must take part: those without a batch of their own repeat the last.
    inputs = strategy.experimental_distribute_values_from_function(
        lambda device: tf.constant(batches[min(device.replica_id_in_sync_group, len(batches) - 1)])
    )
    outputs = _on_each_device(model)(inputs)

    def of_device(i: int) -> object:
        return tf.nest.map_structure(
            lambda values: strategy.experimental_local_results(values)[i].numpy(), outputs
        )

    return [of_device(i) for i in range(len(batches))]


@lru_cache(maxsize=4)
def _on_each_device(model: keras.Model) -> Callable:
    """The model's inference on each device's own inputs, as a compiled function."""
    strategy = tf.distribute.get_strategy()
    return tf.function(
        lambda inputs: strategy.run(lambda batch: model(batch, training=False), (inputs,)),
        reduce_retracing=True,
    )
