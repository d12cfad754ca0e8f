"""Fashion-MNIST above 90%: a frozen, ImageNet-trained ResNet50 and a small head on top.

Each image, upscaled to 224×224 RGB, goes through the ResNet50 once; its features are cached on
disk, so that later runs only train the head. `--recipe best` reaches 95% test accuracy with smaller
images, earlier layers and flipped images; `--recipe tuned` also fine-tunes the ResNet50. The saved
model includes all preprocessing: raw uint8 (N, 28, 28) images → (N, classes) probabilities.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fashion import files, machine, options as opt
from fashion.backbones.backbone import ARCHITECTURES, STAGES, Backbone, load_backbone
from fashion.backbones.feature_cache import FeatureCache
from fashion.backbones.folding import copy_network
from fashion.errors import UsageError
from fashion.fine_tuning.checkpoint import load_checkpoint
from fashion.fine_tuning.training import train as fine_tune
from fashion.results import evaluation, output
from fashion.run import Run

import keras
import numpy as np

import common

# Feature sets for the head. A feature is named after a stage of the backbone and its pooling; for
# ResNet50, the stages end with the layers conv3_block4_out, conv4_block6_out and conv5_block3_out.
# The last stage is specialized in the classes of ImageNet; earlier ones suit Fashion-MNIST better.
FEATURE_SETS = {
    "conv5_avg": ("conv5_avg",),  # the input of ResNet50's own classifier
    "conv4_avg": ("conv4_avg",),
    "conv3+conv4": ("conv3_avg", "conv4_avg"),
    # Grid pooling keeps spatial layout, which is informative because the garments are centered.
    "conv3_3x3+conv4": ("conv3_3x3", "conv4_avg"),
    "conv3_4x4+conv4": ("conv3_4x4", "conv4_avg"),
}

# Recipes: named sets of defaults for other options, chosen on validation images.
FAST = {"image_size": 112, "features": "conv3_3x3+conv4", "dropout": 0.5, "epochs": 20}
RECIPES: dict[str, dict[str, object]] = {
    "plain": {},
    "fast": FAST,
    "best": FAST | {"features": "conv3_4x4+conv4", "flip": True},
    "tuned": {
        "image_size": 80,
        "features": "conv4_avg",
        "flip": True,
        "hidden_units": 0,
        "dropout": 0.0,
        "epochs": 20,
        "patience": 100,  # no early stopping
        "fine_tune_blocks": 13,  # all of conv2, conv3 and conv4
    },
}

# ------------------------------------------------------------------------------------ options


@dataclass(frozen=True, kw_only=True)
class Options(opt.SharedOptions):
    """Options of this script."""

    script_name: ClassVar[str] = "resnet50_fashion"
    recipes: ClassVar[dict[str, dict[str, object]]] = RECIPES

    cache_dir: Path = opt.redefine("cache_dir", help="cache for features and preprocessed images")
    epochs: int = opt.redefine("epochs", default=30, section="training of the head")
    batch_size: int = opt.redefine("batch_size", default=512)
    learning_rate: float = opt.redefine(
        "learning_rate", default=1e-3, help="initial learning rate of Adam, decayed to 0"
    )
    output_dir: Path = opt.redefine("output_dir", default=Path("outputs/resnet50_fashion"))

    recipe: str = opt.option(
        "plain",
        "named defaults for the other options; plain: conv5 at 224×224; fast: conv3 and conv4 at "
        "112×112; best: the most accurate without fine-tuning; tuned: fine-tuned (2 h on a CPU)",
        opt.choice(RECIPES),
        section="recipe (its values were chosen with resnet50)",
        may_change=True,  # the options that it sets may not
    )
    backbone: str = opt.option(
        "resnet50",
        "pretrained network of keras.applications",
        opt.choice(ARCHITECTURES),
        section="backbone (frozen unless fine-tuned)",
    )
    weights: str = opt.option(
        "imagenet",
        "imagenet: downloaded by Keras; random: random initialization; PATH: Keras weights file of "
        "the backbone without its classification head",
        opt.weights_source,
        may_change=True,  # the checksum of the weights may not
    )
    image_size: int | None = opt.option(
        None, "upscale images to N×N (default: 224, inceptionv3: 299)", opt.positive_int
    )
    precision: str = opt.option(
        "auto",
        "precision of backbone and head; auto: bfloat16 if the hardware supports it, float16 on "
        "GPUs without bfloat16 (V100, T4), else float32",
        opt.choice(("auto", *machine.PRECISIONS)),
    )

    features: str = opt.option(
        "conv5_avg",
        "averages of the outputs of backbone stages; with 3x3 or 4x4: of conv3 on a grid",
        opt.choice(FEATURE_SETS),
        section="head",
    )
    flip: bool = opt.option(
        False, "also train on flipped images, and average predictions over both views", bool
    )
    hidden_units: int = opt.option(
        512, "units in the hidden layer; 0: a linear classifier", opt.non_negative_int
    )
    dropout: float = opt.option(0.3, "dropout rate", opt.rate)
    patience: int = opt.option(
        10,
        "stop after N epochs without improvement in validation accuracy (also when fine-tuning)",
        opt.positive_int,
    )

    fine_tune_blocks: int = opt.option(
        0,
        "also train the last N blocks before the features; 0: all blocks stay frozen",
        opt.non_negative_int,
        section="fine-tuning (on augmented images, after the training of the head)",
    )
    fine_tune_epochs: int = opt.option(12, "passes over the training images", opt.positive_int)
    fine_tune_batch_size: int = opt.option(128, "images per training step", opt.positive_int)
    fine_tune_learning_rate: float = opt.option(
        5e-4, "peak learning rate of AdamW, decayed to 0", opt.positive_float
    )
    resume: bool = opt.option(
        False, "continue after the last finished epoch in --output-dir", bool, affects_results=False
    )

    def __post_init__(self) -> None:
        """Raise a `UsageError` for `--resume` without fine-tuning."""
        if self.resume and not self.fine_tune_blocks:
            raise UsageError("--resume: only fine-tuning can be resumed; give --fine-tune-blocks")


# ----------------------------------------------------------------------------------- features


def compute_features(
    backbone: Backbone, network: keras.Model, feature_names: tuple[str, ...]
) -> dict[str, keras.KerasTensor]:
    """Return pooled outputs of stages by name, such as "conv4_avg": float32 (N, channels).

    Most values are small and a few are huge, so the features are sign(x)·log(1 + |x|). `network` is
    a copy of the network of the backbone.
    """
    features = {}
    for name in feature_names:
        stage, kind = name.split("_")
        x = pool(network.get_layer(backbone.architecture.stages[stage]).output, kind)
        features[name] = keras.ops.sign(x) * keras.ops.log(1 + keras.ops.abs(x))
    return features


def pool(activations: keras.KerasTensor, kind: str) -> keras.KerasTensor:
    """Average activations (N, height, width, channels): all ("avg"), or in each cell of a grid.

    A grid, such as "3x3", gives (N, cells · channels), row by row. Its cells overlap if the height
    is not a multiple of the grid size (of 14 rows, three cells take 0 to 5, 4 to 9 and 8 to 13).
    """
    if kind == "avg":
        return keras.layers.GlobalAveragePooling2D(dtype="float32")(activations)
    height, grid_size = activations.shape[1], int(kind[0])
    strides = max(height // grid_size, 1)
    cell_size = max(height - (grid_size - 1) * strides, 1)
    cells = keras.layers.AveragePooling2D(cell_size, strides, dtype="float32")(activations)
    return keras.layers.Flatten(dtype="float32")(cells)


def build_feature_extractor(
    backbone: Backbone, feature_names: tuple[str, ...], tuned_network: keras.Model | None = None
) -> keras.Model:
    """Build the feature extractor: uint8 (N, 28, 28) → {name: float16 (N, channels)}.

    It contains a copy of the network with batch normalization folded, with the weights of
    `tuned_network`, a fine-tuned copy, if that is given. The averages of earlier stages are
    included: they take no time, and another run may read them from the cache.
    """
    stages = STAGES[: 1 + max(STAGES.index(name.split("_")[0]) for name in feature_names)]
    others = [f"{stage}_avg" for stage in stages]
    images = keras.Input((28, 28), dtype="uint8", name="images")
    network = copy_network(backbone.network, backbone.preprocess(images), source=tuned_network)
    features = compute_features(backbone, network, tuple(dict.fromkeys([*feature_names, *others])))
    return keras.Model(images, {name: keras.ops.cast(x, "float16") for name, x in features.items()})


# ------------------------------------------------------------------------------ head and model


def build_head(train_features: np.ndarray, num_classes: int, options: Options) -> keras.Model:
    """Build the head: features (N, channels) → float32 (N, num_classes) probabilities.

    It standardizes with mean and variance of `train_features`, float16 (N, views, channels).
    """
    normalization = keras.layers.Normalization(dtype="float32")
    # 5,000 images are enough for an estimate. In float32, since float16 sums would overflow.
    normalization.adapt(train_features[:5000, 0].astype("float32"))

    inputs = keras.Input(train_features.shape[2:], dtype="float32", name="features")
    # Clipped, since a channel that is constant in training is divided by nearly 0.
    x = keras.ops.clip(normalization(inputs), -10, 10)
    if options.hidden_units:
        x = keras.layers.Dense(options.hidden_units, activation="relu")(x)
    x = keras.layers.Dropout(options.dropout)(x)
    outputs = keras.layers.Dense(
        num_classes,
        activation="softmax",
        # A linear classifier has no symmetry to break, so it starts from equal probabilities.
        kernel_initializer="glorot_uniform" if options.hidden_units else "zeros",
        dtype="float32",
        name="probabilities",
    )(x)
    return keras.Model(inputs, outputs, name="head")


def train_head(
    head: keras.Model, features: dict[str, np.ndarray], options: Options, run: Run
) -> None:
    """Train the head on features, float16 (N, views, channels) by split; restore the best epoch."""
    _, num_views, num_channels = features["train"].shape
    batches = common.make_dataset(
        features["train"].reshape(-1, num_channels),  # each view is an example
        run.data.train.one_hot.repeat(num_views, axis=0),
        options.batch_size,
        options.seed,
    )
    num_steps = len(batches) * options.epochs
    trainer = keras.Model(head.input, head.output)  # keeps the optimizer out of the saved model
    trainer.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(options.learning_rate, num_steps)
        ),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
        steps_per_execution=20,  # Python overhead per step would dominate
    )
    trainer.fit(
        batches,
        epochs=options.epochs,
        shuffle=False,  # the dataset is already shuffled
        # Fine-tuning validates without flips; so does this, to make epochs comparable.
        validation_data=common.make_dataset(
            features["validation"][:, 0], run.data.validation.one_hot, batch_size=1000
        ),
        callbacks=[run.epoch_logger, common.early_stopping(options.patience)],
        verbose=2,
    )


def build_full_model(
    extractor: keras.Model, feature_names: tuple[str, ...], head: keras.Model, flip: bool
) -> keras.Model:
    """Combine extractor and head: uint8 (N, 28, 28) → probabilities, averaged over the views."""
    # In float32, since LiteRT (--export) cannot concatenate float16 values.
    features = [keras.ops.cast(extractor.output[name], "float32") for name in feature_names]
    one_view = keras.Model(extractor.input, head(keras.ops.concatenate(features, axis=1)))
    images = keras.Input((28, 28), dtype="uint8", name="images")
    views = [images, keras.ops.flip(images, axis=2)] if flip else [images]
    predictions = [one_view(view) for view in views]
    return keras.Model(images, sum(predictions) / len(predictions), name="resnet50_fashion")


def main(options: Options) -> None:
    """Extract features, train the head, optionally fine-tune, evaluate and save the results."""
    machine.set_precision(options.precision)
    data = common.load_fashion_mnist(options)  # splits: train, validation, test

    feature_names = FEATURE_SETS[options.features]
    backbone = load_backbone(options.backbone, options.image_size, options.weights, options.seed)
    if options.fine_tune_blocks:
        backbone.last_blocks(feature_names, options.fine_tune_blocks)  # an error before long work
    extractor = build_feature_extractor(backbone, feature_names)
    files.check_disk_space(options.output_dir, 5 * extractor.count_params())  # for model.keras
    checkpoint = load_checkpoint(options, data, backbone)  # new, unless --resume continues a run

    weights = {"source": options.weights, "sha256": backbone.weights_sha256}
    weights["precision"] = machine.precision()
    with Run(options, data, weights, checkpoint.wandb_id, checkpoint.epochs) as run:
        # The frozen backbone gives the same features in every run, so they are computed once, and
        # read from disk afterwards: float16 (N, views, channels). The second view is the flip.
        # The key contains name, image size, precision and a checksum of the weights.
        run.lap("extraction")
        directory = options.cache_dir / backbone.key
        cache = FeatureCache(directory, extractor, feature_names, log=run.log_metrics)
        features = cache.load_splits(data.splits, options.flip)
        run.metadata["extraction"] = {"images_per_second": cache.images_per_second}

        run.lap("training")
        keras.utils.set_random_seed(options.seed)  # here, since extraction may have been skipped
        head = build_head(features["train"], data.num_classes, options)
        if not checkpoint.is_started:
            train_head(head, features, options, run)

        if options.fine_tune_blocks:
            run.lap("fine_tuning")
            del features  # up to 3 GB
            # Trains the last blocks of a copy of the network together with the head, in place, on
            # augmented images: AdamW, warm-up and cosine decay, label smoothing 0.1.
            tuned_network = fine_tune(
                backbone,
                feature_names,
                compute_features,
                head,
                run,
                checkpoint,
                num_blocks=options.fine_tune_blocks,
                epochs=options.fine_tune_epochs,
                batch_size=options.fine_tune_batch_size,
                learning_rate=options.fine_tune_learning_rate,
                patience=options.patience,
            )
            extractor = build_feature_extractor(backbone, feature_names, tuned_network)

        run.lap("evaluation")
        if options.fine_tune_blocks:
            cache = FeatureCache(None, extractor, feature_names)
            features = cache.load_splits(data.splits, options.flip)
        predictions = {name: evaluation.predict_views(head, x) for name, x in features.items()}
        # Label smoothing makes the head underconfident; a temperature corrects its probabilities.
        temperature = evaluation.fit_temperature(predictions["validation"], data.validation)
        evaluations = evaluation.evaluate(predictions, data, temperature)  # accuracy, per class, …
        model = build_full_model(extractor, feature_names, head, options.flip)
        model = evaluation.calibrate(model, temperature)
        comparison = output.save_results(run, model, predictions, evaluations, temperature)
        checkpoint.mark_finished()
    output.print_summary(run, comparison)
    common.require_accuracy(evaluations["validation"].accuracy, options.require_accuracy)


if __name__ == "__main__":
    common.run_script(main, Options, __doc__)
