"""Backbones from `keras.applications`: architectures, weights, blocks and stages."""

import hashlib
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

from fashion import environment
from fashion.backbones import weights_file
from fashion.errors import UsageError, UserError
from fashion.options import ArgType, OptionalInt, choice, expand_user

import keras
import numpy as np

STAGES = ("conv3", "conv4", "conv5")  # at 1/8, 1/16 and 1/32 of the input resolution
NETWORK_OUTPUT = ""  # the "block" after the last one, whose input is the network's output
KERAS_WEIGHTS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"


class Architecture(NamedTuple):
    """A network of `keras.applications`."""

    build: Callable[..., keras.Model]
    preprocess_input: Callable  # expects RGB in [0, 255]; identity if the network preprocesses
    image_size: int  # training resolution
    block_start_pattern: str  # regular expression that matches each block's first layer
    weights_url: str  # download URL, shown in the error message if the download fails
    expansion_suffix: str = ""  # of the activation of each block's expansion, in place of "_conv"


ARCHITECTURES = {
    "resnet50": Architecture(
        build=keras.applications.ResNet50,
        preprocess_input=keras.applications.resnet50.preprocess_input,
        image_size=224,
        block_start_pattern=r"conv\d_block\d+_1_conv",
        weights_url=f"{KERAS_WEIGHTS_URL}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "efficientnetb0": Architecture(
        build=keras.applications.EfficientNetB0,
        preprocess_input=keras.applications.efficientnet.preprocess_input,
        image_size=224,
        block_start_pattern=r"block1a_dwconv|block\w+_expand_conv",
        weights_url="https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
        expansion_suffix="_activation",
    ),
    "efficientnetv2b0": Architecture(
        build=keras.applications.EfficientNetV2B0,
        preprocess_input=keras.applications.efficientnet_v2.preprocess_input,
        image_size=224,
        block_start_pattern=r"block1a_project_conv|block\w+_expand_conv",
        weights_url=f"{KERAS_WEIGHTS_URL}/efficientnet_v2/efficientnetv2-b0_notop.h5",
        expansion_suffix="_activation",
    ),
    "inceptionv3": Architecture(
        build=keras.applications.InceptionV3,
        preprocess_input=keras.applications.inception_v3.preprocess_input,
        image_size=299,
        block_start_pattern=r"\w+_pooling2d\w*",  # each block has a pooling branch
        weights_url=f"{KERAS_WEIGHTS_URL}/inception_v3/"
        "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "mobilenetv2": Architecture(
        build=keras.applications.MobileNetV2,
        preprocess_input=keras.applications.mobilenet_v2.preprocess_input,
        image_size=224,
        block_start_pattern=r"expanded_conv_depthwise|block_\d+_expand",
        weights_url=f"{KERAS_WEIGHTS_URL}/mobilenet_v2/"
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        expansion_suffix="_relu",
    ),
    "convnexttiny": Architecture(
        build=keras.applications.ConvNeXtTiny,
        preprocess_input=keras.applications.convnext.preprocess_input,
        image_size=224,
        block_start_pattern=r"\w+_depthwise_conv",
        weights_url=f"{KERAS_WEIGHTS_URL}/convnext/convnext_tiny_notop.h5",
    ),
}


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Pretrained backbone, frozen unless fine-tuned."""

    backbone: Annotated[str, choice(ARCHITECTURES)] = "resnet50"
    """network of keras.applications"""
    weights: Annotated[str, ArgType(expand_user, "imagenet|none|PATH")] = "imagenet"
    """imagenet: downloaded by Keras; none: random; PATH: Keras weights file of the backbone without
    its top"""
    image_size: OptionalInt = None
    """upscale images to N×N (default: the backbone's training resolution, 224 or 299)"""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A pretrained backbone: the original model and its folded inference version.

    Attributes:
        name: Key of `ARCHITECTURES`.
        model: float RGB (N, size, size, 3) → final activations.
        inference_model: uint8 (N, 28, 28) images → final activations, including preprocessing, with
            folded batch normalization; frozen.
        precision: Precision of `inference_model`, a key of `devices.DTYPE_POLICIES`.
    """

    name: str
    model: keras.Model
    inference_model: keras.Model
    precision: str

    @cached_property
    def blocks(self) -> list[str]:
        """The name of each block's first layer, and `NETWORK_OUTPUT`."""
        pattern = ARCHITECTURES[self.name].block_start_pattern
        names = [layer.name for layer in self.model.layers]
        return [name for name in names if re.fullmatch(pattern, name)] + [NETWORK_OUTPUT]

    @cached_property
    def block_after_stage(self) -> dict[str, str]:
        """{stage: name of the block that follows it}."""
        last_blocks = {block_input(self.model, block).shape[1]: block for block in self.blocks}
        return dict(zip(STAGES, list(last_blocks.values())[-3:], strict=True))

    def stage_output(self, model: keras.Model, stage: str) -> keras.KerasTensor:
        """Return the output of a stage, which is the input of the block that follows it.

        Inverted residual blocks have narrow inputs, which they first expand: then it is the
        expanded input, with about six times as many channels.

        Args:
            model: `model`, or a copy of it with equal layer names.
            stage: A value of `STAGES`.
        """
        block, suffix = self.block_after_stage[stage], ARCHITECTURES[self.name].expansion_suffix
        if not suffix or block == NETWORK_OUTPUT:
            return block_input(model, block)
        return model.get_layer(block.removesuffix("_conv") + suffix).output

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights' values, independent of the file format."""
        sha256 = hashlib.sha256()
        for array in self.model.get_weights():
            sha256.update(np.ascontiguousarray(array).data)
        return sha256.hexdigest()

    @property
    def cache_dir_name(self) -> str:
        """The name of the directory of this backbone's features in the feature cache."""
        size = self.model.input.shape[1]
        # Earlier versions cached features of inverted residual blocks without their expansion.
        resized = "bilinear-expanded" if ARCHITECTURES[self.name].expansion_suffix else "bilinear"
        return f"{self.name}-{size}-{resized}-{self.precision}-{self.weights_sha256[:16]}"

    def weights_metadata(self, source: str) -> dict[str, str]:
        """Return source, checksum and precision of the weights, as recorded in metrics.json."""
        return {"source": source, "sha256": self.weights_sha256, "precision": self.precision}


def block_input(model: keras.Model, block: str) -> keras.KerasTensor:
    """Return the input tensor of a block, or the network's output for `NETWORK_OUTPUT`.

    Args:
        model: Network, or a copy of it with equal layer names.
        block: Name of the block's first layer.
    """
    return model.layers[-1].output if block == NETWORK_OUTPUT else model.get_layer(block).input


def feature_stage(feature: str) -> str:
    """Return the stage of a feature: "conv4" for "conv4_avg"."""
    return feature.split("_")[0]


def build_network(name: str, image_size: int, weights: str, seed: int) -> keras.Model:
    """Build a network without its top: float RGB (N, size, size, 3) → final activations.

    Args:
        name: Key of `ARCHITECTURES`.
        image_size: Height and width of the images.
        weights: "imagenet" (downloaded to Keras' cache), "none" (random), or a weights file.
        seed: Seed of random weights.

    Raises:
        UsageError: If the images are too small for the network.
        UserError: If the weights cannot be downloaded or read, or do not fit.
    """
    build, url = ARCHITECTURES[name].build, ARCHITECTURES[name].weights_url
    keras.utils.set_random_seed(seed)
    models_dir = environment.keras_home() / "models"
    try:
        if weights == "imagenet" and not (models_dir / url.rsplit("/", 1)[1]).exists():
            environment.check_reachable(url)
        socket.setdefaulttimeout(10)  # Keras' download has no timeout of its own
        network = build(
            include_top=False,
            weights="imagenet" if weights == "imagenet" else None,
            input_shape=(image_size, image_size, 3),
        )
    except ValueError as error:
        if "size" not in str(error):
            raise
        raise UsageError(f"--image-size {image_size}: {error}") from None
    except Exception as error:  # Keras raises plain Exceptions if a download fails
        if weights != "imagenet":
            raise
        # With a path, Keras leaves out the rescaling that EfficientNetB0's weights need.
        alternative = "" if name == "efficientnetb0" else ", or pass it as --weights PATH"
        raise UserError(
            f"could not download the ImageNet weights: {error}\nDownload {url} on another "
            f"machine and copy it to {models_dir}{alternative}."
        ) from None
    finally:
        socket.setdefaulttimeout(None)
    if weights == "none":
        print(f"WARNING: --weights none: {name} is randomly initialized, not pretrained.")
    elif weights != "imagenet":
        weights_file.load_weights(network, weights)
    network.trainable = False
    return network
