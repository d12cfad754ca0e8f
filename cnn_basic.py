"""A baseline on Fashion-MNIST: Flatten → Dense(ReLU) → Dense(softmax), about 87 % in seconds.

`--hidden-units 10` is the recipe as published, with as many hidden units as there are classes.
The saved model takes raw uint8 (N, 28, 28) images and gives probabilities (N, 10).
"""

import argparse

import common  # before Keras: it chooses the backend
import keras

import predict
import report


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = common.option_parser(__doc__, "cnn_basic")
    parser.set_defaults(epochs=10, batch_size=32)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--hidden-units",
        type=common.positive_int,
        default=32,
        help="size of the hidden layer (default: %(default)s)",
    )
    return common.parse_options(parser)


def build_model(hidden_units: int) -> keras.Model:
    """uint8 (N, 28, 28) → float32 (N, 10) probabilities."""
    return keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8", name="images"),
            keras.layers.Rescaling(1 / 255),  # on pixels from 0 to 255 the ReLUs die
            keras.layers.Flatten(),
            keras.layers.Dense(hidden_units, activation="relu"),
            keras.layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="cnn_basic",
    )


def train(
    model: keras.Model,
    data: common.FashionMNIST,
    options: argparse.Namespace,
    log: report.EpochLog,
) -> None:
    """Trains by Adam; ends with the weights of the best epoch."""
    model.compile(
        optimizer=keras.optimizers.Adam(options.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # A step of so small a model is shorter than Python's way from one step to the next.
        steps_per_execution=500,
    )
    model.fit(
        common.shuffled_batches(
            data.train.images, data.train.labels, options.batch_size, options.seed
        ),
        epochs=options.epochs,
        shuffle=False,  # they are
        validation_data=(data.validation.images, data.validation.labels),
        validation_batch_size=1000,
        callbacks=[log, common.best_epoch(patience=options.epochs)],
        verbose=2,
    )


def main() -> None:
    """Data → model → training → evaluation → output."""
    options = parse_options()
    if options.predict:
        return predict.predict(options)
    report.prepare_output(options.output_dir)
    record = report.new_record(options)
    seconds = record["seconds"]

    with common.timed(seconds, "data"):
        data = common.load_fashion_mnist(
            options.data_dir, options.train_size, options.validation_size, options.test_size
        )
        record["data"] = data.record()
    keras.utils.set_random_seed(options.seed)
    record["weights"] = {"source": "none"}

    with report.wandb_run(options, record) as run:
        model = build_model(options.hidden_units)
        log = report.EpochLog(run)
        with common.timed(seconds, "training"):
            train(model, data, options, log)
        with common.timed(seconds, "evaluation"):
            evaluations = {
                name: report.Evaluation(common.predict(model, split.images), split.labels)
                for name, split in data.splits.items()
            }
        comparison = report.save_results(options, run, record, evaluations, data, model, log)
    report.conclude(options, run, record, comparison)


if __name__ == "__main__":
    common.run_script(main)
