"""Copies of networks, compared with the original networks."""

from fashion.backbones import folding
from fashion.backbones.backbone import ARCHITECTURES, Backbone, load_backbone

import keras
import numpy as np
import pytest
from helpers.networks import random_backbone

SLOW = (pytest.mark.slow, pytest.mark.versions)
NAMES = [pytest.param(name, marks=() if name == "mobilenetv2" else SLOW) for name in ARCHITECTURES]


def batch_norms(network):
    return [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]


@pytest.mark.parametrize("name", NAMES)
def test_copies_equal_original_within_float32_rounding(name):
    """Folded, with trained blocks, and folded after the training."""
    backbone = random_backbone(name, 96)
    rgb = keras.random.uniform((4, 96, 96, 3), 0, 255, seed=0)
    before = backbone.weights_sha256
    expected = backbone.network.predict(rgb, verbose=0)
    assert expected.std() > 0.01
    folded = folding.copy_network(backbone.network, backbone.network.input)
    assert not batch_norms(folded)
    assert not folded.trainable_weights
    np.testing.assert_allclose(folded.predict(rgb, verbose=0), expected, rtol=1e-4, atol=1e-4)

    names = backbone.last_blocks(["conv5_avg"], 2)
    trained = folding.copy_network(backbone.network, backbone.network.input, trained=names)
    np.testing.assert_allclose(trained.predict(rgb, verbose=0), expected, rtol=1e-4, atol=1e-4)
    assert {x.name for x in trained.layers if x.trainable_weights} == {
        x.name for x in backbone.network.layers if x.name in names and x.weights
    }
    assert {x.name for x in batch_norms(trained)} < names
    assert all(x.scale and x.center for x in batch_norms(trained))

    rng = np.random.default_rng(1)
    for weight in trained.trainable_weights:  # as if trained
        weight.assign(weight * rng.uniform(0.9, 1.1, weight.shape))
    changed = trained.predict(rgb, verbose=0)
    assert abs(changed - expected).max() > 0.01
    folded = folding.copy_network(backbone.network, backbone.network.input, source=trained)
    assert not batch_norms(folded)
    assert not folded.trainable_weights
    np.testing.assert_allclose(folded.predict(rgb, verbose=0), changed, rtol=1e-4, atol=1e-4)
    assert Backbone(name, backbone.network).weights_sha256 == before  # not changed by its copies


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(
    ("layer_class", "arguments"),
    [(keras.layers.Conv2D, (5, 3)), (keras.layers.DepthwiseConv2D, (3,))],
)
def test_folded_convolution_equals_manual_normalization(layer_class, arguments, scale, use_bias):
    """For all combinations of kernel, bias and gamma, and a large epsilon."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 3))
    convolution = layer_class(*arguments, use_bias=use_bias)
    norm = keras.layers.BatchNormalization(scale=scale, epsilon=0.5)
    convolved = convolution(inputs)
    network = keras.Model(inputs, norm(convolved))
    for weight in network.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    images = rng.normal(size=(4, 8, 8, 3)).astype("float32")

    x = keras.Model(inputs, convolved).predict(images, verbose=0).astype("float64")
    gamma = norm.gamma.numpy() if scale else np.ones(norm.beta.shape)
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    expected = gamma * (x - mean) / np.sqrt(variance + 0.5) + norm.beta.numpy()

    folded = folding.copy_network(network, keras.Input((8, 8, 3)))
    assert len(folded.weights) == 2 and not batch_norms(folded)
    np.testing.assert_allclose(folded.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-4)

    # In a trained copy, BatchNormalization always has a gamma.
    names = {convolution.name, norm.name}
    trained = folding.copy_network(network, keras.Input((8, 8, 3)), trained=names)
    assert [x.scale for x in batch_norms(trained)] == [True]
    assert len(trained.trainable_weights) == 3 + use_bias
    np.testing.assert_allclose(trained.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-4)


def test_copy_has_the_global_precision_and_requested_layers():
    class BatchNormalization(keras.layers.BatchNormalization):
        pass

    keras.config.set_dtype_policy("mixed_bfloat16")
    backbone = load_backbone("efficientnetv2b0", 64, "random", seed=0)
    names, network = backbone.last_blocks(["conv4_avg"], 2), backbone.network
    copy = folding.copy_network(
        network, keras.Input((64, 64, 3)), trained=names, batch_norm_class=BatchNormalization
    )
    pixel_layers = keras.layers.Rescaling, keras.layers.Normalization
    assert any(isinstance(layer, pixel_layers) for layer in copy.layers)
    for layer in copy.layers:
        if layer.weights or isinstance(layer, pixel_layers):
            expected = "float32" if isinstance(layer, pixel_layers) else "bfloat16"
            assert layer.compute_dtype == expected, layer.name
    assert {weight.dtype for weight in copy.weights} == {"float32"}
    # Dropout and BatchNormalization remain in trained blocks only.
    for kind in keras.layers.Dropout, keras.layers.BatchNormalization:
        kept = {layer.name for layer in copy.layers if isinstance(layer, kind)}
        assert kept == {x.name for x in network.layers if isinstance(x, kind)} & names and kept
    assert all(type(layer) is BatchNormalization for layer in batch_norms(copy))
