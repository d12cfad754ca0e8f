"""Train plain Keras versions of both models, with which other benchmarks compare the scripts.

`basic` is a plain `fit` at batch size 32. `resnet50` is the usual transfer-learning script: a
frozen ResNet50 inside the model, through which every upscaled image goes in every epoch.
`head` trains only the head, on the features in resnet50_fashion.py's --cache-dir: the output of the
frozen backbone never changes, so this measures the accuracy of `resnet50` without the hours.

metrics.json in --output-dir contains the seconds of each epoch and of its validation, and for
`head` the accuracies after the last epoch.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fashion import errors, machine
from fashion.backbones.backbone import load_backbone
from fashion.backbones.feature_cache import FeatureCache
from fashion.datasets.splits import Split
from fashion.results.evaluation import wilson_interval

import keras
import numpy as np
import tensorflow as tf

import common
import resnet50_fashion
import runner

BATCH_SIZE = 32


def build_classifier(input_shape: tuple[int, ...], units: int, dropout: float) -> keras.Model:
    """Build a dense network: float (N, *input_shape) → probabilities (N, 10)."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def build_pooled_resnet50(weights: str) -> keras.Model:
    """Build ResNet50 with average pooling, frozen: images (N, 224, 224, 3) → (N, channels)."""
    network = load_backbone("resnet50", 224, weights, seed=0).network
    pooled = keras.layers.GlobalAveragePooling2D()(network.output)
    return keras.Model(network.input, pooled)


def upscaled_batches(split: Split, shuffle: bool) -> tf.data.Dataset:
    """Return batches of upscaled RGB images and labels, prepared while the model trains."""

    def upscale(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rgb = tf.image.grayscale_to_rgb(tf.cast(images[..., None], "float32"))
        upscaled = tf.image.resize(rgb, (224, 224))
        return keras.applications.resnet50.preprocess_input(upscaled), labels

    images = tf.data.Dataset.from_tensor_slices((split.images, split.labels))
    batches = (images.shuffle(10_000) if shuffle else images).batch(BATCH_SIZE)
    dataset_options = tf.data.Options()
    # Autotuning ends each epoch with a wait, which would distort the time of few images.
    dataset_options.autotune.enabled = False
    batches = batches.map(upscale, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return batches.with_options(dataset_options)


def feature_cache(weights: str, cache_dir: Path) -> FeatureCache:
    """Return the cache of the features of `resnet50_fashion.py --recipe plain`."""
    names = resnet50_fashion.FEATURE_SETS["conv5_avg"]
    backbone = load_backbone("resnet50", 224, weights, seed=0)
    extractor = resnet50_fashion.build_feature_extractor(backbone, names)
    return FeatureCache(cache_dir / backbone.key, extractor, names)


def load_pooled_features(cache: FeatureCache, split: Split) -> np.ndarray:
    """Load or compute pooled ResNet50 features: float32 (N, channels)."""
    features = cache.load(split, flip=False)[:, 0]
    return np.expm1(features.astype("float32"))  # those in the cache are log(1 + x)


def main() -> None:
    """Load the data, build the model, train it, and write metrics.json."""
    parser = runner.argument_parser(__doc__)
    parser.add_argument("model", choices=("basic", "resnet50", "head"))
    text = "precision; of head, that of its features (default: float32; head: as for the scripts)"
    parser.add_argument("--precision", choices=machine.PRECISIONS, help=text)
    parser.add_argument("--train-size", type=int, help="as for the scripts")
    parser.add_argument("--validation-size", type=int, help="as for the scripts")
    cache_dir = resnet50_fashion.Options().cache_dir
    parser.add_argument("--cache-dir", type=Path, default=cache_dir, help="as for the scripts")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/naive_keras"))
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()

    sizes = {"train_size": options.train_size, "validation_size": options.validation_size}
    data = common.load_fashion_mnist(resnet50_fashion.Options(data_dir=options.data_dir, **sizes))
    machine.set_precision(options.precision or ("auto" if options.model == "head" else "float32"))
    precision = machine.precision()
    keras.utils.set_random_seed(0)
    inputs = {}
    if options.model == "resnet50":
        backbone = build_pooled_resnet50(options.weights)
        head = build_classifier(backbone.output.shape[1:], 512, 0.5)
        # In training as well, the frozen backbone is in inference mode.
        model = keras.Model(backbone.input, head(backbone.output))
        train = {"x": upscaled_batches(data.train, shuffle=True), "shuffle": False}
        validation = upscaled_batches(data.validation, shuffle=False)
    else:
        if options.model == "basic":
            model = build_classifier((28, 28), 32, 0.0)
            inputs = {k: split.images.astype("float32") / 255 for k, split in data.splits.items()}
        else:
            cache = feature_cache(options.weights, options.cache_dir)
            inputs = {k: load_pooled_features(cache, split) for k, split in data.splits.items()}
            machine.set_precision("float32")
            model = build_classifier(inputs["train"].shape[1:], 512, 0.5)
        train = {"x": inputs["train"], "y": data.train.labels, "batch_size": BATCH_SIZE}
        validation = inputs["validation"], data.validation.labels
    times: list[float] = []  # start of each epoch, start and end of its validation

    def record_time(*_: object, **__: object) -> None:
        times.append(time.perf_counter())

    events = ("on_epoch_begin", "on_test_begin", "on_epoch_end")
    timer = keras.callbacks.LambdaCallback(**dict.fromkeys(events, record_time))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    epochs = options.epochs
    model.fit(**train, epochs=epochs, validation_data=validation, callbacks=[timer], verbose=2)

    start, middle, end = np.reshape(times, (-1, 3)).T
    metrics = {"epochs": epochs, "data": data.metadata(), "memory": machine.peak_memory()}
    metrics |= {"weights": {"precision": precision}}
    metrics |= {"versions": machine.environment_info(), "epoch_seconds": (end - start).tolist()}
    metrics |= {"validation_seconds": (end - middle).tolist()}
    if options.model == "head":
        for name, split in data.splits.items():
            accuracy = model.evaluate(inputs[name], split.labels, verbose=0)[1]
            interval = wilson_interval(accuracy, split.size)
            metrics[name] = {"accuracy": accuracy, "accuracy_ci95": interval}
    runner.write_json(options.output_dir / "metrics.json", metrics)


if __name__ == "__main__":
    errors.run_and_exit(main)
