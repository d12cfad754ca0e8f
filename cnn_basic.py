"""A baseline on Fashion-MNIST: Flatten → Dense(ReLU) → Dense(softmax), about 87 % in seconds.

The script keeps the name under which it was published, although its network has no convolutions.
The saved model maps raw uint8 (N, 28, 28) images to (N, classes) probabilities.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fashion import devices
from fashion.cli import command_line
from fashion.evaluation.embeddings import predict_splits
from fashion.options import PositiveInt
from fashion.reporting import results

import keras

import common


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Architecture of the network."""

    hidden_units: PositiveInt = 32
    """units in the hidden layer (the published recipe uses 10, one per class)"""


@dataclass(frozen=True, kw_only=True)
class Options(common.Options):
    """All options of this script."""

    script_name: ClassVar[str] = "cnn_basic"
    training: common.TrainingOptions = common.TrainingOptions(epochs=10, batch_size=32)
    results: common.ResultsOptions = common.ResultsOptions(output_dir=Path("outputs/cnn_basic"))
    model: ModelOptions = ModelOptions()


def build_model(hidden_units: int, num_classes: int) -> keras.Model:
    """Build the network: uint8 (N, 28, 28) → float32 (N, num_classes) probabilities."""
    return keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8", name="images"),
            keras.layers.Rescaling(1 / 255),  # ReLUs die on inputs in [0, 255]
            keras.layers.Flatten(),
            keras.layers.Dense(hidden_units, activation="relu"),
            keras.layers.Dense(num_classes, activation="softmax", name="probabilities"),
        ],
        name="cnn_basic",
    )


def train(model: keras.Model, run: common.Run) -> None:
    """Train with Adam and restore the weights of the best epoch."""
    options, data = run.options.training, run.data
    trainer = keras.Model(model.inputs, model.outputs)  # keeps the optimizer out of the saved model
    trainer.compile(
        optimizer=keras.optimizers.Adam(options.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # The model is so small that Python overhead per step would dominate.
        steps_per_execution=500,
    )
    trainer.fit(
        common.make_dataset(data.train.images, data.train.labels, options.batch_size, options.seed),
        epochs=options.epochs,
        shuffle=False,  # the dataset is already shuffled
        validation_data=common.make_dataset(data.validation.images, data.validation.labels, 1000),
        callbacks=[run.epoch_logger, common.early_stopping(patience=options.epochs)],
        verbose=2,
    )


def main(options: Options) -> None:
    """Load the data, train the model, evaluate it and save the results."""
    with common.Run(options) as run:
        with run.stage("data", to_reduce="--train-size"):
            data = common.load_fashion_mnist(options.data)
        common.start_wandb(run, data)
        keras.utils.set_random_seed(options.training.seed)
        devices.make_deterministic()
        with run.stage("training", to_reduce="--batch-size or --hidden-units"):
            model = build_model(options.model.hidden_units, len(data.class_names))
            train(model, run)
        with run.stage("evaluation", to_reduce="--hidden-units"):
            images = {name: split.images for name, split in data.splits.items()}
            predictions = predict_splits(model, images, data)
        summary = results.save(run, model, predictions)
    summary.print_and_check_accuracy()


if __name__ == "__main__":
    command_line.run_script(main, Options, __doc__)
