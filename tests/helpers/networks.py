"""Networks of the tests: a small one, and real architectures with random weights."""

from fashion.backbones import feature_cache
from fashion.backbones.backbone import ARCHITECTURES, Backbone, load_backbone

import keras
import numpy as np
import pytest

# All backbones; quick tests use only the smallest one.
SLOW = (pytest.mark.slow, pytest.mark.versions)
BACKBONES = [pytest.param(x, marks=() if x == "mobilenetv2" else SLOW) for x in ARCHITECTURES]


def random_backbone(name: str, image_size: int) -> Backbone:
    """Build a backbone with random weights and random BatchNormalization statistics."""
    built = load_backbone(name, image_size, "random", seed=0)
    rng = np.random.default_rng(0)
    for layer in built.network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.beta.shape[0]
            gamma = [rng.uniform(0.5, 1.5, n)] if layer.scale else []
            means = rng.normal(0, 0.3, n), rng.normal(0, 0.3, n)
            layer.set_weights([*gamma, *means, rng.uniform(0.5, 2, n)])
    return built


def build_small_resnet(include_top: bool, weights: None, input_shape: tuple) -> keras.Model:
    """Build a ResNet50 of 6 narrow blocks in place of 16, with equal layer names.

    `include_top` and `weights` are arguments of Keras' function.
    """
    layers = keras.layers

    def convolve(x: keras.KerasTensor, filters: int, size: int, stride: int, name: str):
        x = layers.Conv2D(filters, size, stride, padding="same", name=f"{name}_conv")(x)
        return layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_bn")(x)

    inputs = keras.Input(input_shape)
    x = layers.Activation("relu", name="conv1_relu")(convolve(inputs, 8, 7, 2, "conv1"))
    x = layers.MaxPooling2D(3, 2, padding="same", name="pool1_pool")(x)
    for stage, blocks in (2, 1), (3, 1), (4, 1), (5, 3):
        for block in range(1, blocks + 1):
            name, stride = f"conv{stage}_block{block}", 2 if block == 1 and stage > 2 else 1
            shortcut = convolve(x, 8 * stage, 1, stride, f"{name}_0") if block == 1 else x
            x = convolve(x, 8, 1, stride, f"{name}_1")
            x = layers.Activation("relu", name=f"{name}_1_relu")(x)
            x = convolve(x, 8, 3, 1, f"{name}_2")
            x = layers.Activation("relu", name=f"{name}_2_relu")(x)
            x = layers.Add(name=f"{name}_add")(
                [shortcut, convolve(x, 8 * stage, 1, 1, f"{name}_3")]
            )
            x = layers.Activation("relu", name=f"{name}_out")(x)
    return keras.Model(inputs, x, name="small_resnet")


def use_small_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `--backbone resnet50` build a small ResNet50."""
    stages = {"conv3": "conv3_block1_out", "conv4": "conv4_block1_out", "conv5": "conv5_block3_out"}
    small = ARCHITECTURES["resnet50"]._replace(build=build_small_resnet, stages=stages)
    monkeypatch.setitem(ARCHITECTURES, "resnet50", small)


def use_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the feature cache store 20 images per file, so that few images make several files."""
    monkeypatch.setattr(feature_cache, "CHUNK_SIZE", 20)
