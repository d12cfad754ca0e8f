"""Trained batch normalization, compared with Keras' layer and with NumPy."""

from fashion.fine_tuning import batch_norm
from fashion.fine_tuning.batch_norm import BatchNormalization
from fashion.fine_tuning.freezing import FreezePoint

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.networks import linear_head, random_network

import common

# --------------------------------------------------------------------------------- the layer


def build_layers(dtype):
    """Return Keras' layer and the fused one, with equal weights; 3 channels."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=3), rng.normal(size=3), rng.normal(size=3), rng.uniform(1, 2, 3)]
    layers = []
    for cls in keras.layers.BatchNormalization, BatchNormalization:
        layer = cls(momentum=0.9, epsilon=1e-3, dtype=dtype)
        layer.build((None, 2, 2, 3))
        layer.set_weights(weights)
        layers.append(layer)
    return layers


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
    """With 8 values per channel, the unbiased variance would be 14 % larger."""
    images = np.random.default_rng(1).normal(1, 2, size=(2, 2, 2, 3))
    expected, fused = build_layers(dtype)
    before = fused.moving_variance.numpy()
    expected.trainable = fused.trainable = trainable
    for value, reference in zip(
        step(fused, images, training), step(expected, images, training), strict=True
    ):
        np.testing.assert_allclose(value, reference, rtol=tolerance, atol=tolerance)
    is_moved = not np.array_equal(fused.moving_variance, before)
    assert is_moved == (training and trainable)


def test_layer_uses_the_fused_operation_in_training_only():
    """The speed is measured by `benchmarks/speed.py fine_tuning`."""
    keras_layer, fused = build_layers("float32")

    def operations(layer, training):
        function = tf.function(lambda x: layer(x, training=training))
        graph = function.get_concrete_function(tf.TensorSpec((4, 2, 2, 3))).graph
        return {operation.type for operation in graph.get_operations()}

    assert "FusedBatchNormV3" in operations(fused, training=True)
    assert "FusedBatchNormV3" not in operations(keras_layer, training=True)
    assert operations(fused, training=False) == operations(keras_layer, training=False)


def test_weights_files_are_interchangeable(tmp_path):
    models = [
        keras.Sequential([keras.Input((2, 2, 3)), layer]) for layer in build_layers("float32")
    ]
    for source, target in (models, models[::-1]):
        for variable in target.variables:
            variable.assign(variable * 0)
        source.layers[0].moving_mean.assign([1, 2, 3])
        source.save_weights(tmp_path / "a.weights.h5")
        target.load_weights(tmp_path / "a.weights.h5")
        np.testing.assert_array_equal(target.layers[0].moving_mean, [1, 2, 3])


# ----------------------------------------------------------------------------- recalibration

NETWORKS = [
    "mobilenetv2",
    *(
        pytest.param(name, marks=(pytest.mark.slow, pytest.mark.versions))
        for name in ("resnet50", "inceptionv3", "efficientnetv2b0")
    ),
]


@pytest.mark.parametrize("name", NETWORKS)
def test_recalibration_and_folding_keep_outputs(name, sample, random_backbone):
    backbone = random_backbone(name, 96, "float32")
    blocks = backbone.blocks
    num_blocks = min(5, blocks.index(backbone.block_after_stage["conv4"]))
    channels = backbone.stage_output(backbone.model, "conv4").shape[-1]
    head = linear_head(channels)
    freeze_point = FreezePoint.from_end(num_blocks, backbone, ("conv4_avg",), train_batch_norm=True)
    frozen, copy, trainable = freeze_point.split_model(head)
    inputs = frozen.predict(sample.train.images[:60], verbose=0)
    expected = trainable.predict(inputs, verbose=0)
    assert expected.std() > 1e-3

    # Batches of different sizes.
    batch_norm.recalibrate(copy, np.split(inputs["activations"], [40]))
    layers = batch_norm.batch_norms(copy)
    assert len(layers) > 5
    # Oracle: statistics of the layers' inputs by NumPy.
    for layer in layers[0], layers[-1]:
        values = keras.Model(copy.input, layer.input).predict(inputs["activations"], verbose=0)
        values = values.astype("float64")
        np.testing.assert_allclose(layer.moving_mean, values.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            layer.moving_variance, values.var((0, 1, 2)), rtol=1e-3, atol=1e-6
        )
    recalibrated = trainable.predict(inputs, verbose=0)
    np.testing.assert_allclose(recalibrated, expected, atol=1e-4 * np.abs(expected).max())
    # Training mode starts near inference mode.
    in_training = trainable(inputs, training=True)
    minimum = 0.9 if name == "efficientnetv2b0" else 0.99  # with dropout
    assert np.corrcoef(np.ravel(in_training), expected.ravel())[0, 1] > minimum

    folded = freeze_point.build_trainable(frozen, freeze_point.fold_blocks(copy), head)
    assert not batch_norm.batch_norms(folded)
    outputs = folded.predict(inputs, verbose=0)
    expected = trainable.predict(inputs, verbose=0)
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * np.abs(expected).max())


def test_copy_has_gamma_and_beta_and_is_trainable(random_backbone):
    """InceptionV3's batch normalization has no gamma."""
    network = random_network("inceptionv3", 96)
    # Not by name: the numbers in Keras' names depend on the networks that were built before.
    pooling = [x for x in network.layers if isinstance(x, keras.layers.MaxPooling2D)]
    block = keras.Model(pooling[1].output, network.get_layer("mixed0").output)
    inputs = keras.Input(block.input.shape[1:])
    copy = batch_norm.copy_with_trained_batch_norm(block, inputs, "float32")
    layers = batch_norm.batch_norms(copy)
    assert len(layers) == 7 and not any(layer.scale for layer in batch_norm.batch_norms(block))
    trainable = {weight.path for weight in copy.trainable_weights}
    for layer in layers:
        assert {layer.gamma.path, layer.beta.path} < trainable
        assert layer.momentum == batch_norm.MOMENTUM
    values = np.random.default_rng(0).uniform(0, 3, (4, *block.input.shape[1:]))
    np.testing.assert_allclose(
        copy.predict(values, verbose=0), block.predict(values, verbose=0), rtol=1e-4, atol=1e-5
    )


def test_training_moves_kernels_gamma_beta_and_statistics(random_backbone, sample):
    backbone = random_backbone("mobilenetv2", 96, "float32")
    freeze_point = FreezePoint.from_end(2, backbone, ("conv4_avg",), train_batch_norm=True)
    frozen, copy, trainable = freeze_point.split_model(linear_head(576))
    layers = [layer for layer in copy.layers if layer.weights]
    before = [layer.get_weights() for layer in layers]
    trainable.compile(keras.optimizers.Adam(0.01), "mse")
    inputs = frozen.predict(sample.train.images[:8], verbose=0)
    trainable.train_on_batch(inputs, np.ones((8, 10)))
    assert len(batch_norm.batch_norms(copy)) == 7
    for layer, values in zip(layers, before, strict=True):
        for weight, value in zip(layer.weights, values, strict=True):
            assert not np.array_equal(weight, value), weight.path


def test_backbone_without_batch_norm_raises_usage_error(random_backbone):
    backbone = random_backbone("convnexttiny", 32, "float32")
    message = "^--fine-tune-batch-norm trained: convnexttiny has no batch normalization"
    with pytest.raises(common.UsageError, match=message):
        FreezePoint.from_end(1, backbone, ("conv5_avg",), train_batch_norm=True)
