"""Trained batch normalization, compared with Keras' layer and with NumPy."""

from fashion.backbones.folding import copy_network
from fashion.fine_tuning import batch_norm
from fashion.fine_tuning.batch_norm import BatchNormalization

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.networks import BACKBONES, random_backbone


def step(layer, images, training):
    """Return outputs, gradients of inputs, gamma and beta, and the statistics afterwards."""
    inputs = tf.constant(images, layer.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=training)
        loss = tf.reduce_sum(
            tf.cast(outputs, "float32") * np.cos(np.arange(images.size)).reshape(images.shape)
        )
    assert outputs.dtype == layer.compute_dtype
    gradients = tape.gradient(loss, [inputs, layer.gamma, layer.beta])
    values = [outputs, *gradients, layer.moving_mean, layer.moving_variance]
    return [np.asarray(value, "float64") for value in values]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.04)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("trainable", [True, False])
def test_layer_equals_keras_layer(dtype, tolerance, training, trainable):
    """With 8 values per channel, the unbiased variance would be 14% larger."""
    rng = np.random.default_rng(0)
    images = rng.normal(1, 2, size=(2, 2, 2, 3))
    weights = [*rng.normal(size=(3, 3)), rng.uniform(1, 2, 3)]
    layers = []
    for cls in keras.layers.BatchNormalization, BatchNormalization:
        layers.append(cls(momentum=batch_norm.MOMENTUM, epsilon=1e-3, dtype=dtype))
        layers[-1].build(images.shape)
        layers[-1].set_weights(weights)
    expected, fused = layers
    expected.trainable = fused.trainable = trainable
    for value, reference in zip(
        step(fused, images, training), step(expected, images, training), strict=True
    ):
        np.testing.assert_allclose(value, reference, rtol=tolerance, atol=tolerance)
    is_moved = not np.array_equal(fused.moving_variance, weights[3].astype("float32"))
    assert is_moved == (training and trainable)


@pytest.mark.parametrize("name", BACKBONES)
def test_recalibration_keeps_outputs(name, sample):
    backbone, inputs = random_backbone(name, 96), keras.Input((28, 28), dtype="uint8")
    network = copy_network(
        backbone.network,
        backbone.preprocess(inputs),
        trained=backbone.last_blocks(["conv4_avg"], 5),
        batch_norm_class=BatchNormalization,
    )
    activations = network.get_layer(backbone.architecture.stages["conv4"]).output
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(activations))
    images = sample.train.images[:30]
    expected = np.asarray(model(images))
    assert expected.std() > 1e-3

    batch_norm.recalibrate(model, network, images)
    np.testing.assert_allclose(model(images), expected, atol=1e-4 * np.abs(expected).max())
    layers = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(layers) > 5 and all(type(layer) is BatchNormalization for layer in layers)
    # Oracle: statistics of the layers' inputs, within and between images, by NumPy.
    for layer in layers[0], layers[-1]:
        values = np.asarray(keras.Model(inputs, layer.input)(images), "float64")
        mean, variance = values.mean((0, 1, 2)), values.var((0, 1, 2))
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4, atol=1e-5 * values.std())
        np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-3, atol=1e-6)
    # Training mode starts near inference mode.
    in_training = model(images, training=True)
    minimum = 0.9 if name == "efficientnetv2b0" else 0.99  # with dropout
    assert np.corrcoef(np.ravel(in_training), expected.ravel())[0, 1] > minimum
