"""Naive Keras versions of both models, with which the other benchmarks compare the scripts.

`basic` is a plain `fit` at batch size 32. `resnet50` is the usual transfer-learning script: a
frozen ResNet50 inside the model, through which every upscaled image goes in every epoch.
`head` trains only the head on the features in resnet50_fashion.py's --cache-dir: the frozen
backbone's output never changes, so this gives about the same accuracy without the hours. The last
line of the output is JSON: seconds of each epoch's training and validation, accuracies, and for
`head` also the test accuracy.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fashion import errors
from fashion.backbones import architectures
from fashion.backbones.feature_cache import FeatureCache
from fashion.datasets.dataset import ImageDataset
from fashion.evaluation.metrics import wilson_interval

import keras
import numpy as np
import tensorflow as tf

import common
import resnet50_fashion

BATCH_SIZE = 32


class EpochTimer(keras.callbacks.Callback):
    """Record the seconds of each epoch's training and validation."""

    def __init__(self) -> None:
        """Start without epochs."""
        super().__init__()
        self.training, self.validation = [], []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Start the timer."""
        self.start = time.perf_counter()

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Record the training time and restart the timer."""
        self.training.append(time.perf_counter() - self.start)
        self.start = time.perf_counter()

    def on_test_end(self, logs: dict | None = None) -> None:
        """Record the validation time."""
        self.validation.append(time.perf_counter() - self.start)


def build_basic() -> keras.Model:
    """Build the dense network: float images (N, 28, 28) in [0, 1] → probabilities (N, 10)."""
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def build_head_layers() -> list[keras.Layer]:
    """Build the head: features (N, 2048) → probabilities (N, 10)."""
    return [
        keras.layers.Dense(512, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(10, activation="softmax"),
    ]


def build_resnet50(weights: str) -> keras.Model:
    """Build the transfer-learning model: images (N, 224, 224, 3) → probabilities (N, 10)."""
    backbone = architectures.build_network("resnet50", 224, weights, seed=0)  # frozen
    inputs = keras.Input((224, 224, 3))
    outputs = keras.layers.GlobalAveragePooling2D()(backbone(inputs, training=False))
    for layer in build_head_layers():
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def load_pooled_features(options: argparse.Namespace, data: ImageDataset) -> dict[str, np.ndarray]:
    """Load each split's pooled ResNet50 features from the cache: float32 (N, 2048)."""
    network = architectures.NetworkOptions(weights=options.weights)
    backbone = resnet50_fashion.load_backbone(resnet50_fashion.Options(network=network))
    extractor = resnet50_fashion.build_feature_extractor(backbone, ("conv5_avg",))
    cache = FeatureCache(options.cache_dir / backbone.cache_dir_name, extractor)
    features = {}
    for name, split in data.splits.items():
        values = np.empty((split.size, 2048), "float16")
        cache.read(split, ["conv5_avg"], out=values)
        features[name] = values.astype("float32")
    return features


def upscale(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Upscale and preprocess a batch of gray images for ResNet50."""
    rgb = tf.image.grayscale_to_rgb(tf.cast(images[..., None], "float32"))
    upscaled = tf.image.resize(rgb, (224, 224))
    return keras.applications.resnet50.preprocess_input(upscaled), labels


def main() -> None:
    """Load the data, build the model and train it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=("basic", "resnet50", "head"))
    parser.add_argument("--data-dir", type=Path, help="as for the scripts")
    parser.add_argument("--weights", default="imagenet", metavar="imagenet|none|PATH")
    parser.add_argument("--train-size", type=int, help="as for the scripts")
    parser.add_argument("--validation-size", type=int, help="as for the scripts")
    parser.add_argument("--cache-dir", type=Path, default=common.DataOptions().cache_dir)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()

    data = common.load_fashion_mnist(
        common.DataOptions(
            data_dir=options.data_dir,
            train_size=options.train_size,
            validation_size=options.validation_size,
        )
    )
    keras.utils.set_random_seed(0)
    timer = EpochTimer()
    inputs, extra_results = {}, {}
    if options.model == "resnet50":
        model = build_resnet50(options.weights)
        for name in "train", "validation":
            split = data.splits[name]
            images = tf.data.Dataset.from_tensor_slices((split.images, split.labels))
            images = images.shuffle(10_000) if name == "train" else images
            batches = images.batch(BATCH_SIZE).map(upscale, tf.data.AUTOTUNE)
            inputs[name] = batches.prefetch(tf.data.AUTOTUNE)
        fit_args = {"x": inputs["train"], "shuffle": False, "validation_data": inputs["validation"]}
    else:
        if options.model == "basic":
            model = build_basic()
            inputs = {k: split.images.astype("float32") / 255 for k, split in data.splits.items()}
        else:
            model = keras.Sequential([keras.Input((2048,)), *build_head_layers()])
            inputs = load_pooled_features(options, data)
        fit_args = {"x": inputs["train"], "y": data.train.labels, "batch_size": BATCH_SIZE}
        fit_args["validation_data"] = inputs["validation"], data.validation.labels
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(**fit_args, epochs=options.epochs, callbacks=[timer], verbose=2).history
    if options.model == "head":
        predicted = model.predict(inputs["test"], verbose=0).argmax(axis=1)
        accuracy = float((predicted == data.test.labels).mean())
        extra_results["images"] = {name: split.size for name, split in data.splits.items()}
        extra_results["test"] = {
            "accuracy": accuracy,
            "interval95": wilson_interval(accuracy, data.test.size),
        }
    print(
        json.dumps(
            {
                "training_seconds": timer.training,
                "validation_seconds": timer.validation,
                "accuracy": np.round(history["accuracy"], 4).tolist(),
                "val_accuracy": np.round(history["val_accuracy"], 4).tolist(),
                **extra_results,
            }
        )
    )


if __name__ == "__main__":
    errors.run_and_exit(main)
