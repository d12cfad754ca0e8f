"""Train a small convolutional network from scratch, for use without ImageNet weights.

Six convolutions with batch normalization, 577,000 parameters; random flips, shifts and erasing,
label smoothing, cosine decay, and predictions averaged over horizontal flips. Images, splits and
output files are those of the two scripts, with which `benchmarks/accuracy.py` compares it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from fashion import machine, options as opt
from fashion.fine_tuning.training import build_augmentation
from fashion.results import evaluation, output
from fashion.run import Run

import keras
import numpy as np

import common


@dataclass(frozen=True, kw_only=True)
class Options(opt.SharedOptions):
    """Options of this script."""

    script_name: ClassVar[str] = "benchmarks/small_cnn"

    epochs: int = opt.redefine("epochs", default=20)
    batch_size: int = opt.redefine("batch_size", default=128)
    learning_rate: float = opt.redefine("learning_rate", default=2e-3, help="peak, of Adam")
    output_dir: Path = opt.redefine("output_dir", default=Path("outputs/small_cnn"))
    wandb: str = opt.redefine(
        "wandb", default="disabled", help="not used", type=opt.choice(["disabled"])
    )
    precision: str = opt.option(
        "auto",
        "precision of the network; auto: the fastest that the hardware supports",
        opt.choice(("auto", *machine.PRECISIONS)),
        section="model",
    )


def build_model(num_classes: int) -> keras.Model:
    """Build the network: uint8 (N, 28, 28) → float32 (N, num_classes) probabilities."""
    model, layers = keras.Sequential(), keras.layers
    model.add(keras.Input((28, 28), dtype="uint8", name="images"))
    model.add(layers.Rescaling(1 / 255, dtype="float32"))
    model.add(layers.Reshape((28, 28, 1)))
    for i, filters in enumerate((32, 64, 64, 128, 128, 256)):
        if i in (1, 3):
            model.add(layers.MaxPooling2D())
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D(dtype="float32"))
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(num_classes, activation="softmax", dtype="float32"))
    return model


def main(options: Options) -> None:
    """Load the data, train the model, evaluate it and save the results."""
    machine.set_precision(options.precision)
    data = common.load_fashion_mnist(options)
    with Run(options, data, {"source": "none", "precision": machine.precision()}) as run:
        run.lap("training")
        keras.utils.set_random_seed(options.seed)
        model = build_model(data.num_classes)
        images = keras.Input((28, 28), dtype="uint8", name="images")
        trainer = keras.Model(images, model(build_augmentation(max_shift=2)(images)))
        train, validation = data.train, data.validation
        batches = common.make_dataset(train.images, train.one_hot, options.batch_size, options.seed)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0,
            len(batches) * max(options.epochs - 1, 1),
            warmup_target=options.learning_rate,
            warmup_steps=len(batches),
        )
        trainer.compile(
            optimizer=keras.optimizers.Adam(schedule),
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
            metrics=["accuracy"],
        )
        trainer.fit(
            batches,
            epochs=options.epochs,
            shuffle=False,  # the dataset is already shuffled
            validation_data=common.make_dataset(validation.images, validation.one_hot, 1000),
            callbacks=[run.epoch_logger, common.early_stopping(patience=options.epochs)],
            verbose=2,
        )

        run.lap("evaluation")
        predictions = {}
        for name, split in data.splits.items():
            views = np.stack([split.images, split.images[:, :, ::-1]], axis=1)
            predictions[name] = evaluation.predict_views(model, views)
        temperature = evaluation.fit_temperature(predictions["validation"], data.validation)
        evaluations = evaluation.evaluate(predictions, data, temperature)
        averages = (model(images) + model(keras.ops.flip(images, axis=2))) / 2
        full_model = evaluation.calibrate(keras.Model(images, averages), temperature)
        comparison = output.save_results(run, full_model, predictions, evaluations, temperature)
    output.print_summary(run, comparison)
    common.require_accuracy(evaluations["validation"].accuracy, options.require_accuracy)


if __name__ == "__main__":
    common.run_script(main, Options, __doc__)
