"""Copies of networks, compared with the original networks."""

from fashion.backbones import architectures, folding

import keras
import numpy as np
import pytest
from helpers.networks import random_network

QUICK = ("mobilenetv2",)  # the others take several seconds each
ALL = [
    pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow, pytest.mark.versions))
    for name in sorted(architectures.ARCHITECTURES)
]


def batch_norms(network):
    return [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]


@pytest.mark.parametrize("name", ALL)
def test_folded_network_equals_original_within_float32_rounding(name):
    backbone = random_network(name, 96)
    rgb = keras.random.uniform((4, 96, 96, 3), 0, 255, seed=0)
    expected = backbone.predict(rgb, verbose=0)
    assert expected.std() > 0.01
    folded = folding.fold_batch_norm(backbone, backbone.input, "float32")
    assert not batch_norms(folded)
    assert not folded.trainable_weights
    np.testing.assert_allclose(folded.predict(rgb, verbose=0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D"])
def test_folded_convolution_equals_manual_normalization(kind, scale, use_bias):
    """For all combinations of kernel, bias and gamma, and a large epsilon."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 3))
    convolution = {
        "Conv2D": lambda: keras.layers.Conv2D(5, 3, use_bias=use_bias),
        "DepthwiseConv2D": lambda: keras.layers.DepthwiseConv2D(3, use_bias=use_bias),
    }[kind]()
    norm = keras.layers.BatchNormalization(scale=scale, epsilon=0.5)
    convolved = convolution(inputs)
    network = keras.Model(inputs, norm(convolved))
    for weight in network.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    images = rng.normal(size=(4, 8, 8, 3)).astype("float32")

    x = keras.Model(inputs, convolved).predict(images, verbose=0).astype("float64")
    gamma = norm.gamma.numpy() if scale else 1
    normal = (x - norm.moving_mean.numpy()) / np.sqrt(norm.moving_variance.numpy() + 0.5)
    expected = gamma * normal + norm.beta.numpy()

    folded = folding.fold_batch_norm(network, keras.Input((8, 8, 3)), "float32")
    assert len(folded.weights) == 2 and not batch_norms(folded)
    np.testing.assert_allclose(folded.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-4)
    assert folding.is_depthwise(convolution) == (kind == "DepthwiseConv2D")


def test_copy_network_changes_precision_except_for_pixel_layers():
    network = random_network("efficientnetb0", 96)
    images = keras.Input((96, 96, 3))
    copy = folding.copy_network(network, images, "mixed_bfloat16")
    assert copy.inputs[0] is images
    pixel_layers = keras.layers.Rescaling, keras.layers.Normalization
    assert any(isinstance(layer, pixel_layers) for layer in copy.layers)
    for layer in copy.layers:
        if layer.weights or isinstance(layer, pixel_layers):
            expected = "float32" if isinstance(layer, pixel_layers) else "bfloat16"
            assert layer.compute_dtype == expected, layer.name
    # Equal numbers and shapes of weights, none of which is shared with the network.
    assert len(batch_norms(copy)) == len(batch_norms(network)) > 0
    shapes = [weight.shape for weight in copy.weights]
    assert shapes == [weight.shape for weight in network.weights]
    kernels = {id(layer.kernel) for layer in network.layers if hasattr(layer, "kernel")}
    assert not kernels & {id(layer.kernel) for layer in copy.layers if hasattr(layer, "kernel")}


def test_fold_batch_norm_keeps_the_original_network():
    network = random_network("mobilenetv2", 96)
    before = [weight.numpy() for weight in network.weights]
    folding.fold_batch_norm(network, network.input, "float32")
    for weight, value in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
