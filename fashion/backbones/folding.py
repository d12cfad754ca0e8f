"""Copies of a network with other inputs, another precision, or folded batch normalization."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np


def copy_network(
    network: keras.Model,
    inputs: keras.KerasTensor,
    dtype: str,
    replace_layer: Callable[[keras.Layer, str], keras.Layer | None] = lambda layer, dtype: None,
) -> keras.Model:
    """Copy a network without its weights, with other inputs.

    Args:
        network: Network of `keras.applications`, or its last layers.
        inputs: Inputs of the copy.
        dtype: Dtype policy of its layers, a value of `devices.DTYPE_POLICIES`.
        replace_layer: Returns the new layer for a layer and `dtype`, or None to copy the layer.
    """
    return keras.models.clone_model(
        network,
        inputs,
        clone_function=lambda layer: replace_layer(layer, dtype) or _copy_layer(layer, dtype),
        call_function=_call_layer,
    )


def _copy_layer(layer: keras.Layer, dtype: str, add_bias: bool = False) -> keras.Layer:
    if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
        return layer  # operates on pixels, for which 16 bits are too coarse
    if isinstance(layer, keras.Sequential):
        return keras.models.clone_model(
            layer, clone_function=lambda inner: _copy_layer(inner, dtype)
        )
    config = layer.get_config()
    if isinstance(layer, keras.Layer):  # operations have no dtype
        config["dtype"] = dtype
    if add_bias:
        config["use_bias"] = True
    return type(layer).from_config(config)


def _call_layer(layer: keras.Layer, *args: Any, mask: object = None, **kwargs: Any) -> Any:
    return layer(*args, **kwargs)  # recorded calls carry a mask that not every layer accepts


def fold_batch_norm(network: keras.Model, images: keras.KerasTensor, dtype: str) -> keras.Model:
    """Copy a network with each BatchNormalization folded into its convolution.

    In inference, BatchNormalization is y = (x − mean)·s + beta with s = gamma/√(variance + ε).
    After a convolution, this is a convolution with kernel·s and bias (bias − mean)·s + beta.

    Args:
        network: Network of `keras.applications`; it is not changed.
        images: Inputs of the copy, float32 (N, size, size, 3).
        dtype: Dtype policy of its layers, a value of `devices.DTYPE_POLICIES`.
    """
    layer_name_by_output = {id(layer.output): layer.name for layer in network.layers}
    batch_norms = {
        layer_name_by_output[id(layer.input)]: layer
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
        clone_function=lambda layer: _copy_layer(layer, dtype, add_bias=layer.name in batch_norms),
        call_function=call_layer,
    )
    for layer in network.layers:
        if norm := batch_norms.get(layer.name):
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
    """Return whether the layer's kernel has the shape (height, width, channels, 1)."""
    return isinstance(layer, keras.layers.DepthwiseConv2D)
