"""Copies of networks, compared with the original networks."""

import itertools

from fashion.backbones import folding
from fashion.backbones.backbone import Backbone, load_backbone

import keras
import numpy as np
import pytest
from helpers.networks import BACKBONES, random_backbone


def batch_norms(network):
    return [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]


@pytest.mark.parametrize("name", BACKBONES)
def test_copies_equal_original_within_float32_rounding(name):
    """Folded, with trained blocks, and folded after the training."""
    backbone = random_backbone(name, 96)
    rgb = keras.random.uniform((4, 96, 96, 3), 0, 255, seed=0)
    before = backbone.weights_sha256
    expected = np.asarray(backbone.network(rgb))
    assert expected.std() > 0.01
    folded = folding.copy_network(backbone.network, backbone.network.input)
    assert not batch_norms(folded)
    assert not folded.trainable_weights
    np.testing.assert_allclose(folded(rgb), expected, rtol=1e-4, atol=1e-4)

    names = backbone.last_blocks(["conv5_avg"], 2)
    trained = folding.copy_network(backbone.network, backbone.network.input, trained=names)
    np.testing.assert_allclose(trained(rgb), expected, rtol=1e-4, atol=1e-4)
    assert {x.name for x in trained.layers if x.trainable_weights} == {
        x.name for x in backbone.network.layers if x.name in names and x.weights
    }
    assert {x.name for x in batch_norms(trained)} < names
    assert all(x.scale and x.center for x in batch_norms(trained))

    rng = np.random.default_rng(1)
    for weight in trained.trainable_weights:  # as if trained
        weight.assign(weight * rng.uniform(0.9, 1.1, weight.shape))
    changed = np.asarray(trained(rgb))
    assert abs(changed - expected).max() > 0.01
    folded = folding.copy_network(backbone.network, backbone.network.input, source=trained)
    assert not batch_norms(folded)
    assert not folded.trainable_weights
    np.testing.assert_allclose(folded(rgb), changed, rtol=1e-4, atol=1e-4)
    unchanged = Backbone(name, backbone.architecture, backbone.network)  # by its copies
    assert unchanged.weights_sha256 == before


def test_convolutions_and_normalizations_may_lack_bias_and_gamma():
    """A trained copy of the normalization always has a gamma."""
    rng = np.random.default_rng(0)
    x = inputs = keras.Input((8, 8, 3))
    for use_bias, scale in itertools.product([False, True], repeat=2):
        for convolution in (
            keras.layers.Conv2D(5, 3, padding="same", use_bias=use_bias),
            keras.layers.DepthwiseConv2D(3, padding="same", use_bias=use_bias),
        ):
            x = keras.layers.BatchNormalization(scale=scale, epsilon=0.5)(convolution(x))
    network = keras.Model(inputs, x)
    for weight in network.weights:
        weight.assign(rng.uniform(0.1, 0.5, weight.shape))
    images = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    expected = np.asarray(network(images))
    folded = folding.copy_network(network, keras.Input((8, 8, 3)))
    assert len(folded.weights) == 2 * 8 and not batch_norms(folded)
    names = {layer.name for layer in network.layers}
    trained = folding.copy_network(network, keras.Input((8, 8, 3)), trained=names)
    assert [x.scale for x in batch_norms(trained)] == [True] * 8
    for copy in folded, trained:
        np.testing.assert_allclose(copy(images), expected, rtol=1e-4, atol=1e-4 * expected.std())


def test_copy_has_the_global_precision_and_dropout_in_trained_blocks():
    keras.config.set_dtype_policy("mixed_bfloat16")
    backbone = load_backbone("efficientnetv2b0", 64, "random", seed=0)
    names, network = backbone.last_blocks(["conv4_avg"], 2), backbone.network
    copy = folding.copy_network(network, keras.Input((64, 64, 3)), trained=names)
    pixel_layers = keras.layers.Rescaling, keras.layers.Normalization
    assert any(isinstance(layer, pixel_layers) for layer in copy.layers)
    for layer in copy.layers:
        if layer.weights or isinstance(layer, pixel_layers):
            expected = "float32" if isinstance(layer, pixel_layers) else "bfloat16"
            assert layer.compute_dtype == expected, layer.name
    assert {weight.dtype for weight in copy.weights} == {"float32"}
    kept = {layer.name for layer in copy.layers if isinstance(layer, keras.layers.Dropout)}
    dropouts = {layer.name for layer in network.layers if isinstance(layer, keras.layers.Dropout)}
    assert kept == dropouts & names and kept
