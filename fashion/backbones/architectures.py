"""Networks of `keras.applications`: the table of them, their weights, their blocks and stages."""

import hashlib
import re
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

from fashion import environment
from fashion.errors import UsageError, UserError
from fashion.options import OptionalInt, Word, one_of

import h5py
import keras
import numpy as np

STAGES = ("conv3", "conv4", "conv5")  # an eighth, a sixteenth and a 32nd of the images' resolution
END = ""  # in place of a block's name: after the last
KERAS_WEIGHTS = "https://storage.googleapis.com/tensorflow/keras-applications"


class Architecture(NamedTuple):
    """A network of `keras.applications`."""

    build: Callable[..., keras.Model]
    preprocess_input: Callable  # of RGB from 0 to 255; the identity where the network does it
    image_size: int  # that it was trained at
    block_starts: str  # regular expression of the names of its blocks' first layers
    weights_url: str  # what Keras downloads, for a clear word where that cannot be


ARCHITECTURES = {
    "resnet50": Architecture(
        build=keras.applications.ResNet50,
        preprocess_input=keras.applications.resnet50.preprocess_input,
        image_size=224,
        block_starts=r"conv\d_block\d+_1_conv",
        weights_url=f"{KERAS_WEIGHTS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "efficientnetb0": Architecture(
        build=keras.applications.EfficientNetB0,
        preprocess_input=keras.applications.efficientnet.preprocess_input,
        image_size=224,
        block_starts=r"block1a_dwconv|block\w+_expand_conv",
        weights_url="https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
    ),
    "efficientnetv2b0": Architecture(
        build=keras.applications.EfficientNetV2B0,
        preprocess_input=keras.applications.efficientnet_v2.preprocess_input,
        image_size=224,
        block_starts=r"block1a_project_conv|block\w+_expand_conv",
        weights_url=f"{KERAS_WEIGHTS}/efficientnet_v2/efficientnetv2-b0_notop.h5",
    ),
    "inceptionv3": Architecture(
        build=keras.applications.InceptionV3,
        preprocess_input=keras.applications.inception_v3.preprocess_input,
        image_size=299,
        block_starts=r"\w+_pooling2d\w*",  # each block has a pooling branch
        weights_url=f"{KERAS_WEIGHTS}/inception_v3/"
        "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "mobilenetv2": Architecture(
        build=keras.applications.MobileNetV2,
        preprocess_input=keras.applications.mobilenet_v2.preprocess_input,
        image_size=224,
        block_starts=r"expanded_conv_depthwise|block_\d+_expand",
        weights_url=f"{KERAS_WEIGHTS}/mobilenet_v2/"
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    ),
    "convnexttiny": Architecture(
        build=keras.applications.ConvNeXtTiny,
        preprocess_input=keras.applications.convnext.preprocess_input,
        image_size=224,
        block_starts=r"\w+_depthwise_conv",
        weights_url=f"{KERAS_WEIGHTS}/convnext/convnext_tiny_notop.h5",
    ),
}


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The frozen network."""

    backbone: Annotated[str, one_of(ARCHITECTURES)] = "resnet50"
    """of keras.applications"""
    weights: Annotated[str, Word(str, "imagenet|none|PATH")] = "imagenet"
    """downloaded, random, or a Keras weights file of that network without its top"""
    image_size: OptionalInt = None
    """enlarge the images to N×N (default: what the network was trained at, 224 or 299)"""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network as it is, and as it is run."""

    name: str  # one of `ARCHITECTURES`
    network: keras.Model  # float RGB (N, size, size, 3) → its last activations
    folded: keras.Model  # uint8 (N, 28, 28) → the same, with all that comes before, frozen
    precision: str  # of `folded`: one of `devices.DTYPES`

    @cached_property
    def blocks(self) -> list[str]:
        """Where the blocks begin: the names of their first layers, and `END`."""
        starts = ARCHITECTURES[self.name].block_starts
        names = [layer.name for layer in self.network.layers]
        return [name for name in names if re.fullmatch(starts, name)] + [END]

    @cached_property
    def stages(self) -> dict[str, str]:
        """The last of the `blocks` at each of the three lowest resolutions, by `STAGES`."""
        last = {activations_at(self.network, block).shape[1]: block for block in self.blocks}
        return dict(zip(STAGES, list(last.values())[-3:], strict=True))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights: the same for the same values in any file format."""
        digest = hashlib.sha256()
        for array in self.network.get_weights():
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def cache_name(self) -> str:
        """The name of the folder of its features."""
        size = self.network.input.shape[1]
        return f"{self.name}-{size}-bilinear-{self.precision}-{self.digest[:16]}"

    def record(self, source: str) -> dict[str, str]:
        """What a run notes about its weights."""
        return {"source": source, "sha256": self.digest, "precision": self.precision}


def activations_at(model: keras.Model, block: str) -> keras.KerasTensor:
    """What goes into a block of a network (or its copy); at `END`, what comes out of the last."""
    return model.layers[-1].output if block == END else model.get_layer(block).input


def stage_of(feature: str) -> str:
    """The stage at which a feature is taken: "conv4" of "conv4_avg"."""
    return feature.split("_")[0]


def load_network(name: str, image_size: int, weights: str, seed: int) -> keras.Model:
    """A network without its top: float RGB (N, size, size, 3) → its last activations.

    Args:
        name: one of `ARCHITECTURES`.
        image_size: its images' height and width.
        weights: "imagenet" (downloaded into Keras' cache), "none" (random), or a weights file.
        seed: of random weights.

    Raises:
        UsageError: the images would be too small for it.
        UserError: the weights cannot be downloaded or read, or do not fit.
    """
    build, url = ARCHITECTURES[name].build, ARCHITECTURES[name].weights_url
    keras.utils.set_random_seed(seed)
    try:
        models = environment.keras_home() / "models"
        if weights == "imagenet" and not (models / url.rsplit("/", 1)[1]).exists():
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
    except Exception as error:  # Keras raises just that when a download fails
        if weights != "imagenet":
            raise
        raise UserError(
            f"the ImageNet weights cannot be downloaded: {error}\nDownload {url} "
            f"on a machine that can, and put it into {models}, or give the file as --weights PATH."
        ) from None
    finally:
        socket.setdefaulttimeout(None)
    if weights == "none":
        print(f"WARNING: --weights none: the {name} is RANDOM and knows nothing about images.")
    elif weights != "imagenet":
        load_weights(network, weights)
    network.trainable = False
    return network


def load_weights(network: keras.Model, path: str) -> None:
    """Loads a weights file of this very model, in Keras 3's or the legacy HDF5 layout.

    Raises:
        UserError: it cannot be read, or does not fit; the message names the layer.
    """
    if not Path(path).is_file():
        raise UserError(f"--weights {path}: cannot be read: there is no such file")
    try:
        with h5py.File(path) as file, tempfile.TemporaryDirectory() as folder:
            # Keras tells the layouts apart by the file's name, which may be any: load a copy.
            legacy = "layer_names" in file.attrs
            copy = Path(folder) / ("legacy.h5" if legacy else "current.weights.h5")
            shutil.copyfile(path, copy)
            if legacy:
                theirs = [
                    n if isinstance(n, str) else n.decode() for n in file.attrs["layer_names"]
                ]
                theirs = [name for name in theirs if len(file[name].attrs["weight_names"])]
                ours = [layer.name for layer in network.layers if layer.weights]
                if len(ours) != len(theirs):  # Keras would only say so
                    whose = "the file" if len(theirs) > len(ours) else network.name
                    (name, *_) = sorted(set(ours) ^ set(theirs))
                    raise ValueError(f"only {whose} has a layer {name}")
            with warnings.catch_warnings(action="ignore"):  # one a layer, before the error
                network.load_weights(copy)
    except OSError as error:
        raise UserError(f"--weights {path}: cannot be read: {error}") from None
    except (ValueError, KeyError) as error:
        # Keras' message names the first layer and then prints whole tensors.
        reason = " ".join(
            str(error).split("Target variable")[0].split("List of objects")[0].split()
        )
        raise UserError(
            f"--weights {path}: not the weights of {network.name} without its top: {reason}"
        ) from None
