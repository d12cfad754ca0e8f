"""Pretrained networks of `keras.applications` with their weights, blocks and stages."""

import hashlib
import re
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from fashion import files, machine
from fashion.errors import UsageError, UserError

import h5py
import keras
import numpy as np

STAGES = ("conv3", "conv4", "conv5")  # at 1/8, 1/16 and 1/32 of the input resolution
# Part of the name of the cache directory: increase it if the features change.
FEATURES_VERSION = 1
KERAS_WEIGHTS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"


class Architecture(NamedTuple):
    """A network of `keras.applications`."""

    build: Callable[..., keras.Model]
    preprocess_input: Callable  # expects RGB in [0, 255]; identity if the network preprocesses
    weights_url: str  # download URL, shown in the error message if the download fails
    block_start_pattern: str  # matches the name of a layer whose input is that of the block
    # {stage: layer whose output ends it}. Inverted residual blocks have narrow outputs, which the
    # next block first expands; there, the expansion ends the stage.
    stages: dict[str, str]
    image_size: int = 224  # default of keras.applications


ARCHITECTURES = {
    "resnet50": Architecture(
        build=keras.applications.ResNet50,
        preprocess_input=keras.applications.resnet50.preprocess_input,
        weights_url=f"{KERAS_WEIGHTS_URL}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        block_start_pattern=r"conv\d_block\d+_1_conv",
        stages={
            "conv3": "conv3_block4_out",
            "conv4": "conv4_block6_out",
            "conv5": "conv5_block3_out",
        },
    ),
    "efficientnetv2b0": Architecture(
        build=keras.applications.EfficientNetV2B0,
        preprocess_input=keras.applications.efficientnet_v2.preprocess_input,
        weights_url=f"{KERAS_WEIGHTS_URL}/efficientnet_v2/efficientnetv2-b0_notop.h5",
        block_start_pattern=r"block1a_project_conv|block\w+_expand_conv",
        stages={
            "conv3": "block4a_expand_activation",
            "conv4": "block6a_expand_activation",
            "conv5": "top_activation",
        },
    ),
    "inceptionv3": Architecture(
        build=keras.applications.InceptionV3,
        preprocess_input=keras.applications.inception_v3.preprocess_input,
        image_size=299,
        weights_url=f"{KERAS_WEIGHTS_URL}/inception_v3/"
        "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        block_start_pattern=r"\w+_pooling2d\w*",  # each block has a pooling branch
        stages={"conv3": "mixed2", "conv4": "mixed7", "conv5": "mixed10"},
    ),
    "mobilenetv2": Architecture(
        build=keras.applications.MobileNetV2,
        preprocess_input=keras.applications.mobilenet_v2.preprocess_input,
        weights_url=f"{KERAS_WEIGHTS_URL}/mobilenet_v2/"
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        block_start_pattern=r"expanded_conv_depthwise|block_\d+_expand",
        stages={
            "conv3": "block_6_expand_relu",
            "conv4": "block_13_expand_relu",
            "conv5": "out_relu",
        },
    ),
}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A pretrained network, which is only used through copies (`folding.copy_network`)."""

    name: str  # key of `ARCHITECTURES`
    architecture: Architecture
    network: keras.Model  # preprocessed images (N, size, size, 3) → final activations; frozen

    def last_blocks(self, names: Collection[str], num_blocks: int) -> set[str]:
        """Return the names of all layers of the last blocks before the features `names`."""
        last_stage = max(name.split("_")[0] for name in names)
        output = self.network.get_layer(self.architecture.stages[last_stage]).output
        pattern, layers = self.architecture.block_start_pattern, self.network.layers
        inputs = [layer.input for layer in layers if re.fullmatch(pattern, layer.name)]
        inputs.append(self.network.output)  # "input" of what follows the last block
        # The next block is the last one whose input has the resolution of the stage; it may halve
        # the resolution.
        end = max(i for i, x in enumerate(inputs) if x.shape[1] == output.shape[1])
        if num_blocks > end:
            raise UsageError(
                f"--fine-tune-blocks {num_blocks}: with these --features, at most {end} blocks can "
                "be fine-tuned"
            )
        return {layer.name for layer in keras.Model(inputs[end - num_blocks], output).layers}

    def preprocess(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Upscale and preprocess images: uint8 (N, 28, 28) → inputs of the network.

        Interpolation is bilinear with half-pixel centers, as in Pillow and `tf.image`. Values
        remain in [0, 255] and the gray channel is repeated, as `preprocess_input` expects.
        """
        size = self.network.input.shape[1]
        gray = keras.layers.Rescaling(1.0, dtype="float32")(images)  # a cast
        gray = keras.layers.Reshape((*images.shape[1:], 1), dtype="float32")(gray)
        resize = keras.layers.Resizing(size, size, interpolation="bilinear", dtype="float32")
        # Without training=False, Resizing would put all downstream layers (e.g. dropout) in
        # training mode.
        rgb = keras.ops.repeat(resize(gray, training=False), 3, axis=-1)
        return self.architecture.preprocess_input(rgb)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights' values, independent of the file format."""
        sha256 = hashlib.sha256()
        for array in self.network.get_weights():
            sha256.update(np.ascontiguousarray(array).data)
        return sha256.hexdigest()

    @property
    def key(self) -> str:
        """The name of the directory of this backbone's features in the feature cache."""
        size, precision = self.network.input.shape[1], machine.precision()
        return f"v{FEATURES_VERSION}-{self.name}-{size}-{precision}-{self.weights_sha256[:16]}"


def load_backbone(name: str, image_size: int | None, weights: str, seed: int) -> Backbone:
    """Build a network of `ARCHITECTURES` without its classification head, and load its weights.

    `weights` is "imagenet" (downloaded to the Keras cache), "random" (initialized with `seed`), or
    the path of a file. The default of `image_size` is that of the architecture.
    """
    architecture = ARCHITECTURES[name]
    size = image_size or architecture.image_size
    keras.utils.set_random_seed(seed)
    if weights == "imagenet":
        network = _download(architecture, size)
    else:
        network = _build(architecture, size, weights=None)
        if weights == "random":
            print(f"WARNING: --weights random: {name} is randomly initialized, not pretrained.")
        else:
            _load_weights(network, Path(weights))
    network.trainable = False
    return Backbone(name, architecture, network)


def _build(architecture: Architecture, size: int, weights: str | None) -> keras.Model:
    """Call the function of `keras.applications`, with a `UsageError` for too small images."""
    try:
        return architecture.build(include_top=False, weights=weights, input_shape=(size, size, 3))
    except ValueError as error:
        if "size" not in str(error):
            raise
        raise UsageError(f"--image-size {size}: {error}") from None


def _download(architecture: Architecture, size: int) -> keras.Model:
    """Build a network with ImageNet weights, downloaded by Keras unless they are in its cache."""
    url, models_dir = architecture.weights_url, machine.keras_home() / "models"
    try:
        if not (models_dir / url.rsplit("/", 1)[1]).exists():
            machine.check_reachable(url)
        socket.setdefaulttimeout(10)  # the only time limit of Keras' download
        return _build(architecture, size, weights="imagenet")
    except UsageError:
        raise
    except Exception as error:  # Keras raises plain Exceptions if a download fails
        raise UserError(
            f"could not download the ImageNet weights: {error}\nDownload {url} on another machine "
            f"and copy it to {models_dir}, or pass it as --weights PATH."
        ) from None
    finally:
        socket.setdefaulttimeout(None)


def _load_weights(network: keras.Model, path: Path) -> None:
    """Load a weights file of this network, in the Keras 3 or the legacy HDF5 layout."""
    needed = f"the weights of {network.name} with include_top=False are needed"
    try:
        if not h5py.is_hdf5(path):
            with path.open("rb") as other_file:
                start = other_file.read(1000)
            unknown = "this is no HDF5 file, or it is damaged"
            raise ValueError(files.describe_kind(start, unknown))
        with h5py.File(path) as file, tempfile.TemporaryDirectory() as temporary_dir:
            if "model_weights" in file:
                raise ValueError("this is a whole model, not a weights file")
            # Keras determines the layout from the file name, so load a copy with a suitable name.
            is_legacy = "layer_names" in file.attrs
            copy = Path(temporary_dir) / ("legacy.h5" if is_legacy else "current.weights.h5")
            shutil.copyfile(path, copy)
            with warnings.catch_warnings(action="ignore"):  # one per layer, before the error
                network.load_weights(copy)
    except OSError as error:
        raise UserError(f"--weights {path}: cannot be read: {error}") from None
    except (ValueError, KeyError) as error:
        # The message of Keras names the first layer and then prints whole tensors.
        reason = str(error).split("Target variable")[0].split("List of objects")[0]
        reason = " ".join(reason.split()).rstrip(".")
        raise UserError(f"--weights {path}: {reason}; {needed}") from None
