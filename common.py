"""Code shared by both scripts: data loading, batching, the command line."""

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import NoReturn

from fashion import datasets, errors, export, options as opt, predict, wandb_session
from fashion.datasets import image_folder, splits
from fashion.datasets.splits import ImageDataset
from fashion.errors import UserError
from fashion.options import OptionsT, SharedOptions
from fashion.results import output

import keras
import numpy as np
import tensorflow as tf


def load_fashion_mnist(options: SharedOptions) -> ImageDataset:
    """Find, verify and split Fashion-MNIST, or load the user's images; print the source.

    A twelfth of the training images of each class (5,000 of 60,000) is the validation split, the
    same in every run. Options can restrict each split to a subset of the same proportions.
    """
    raw = datasets.load_raw_dataset(options.data_dir, options.cache_dir)
    data = splits.make_splits(raw, options.train_size, options.validation_size, options.test_size)
    print(
        f"Data: {data.train.size:,} training, {data.validation.size:,} validation and "
        f"{data.test.size:,} test images from {data.source}"
    )
    return data


def make_dataset(
    inputs: np.ndarray, labels: np.ndarray, batch_size: int, seed: int | None = None
) -> tf.data.Dataset:
    """Return a batched dataset, reshuffled each epoch if `seed` is given.

    `fit` also batches and shuffles arrays, but copies them, converts float16 to float32, and waits
    for tf.data's autotuning thread at the end of each epoch.
    """

    def gather(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return inputs[rows], labels[rows]

    def gather_batch(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # The arrays may be gigabytes; TensorFlow would copy them twice to make them tensors.
        batch = tf.numpy_function(gather, [rows], [inputs.dtype, labels.dtype], stateful=False)
        for values, array in zip(batch, (inputs, labels), strict=True):
            values.set_shape((None, *array.shape[1:]))
        return tuple(batch)

    order = tf.data.Dataset.range(len(labels))
    if seed is not None:
        order = order.shuffle(len(labels), seed)
    # Gather several small batches per Python call to amortize its overhead.
    batches_per_call = math.ceil(512 / batch_size)
    dataset = order.batch(batches_per_call * batch_size).map(gather_batch)
    if batches_per_call > 1:
        num_batches = math.ceil(len(labels) / batch_size)
        dataset = dataset.rebatch(batch_size)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    dataset_options = tf.data.Options()
    dataset_options.autotune.enabled = False
    return dataset.prefetch(4).with_options(dataset_options)


def early_stopping(patience: int) -> keras.callbacks.EarlyStopping:
    """Return a callback that stops on validation accuracy and restores the best weights.

    The best weights are restored even if the training is not stopped early.
    """
    return keras.callbacks.EarlyStopping(
        "val_accuracy", mode="max", patience=patience, restore_best_weights=True
    )


def require_accuracy(accuracy: float, required: float | None) -> None:
    """Raise a `UserError` if the validation accuracy is below `--require-accuracy`."""
    if required and accuracy < required:
        raise UserError(f"validation accuracy {accuracy:.4f} is below the required {required}")


def run_script(
    main: Callable[[OptionsT], None], options_type: type[OptionsT], description: str | None
) -> NoReturn:
    """Parse the command line, call `main` or predict or export instead, and exit the process."""

    def parse_and_run() -> None:
        options = opt.parse(options_type, description, sys.argv[1:])
        if options.export:
            export.export_model(options.export, options)
        if options.predict:
            predict.predict_images(options.predict, options)
        if not (options.export or options.predict):
            output_dirs = {"--output-dir": options.output_dir, "--cache-dir": options.cache_dir}
            if not wandb_session.is_disabled(options.wandb):
                output_dirs["WANDB_DIR"] = wandb_session.wandb_dir()
            image_folder.check_outputs_outside_data_dir(options.data_dir, output_dirs)
            with output.claim_output_dir(options.output_dir) as output_dir:
                main(dataclasses.replace(options, output_dir=output_dir))

    errors.run_and_exit(parse_and_run)
