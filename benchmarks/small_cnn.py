"""Train a small convolutional network from scratch, as a comparison without ImageNet weights.

Six convolutions with batch normalization, 577,000 parameters; random flips, shifts and erasing,
label smoothing, cosine decay, and test-time augmentation by horizontal flips. Images, splits and
output files are those of the two scripts. `benchmarks/accuracy.py` compares it with their recipes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from fashion import devices
from fashion.backbones.augmentation import add_augmentation, with_flip_tta
from fashion.cli import command_line
from fashion.devices import DeviceOptions
from fashion.evaluation.embeddings import predict_with_embeddings
from fashion.reporting import results

import keras
import numpy as np

import common


@dataclass(frozen=True, kw_only=True)
class Options(common.Options):
    """All options of this script."""

    script_name: ClassVar[str] = "small_cnn"
    training: common.TrainingOptions = common.TrainingOptions(
        epochs=20, batch_size=128, learning_rate=2e-3
    )
    results: common.ResultsOptions = common.ResultsOptions(output_dir=Path("outputs/small_cnn"))
    devices: DeviceOptions = DeviceOptions()


def build_model(num_classes: int, precision: str) -> keras.Model:
    """Build the network: uint8 (N, 28, 28) → float32 (N, num_classes) probabilities."""
    dtype = devices.DTYPE_POLICIES[precision]
    model = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8", name="images"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Reshape((28, 28, 1)),
        ],
        name="small_cnn",
    )
    for i, filters in enumerate((32, 64, 64, 128, 128, 256)):
        if i in (1, 3):
            model.add(keras.layers.MaxPooling2D(dtype=dtype))
        model.add(keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, dtype=dtype))
        model.add(keras.layers.BatchNormalization(momentum=0.9, dtype=dtype))
        model.add(keras.layers.ReLU(dtype=dtype))
    model.add(keras.layers.GlobalAveragePooling2D(dtype=dtype))
    model.add(keras.layers.Dropout(0.2, dtype=dtype))
    model.add(keras.layers.Dense(num_classes, activation="softmax", dtype="float32"))
    return model


def train(model: keras.Model, run: common.Run) -> None:
    """Train with Adam and augmentation, and restore the weights of the best epoch."""
    options, data = run.options.training, run.data
    train, validation = (
        (split.images, keras.utils.to_categorical(split.labels, model.output_shape[-1]))
        for split in (data.train, data.validation)
    )
    dataset = common.make_dataset(*train, options.batch_size, options.seed)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        len(dataset) * (options.epochs - 1),
        warmup_target=options.learning_rate,
        warmup_steps=len(dataset),
    )
    training_model = add_augmentation(model, max_shift=2)
    training_model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    training_model.fit(
        dataset,
        epochs=options.epochs,
        shuffle=False,  # the dataset is already shuffled
        validation_data=common.make_dataset(*validation, 1000),
        callbacks=[run.epoch_logger, common.early_stopping(patience=options.epochs)],
        verbose=2,
    )


def main(options: Options) -> None:
    """Load the data, train the model, evaluate it and save the results."""
    devices.configure_gpus(options.devices.gpus)
    with common.Run(options) as run:
        with run.stage("data", to_reduce="--train-size"):
            data = common.load_fashion_mnist(options.data)
        common.start_wandb(run, data)
        keras.utils.set_random_seed(options.training.seed)
        precision = devices.resolve_precision(options.devices.precision)
        model = build_model(len(data.class_names), precision)
        with run.stage("training"):
            train(model, run)
        predictions = {}
        with run.stage("evaluation", to_reduce="--test-size"):
            for name, split in data.splits.items():
                views = np.concatenate([split.images, split.images[:, :, ::-1]])
                predictions[name] = predict_with_embeddings(model, views, 2, batch_size=500)
        summary = results.save(run, with_flip_tta(model), predictions)
    summary.print_and_check_accuracy()


if __name__ == "__main__":
    command_line.run_script(main, Options, __doc__)
