"""Batch normalization that is trained with the last blocks of the backbone."""

from fashion.backbones import folding

import keras
import numpy as np
import tensorflow as tf

# The default of PyTorch (0.1 there). With 0.99, that of Keras, the moving statistics lag behind.
MOMENTUM = 0.9


class BatchNormalization(keras.layers.BatchNormalization):
    """The Keras layer, with the fused operation of TensorFlow in training mode.

    Outputs, gradients and, with `MOMENTUM`, moving statistics equal those of the Keras layer, which
    uses several operations instead of one. Inference is not overridden.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalize float (N, height, width, channels) with the batch statistics in training."""
        if not (training and self.trainable):
            return super().call(inputs, training=False, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=[],
            variance=[],
            epsilon=self.epsilon,
        )
        # The operation returns the unbiased variance; the moving variance of Keras is biased.
        n = tf.cast(tf.size(inputs) / self.gamma.shape[0], variance.dtype)
        variance *= tf.maximum(n - 1, 1) / n
        for moving, value in (self.moving_mean, mean), (self.moving_variance, variance):
            moving.assign(moving * MOMENTUM + value * (1 - MOMENTUM))
        return outputs


def recalibrate(model: keras.Model, network: keras.Model, inputs: np.ndarray) -> None:
    """Set the moving statistics to those of the data, without changing the model's outputs.

    Training mode normalizes with the statistics of a batch. The stored statistics are far from
    them: they are those of ImageNet, or mean 0 and variance 1 if the weights file contains a
    network with folded batch normalization. Without recalibration, the first training steps would
    see another function than the one that the head was trained on.

    With the measured mean m and variance v of a layer's input, gamma becomes gamma·√(v+ε)/√(v₀+ε)
    and beta becomes beta + gamma·(m−m₀)/√(v₀+ε), where m₀ and v₀ are the previous statistics. One
    pass suffices, since the outputs of all layers stay equal in inference mode.

    Args:
        model: Model that contains the network.
        network: Network with layers of the class `BatchNormalization`.
        inputs: Inputs of the model, (N, …).
    """
    layers = [layer for layer in network.layers if isinstance(layer, BatchNormalization)]
    moments = [
        keras.ops.moments(keras.ops.cast(layer.input, "float32"), axes=(1, 2)) for layer in layers
    ]
    # One row per image: total variance = mean variance within images + variance of their means.
    outputs = keras.Model(model.input, moments).predict(inputs, batch_size=100, verbose=0)
    for layer, (means, variances) in zip(layers, outputs, strict=True):
        mean = means.mean(axis=0, dtype="float64")
        variance = variances.mean(axis=0, dtype="float64") + means.var(axis=0, dtype="float64")
        gamma, beta, old_mean, old_variance = folding.batch_norm_parameters(layer)
        scale = gamma / np.sqrt(old_variance + layer.epsilon)
        gamma, beta = scale * np.sqrt(variance + layer.epsilon), beta + scale * (mean - old_mean)
        layer.set_weights([gamma, beta, mean, variance])
