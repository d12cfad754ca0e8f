"""What one would train without ImageNet: a small convolutional network, from scratch.

As good as about a hundred lines make it: six convolutions with batch normalisation, mirrored,
shifted and partly erased images, smoothed labels, a learning rate that falls as a cosine, and the
mean of the answers to an image and its mirror image. 577,000 parameters; same images, same splits,
same files of a run as the two scripts. `benchmarks/accuracy.py` compares it with their recipes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from fashion import devices
from fashion.backbones.augmentation import augment, with_mirror_images
from fashion.devices import DeviceOptions
from fashion.evaluation.embeddings import answer

import keras
import numpy as np

import common


@dataclass(frozen=True, kw_only=True)
class Options(common.Options):
    """All options of this script."""

    script: ClassVar[str] = "small_network"
    training: common.TrainingOptions = common.TrainingOptions(
        epochs=20, batch_size=128, learning_rate=2e-3
    )
    results: common.ResultsOptions = common.ResultsOptions(output_dir=Path("outputs/small_network"))
    devices: DeviceOptions = DeviceOptions()


def build_model(classes: int, precision: str) -> keras.Model:
    """uint8 (N, 28, 28) → float32 (N, classes) probabilities."""
    dtype = devices.DTYPES[precision]
    model = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8", name="images"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Reshape((28, 28, 1)),
        ],
        name="small_network",
    )
    for i, filters in enumerate((32, 64, 64, 128, 128, 256)):
        if i in (1, 3):
            model.add(keras.layers.MaxPooling2D(dtype=dtype))
        model.add(keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, dtype=dtype))
        model.add(keras.layers.BatchNormalization(momentum=0.9, dtype=dtype))
        model.add(keras.layers.ReLU(dtype=dtype))
    model.add(keras.layers.GlobalAveragePooling2D(dtype=dtype))
    model.add(keras.layers.Dropout(0.2, dtype=dtype))
    model.add(keras.layers.Dense(classes, activation="softmax", dtype="float32"))
    return model


def train(model: keras.Model, run: common.Run) -> None:
    """Trains by Adam on changed images; ends with the weights of the best epoch."""
    options, data = run.options.training, run.data
    train, validation = (
        (split.images, keras.utils.to_categorical(split.labels, model.output_shape[-1]))
        for split in (data.train, data.validation)
    )
    batches = common.batches(*train, options.batch_size, options.seed)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        len(batches) * (options.epochs - 1),
        warmup_target=options.learning_rate,
        warmup_steps=len(batches),
    )
    learner = augment(model)
    learner.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    learner.fit(
        batches,
        epochs=options.epochs,
        shuffle=False,  # they are
        validation_data=common.batches(*validation, 1000),
        callbacks=[run.epoch_log, common.best_epoch(patience=options.epochs)],
        verbose=2,
    )


def main(options: Options) -> None:
    """Data → model → training → evaluation → output."""
    devices.use(options.devices.gpus)
    with common.Run(options) as run:
        with run.stage("data"):
            data = common.load_fashion_mnist(options.data)
        common.start_wandb(run, data)
        keras.utils.set_random_seed(options.training.seed)
        precision = devices.choose_precision(options.devices.precision)
        model = build_model(len(data.class_names), precision)
        with run.stage("training"):
            train(model, run)
        answers = {}
        with run.stage("evaluation"):
            for name, split in data.splits.items():
                copies = np.concatenate([split.images, split.images[:, :, ::-1]])
                answers[name] = answer(model, copies, copies=2, batch_size=500)
        run.save(with_mirror_images(model), answers)
    run.conclude()


if __name__ == "__main__":
    common.run_script(main, Options, __doc__)
