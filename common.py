"""What both scripts share: errors, options, the data, 224×224 RGB images, batches.

Read it from top to bottom, in that order.
"""

import argparse
import contextlib
import gzip
import hashlib
import http.client
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NoReturn

START = time.perf_counter()  # before the slow imports: a user waits for them, too

# Set before Keras is imported: the scripts need TensorFlow underneath, whatever keras.json says,
# and TensorFlow's notes on absent GPU drivers and CPU features would bury the results.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

tf.get_logger().setLevel("ERROR")  # or it warns that several models' functions are compiled
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")

# ------------------------------------------------------------------------ errors and options


# -------------------------------------------------------------------------------------- data


def load_fashion_mnist(
    data_dir: Path | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
) -> FashionMNIST:
    """Finds, verifies and splits Fashion-MNIST; prints a line that says where it was found.

    A twelfth of the 60,000 training images (5,000, 500 of each class) is the validation split,
    the same for every run.

    Args:
        data_dir: the only folder to look in. One with a `SHA256SUMS` file is held to that (another
            data set in the same format, such as a sample); any other must hold Fashion-MNIST.
        train_size, validation_size, test_size: use only so many images, class-balanced.

    Raises:
        UserError: no source works; the message lists each with its reason.
        UsageError: a size is larger than its split.
    """
    arrays, source, sha256 = _read_folder(data_dir) if data_dir else _find_fashion_mnist()

    def split(name: str, file: str, order: np.ndarray, size: int | None) -> Split:
        if size and size > len(order):
            raise UsageError(f"--{name}-size {size}: there are {len(order)} {name} images")
        images, labels = arrays[f"{file}-images-idx3-ubyte"], arrays[f"{file}-labels-idx1-ubyte"]
        return Split(images[order], labels[order].astype("int32"), order, size or len(order))

    order = _class_balanced_order(arrays["train-labels-idx1-ubyte"])
    held_out = len(order) // 12
    if not held_out:
        raise UserError(f"{source}: {len(order)} training images are too few to split")
    data = FashionMNIST(
        split("train", "train", order[held_out:], train_size),
        split("validation", "train", order[:held_out], validation_size),
        split("test", "t10k", _class_balanced_order(arrays["t10k-labels-idx1-ubyte"]), test_size),
        source,
        sha256,
    )
    print(
        f"Data: {data.train.size:,} training, {data.validation.size:,} validation and "
        f"{data.test.size:,} test images from {source}"
    )
    return data


# ------------------------------------------------------------------------------------ images


def to_rgb(images: keras.KerasTensor, size: int) -> keras.KerasTensor:
    """Enlarges gray images as a part of a model: uint8 (N, 28, 28) → float32 (N, size, size, 3).

    Bilinear with half-pixel centres (as Pillow and `tf.image` do it), values still from 0 to 255,
    the gray channel three times: what a backbone's `preprocess_input` expects.
    """
    gray = keras.layers.Rescaling(1.0, dtype="float32")(images)
    gray = keras.layers.Reshape((*images.shape[1:], 1), dtype="float32")(gray)
    gray = keras.layers.Resizing(size, size, interpolation="bilinear", dtype="float32")(gray)
    return keras.ops.repeat(gray, 3, axis=-1)


# ---------------------------------------------------------------------------------- training


def shuffled_batches(
    inputs: np.ndarray, labels: np.ndarray, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Batches of inputs and labels, in a new order each epoch.

    `fit` does nearly the same with arrays, but turns float16 to float32, and its tf.data pipeline
    tunes itself in a thread whose sleep (10 ms, then 20, then 40 …) the end of each epoch awaits.
    """
    arrays = tf.constant(inputs), tf.constant(labels)
    order = tf.data.Dataset.range(len(labels)).shuffle(len(labels), seed).batch(batch_size)
    batches = order.map(lambda rows: tuple(tf.gather(array, rows) for array in arrays))
    settings = tf.data.Options()
    settings.autotune.enabled = False
    return batches.prefetch(16).with_options(settings)


def best_epoch(patience: int) -> keras.callbacks.EarlyStopping:
    """Ends a training after `patience` epochs that bring no better validation accuracy.

    The weights are those of the best epoch, whether or not the training ended early.
    """
    return keras.callbacks.EarlyStopping(
        "val_accuracy", mode="max", patience=patience, restore_best_weights=True
    )


