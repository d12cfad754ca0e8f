"""Copies of a network: on other inputs, in another precision, batch normalisation folded in."""

from typing import Any

import keras
import numpy as np


def copy_network(network: keras.Model, inputs: keras.KerasTensor, dtype: str) -> keras.Model:
    """A copy of a network on other inputs, without its weights.

    Args:
        network: of `keras.applications`, or the end of one.
        inputs: what the copy starts from.
        dtype: dtype policy of its layers, one of `devices.DTYPES`.
    """
    return keras.models.clone_model(
        network,
        inputs,
        clone_function=lambda layer: _copy_layer(layer, dtype),
        call_function=_call_layer,
    )


def _copy_layer(layer: keras.Layer, dtype: str, add_bias: bool = False) -> keras.Layer:
    if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
        return layer  # it works on pixels, for which 16 bits would be too coarse
    if isinstance(layer, keras.Sequential):
        return keras.models.clone_model(
            layer, clone_function=lambda inner: _copy_layer(inner, dtype)
        )
    config = layer.get_config()
    if isinstance(layer, keras.Layer):  # and no mere operation
        config["dtype"] = dtype
    if add_bias:
        config["use_bias"] = True
    return type(layer).from_config(config)


def _call_layer(layer: keras.Layer, *args: Any, mask: object = None, **kwargs: Any) -> Any:
    return layer(*args, **kwargs)  # a recorded call carries a mask, which not every layer takes


def fold_batch_norm(network: keras.Model, images: keras.KerasTensor, dtype: str) -> keras.Model:
    """The same function of `images` with each BatchNormalization folded into its convolution.

    In inference, BatchNormalization is y = (x − mean)·s + beta with s = gamma/√(variance + ε).
    After a convolution, that is a convolution with kernel·s and bias (bias − mean)·s + beta.

    Args:
        network: of `keras.applications`; left as it is.
        images: what the new model starts from, float32 (N, size, size, 3).
        dtype: dtype policy of the new layers, one of `devices.DTYPES`.
    """
    producers = {id(layer.output): layer.name for layer in network.layers}
    norms = {
        producers[id(layer.input)]: layer
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }

    def call_layer(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.layers.BatchNormalization):
            return args[0]
        return _call_layer(layer, *args, **kwargs)

    folded = keras.models.clone_model(
        network,
        images,
        clone_function=lambda layer: _copy_layer(layer, dtype, add_bias=layer.name in norms),
        call_function=call_layer,
    )
    for layer in network.layers:
        if norm := norms.get(layer.name):
            gamma = norm.gamma.numpy() if norm.scale else 1
            scale = gamma / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
            kernel, *bias = layer.get_weights()
            shift = (sum(bias) - norm.moving_mean.numpy()) * scale + norm.beta.numpy()
            kernel = kernel * scale.reshape(kernel.shape[-2:] if is_depthwise(layer) else -1)
            folded.get_layer(layer.name).set_weights([kernel, shift])
        elif layer.weights and not isinstance(layer, keras.layers.BatchNormalization):
            folded.get_layer(layer.name).set_weights(layer.get_weights())
    folded.trainable = False
    return folded


def is_depthwise(layer: keras.Layer) -> bool:
    """Whether its kernel is (height, width, channels, 1)."""
    return isinstance(layer, keras.layers.DepthwiseConv2D)
