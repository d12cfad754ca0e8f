"""What computes: GPUs, precision, inference in batches.

The one room that sets TensorFlow's distribution strategy and asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from fashion import environment
from fashion.errors import UsageError
from fashion.options import AllOrCount

import keras
import numpy as np
import tensorflow as tf

DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}  # precision → Keras' dtype policy


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """What computes."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the frozen network; auto is bfloat16 where the processor or GPU has it natively"""
    gpus: AllOrCount = "all"
    """use all GPUs or the first N, each with its share of the work; 0 is the processor alone"""


def use(gpus: int | str) -> None:
    """Uses "all" GPUs, or the first so many, each with its own share of each step.

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


def choose_precision(precision: str) -> str:
    """Turns "auto" into "bfloat16" where that is native (and so about twice as fast)."""
    if precision != "auto":
        return precision
    if gpus := tf.config.get_visible_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpus[0])
        native = details.get("compute_capability", (0, 0)) >= (8, 0)
    else:
        native = {"avx512_bf16", "amx_bf16"} & set(environment.cpu_info().get("flags", "").split())
    return "bfloat16" if native else "float32"


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
