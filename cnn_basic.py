"""A baseline on Fashion-MNIST: Flatten → Dense(ReLU) → Dense(softmax), about 87% test accuracy.

The script keeps its original name, although its network has no convolutions. The saved model maps
raw uint8 (N, 28, 28) images to (N, classes) probabilities.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fashion import files, machine
from fashion.options import SharedOptions, option, positive_int, redefine
from fashion.results import evaluation, output
from fashion.run import Run

import keras

import common


@dataclass(frozen=True, kw_only=True)
class Options(SharedOptions):
    """Options of this script."""

    script_name: ClassVar[str] = "cnn_basic"

    output_dir: Path = redefine("output_dir", default=Path("outputs/cnn_basic"))
    hidden_units: int = option(32, "units in the hidden layer", positive_int, section="model")


def build_model(hidden_units: int, num_classes: int) -> keras.Model:
    """Build the network: uint8 (N, 28, 28) → float32 (N, num_classes) probabilities."""
    return keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8", name="images"),
            keras.layers.Rescaling(1 / 255),  # large inputs can make ReLUs die
            keras.layers.Flatten(),
            keras.layers.Dense(hidden_units, activation="relu"),
            keras.layers.Dense(num_classes, activation="softmax", name="probabilities"),
        ],
        name="cnn_basic",
    )


def main(options: Options) -> None:
    """Load the data, train the model, evaluate it and save the results."""
    machine.set_precision("float32")
    data = common.load_fashion_mnist(options)
    with Run(options, data) as run:
        run.lap("training")
        keras.utils.set_random_seed(options.seed)
        model = build_model(options.hidden_units, data.num_classes)
        size = 5 * model.count_params() + 100_000  # at least that of model.keras
        files.check_disk_space(options.output_dir, size)
        trainer = keras.Model(model.inputs, model.outputs)  # keeps the optimizer out of the file
        trainer.compile(
            optimizer=keras.optimizers.Adam(options.learning_rate),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            # The model is so small that Python overhead per step would dominate.
            steps_per_execution=500,
        )
        train, validation = data.train, data.validation
        trainer.fit(
            common.make_dataset(train.images, train.labels, options.batch_size, options.seed),
            epochs=options.epochs,
            shuffle=False,  # the dataset is already shuffled
            validation_data=common.make_dataset(validation.images, validation.labels, 1000),
            # It never stops early, but restores the weights of the best epoch.
            callbacks=[run.epoch_logger, common.early_stopping(patience=options.epochs)],
            verbose=2,
        )

        run.lap("evaluation")
        predictions = {
            name: evaluation.predict_views(model, split.images[:, None])  # one view
            for name, split in data.splits.items()
        }
        # One temperature, fitted on the validation images, makes confidence agree with accuracy.
        temperature = evaluation.fit_temperature(predictions["validation"], data.validation)
        evaluations = evaluation.evaluate(predictions, data, temperature)  # accuracy, per class, …
        model = evaluation.calibrate(model, temperature)
        comparison = output.save_results(run, model, predictions, evaluations, temperature)
    output.print_summary(run, comparison)
    common.require_accuracy(evaluations["validation"].accuracy, options.require_accuracy)


if __name__ == "__main__":
    common.run_script(main, Options, __doc__)
