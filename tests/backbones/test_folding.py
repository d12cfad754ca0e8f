"""Copies of networks compute what the networks do."""

from fashion.backbones import architectures, folding

import keras
import numpy as np
import pytest
from conftest import random_network

QUICK = "resnet50", "mobilenetv2", "efficientnetb0"
ALL = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in sorted(architectures.ARCHITECTURES)
]


def norms(network):
    return [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]


@pytest.mark.parametrize("name", ALL)
def test_folded_backbone_agrees_to_float32_precision(name):
    backbone = random_network(name, 96)
    rgb = keras.random.uniform((4, 96, 96, 3), 0, 255, seed=0)
    expected = backbone.predict(rgb, verbose=0)
    assert expected.std() > 0.01
    folded = folding.fold_batch_norm(backbone, backbone.input, "float32")
    # InceptionV3's and ConvNeXt's have none to begin with, or none that is a layer of its own.
    assert not norms(folded)
    assert not folded.trainable_weights
    np.testing.assert_allclose(folded.predict(rgb, verbose=0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D"])
def test_folded_convolution_is_normalised_by_hand(kind, scale, use_bias):
    """Whatever of kernel, bias, gamma and beta there is, and whatever the epsilon."""
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
    assert len(folded.weights) == 2 and not norms(folded)
    np.testing.assert_allclose(folded.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-4)
    assert folding.is_depthwise(convolution) == (kind == "DepthwiseConv2D")


def test_copy_is_in_its_own_precision_but_for_what_works_on_pixels():
    network = random_network("efficientnetb0", 96)
    images = keras.Input((96, 96, 3))
    copy = folding.copy_network(network, images, "mixed_bfloat16")
    assert copy.inputs[0] is images
    of_pixels = keras.layers.Rescaling, keras.layers.Normalization
    assert any(isinstance(layer, of_pixels) for layer in copy.layers)
    for layer in copy.layers:
        if layer.weights or isinstance(layer, of_pixels):
            expected = "float32" if isinstance(layer, of_pixels) else "bfloat16"
            assert layer.compute_dtype == expected, layer.name
    # As many layers and weights of the same shapes, of which none is the network's own.
    assert len(norms(copy)) == len(norms(network)) > 0
    ours = [weight.shape for weight in copy.weights]
    assert ours == [weight.shape for weight in network.weights]
    kernels = {id(layer.kernel) for layer in network.layers if hasattr(layer, "kernel")}
    assert not kernels & {id(layer.kernel) for layer in copy.layers if hasattr(layer, "kernel")}


def test_network_is_left_as_it_is():
    network = random_network("mobilenetv2", 96)
    before = [weight.numpy() for weight in network.weights]
    folding.fold_batch_norm(network, network.input, "float32")
    for weight, value in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
