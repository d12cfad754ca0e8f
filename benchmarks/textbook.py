"""The two models as textbooks train them: what `speed.py` compares this project's scripts with.

`basic` is a plain `fit` at batch 32. `resnet50` is the usual transfer-learning script: a frozen
ResNet50 within the model, through which every image goes again in every epoch, enlarged by tf.data.
`head` is the head of it alone, on the averages in resnet50_fashion.py's --cache-dir: what a frozen
ResNet50 says of an image is the same in every epoch, so this is what the hours of that lead to.
The last line of its output is JSON: seconds of each epoch's training and validation, accuracies,
of `head` also that of the test images.
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
from fashion.datasets.dataset import FashionMNIST
from fashion.evaluation.metrics import wilson_interval

import keras
import numpy as np
import tensorflow as tf

import common
import resnet50_fashion

BATCH_SIZE = 32


class Clock(keras.callbacks.Callback):
    """The seconds of each epoch's training and validation."""

    def __init__(self) -> None:
        """Starts with no epoch."""
        super().__init__()
        self.training, self.validation = [], []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts."""
        self.start = time.perf_counter()

    def on_test_begin(self, logs: dict | None = None) -> None:
        """The training has ended, the validation begins."""
        self.training.append(time.perf_counter() - self.start)
        self.start = time.perf_counter()

    def on_test_end(self, logs: dict | None = None) -> None:
        """The validation has ended."""
        self.validation.append(time.perf_counter() - self.start)


def basic() -> keras.Model:
    """Float images (N, 28, 28) from 0 to 1 → probabilities (N, 10)."""
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def head() -> list[keras.Layer]:
    """Averages (N, 2048) → probabilities (N, 10)."""
    return [
        keras.layers.Dense(512, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(10, activation="softmax"),
    ]


def resnet50(weights: str) -> keras.Model:
    """Preprocessed images (N, 224, 224, 3) → probabilities (N, 10)."""
    backbone = architectures.load_network("resnet50", 224, weights, seed=0)  # frozen
    inputs = keras.Input((224, 224, 3))
    outputs = keras.layers.GlobalAveragePooling2D()(backbone(inputs, training=False))
    for layer in head():
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def averages(options: argparse.Namespace, data: FashionMNIST) -> dict[str, np.ndarray]:
    """What the frozen ResNet50 makes of each split's images: float32 (N, 2048), from the cache."""
    network = architectures.NetworkOptions(weights=options.weights)
    backbone = resnet50_fashion.load_backbone(resnet50_fashion.Options(network=network))
    extractor = resnet50_fashion.build_extractor(backbone, ("conv5_avg",))
    cache = FeatureCache(options.cache_dir / backbone.cache_name, extractor)
    features = {}
    for name, split in data.splits.items():
        kept = np.empty((split.size, 2048), "float16")
        cache.read(split, ["conv5_avg"], out=kept)
        features[name] = kept.astype("float32")
    return features


def enlarge(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A batch of gray images as a ResNet50 wants them."""
    rgb = tf.image.grayscale_to_rgb(tf.cast(images[..., None], "float32"))
    enlarged = tf.image.resize(rgb, (224, 224))
    return keras.applications.resnet50.preprocess_input(enlarged), labels


def main() -> None:
    """Data → model → fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("basic", "resnet50", "head"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--weights", default="imagenet", metavar="imagenet|none|PATH")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--validation-size", type=int)
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
    clock = Clock()
    inputs, more = {}, {}
    if options.model == "resnet50":
        model = resnet50(options.weights)
        for name in "train", "validation":
            split = data.splits[name]
            images = tf.data.Dataset.from_tensor_slices((split.images, split.labels))
            images = images.shuffle(10_000) if name == "train" else images
            batches = images.batch(BATCH_SIZE).map(enlarge, tf.data.AUTOTUNE)
            inputs[name] = batches.prefetch(tf.data.AUTOTUNE)
        sets = {"x": inputs["train"], "shuffle": False, "validation_data": inputs["validation"]}
    else:
        if options.model == "basic":
            model = basic()
            inputs = {k: split.images.astype("float32") / 255 for k, split in data.splits.items()}
        else:
            model = keras.Sequential([keras.Input((2048,)), *head()])
            inputs = averages(options, data)
        sets = {"x": inputs["train"], "y": data.train.labels, "batch_size": BATCH_SIZE}
        sets["validation_data"] = inputs["validation"], data.validation.labels
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(**sets, epochs=options.epochs, callbacks=[clock], verbose=2).history
    if options.model == "head":
        answers = model.predict(inputs["test"], verbose=0).argmax(axis=1)
        right = float((answers == data.test.labels).mean())
        more["images"] = {name: split.size for name, split in data.splits.items()}
        more["test"] = {
            "accuracy": right,
            "interval95": wilson_interval(right, data.test.size),
        }
    print(
        json.dumps(
            {
                "training_seconds": clock.training,
                "validation_seconds": clock.validation,
                "accuracy": np.round(history["accuracy"], 4).tolist(),
                "val_accuracy": np.round(history["val_accuracy"], 4).tolist(),
                **more,
            }
        )
    )


if __name__ == "__main__":
    errors.run_script(main)
