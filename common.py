"""Code shared by both scripts: data loading, RGB conversion, batching, W&B setup.

Re-exports what the scripts need from `fashion`: options, errors and `Run`. Importing `fashion`
configures TensorFlow and Keras.
"""

import math

from fashion.datasets import fashion_mnist, image_folder
from fashion.datasets.dataset import ImageDataset, RawDataset, Split, make_splits
from fashion.errors import UsageError, UserError
from fashion.options import DataOptions, Options, ResultsOptions, TrainingOptions
from fashion.tracking.run import PreviousRun, Run

import keras
import numpy as np
import tensorflow as tf

__all__ = [
    "DataOptions",
    "ImageDataset",
    "Options",
    "ResultsOptions",
    "Run",
    "Split",
    "TrainingOptions",
    "UsageError",
    "UserError",
    "early_stopping",
    "load_fashion_mnist",
    "load_raw_dataset",
    "make_dataset",
    "start_wandb",
    "to_rgb",
]

# -------------------------------------------------------------------------------------- data


def load_fashion_mnist(options: DataOptions) -> ImageDataset:
    """Find, verify and split Fashion-MNIST, or load the user's images; print the source.

    A twelfth of the 60,000 training images (5,000, 500 of each class) is the validation split, the
    same in every run. Options can restrict each split to a class-balanced subset.

    Raises:
        UserError: If no source works (the message lists each with its reason), or the user's images
            are too few.
        UsageError: If a size is larger than its split.
    """
    raw = load_raw_dataset(options)
    data = make_splits(raw, options.train_size, options.validation_size, options.test_size)
    print(
        f"Data: {data.train.size:,} training, {data.validation.size:,} validation and "
        f"{data.test.size:,} test images from {data.source}"
    )
    return data


def load_raw_dataset(options: DataOptions, download: bool = True) -> RawDataset:
    """Load the images before they are split, from IDX files or an image folder.

    Raises:
        UserError: If no source works, without downloads if not `download`.
    """
    data_dir = options.data_dir
    if data_dir and image_folder.is_image_folder(data_dir):
        return image_folder.load_image_folder(data_dir, options.cache_dir)
    return fashion_mnist.load_idx_dataset(data_dir, download)


# ------------------------------------------------------------------------------------ images


def to_rgb(images: keras.KerasTensor, size: int) -> keras.KerasTensor:
    """Upscale gray images inside a model: uint8 (N, 28, 28) → float32 (N, size, size, 3).

    Interpolation is bilinear with half-pixel centers, as in Pillow and `tf.image`. Values remain
    in [0, 255] and the gray channel is repeated, as a backbone's `preprocess_input` expects.
    """
    gray = keras.layers.Rescaling(1.0, dtype="float32")(images)
    gray = keras.layers.Reshape((*images.shape[1:], 1), dtype="float32")(gray)
    resize = keras.layers.Resizing(size, size, interpolation="bilinear", dtype="float32")
    # Without training=False, Resizing would put all downstream layers (e.g. dropout) in training
    # mode.
    gray = resize(gray, training=False)
    return keras.ops.repeat(gray, 3, axis=-1)


# ---------------------------------------------------------------------------------- training


def make_dataset(
    inputs: np.ndarray, labels: np.ndarray, batch_size: int, seed: int | None = None
) -> tf.data.Dataset:
    """Return a batched dataset, reshuffled each epoch if `seed` is given.

    `fit` does nearly the same with arrays, but copies them, converts float16 to float32, and at the
    end of each epoch waits for tf.data's autotuning thread, which sleeps 10 ms, 20 ms, …
    """

    def gather(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return inputs[rows], labels[rows]

    def gather_batch(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # The arrays may be gigabytes, and as tensors, TensorFlow would copy them twice.
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


# ---------------------------------------------------------------------------- Weights & Biases


def start_wandb(run: Run, data: ImageDataset, previous: PreviousRun | None = None) -> None:
    """Open the W&B run, online or offline, that epochs and results are logged to.

    Args:
        run: Run whose options and metadata become the config.
        data: Data set of the run.
        previous: Run whose W&B run and epoch history are continued, if any.
    """
    wandb_id = previous.wandb_id if previous else None
    run.start_wandb(
        data,
        previous,
        project=run.options.results.project,
        # Runs are comparable only if trained on the same images, so group by training set.
        group=f"{data.train.size}-train-images"
        + ("" if data.slug == "fashion-mnist" else f"-of-{data.slug}"),
        job_type="train",
        tags=[data.slug],
        id=wandb_id,
        resume="allow" if wandb_id else None,
    )
