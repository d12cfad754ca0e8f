"""A baseline on Fashion-MNIST: Flatten → Dense(ReLU) → Dense(softmax), about 87 % in seconds.

The saved model takes raw uint8 (N, 28, 28) images and gives probabilities (N, classes).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fashion import devices
from fashion.evaluation.embeddings import answer
from fashion.options import PositiveInt

import keras

import common


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The network."""

    hidden_units: PositiveInt = 32
    """size of the hidden layer; 10, as many as there are classes, is the recipe as published"""


@dataclass(frozen=True, kw_only=True)
class Options(common.Options):
    """All options of this script."""

    script: ClassVar[str] = "cnn_basic"
    training: common.TrainingOptions = common.TrainingOptions(epochs=10, batch_size=32)
    results: common.ResultsOptions = common.ResultsOptions(output_dir=Path("outputs/cnn_basic"))
    model: ModelOptions = ModelOptions()


def build_model(hidden_units: int, classes: int) -> keras.Model:
    """uint8 (N, 28, 28) → float32 (N, classes) probabilities."""
    return keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8", name="images"),
            keras.layers.Rescaling(1 / 255),  # on pixels from 0 to 255 the ReLUs die
            keras.layers.Flatten(),
            keras.layers.Dense(hidden_units, activation="relu"),
            keras.layers.Dense(classes, activation="softmax", name="probabilities"),
        ],
        name="cnn_basic",
    )


def train(model: keras.Model, run: common.Run) -> None:
    """Trains by Adam; ends with the weights of the best epoch."""
    options, data = run.options.training, run.data
    model.compile(
        optimizer=keras.optimizers.Adam(options.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # A step of so small a model is shorter than Python's way from one step to the next.
        steps_per_execution=500,
    )
    model.fit(
        common.batches(data.train.images, data.train.labels, options.batch_size, options.seed),
        epochs=options.epochs,
        shuffle=False,  # they are
        validation_data=common.batches(data.validation.images, data.validation.labels, 1000),
        callbacks=[run.epoch_log, common.best_epoch(patience=options.epochs)],
        verbose=2,
    )


def main(options: Options) -> None:
    """Data → model → training → evaluation → output."""
    with common.Run(options) as run:
        with run.stage("data"):
            data = common.load_fashion_mnist(options.data)
        common.start_wandb(run, data)
        keras.utils.set_random_seed(options.training.seed)
        devices.make_deterministic()
        with run.stage("training", lower="--batch-size or --hidden-units"):
            model = build_model(options.model.hidden_units, len(data.class_names))
            train(model, run)
        with run.stage("evaluation", lower="--hidden-units"):
            answers = {name: answer(model, split.images) for name, split in data.splits.items()}
        run.save(model, answers)
    run.conclude()


if __name__ == "__main__":
    common.run_script(main, Options, __doc__)
