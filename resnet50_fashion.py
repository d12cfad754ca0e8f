"""Fashion-MNIST above 90 %: a frozen, ImageNet-trained ResNet50 and a small head on top.

Each image goes through the ResNet50 once, enlarged to 224×224 RGB. The features that come out are
kept on disk, so that the head, and every later run with any head, trains in seconds. The saved
model is one whole: raw uint8 (N, 28, 28) images → probabilities (N, 10).
"""

import argparse
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import common  # before Keras: it chooses the backend
import h5py
import keras
import numpy as np
import tensorflow as tf
import wandb

import report

IMAGE_SIZE = 224
STAGES = {"conv3": "conv3_block4_out", "conv4": "conv4_block6_out", "conv5": "conv5_block3_out"}
DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}  # precision → Keras' dtype policy
# What the head can see: averages and maxima of stages' outputs over their positions. Fashion-MNIST
# is far from ImageNet: the last stage, made for ImageNet's classes, is not the best place to look.
FEATURES = {
    "conv5": ("conv5_avg",),  # what the ResNet50's own classifier sees; the published recipe
    "conv4": ("conv3_avg", "conv4_avg", "conv4_max"),
}

# What keras.applications downloads, for a clear word where that cannot be.
IMAGENET_FILE = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_URL = (
    f"https://storage.googleapis.com/tensorflow/keras-applications/resnet/{IMAGENET_FILE}"
)

# Images in one step of the extraction and in one file of its cache: what a killed run loses at
# most. It is no option since the last bits of the features depend on it. 125 divides 55,000,
# 5,000 and 10,000, and more is hardly faster.
CHUNK = 125


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = common.option_parser(__doc__, "resnet50_fashion")
    parser.set_defaults(epochs=20, batch_size=512)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights",
        default="imagenet",
        metavar="imagenet|none|PATH",
        help="the ResNet50's: downloaded, random, or a Keras weights file of it without its top"
        " (default: %(default)s)",
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
        help="the ResNet50's; auto is bfloat16 where the processor or GPU has it natively"
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
        default=5,
        help="stop after so many epochs without a better validation accuracy"
        " (default: %(default)s)",
    )
    group.add_argument(
        "--cache-dir",
        type=Path,
        default=default_cache_dir(),
        help="keeps the features (default: %(default)s)",
    )
    return common.parse_options(parser)


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/fashion-mnist-features`, by default below `~/.cache`."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(caches)) / "fashion-mnist-features"


# ---------------------------------------------------------------------------------- backbone


def build_backbone(weights: str, seed: int) -> keras.Model:
    """`keras.applications.ResNet50` without its top: float (N, 224, 224, 3) → float (N, 2048).

    Args:
        weights: "imagenet" (downloaded into Keras' cache), "none" (random), or a weights file.
        seed: of random weights.

    Raises:
        common.UserError: the weights cannot be downloaded or read, or do not fit.
    """
    keras.utils.set_random_seed(seed)
    try:
        if weights == "imagenet" and not (common.keras_home() / "models" / IMAGENET_FILE).exists():
            common.check_reachable(IMAGENET_URL)
        socket.setdefaulttimeout(10)  # Keras' download has no timeout of its own
        backbone = keras.applications.ResNet50(
            include_top=False,
            pooling="avg",
            weights="imagenet" if weights == "imagenet" else None,
            input_shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
        )
    except Exception as error:  # Keras raises just that when a download fails
        if weights != "imagenet":
            raise
        raise common.UserError(
            f"the ImageNet weights cannot be downloaded: {error}\nDownload {IMAGENET_URL} "
            "on a machine that can, and give the file as --weights PATH."
        ) from None
    finally:
        socket.setdefaulttimeout(None)
    if weights == "none":
        print("WARNING: --weights none: the ResNet50 is RANDOM and knows nothing about images.")
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
                for name in [*ours, *theirs]:
                    if (name in ours) != (name in theirs):
                        whose = "the file" if name in theirs else "ResNet50"
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
            f"--weights {path}: not the weights of a ResNet50 without its top: {reason}"
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
    if gpus := tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpus[0])
        native = details.get("compute_capability", (0, 0)) >= (8, 0)
    else:
        native = {"avx512_bf16", "amx_bf16"} & set(common.cpu_info().get("flags", "").split())
    return "bfloat16" if native else "float32"


def fold_batch_norm(backbone: keras.Model, images: keras.KerasTensor, dtype: str) -> keras.Model:
    """The same function of `images` with each BatchNormalization folded into its convolution.

    In inference, BatchNormalization is y = (x − mean)·s + beta with s = gamma/√(variance + ε).
    After a convolution, that is a convolution with kernel·s and bias (bias − mean)·s + beta.

    Args:
        backbone: a ResNet50 of Keras; left as it is.
        images: what the new model starts from, float32 (N, 224, 224, 3).
        dtype: dtype policy of the new layers, "float32" or "mixed_bfloat16".
    """

    def clone_layer(layer: keras.Layer) -> keras.Layer:
        bias = {"use_bias": True} if isinstance(layer, keras.layers.Conv2D) else {}
        return type(layer).from_config(layer.get_config() | bias | {"dtype": dtype})

    def call_layer(layer: keras.Layer, *args: object, mask: object = None, **kwargs: object):
        if isinstance(layer, keras.layers.BatchNormalization):
            return args[0]
        return layer(*args, **kwargs)

    folded = keras.models.clone_model(
        backbone, images, clone_function=clone_layer, call_function=call_layer
    )
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.Conv2D):  # x_conv is followed by x_bn
            norm = backbone.get_layer(layer.name.removesuffix("conv") + "bn")
            gamma, beta, mean, variance = norm.get_weights()
            kernel, bias = layer.get_weights()
            scale = gamma / np.sqrt(variance + norm.epsilon)
            new = folded.get_layer(layer.name)
            new.set_weights([kernel * scale, (bias - mean) * scale + beta])
    folded.trainable = False
    return folded


def build_extractor(backbone: keras.Model, precision: str, last_stage: str) -> keras.Model:
    """The frozen part: uint8 (N, 28, 28) → {name: float16 (N, channels)}, as far as a stage.

    The names are conv3_avg, conv3_max, conv4_avg …: each channel's average or maximum over the
    positions of a stage's output, computed in float32 and kept as float16, within a saved model
    just as in the cache.
    """
    images = keras.Input((28, 28), dtype="uint8", name="images")
    rgb = keras.applications.resnet50.preprocess_input(common.to_rgb(images, IMAGE_SIZE))
    folded = fold_batch_norm(backbone, rgb, DTYPES[precision])
    features = {}
    for stage, layer in STAGES.items():
        activations = folded.get_layer(layer).output
        average = keras.layers.GlobalAveragePooling2D(dtype="float32")(activations)
        maximum = keras.layers.GlobalMaxPooling2D(dtype="float32")(activations)
        for name, pooled in (f"{stage}_avg", average), (f"{stage}_max", maximum):
            in_range = keras.ops.minimum(pooled, float(np.finfo("float16").max))
            features[name] = keras.ops.cast(in_range, "float16")
        if stage == last_stage:
            return keras.Model(images, features)
    raise ValueError(f"no stage {last_stage}")


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
    extractor: keras.Model, splits: Iterable[common.Split], cache: Path, run: wandb.Run
) -> float | None:
    """Computes what the cache lacks, file by file.

    Each file appears whole or not at all, by a rename, and with the same bytes whoever computes
    it on this machine: a killed run, or two at once, do no harm, and a later run goes on.

    Returns:
        Images per second, or None if everything was there.

    Raises:
        common.UserError: the cache cannot be written.
    """
    todo = []
    for split in splits:
        for start in range(0, split.size, CHUNK):
            path = chunk_path(cache, split, start)
            if not has_features(path, extractor.output):
                todo.append((path, split.all_images[start : start + CHUNK]))
    if not todo:
        print(f"Features: all in {cache}")
        return None

    left = sum(len(images) for _, images in todo)
    print(f"Features: extracting {left:,} images, each once; kept in {cache}", flush=True)
    run.define_metric("extraction/*", step_metric="extraction/images")
    extracted, rate, bar = 0, None, None
    start = time.perf_counter()
    for path, images in todo:
        if has_features(path, extractor.output):  # made meanwhile by another process
            left -= len(images)
            if bar:
                bar.target = left
            continue
        features = extractor.predict_on_batch(images)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".incomplete-") as folder:
                np.savez(part := Path(folder) / path.name, **features)
                if not has_features(path, extractor.output):  # a longer pass may have been here
                    part.replace(path)
        except OSError as error:
            raise common.UserError(f"--cache-dir: {error}") from None
        extracted += len(images)
        seconds = time.perf_counter() - start
        rate = extracted / seconds
        progress = {"images": extracted, "images_per_second": rate, "seconds": seconds}
        run.log({f"extraction/{name}": value for name, value in progress.items()})
        if not bar:
            print(f"About {left / rate / 60:.1f} minutes at {rate:.0f} images/s.")
            interval = 0.5 if sys.stdout.isatty() else 60
            bar = keras.utils.Progbar(
                left, interval=interval, stateful_metrics=["images/s"], unit_name="image"
            )
        bar.update(extracted, [("images/s", rate)])
    return rate


def read_features(split: common.Split, cache: Path, names: Iterable[str]) -> np.ndarray:
    """The named features of a split's images in use, side by side: float16 (N, channels).

    Raises:
        common.UserError: a file of the cache is damaged.
    """
    chunks = []
    for start in range(0, split.size, CHUNK):
        path = chunk_path(cache, split, start)
        try:
            with np.load(path) as chunk:
                chunks.append(np.concatenate([chunk[name] for name in names], axis=1))
            if len(chunks[-1]) != len(split.all_images[start : start + CHUNK]):
                raise ValueError("it is not of so many images")
        except Exception as error:  # of a zip file's many ways to be damaged
            raise common.UserError(f"{path} is damaged ({error}): delete it, run again") from None
    return np.concatenate(chunks)[: split.size]


# -------------------------------------------------------------------------------------- head


def build_standardiser(features: np.ndarray) -> keras.Model:
    """Makes features comparable: float16 (N, channels) → float16 (N, channels).

    Their square root (they are never negative; "power normalisation", Perronnin et al., ECCV 2010)
    less its mean, by its standard deviation, both taken from `features`, the training images'.
    """
    standardise = keras.layers.Normalization(dtype="float32")
    # 10,000 images tell a mean and a variance well enough; in float16 the sums would overflow.
    standardise.adapt(np.sqrt(features[:10_000].astype("float32")))
    inputs = keras.Input(features.shape[1:], dtype="float16", name="features")
    roots = keras.ops.sqrt(keras.ops.cast(inputs, "float32"))
    # A channel that is constant in training has no deviation: without a bound, its values in other
    # images would be millions of deviations, more than float16 can hold.
    outputs = keras.ops.cast(keras.ops.clip(standardise(roots), -10, 10), "float16")
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
        steps_per_execution=20,
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


def main() -> None:
    """Data → features, once → head → evaluation → output."""
    options = parse_options()
    report.prepare_output(options.output_dir)
    record = report.new_record(options)
    seconds = record["seconds"]

    with common.timed(seconds, "data"):
        data = common.load_fashion_mnist(
            options.data_dir, options.train_size, options.validation_size, options.test_size
        )
        record["data"] = data.record()
    with common.timed(seconds, "backbone"):
        backbone = build_backbone(options.weights, options.seed)
        precision = resolve_precision(options.precision)
        extractor = build_extractor(backbone, precision, last_stage=options.features)
        digest = weights_digest(backbone)
        record["weights"] = {"source": options.weights, "sha256": digest, "precision": precision}

    with report.wandb_run(options, record) as run:
        with common.timed(seconds, "extraction"):
            folder = f"resnet50-{IMAGE_SIZE}-bilinear-{precision}-{digest[:16]}"
            cache = options.cache_dir.absolute() / folder
            rate = extract_features(extractor, data.splits.values(), cache, run)
            record["extraction"] = {"images_per_second": rate}
            features = {
                name: read_features(split, cache, FEATURES[options.features])
                for name, split in data.splits.items()
            }
        with common.timed(seconds, "training"):
            standardiser = build_standardiser(features["train"])
            for name in features:
                features[name] = common.predict(standardiser, features[name])
            keras.utils.set_random_seed(options.seed)  # again: features may come from the cache
            channels = features["train"].shape[1]
            classifier = build_classifier(channels, options.dropout, precision)
            log = report.EpochLog(run)
            train(classifier, features, data, options, log)
        with common.timed(seconds, "evaluation"):
            evaluations = {
                name: report.Evaluation(common.predict(classifier, features[name]), split.labels)
                for name, split in data.splits.items()
            }
        head = keras.Sequential([standardiser, classifier], name="head")
        model = assemble(extractor, FEATURES[options.features], head)
        comparison = report.save_results(options, run, record, evaluations, data, model, log)
    report.conclude(options, run, record, comparison)


if __name__ == "__main__":
    common.run_script(main)
