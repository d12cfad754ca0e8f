"""Batch normalization that is trained with the backbone's last blocks."""

from collections.abc import Iterable, Iterator
from typing import Any

from fashion import devices
from fashion.backbones.folding import copy_network

import keras
import numpy as np
import tensorflow as tf

MOMENTUM = 0.9  # PyTorch's default (0.1 there); with Keras' 0.99, statistics need more steps


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer, with TensorFlow's fused operation in training mode.

    Outputs, gradients and moving statistics are those of Keras' layer, which computes mean,
    variance and outputs separately and is slower (`python benchmarks/speed.py fine_tuning`).
    Inference is Keras' own.

    The class has the name of Keras' class, because `.weights.h5` files address layers by it:
    checkpoints are interchangeable.
    """

    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> keras.KerasTensor:
        """Normalize float (N, height, width, channels) with the batch's statistics in training."""
        is_fusible = len(inputs.shape) == 4 and self.axis in (-1, 3) and mask is None
        if not (training and self.trainable and self.scale and self.center and is_fusible):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=[],
            variance=[],
            epsilon=self.epsilon,
        )
        # The operation returns the unbiased variance; Keras' moving variance is the biased one.
        n = tf.cast(tf.size(inputs) / self.gamma.shape[0], variance.dtype)
        variance *= tf.maximum(n - 1, 1) / n
        for moving, value in (self.moving_mean, mean), (self.moving_variance, variance):
            moving.assign(moving * self.momentum + value * (1 - self.momentum))
        return outputs


def copy_with_trained_batch_norm(
    blocks: keras.Model, activations: keras.KerasTensor, dtype: str
) -> keras.Model:
    """Copy blocks, with weights, for training; all BatchNormalization layers get gamma and beta.

    Args:
        blocks: Last blocks of a network of `keras.applications`.
        activations: Inputs of the copy.
        dtype: Dtype policy of its layers, a value of `devices.DTYPE_POLICIES`.
    """
    copy = copy_network(blocks, activations, dtype, replace_layer=_replace_batch_norm)
    for layer in blocks.layers:
        weights = layer.get_weights()
        if isinstance(layer, keras.layers.BatchNormalization):
            channels = len(weights[-1])
            gamma = weights.pop(0) if layer.scale else np.ones(channels)
            beta = weights.pop(0) if layer.center else np.zeros(channels)
            weights = [gamma, beta, *weights]
        if weights:
            copied_layer = copy.get_layer(layer.name)
            copied_layer.set_weights(weights)
            copied_layer.trainable = True
    return copy


def _replace_batch_norm(layer: keras.Layer, dtype: str) -> keras.Layer | None:
    """Return the layer that replaces a BatchNormalization layer; None for other layers."""
    if not isinstance(layer, keras.layers.BatchNormalization):
        return None
    changes = {"dtype": dtype, "momentum": MOMENTUM, "scale": True, "center": True}
    config = layer.get_config() | changes
    if devices.num_replicas() > 1:
        # Otherwise the moving statistics would be the first replica's alone.
        return keras.layers.BatchNormalization.from_config(config | {"synchronized": True})
    return BatchNormalization.from_config(config)


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Return the BatchNormalization layers of a model."""
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


def recalibrate(blocks: keras.Model, batches: Iterable[np.ndarray]) -> None:
    """Set the moving statistics to those of the data, without changing the blocks' outputs.

    Training mode normalizes with the statistics of a batch. The stored ones are far from these:
    they are ImageNet's, or mean 0 and variance 1 if the weights file contains a network with folded
    batch normalization. With the measured mean m and variance v of
    a layer's input, gamma becomes gamma·√(v+ε)/√(v₀+ε) and beta becomes beta +
    gamma·(m−m₀)/√(v₀+ε), where m₀ and v₀ are the previous statistics. One pass suffices, since no
    layer's outputs change in inference mode.

    Args:
        blocks: Model of `copy_with_trained_batch_norm`.
        batches: Batches of its inputs, float16 (N, height, width, channels).
    """
    layers = batch_norms(blocks)
    for layer, (mean, variance) in zip(layers, _moments(blocks, batches), strict=True):
        gamma, beta, old_mean, old_variance = layer.get_weights()
        scale = gamma / np.sqrt(old_variance + layer.epsilon)
        layer.set_weights(
            [
                scale * np.sqrt(variance + layer.epsilon),
                beta + scale * (mean - old_mean),
                mean,
                variance,
            ]
        )


def _moments(blocks: keras.Model, batches: Iterable[np.ndarray]) -> Iterator[tuple]:
    """Yield mean and variance of each BatchNormalization layer's input, float64 (channels,)."""
    moments = [
        keras.ops.moments(keras.ops.cast(layer.input, "float32"), axes=(1, 2))
        for layer in batch_norms(blocks)
    ]
    model = keras.Model(blocks.input, moments)
    outputs = [
        keras.tree.map_structure(np.float64, devices.predict_on_replicas(model, [batch])[0])
        for batch in batches
    ]
    for per_batch in zip(*outputs, strict=True):
        means, variances = (np.concatenate(values) for values in zip(*per_batch, strict=True))
        # One row per image: total variance = mean variance within images + variance of their means.
        yield means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0)
