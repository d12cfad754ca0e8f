"""What both scripts say: the data, 224×224 RGB images, batches, the start of a W&B run.

What any script needs of the package behind it is handed on from here: options, errors, `Run`.
Importing that package prepares TensorFlow and Keras.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fashion import errors
from fashion.cli import command_line, predict, recipes
from fashion.datasets import fashion_mnist, image_folder
from fashion.datasets.dataset import FashionMNIST, Split, split_files
from fashion.errors import UsageError, UserError
from fashion.fine_tuning.checkpoint import Checkpoint
from fashion.options import AnyOptions, DataOptions, Options, ResultsOptions, TrainingOptions
from fashion.tracking import wandb_session
from fashion.tracking.run import Run

import keras
import numpy as np
import tensorflow as tf

__all__ = [
    "DataOptions",
    "FashionMNIST",
    "Options",
    "ResultsOptions",
    "Run",
    "Split",
    "TrainingOptions",
    "UsageError",
    "UserError",
    "batches",
    "best_epoch",
    "load_fashion_mnist",
    "parse",
    "run_script",
    "start_wandb",
    "to_rgb",
]

# -------------------------------------------------------------------------------------- data


def load_fashion_mnist(options: DataOptions) -> FashionMNIST:
    """Finds, verifies and splits Fashion-MNIST or one's own pictures; prints where they were found.

    A twelfth of the 60,000 training images (5,000, 500 of each class) is the validation split, the
    same for every run. Of each split, an option can say to use only so many images, class-balanced.

    Raises:
        UserError: no source works; the message lists each with its reason. Or own pictures are too
            few.
        UsageError: a size is larger than its split.
    """
    folder = options.data_dir
    if folder and image_folder.are_in(folder):
        files = image_folder.read(folder, options.cache_dir)
    else:
        files = fashion_mnist.find(folder)
    data = split_files(files, options.train_size, options.validation_size, options.test_size)
    print(
        f"Data: {data.train.size:,} training, {data.validation.size:,} validation and "
        f"{data.test.size:,} test images from {data.source}"
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
    resize = keras.layers.Resizing(size, size, interpolation="bilinear", dtype="float32")
    # Unless told otherwise, it has all that follows compute as in training, dropout included.
    gray = resize(gray, training=False)
    return keras.ops.repeat(gray, 3, axis=-1)


# ---------------------------------------------------------------------------------- training


def batches(
    inputs: np.ndarray, labels: np.ndarray, batch_size: int, seed: int | None = None
) -> tf.data.Dataset:
    """Batches of inputs and labels, with a seed in a new order each epoch.

    `fit` does nearly the same with arrays, but copies them, float16 as float32, and its tf.data
    pipeline tunes itself in a thread whose sleep (10 ms, then 20 …) the end of each epoch awaits.
    """

    def pick(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return inputs[rows], labels[rows]

    def batch(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # From NumPy's arrays: TensorFlow would copy them twice, and they may be gigabytes.
        picked = tf.numpy_function(pick, [rows], [inputs.dtype, labels.dtype], stateful=False)
        for values, array in zip(picked, (inputs, labels), strict=True):
            values.set_shape((None, *array.shape[1:]))
        return tuple(picked)

    order = tf.data.Dataset.range(len(labels))
    if seed is not None:
        order = order.shuffle(len(labels), seed)
    several = math.ceil(512 / batch_size)  # small batches are picked at once: Python takes its time
    picked = order.batch(several * batch_size).map(batch)
    if several > 1:
        steps = math.ceil(len(labels) / batch_size)
        picked = picked.rebatch(batch_size).apply(tf.data.experimental.assert_cardinality(steps))
    settings = tf.data.Options()
    settings.autotune.enabled = False
    return picked.prefetch(4).with_options(settings)


def best_epoch(patience: int) -> keras.callbacks.EarlyStopping:
    """Ends a training after `patience` epochs that bring no better validation accuracy.

    The weights are those of the best epoch, whether or not the training ended early.
    """
    return keras.callbacks.EarlyStopping(
        "val_accuracy", mode="max", patience=patience, restore_best_weights=True
    )


# ---------------------------------------------------------------------------- Weights & Biases


def start_wandb(run: Run, data: FashionMNIST, resumed: Checkpoint | None = None) -> None:
    """Opens the run's W&B run, online or offline, for its epochs and results.

    Args:
        run: whose options and record become the config.
        data: its images.
        resumed: of an earlier run, whose W&B run and epochs are continued.
    """
    wandb_id = resumed.wandb_id if resumed else None
    run.open_wandb(
        data,
        epochs=resumed.epochs if resumed else (),
        project=run.options.results.project,
        # Only runs on the same images compare: a group is what has the same training images.
        group=f"{data.train.size}-train-images"
        + ("" if data.slug == "fashion-mnist" else f"-of-{data.slug}"),
        job_type="train",
        tags=[data.slug],
        id=wandb_id,
        resume="allow" if wandb_id else None,
    )


# ------------------------------------------------------------------------------ command line


def parse(
    options_type: type[AnyOptions], description: str | None, words: Sequence[str]
) -> AnyOptions:
    """The options of a command line: those given, else those of its `--recipe`, else the defaults.

    A recipe with another backbone than its own is allowed, and said.

    Raises:
        UsageError: a word cannot be used.
        SystemExit: after `--help`.
    """
    options = command_line.parse(recipes.defaults(options_type(), words), description, words)
    recipes.remark(options)
    return options


def run_script(
    main: Callable[..., None], options_type: type[Options], description: str | None
) -> NoReturn:
    """Parses the command line, calls `main` with the options, or classifies `--predict`'s pictures.

    Exit codes: 0; 1 or 2 for an error, in a line or two; 130 for Ctrl-C, 143 for SIGTERM.
    """

    def start() -> None:
        parsed = parse(options_type, description, sys.argv[1:])
        if paths := parsed.use_of_the_model.predict:
            predict.classify(paths, parsed)
            return
        written = {"--output-dir": parsed.results.output_dir, "--cache-dir": parsed.data.cache_dir}
        if parsed.results.wandb != "disabled":
            written["WANDB_DIR"] = wandb_session.folder()
        image_folder.keep_apart(parsed.data.data_dir, written)
        main(parsed)

    errors.run_script(start)
