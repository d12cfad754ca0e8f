"""Copies of a network on other inputs, with batch normalization folded or to be trained."""

from collections.abc import Collection
from typing import Any

import keras
import numpy as np


def copy_network(
    network: keras.Model,
    inputs: keras.KerasTensor,
    source: keras.Model | None = None,
    trained: Collection[str] = (),
    batch_norm_class: type[keras.Layer] = keras.layers.BatchNormalization,
) -> keras.Model:
    """Copy a network, with each BatchNormalization folded into the convolution before it.

    In inference, BatchNormalization is y = (x − mean)·s + beta with s = gamma/√(variance + ε).
    After a convolution, this is a convolution with kernel·s and bias (bias − mean)·s + beta.
    Dropout layers are left out as well.

    Args:
        network: Network of `keras.applications`; it is not changed.
        inputs: Inputs of the copy, preprocessed images, float32 (N, size, size, 3).
        source: Earlier copy of the network, for example a trained one, that has the weights; by
            default the network itself.
        trained: Names of the layers that stay as they are and trainable, among them
            BatchNormalization and Dropout layers.
        batch_norm_class: Class of the BatchNormalization layers in `trained`, which always have
            gamma and beta.

    Returns:
        The copy, with equal layer names. Layers that are not in `trained` are frozen.
    """
    source_layers = {layer.name: layer for layer in (source or network).layers}
    name_by_output = {id(layer.output): layer.name for layer in network.layers}
    folded = {  # name of the convolution → name of the normalization that is folded into it
        name_by_output[id(layer.input)]: layer.name
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.name not in trained
    }

    def copy_layer(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
            config["dtype"] = "float32"  # operates on pixels, for which 16 bits are too coarse
        if isinstance(layer, keras.layers.BatchNormalization) and layer.name in trained:
            return batch_norm_class.from_config(config | {"scale": True, "center": True})
        if layer.name in folded:
            config["use_bias"] = True
        return type(layer).from_config(config)

    # Without the mask that recorded calls carry, since not every layer accepts one.
    def call_layer(layer: keras.Layer, *args: Any, mask: object = None, **kwargs: Any) -> Any:
        skipped = keras.layers.BatchNormalization | keras.layers.Dropout
        if isinstance(layer, skipped) and layer.name not in trained:
            return args[0]
        return layer(*args, **kwargs)

    copy = keras.models.clone_model(network, inputs, copy_layer, call_layer)
    for layer in copy.layers:
        if layer.weights and layer.name in source_layers:
            # None if the convolution has no normalization, or one that `source` has folded.
            batch_norm = source_layers.get(folded.get(layer.name, ""))
            layer.set_weights(_weights(source_layers[layer.name], batch_norm))
            layer.trainable = layer.name in trained
    return copy


def batch_norm_parameters(layer: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """Return gamma, beta, mean and variance; a layer may have no gamma or beta of its own."""
    mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    gamma = layer.gamma.numpy() if layer.scale else np.ones_like(mean)
    beta = layer.beta.numpy() if layer.center else np.zeros_like(mean)
    return [gamma, beta, mean, variance]


def _weights(
    layer: keras.Layer, batch_norm: keras.layers.BatchNormalization | None
) -> list[np.ndarray]:
    """Return the weights of a layer, with the normalization after it, if any, folded in."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return batch_norm_parameters(layer)
    if not batch_norm:
        return layer.get_weights()
    gamma, beta, mean, variance = batch_norm_parameters(batch_norm)
    scale = gamma / np.sqrt(variance + batch_norm.epsilon)
    kernel, *biases = layer.get_weights()  # one bias or none
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)  # (height, width, channels, 1)
    kernel = kernel * scale.reshape(kernel.shape[-2:] if is_depthwise else -1)
    return [kernel, (sum(biases) - mean) * scale + beta]
