"""Fashion-MNIST above 90 %: a frozen, ImageNet-trained ResNet50 and a small head on top.

Each image goes through the ResNet50 once, enlarged to 224×224 RGB. The features that come out are
kept on disk, so that the head, and every later run with any head, trains in seconds. The saved
model is one whole: raw uint8 (N, 28, 28) images → probabilities (N, 10).
"""

import argparse
import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import common  # before Keras: it chooses the backend
import h5py
import keras
import numpy as np
import tensorflow as tf
import wandb

import predict
import report

DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}  # precision → Keras' dtype policy
# What the head can see: averages and maxima of stages' outputs over their positions. Fashion-MNIST
# is far from ImageNet: the last stage, made for ImageNet's classes, is not the best place to look.
FEATURES = {
    "conv5": ("conv5_avg",),  # what the backbone's own classifier sees; the published recipe
    "conv4": ("conv3_avg", "conv4_avg", "conv4_max"),
}


class Backbone(NamedTuple):
    """A network of `keras.applications`."""

    build: Callable[..., keras.Model]
    preprocess: Callable  # of RGB from 0 to 255; the identity where the network itself does it
    image_size: int  # that it was trained at
    block_starts: str  # regular expression of the names of its blocks' first layers
    weights_url: str  # what Keras downloads, for a clear word where that cannot be


apps, url = keras.applications, "https://storage.googleapis.com/tensorflow/keras-applications"
BACKBONES = {
    "resnet50": Backbone(
        *(apps.ResNet50, apps.resnet50.preprocess_input, 224, r"conv\d_block\d+_1_conv"),
        f"{url}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "efficientnetb0": Backbone(
        *(apps.EfficientNetB0, apps.efficientnet.preprocess_input, 224),
        r"block1a_dwconv|block\w+_expand_conv",
        "https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
    ),
    "efficientnetv2b0": Backbone(
        *(apps.EfficientNetV2B0, apps.efficientnet_v2.preprocess_input, 224),
        r"block1a_project_conv|block\w+_expand_conv",
        f"{url}/efficientnet_v2/efficientnetv2-b0_notop.h5",
    ),
    "inceptionv3": Backbone(  # each block has a pooling branch
        *(apps.InceptionV3, apps.inception_v3.preprocess_input, 299, r"\w+_pooling2d\w*"),
        f"{url}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "mobilenetv2": Backbone(
        *(apps.MobileNetV2, apps.mobilenet_v2.preprocess_input, 224),
        r"expanded_conv_depthwise|block_\d+_expand",
        f"{url}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    ),
    "convnexttiny": Backbone(
        *(apps.ConvNeXtTiny, apps.convnext.preprocess_input, 224, r"\w+_depthwise_conv"),
        f"{url}/convnext/convnext_tiny_notop.h5",
    ),
}

# Images in one step of the extraction and in one file of its cache: what a killed run loses at
# most. It is no option since the last bits of the features depend on it. 125 divides 55,000,
# 5,000 and 10,000, and more is hardly faster.
CHUNK = 125


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = common.option_parser(__doc__, "resnet50_fashion")
    parser.set_defaults(epochs=30, batch_size=512)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--backbone",
        choices=BACKBONES,
        default="resnet50",
        help="the frozen network (default: %(default)s)",
    )
    group.add_argument(
        "--weights",
        default="imagenet",
        metavar="imagenet|none|PATH",
        help="the backbone's: downloaded, random, or a Keras weights file of it without its top"
        " (default: %(default)s)",
    )
    group.add_argument(
        "--image-size",
        type=common.positive_int,
        metavar="N",
        help="images are enlarged to N×N for the backbone (default: what it was trained at,"
        " 224 or 299)",
    )
    group.add_argument(
        "--features",
        choices=FEATURES,
        default="conv5",
        help="what the head sees: averages of the last stage, as published, or of the third and"
        " fourth with the fourth's maxima (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="the backbone's; auto is bfloat16 where the processor or GPU has it natively"
        " (default: %(default)s)",
    )
    group.add_argument(
        "--dropout",
        type=common.dropout_rate,
        default=0.3,
        help="rate in the head (default: %(default)s)",
    )
    group.add_argument(
        "--patience",
        type=common.positive_int,
        default=10,
        help="stop after so many epochs without a better validation accuracy"
        " (default: %(default)s)",
    )
    group.add_argument(
        "--cache-dir",
        type=Path,
        default=default_cache_dir(),
        help="keeps the features (default: %(default)s)",
    )
    group.add_argument(
        "--gpus",
        type=common.all_or_count,
        default="all",
        metavar="all|N",
        help="use all GPUs or the first N, each with its share of the work (default: %(default)s)",
    )

    group = parser.add_argument_group("fine-tuning, after the head's training")
    group.add_argument(
        "--fine-tune-blocks",
        type=common.whole_number,
        default=0,
        metavar="N",
        help="train the backbone's last N blocks, too (default: %(default)s, all are frozen)",
    )
    group.add_argument(
        "--fine-tune-epochs",
        type=common.positive_int,
        default=5,
        help="passes over the training images (default: %(default)s)",
    )
    group.add_argument(
        "--fine-tune-batch-size",
        type=common.positive_int,
        default=32,
        help="images per training step (default: %(default)s)",
    )
    group.add_argument(
        "--fine-tune-learning-rate",
        type=common.positive_float,
        default=1e-4,
        help="Adam's, at its highest (default: %(default)s)",
    )
    group.add_argument(
        "--fine-tune-inputs",
        choices=("cached", "computed", "augmented"),
        default="cached",
        help="what goes into the first unfrozen block: kept in --cache-dir, computed anew in each"
        " epoch, or that of flipped and shifted images (default: %(default)s)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last finished epoch of the fine-tuning in --output-dir",
    )
    options = common.parse_options(parser)
    if options.resume and not options.fine_tune_blocks:
        parser.error("--resume: only fine-tuning can be resumed, by the same --fine-tune-blocks")
    return options


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/fashion-mnist-features`, by default below `~/.cache`."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(caches)) / "fashion-mnist-features"


# ---------------------------------------------------------------------------------- backbone


def build_backbone(name: str, image_size: int, weights: str, seed: int) -> keras.Model:
    """A network without its top: float RGB (N, size, size, 3) → its last activations.

    Args:
        name: one of `BACKBONES`.
        image_size: its images' height and width.
        weights: "imagenet" (downloaded into Keras' cache), "none" (random), or a weights file.
        seed: of random weights.

    Raises:
        common.UsageError: the images would be too small for it.
        common.UserError: the weights cannot be downloaded or read, or do not fit.
    """
    build, url = BACKBONES[name].build, BACKBONES[name].weights_url
    keras.utils.set_random_seed(seed)
    try:
        models = common.keras_home() / "models"
        if weights == "imagenet" and not (models / url.rsplit("/", 1)[1]).exists():
            common.check_reachable(url)
        socket.setdefaulttimeout(10)  # Keras' download has no timeout of its own
        backbone = build(
            include_top=False,
            weights="imagenet" if weights == "imagenet" else None,
            input_shape=(image_size, image_size, 3),
        )
    except ValueError as error:
        if "size" not in str(error):
            raise
        raise common.UsageError(f"--image-size {image_size}: {error}") from None
    except Exception as error:  # Keras raises just that when a download fails
        if weights != "imagenet":
            raise
        raise common.UserError(
            f"the ImageNet weights cannot be downloaded: {error}\nDownload {url} "
            f"on a machine that can, and put it into {models}, or give the file as --weights PATH."
        ) from None
    finally:
        socket.setdefaulttimeout(None)
    if weights == "none":
        print(f"WARNING: --weights none: the {name} is RANDOM and knows nothing about images.")
    elif weights != "imagenet":
        load_weights(backbone, weights)
    backbone.trainable = False
    return backbone


def load_weights(backbone: keras.Model, path: str) -> None:
    """Loads a weights file of this very model, in Keras 3's or the legacy HDF5 layout.

    Raises:
        common.UserError: it cannot be read, or does not fit; the message names the layer.
    """
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
                ours = [layer.name for layer in backbone.layers if layer.weights]
                if len(ours) != len(theirs):  # Keras would only say so
                    whose = "the file" if len(theirs) > len(ours) else backbone.name
                    (name, *_) = sorted(set(ours) ^ set(theirs))
                    raise ValueError(f"only {whose} has a layer {name}")
            with warnings.catch_warnings(action="ignore"):  # one a layer, before the error
                backbone.load_weights(copy)
    except OSError as error:
        raise common.UserError(f"--weights {path}: cannot be read: {error}") from None
    except (ValueError, KeyError) as error:
        # Keras' message names the first layer and then prints whole tensors.
        reason = " ".join(
            str(error).split("Target variable")[0].split("List of objects")[0].split()
        )
        raise common.UserError(
            f"--weights {path}: not the weights of {backbone.name} without its top: {reason}"
        ) from None


def weights_digest(model: keras.Model) -> str:
    """SHA-256 of a model's weights: the same for the same values in any file format."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def resolve_precision(precision: str) -> str:
    """Turns "auto" into "bfloat16" where that is native (and so about twice as fast)."""
    if precision != "auto":
        return precision
    if gpus := tf.config.get_visible_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpus[0])
        native = details.get("compute_capability", (0, 0)) >= (8, 0)
    else:
        native = {"avx512_bf16", "amx_bf16"} & set(common.cpu_info().get("flags", "").split())
    return "bfloat16" if native else "float32"


def clone(
    backbone: keras.Model, inputs: keras.KerasTensor, dtype: str, norms: Container[str] = ()
) -> keras.Model:
    """A copy of a network on other inputs, without its weights.

    Args:
        backbone: one of `BACKBONES`, or the end of one.
        inputs: what the copy starts from.
        dtype: dtype policy of its layers, "float32" or "mixed_bfloat16".
        norms: if any, BatchNormalizations are left out; these convolutions get a bias for them.
    """

    def clone_layer(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
            return layer  # it works on pixels, for which bfloat16 would be too coarse
        if isinstance(layer, keras.Sequential):
            return keras.models.clone_model(layer, clone_function=clone_layer)
        config = layer.get_config()
        if isinstance(layer, keras.Layer):  # and no mere operation
            config["dtype"] = dtype
        if layer.name in norms:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call_layer(layer: keras.Layer, *args: object, mask: object = None, **kwargs: object):
        if norms and isinstance(layer, keras.layers.BatchNormalization):
            return args[0]
        return layer(*args, **kwargs)

    return keras.models.clone_model(
        backbone, inputs, clone_function=clone_layer, call_function=call_layer
    )


def fold_batch_norm(backbone: keras.Model, images: keras.KerasTensor, dtype: str) -> keras.Model:
    """The same function of `images` with each BatchNormalization folded into its convolution.

    In inference, BatchNormalization is y = (x − mean)·s + beta with s = gamma/√(variance + ε).
    After a convolution, that is a convolution with kernel·s and bias (bias − mean)·s + beta.

    Args:
        backbone: one of `BACKBONES`; left as it is.
        images: what the new model starts from, float32 (N, size, size, 3).
        dtype: dtype policy of the new layers, "float32" or "mixed_bfloat16".
    """
    producers = {id(layer.output): layer.name for layer in backbone.layers}
    norms = {
        producers[id(layer.input)]: layer
        for layer in backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    folded = clone(backbone, images, dtype, norms)
    for layer in backbone.layers:
        if norm := norms.get(layer.name):
            gamma = norm.gamma.numpy() if norm.scale else 1
            scale = gamma / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
            kernel, *bias = layer.get_weights()
            shift = (sum(bias) - norm.moving_mean.numpy()) * scale + norm.beta.numpy()
            kernel = kernel * scale.reshape(kernel.shape[-2:] if is_depthwise(layer) else -1)
            folded.get_layer(layer.name).set_weights([kernel, shift])
        elif layer.weights and not isinstance(layer, keras.layers.BatchNormalization):
            folded.get_layer(layer.name).set_weights(layer.get_weights())
    folded.trainable = False
    return folded


def is_depthwise(layer: keras.Layer) -> bool:
    """Whether its kernel is (height, width, channels, 1)."""
    return isinstance(layer, keras.layers.DepthwiseConv2D)


def blocks_of(backbone: keras.Model, starts: str) -> list[str]:
    """Where a network's blocks begin: the names of their first layers, and "" for the end.

    `starts` is the regular expression of these names.
    """
    return [layer.name for layer in backbone.layers if re.fullmatch(starts, layer.name)] + [""]


def activations_at(model: keras.Model, block: str) -> keras.KerasTensor:
    """What goes into a block of a network (or its copy); with "", what comes out of the last."""
    return model.get_layer(block).input if block else model.layers[-1].output


def stages_of(backbone: keras.Model, blocks: list[str]) -> dict[str, str]:
    """The last of `blocks_of` at each of the three lowest resolutions, as conv3, conv4, conv5.

    In all of `BACKBONES` these are an eighth, a sixteenth and a thirty-second of the images'.
    """
    last = {activations_at(backbone, block).shape[1]: block for block in blocks}
    return dict(zip(("conv3", "conv4", "conv5"), list(last.values())[-3:], strict=True))


def pool(activations: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
    """Each channel's average and maximum over all positions: float32 (N, channels)."""
    return {
        "avg": keras.layers.GlobalAveragePooling2D(dtype="float32")(activations),
        "max": keras.layers.GlobalMaxPooling2D(dtype="float32")(activations),
    }


def to_float16(values: keras.KerasTensor) -> keras.KerasTensor:
    """As float16; what is out of its range becomes its largest number."""
    largest = float(np.finfo("float16").max)
    return keras.ops.cast(keras.ops.clip(values, -largest, largest), "float16")


def freeze(name: str, backbone: keras.Model, precision: str) -> keras.Model:
    """The frozen network with all that comes before it: uint8 (N, 28, 28) → last activations."""
    images = keras.Input((28, 28), dtype="uint8", name="images")
    rgb = BACKBONES[name].preprocess(common.to_rgb(images, backbone.input.shape[1]))
    folded = fold_batch_norm(backbone, rgb, DTYPES[precision])
    return keras.Model(images, activations_at(folded, ""))


def build_extractor(folded: keras.Model, stages: dict[str, str], last_stage: str) -> keras.Model:
    """The frozen part: uint8 (N, 28, 28) → {name: float16 (N, channels)}, as far as a stage.

    The names are conv3_avg, conv3_max, conv4_avg …: each channel's average or maximum over the
    positions of a stage's output, computed in float32 and kept as float16, within a saved model
    just as in the cache.
    """
    features = {}
    for stage in list(stages)[: list(stages).index(last_stage) + 1]:
        for kind, pooled in pool(activations_at(folded, stages[stage])).items():
            features[f"{stage}_{kind}"] = to_float16(pooled)
    return keras.Model(folded.input, features)


# ---------------------------------------------------------------------------------- features


def chunk_path(cache: Path, split: common.Split, start: int) -> Path:
    """The cache's file for the images from `start` on of a (whole) split."""
    return cache / split.digest[:16] / f"{start:06}.npz"


def has_features(path: Path, names: Iterable[str]) -> bool:
    """Whether a file of the cache is there, whole, and has these features."""
    try:
        with zipfile.ZipFile(path) as file:
            return {f"{name}.npy" for name in names} <= set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def extract_features(
    extractor: keras.Model, splits: Iterable[common.Split], cache: Path, run: wandb.Run, name: str
) -> float | None:
    """Computes what the cache lacks, file by file.

    Each file appears whole or not at all, by a rename, and with the same bytes whoever computes
    it on this machine: a killed run, or two at once, do no harm, and a later run goes on.

    Args:
        extractor: uint8 (N, 28, 28) → {name: float16 (N, …)}, what a file holds.
        splits: whose images in use are needed.
        cache: the folder.
        run: gets the progress.
        name: of what is extracted, for the user and for W&B.

    Returns:
        Images per second, or None if everything was there.

    Raises:
        common.UserError: the cache cannot be written, or its disk has not the room.
    """
    todo = []
    for split in splits:
        for start in range(0, split.size, CHUNK):
            path = chunk_path(cache, split, start)
            if not has_features(path, extractor.output):
                todo.append((path, split.all_images[start : start + CHUNK]))
    if not todo:
        print(f"{name}: all in {cache}")
        return None

    left = sum(len(images) for _, images in todo)
    size = left * sum(2 * math.prod(values.shape[1:]) for values in extractor.output.values())
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    except OSError as error:
        raise common.UserError(f"--cache-dir: {error}") from None
    if size > free:
        raise common.UserError(
            f"{name} of {left:,} images take {size / 1e9:.1f} GB, but {cache} has only "
            f"{free / 1e9:.1f} GB left: use another --cache-dir, or fewer images"
        )
    print(
        f"{name}: extracting {left:,} images, each once; {size / 1e9:.1f} GB, kept in {cache}",
        flush=True,
    )
    metric = name.lower()
    run.define_metric(f"{metric}/*", step_metric=f"{metric}/images")
    extracted, rate, bar = 0, None, None
    start = time.perf_counter()
    devices = common.devices()
    for i in range(0, len(todo), devices):
        group = []
        for path, images in todo[i : i + devices]:
            if has_features(path, extractor.output):  # made meanwhile by another process
                left -= len(images)
            else:
                group.append((path, images))
        if not group:
            continue
        outputs = common.predict_each(extractor, [images for _, images in group])
        for (path, images), features in zip(group, outputs, strict=True):
            write_features(path, features)
            extracted += len(images)
        seconds = time.perf_counter() - start
        rate = extracted / seconds
        progress = {"images": extracted, "images_per_second": rate, "seconds": seconds}
        run.log({f"{metric}/{key}": value for key, value in progress.items()})
        if not bar:
            print(f"About {left / rate / 60:.1f} minutes at {rate:.0f} images/s.")
            interval = 0.5 if sys.stdout.isatty() else 60
            bar = keras.utils.Progbar(
                left, interval=interval, stateful_metrics=["images/s"], unit_name="image"
            )
        bar.target = left
        bar.update(extracted, [("images/s", rate)])
    return rate


def write_features(path: Path, features: dict[str, np.ndarray]) -> None:
    """Writes a file of the cache, unless one with as much has appeared meanwhile.

    Raises:
        common.UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".incomplete-") as folder:
            np.savez(part := Path(folder) / path.name, **features)
            if not has_features(path, features):
                part.replace(path)
    except OSError as error:
        raise common.UserError(f"--cache-dir: {error}") from None


def read_chunk(split: common.Split, cache: Path, start: int) -> dict[str, np.ndarray]:
    """What a file of the cache holds, of the split's images in use alone.

    Raises:
        common.UserError: it is damaged.
    """
    path = chunk_path(cache, split, start)
    images = len(split.all_images[start : start + CHUNK])
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file}
        if any(len(array) != images for array in arrays.values()):
            raise ValueError("it is not of so many images")
    except Exception as error:  # of a zip file's many ways to be damaged
        raise common.UserError(f"{path} is damaged ({error}): delete it, run again") from None
    return {name: array[: split.size - start] for name, array in arrays.items()}


def read_features(split: common.Split, cache: Path, names: Iterable[str]) -> np.ndarray:
    """The named features of a split's images in use, side by side: float16 (N, channels).

    Raises:
        common.UserError: a file of the cache is damaged.
    """
    chunks = []
    for start in range(0, split.size, CHUNK):
        chunk = read_chunk(split, cache, start)
        chunks.append(np.concatenate([chunk[name] for name in names], axis=1))
    return np.concatenate(chunks)


# -------------------------------------------------------------------------------------- head


def build_standardiser(features: np.ndarray) -> keras.Model:
    """Makes features comparable: (N, channels) → float32 (N, channels).

    Their logarithm (of 1 + the absolute value, with its sign: most are small, a few huge) less its
    mean, by its standard deviation, both taken from `features`, the training images'.
    """
    standardise = keras.layers.Normalization(dtype="float32")
    # 10,000 images tell a mean and a variance well enough; in float16 the sums would overflow.
    some = features[:10_000].astype("float32")
    standardise.adapt(np.sign(some) * np.log1p(np.abs(some)))
    inputs = keras.Input(features.shape[1:], dtype="float32", name="features")
    logarithms = keras.ops.sign(inputs) * keras.ops.log1p(keras.ops.abs(inputs))
    # A channel that is constant in training has no deviation: without a bound, its values in other
    # images would be millions of deviations, more than float16 can hold.
    outputs = keras.ops.clip(standardise(logarithms), -10, 10)
    return keras.Model(inputs, outputs, name="standardiser")


def build_classifier(channels: int, dropout: float, precision: str) -> keras.Model:
    """The trained part: standardised float16 (N, channels) → float32 (N, 10) probabilities."""
    return keras.Sequential(
        [
            keras.Input((channels,), dtype="float16", name="standardised"),
            keras.layers.Dense(512, activation="relu", dtype=DTYPES[precision]),
            keras.layers.Dropout(dropout, dtype=DTYPES[precision]),
            keras.layers.Dense(10, activation="softmax", dtype="float32", name="probabilities"),
        ],
        name="classifier",
    )


def train(
    classifier: keras.Model,
    features: dict[str, np.ndarray],
    data: common.FashionMNIST,
    options: argparse.Namespace,
    log: report.EpochLog,
) -> None:
    """Trains by Adam on smoothed labels, the learning rate falling to 0 as a cosine.

    It ends with the weights of the best epoch. The losses of its log are of smoothed labels, too.
    """
    one_hot = {
        name: keras.utils.to_categorical(data.splits[name].labels, len(common.CLASS_NAMES))
        for name in ("train", "validation")
    }
    batches = common.shuffled_batches(
        features["train"], one_hot["train"], options.batch_size, options.seed
    )
    schedule = keras.optimizers.schedules.CosineDecay(
        options.learning_rate, len(batches) * options.epochs
    )
    classifier.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
        # Several GPUs cannot yet do several steps at once ("must feed a value for placeholder").
        steps_per_execution=20 if common.devices() == 1 else 1,
    )
    classifier.fit(
        batches,
        epochs=options.epochs,
        shuffle=False,  # they are
        validation_data=(features["validation"], one_hot["validation"]),
        validation_batch_size=1000,
        callbacks=[log, common.best_epoch(options.patience)],
        verbose=2,
    )


def assemble(extractor: keras.Model, names: Iterable[str], head: keras.Model) -> keras.Model:
    """The whole: uint8 (N, 28, 28) → probabilities (N, 10)."""
    features = [extractor.output[name] for name in names]
    joined = keras.ops.concatenate(features, axis=1) if len(features) > 1 else features[0]
    return keras.Model(extractor.input, head(joined), name="resnet50_fashion")


# -------------------------------------------------------------------------------- fine-tuning


def cut_before(
    backbone: keras.Model, blocks: list[str], names: Iterable[str], unfreeze: int
) -> str:
    """Which of `blocks_of` is the first of so many blocks before the end of what features need.

    Raises:
        common.UsageError: there are not so many.
    """
    stages = stages_of(backbone, blocks)
    end = max(blocks.index(stages[name.split("_")[0]]) for name in names)
    if unfreeze > end:
        raise common.UsageError(
            f"--fine-tune-blocks {unfreeze}: only {end} blocks are before the features' end"
        )
    return blocks[end - unfreeze]


def split_network(
    backbone: keras.Model,
    frozen: keras.Model,
    blocks: list[str],
    cut: str,
    names: Iterable[str],
    head: keras.Sequential,
    precision: str,
) -> tuple[keras.Model, keras.Model]:
    """Cuts the whole network in two, before the blocks that will be fine-tuned.

    Args:
        backbone: one of `BACKBONES`.
        frozen: what `freeze` made of it.
        blocks: what `blocks_of` says of it.
        cut: the first block to fine-tune.
        names: the features that the head sees.
        head: the standardiser and the classifier, whose weights the upper part shares.
        precision: of the upper part.

    Returns:
        The lower part: uint8 (N, 28, 28) → {"activations": float16 at the cut, and features from
        below it: float16 (N, channels)}. The upper part: these → probabilities (N, 10). Its kernels
        are trainable; its BatchNormalizations are not, which keeps them in inference mode.
    """
    used = {name.split("_")[0] for name in names}
    stages = {k: block for k, block in stages_of(backbone, blocks).items() if k in used}
    above = {k: b for k, b in stages.items() if blocks.index(b) > blocks.index(cut)}

    values = {"activations": activations_at(frozen, cut)}
    for stage in stages.keys() - above.keys():
        for kind, pooled in pool(activations_at(frozen, stages[stage])).items():
            if f"{stage}_{kind}" in names:
                values[f"{stage}_{kind}"] = pooled
    values = {name: to_float16(value) for name, value in values.items()}
    lower = keras.Model(frozen.input, values, name=f"activations-{blocks.index(cut):02}")

    inputs = {k: keras.Input(v.shape[1:], dtype="float16", name=k) for k, v in values.items()}
    original = keras.Model(
        activations_at(backbone, cut), [activations_at(backbone, b) for b in above.values()]
    )
    unfrozen = clone(original, inputs["activations"], DTYPES[precision])
    for layer in original.layers:
        if layer.weights:
            copy = unfrozen.get_layer(layer.name)
            copy.set_weights(layer.get_weights())
            copy.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    features = {name: keras.ops.cast(value, "float32") for name, value in inputs.items()}
    for stage, activations in zip(above, unfrozen.outputs, strict=True):
        features |= {f"{stage}_{kind}": pooled for kind, pooled in pool(activations).items()}
    outputs = keras.ops.concatenate([features[name] for name in names], axis=1)
    # The head's layers one by one: as a model, the classifier would first make its input float16,
    # and so its gradients, many of which are too small for that.
    standardiser, classifier = head.layers
    for layer in standardiser, *classifier.layers:
        outputs = layer(outputs)
    return lower, keras.Model(inputs, outputs)


def fine_tuning_batches(
    model: keras.Model,
    split: common.Split,
    cache: Path | None,
    batch_size: int,
    seed: list[int] | None = None,
) -> tf.data.Dataset:
    """Batches of a split for a model that takes its images or, from the cache, its activations.

    With a seed they are shuffled: the files' order, and then images among those of eight files.
    Each epoch has a seed of its own, so that one after an interruption is as without.
    """
    one_hot = keras.utils.to_categorical(split.labels, len(common.CLASS_NAMES))
    starts, rng = np.arange(0, split.size, CHUNK), np.random.default_rng(seed)

    def chunks() -> Iterator[tuple]:
        for start in starts:
            rows = slice(start, min(start + CHUNK, split.size))
            inputs = split.images[rows]
            if cache:
                chunk = read_chunk(split, cache, start)
                inputs = {name: chunk[name] for name in model.input}
            yield inputs, one_hot[rows]

    inputs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), model.input)
    signature = inputs, tf.TensorSpec((None, one_hot.shape[1]))
    batches = tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()
    if seed is not None:
        rng.shuffle(starts)
        order = {"seed": int(rng.integers(2**31)), "reshuffle_each_iteration": False}
        batches = batches.shuffle(8 * CHUNK, **order)
    steps = math.ceil(split.size / batch_size)
    settings = tf.data.Options()
    settings.autotune.enabled = False
    return (
        batches.batch(batch_size)
        .apply(tf.data.experimental.assert_cardinality(steps))
        .prefetch(2)
        .with_options(settings)
    )


@contextlib.contextmanager
def errors_of_reading() -> Iterator[None]:
    """Raises a `UserError` of `read_chunk` as such, which TensorFlow has made one of its own."""
    try:
        yield
    except tf.errors.OpError as error:
        if message := re.search("UserError: (.*)", str(error)):
            raise common.UserError(message[1]) from None
        raise


def augment(model: keras.Model) -> keras.Model:
    """The same model, trained on images that are flipped and shifted by up to two pixels."""
    images = keras.Input((28, 28), dtype="uint8")
    flip = keras.layers.RandomFlip("horizontal", dtype="float32")
    shift = keras.layers.RandomTranslation(
        *(2 / 28, 2 / 28), fill_mode="constant", interpolation="nearest", dtype="float32"
    )
    augmented = shift(flip(keras.ops.expand_dims(keras.ops.cast(images, "float32"), -1)))
    return keras.Model(images, model(keras.ops.cast(keras.ops.squeeze(augmented, -1), "uint8")))


def fine_tune(
    model: keras.Model,
    data: common.FashionMNIST,
    cache: Path | None,
    options: argparse.Namespace,
    log: report.EpochLog,
    state: dict,
) -> None:
    """Trains end to end by Adam, the learning rate rising for a tenth of the steps, then falling.

    After each epoch everything needed to go on from there is in the output folder's `checkpoint`.
    It ends with the weights of the best epoch, which may be the head's.

    Args:
        model: takes images or, with a cache, activations; its weights are the head's best epoch's.
        data: the images.
        cache: of activations, or None.
        options: the command line's.
        log: has the epochs so far, the head's included.
        state: of the run; the checkpoint's, or the start of it.

    Raises:
        common.UserError: the loss is no longer a number, or a checkpoint cannot be written.
    """
    folder = options.output_dir / "checkpoint"
    size = options.fine_tune_batch_size
    steps = math.ceil(data.train.size / size) * options.fine_tune_epochs
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        steps - steps // 10,
        warmup_target=options.fine_tune_learning_rate,
        warmup_steps=steps // 10,
    )
    if options.fine_tune_inputs == "augmented":
        model = augment(model)
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    if state["last"]:
        load_epoch(model, folder / state["best"])  # whether it is whole shows before the work
        load_epoch(model, folder / state["last"])
        print(f"Resuming after epoch {log.rows[-1]['epoch']}.")
    else:
        save_checkpoint(folder, model, state, log)
    first = state["head_epochs"]
    log.advice = "go on with --resume and a lower --fine-tune-learning-rate"
    validation = fine_tuning_batches(model, data.validation, cache, size)
    seeds = [v for v in model.variables if v.path.endswith("seed_generator_state")]
    for epoch in range(len(log.rows), first + options.fine_tune_epochs):
        if epoch - max(first, log.best["epoch"]) >= options.patience:
            break
        for i, variable in enumerate(seeds):  # of dropout and augmentation
            variable.assign(np.array([options.seed + i, epoch << 20], variable.dtype))
        batches = fine_tuning_batches(model, data.train, cache, size, [options.seed, epoch])
        with errors_of_reading():
            model.fit(
                batches,
                shuffle=False,  # they are
                initial_epoch=epoch,
                epochs=epoch + 1,
                validation_data=validation,
                callbacks=[keras.callbacks.TerminateOnNaN(), log],
                verbose=2,
            )
        save_checkpoint(folder, model, state, log)
    load_epoch(model, folder / state["best"])


# -------------------------------------------------------------------------------- checkpoint

# With a checkpoint of other values of these, a run may still be resumed.
NOT_OF_THE_RUN = {
    *("resume", "output_dir", "data_dir", "cache_dir", "wandb", "project", "require_accuracy"),
    *("weights", "gpus", "fine_tune_learning_rate"),
}


def load_checkpoint(options: argparse.Namespace, record: dict[str, dict]) -> dict:
    """The state of the run that `--resume` continues, or the start of a new run's.

    Args:
        options: the command line's.
        record: has the digests of data and weights, and the precision.

    Raises:
        common.UsageError: the run there had other options, data or weights, or should not be lost.
        common.UserError: the checkpoint cannot be read.
    """
    config = {k: v for k, v in vars(options).items() if k not in NOT_OF_THE_RUN}
    config |= {
        "data_sha256": record["data"]["sha256"],
        "computed_in": record["weights"]["precision"],
    }
    config |= {"weights_sha256": record["weights"]["sha256"]}
    path = options.output_dir / "checkpoint" / "state.json"
    rate = options.fine_tune_learning_rate
    new = {"config": config, "learning_rate": rate, "last": None, "finished": False}
    if not options.fine_tune_blocks:
        return new
    try:
        state = json.loads(path.read_text())
        needed = {"config", "rows", "last", "best", "head_epochs", "learning_rate", "finished"}
        if missing := needed - set(state):
            raise ValueError(f"it has no {', '.join(missing)}")
    except FileNotFoundError:
        if options.resume:
            print(f"There is no {path} to resume from: this run starts at its beginning.")
        return new
    except (OSError, ValueError, TypeError) as error:
        raise common.UserError(f"{path} cannot be read: {error}; delete that folder") from None
    if not options.resume:
        if state["finished"]:
            path.unlink()  # or a later `--resume` of this run might take it for this run's
            return new
        raise common.UsageError(
            f"{path.parent} has an unfinished run's epoch {state['rows'][-1]['epoch']}: --resume "
            "continues it\nTo start anew, delete that folder or use another --output-dir."
        )
    other = sorted(
        k for k in config.keys() | state["config"].keys() if config.get(k) != state["config"].get(k)
    )
    if other:
        raise common.UsageError(
            f"--resume: the run in {path.parent} had another "
            + ", ".join(f"{k} ({state['config'].get(k)}, not {config.get(k)})" for k in other)
        )
    if state["finished"] and state["learning_rate"] != rate:
        raise common.UsageError(
            f"--resume: the run in {path.parent} has finished, with another fine_tune_learning_rate"
        )
    return state | {"learning_rate": rate}


def save_checkpoint(folder: Path, model: keras.Model, state: dict, log: report.EpochLog) -> None:
    """Keeps the last and the best epoch's weights, with the optimizer's, and the run's state.

    The old ones are there until the new ones are: `state.json` names those that count.

    Raises:
        common.UserError: they cannot be written.
    """
    epoch = log.rows[-1]["epoch"] if state["last"] else log.best["epoch"]
    state["last"] = f"epoch-{epoch:03}.weights.h5"
    if epoch == log.best["epoch"]:
        state["best"] = state["last"]
    state["rows"] = log.rows
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as temporary:
            model.save_weights(part := Path(temporary) / state["last"])
            part.replace(folder / state["last"])
        write_state(folder, state)
        for path in folder.glob("epoch-*.weights.h5"):
            if path.name not in (state["last"], state["best"]):
                path.unlink()
    except OSError as error:
        raise common.UserError(f"no checkpoint could be written: {error}") from None


def load_epoch(model: keras.Model, path: Path) -> None:
    """Loads an epoch's weights, with the optimizer's.

    Raises:
        common.UserError: the file is not there or damaged.
    """
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise common.UserError(f"{path} is damaged ({reason}): delete its folder") from None


def write_state(folder: Path, state: dict) -> None:
    """Replaces `state.json`, at once."""
    part = folder / ".incomplete-state.json"
    part.write_text(json.dumps(state, indent=2) + "\n")
    part.replace(folder / "state.json")


# -------------------------------------------------------------------------------------- GPUs


def use_gpus(gpus: str) -> None:
    """Uses all GPUs, or the first so many, each with its own share of each step.

    Raises:
        common.UsageError: there are fewer.
    """
    devices = tf.config.list_physical_devices("GPU")
    if gpus != "all":
        if int(gpus) > len(devices):
            raise common.UsageError(f"--gpus {gpus}: TensorFlow sees {len(devices)}")
        devices = devices[: int(gpus)]
        tf.config.set_visible_devices(devices, "GPU")
    if len(devices) > 1:
        tf.distribute.experimental_set_strategy(tf.distribute.MirroredStrategy())


def main() -> None:
    """Data → features, once → head → fine-tuning, if any → evaluation → output."""
    options = parse_options()
    if options.predict:
        return predict.predict(options)
    use_gpus(options.gpus)
    report.prepare_output(options.output_dir)
    record = report.new_record(options)
    seconds, names = record["seconds"], FEATURES[options.features]

    with common.timed(seconds, "data"):
        data = common.load_fashion_mnist(
            options.data_dir, options.train_size, options.validation_size, options.test_size
        )
        record["data"] = data.record()
    with common.timed(seconds, "backbone"):
        image_size = options.image_size or BACKBONES[options.backbone].image_size
        backbone = build_backbone(options.backbone, image_size, options.weights, options.seed)
        precision = resolve_precision(options.precision)
        frozen = freeze(options.backbone, backbone, precision)
        blocks = blocks_of(backbone, BACKBONES[options.backbone].block_starts)
        extractor = build_extractor(frozen, stages_of(backbone, blocks), options.features)
        cut = cut_before(backbone, blocks, names, options.fine_tune_blocks)
        digest = weights_digest(backbone)
        record["weights"] = {"source": options.weights, "sha256": digest, "precision": precision}
    state = load_checkpoint(options, record)

    with report.wandb_run(options, record, state.get("wandb_id")) as run:
        with common.timed(seconds, "extraction"):
            folder = f"{options.backbone}-{image_size}-bilinear-{precision}-{digest[:16]}"
            cache = options.cache_dir.absolute() / folder
            rate = extract_features(extractor, data.splits.values(), cache, run, "Features")
            record["extraction"] = {"images_per_second": rate}
            features = {
                name: read_features(split, cache, names) for name, split in data.splits.items()
            }
        with common.timed(seconds, "training"):
            standardiser = build_standardiser(features["train"])
            for name in features:
                features[name] = common.predict(standardiser, features[name], "float16")
            keras.utils.set_random_seed(options.seed)  # again: features may come from the cache
            channels = features["train"].shape[1]
            classifier = build_classifier(channels, options.dropout, precision)
            head = keras.Sequential([standardiser, classifier], name="head")
            log = report.EpochLog(run, state.get("rows", ()))
            if not state["last"]:
                train(classifier, features, data, options, log)
        if options.fine_tune_blocks:
            state = {"wandb_id": run.id, "head_epochs": len(log.rows)} | state
            record["fine_tuning"] = {"head_epochs": state["head_epochs"]}
            with common.timed(seconds, "activations"):
                lower, upper = split_network(backbone, frozen, blocks, cut, names, head, precision)
                model = keras.Model(lower.input, upper(lower.output), name="resnet50_fashion")
                if options.fine_tune_inputs == "cached":
                    trained, cache = upper, cache / lower.name
                    extract_features(lower, data.splits.values(), cache, run, "Activations")
                else:
                    trained, cache = model, None
            with common.timed(seconds, "fine_tuning"):
                fine_tune(trained, data, cache, options, log, state)
            with common.timed(seconds, "evaluation"), errors_of_reading():
                batches = functools.partial(
                    fine_tuning_batches, trained, cache=cache, batch_size=100
                )
                probabilities = {
                    name: trained.predict(batches(split=split), verbose=0)
                    for name, split in data.splits.items()
                }
        else:
            model = assemble(extractor, names, head)
            with common.timed(seconds, "evaluation"):
                probabilities = {
                    name: common.predict(classifier, features[name]) for name in data.splits
                }
        evaluations = {
            name: report.Evaluation(probabilities[name], split.labels)
            for name, split in data.splits.items()
        }
        comparison = report.save_results(options, run, record, evaluations, data, model, log)
        if options.fine_tune_blocks:
            write_state(options.output_dir / "checkpoint", state | {"finished": True})
    report.conclude(options, run, record, comparison)


if __name__ == "__main__":
    common.run_script(main)
