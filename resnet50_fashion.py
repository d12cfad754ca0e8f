"""Fashion-MNIST above 90 %: a frozen, ImageNet-trained ResNet50 and a small head on top.

Each image goes through the ResNet50 once, enlarged to 224×224 RGB. The features that come out are
kept on disk, so that the head, and every later run with any head, trains in seconds. The saved
model is one whole: raw uint8 (N, 28, 28) images → probabilities (N, classes).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from fashion import devices
from fashion.backbones import architectures
from fashion.backbones.architectures import END, Backbone, NetworkOptions, activations_at, stage_of
from fashion.backbones.augmentation import mirror_images
from fashion.backbones.feature_cache import FeatureCache, pool, read_copies, to_float16
from fashion.backbones.folding import fold_batch_norm
from fashion.backbones.progress import Progress
from fashion.cli.recipes import RecipeOptions
from fashion.devices import DeviceOptions
from fashion.evaluation.embeddings import Answers, answer
from fashion.fine_tuning import fine_tuner
from fashion.fine_tuning.fine_tuner import FineTuningOptions
from fashion.options import PositiveInt, Rate, one_of

import keras
import numpy as np

import common

# What the head can see: averages and maxima of stages' outputs over their positions. Fashion-MNIST
# is far from ImageNet: the last stage, made for ImageNet's classes, is not the best place to look.
FEATURES = {
    "conv5": ("conv5_avg",),  # what the backbone's own classifier sees; the published recipe
    "conv4": ("conv3_avg", "conv4_avg", "conv4_max"),
    # Where a garment has its parts: all are centred.
    "conv4_3x3": ("conv3_3x3", "conv4_avg", "conv4_max"),
    "conv4_4x4": ("conv3_4x4", "conv4_avg", "conv4_max"),
}

# ------------------------------------------------------------------------------------ options


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Dense(512) + Dropout + softmax, on frozen features."""

    features: Annotated[str, one_of(FEATURES)] = "conv5"
    """averages of the last stage, as published, or of stages 3 and 4; of the third on a grid"""
    mirror: bool = False
    """mirrored copies, too: as more training images, and averaged in the answer"""
    dropout: Rate = 0.3
    """share of the hidden units left out in a training step"""
    patience: PositiveInt = 10
    """stop after so many epochs without a better validation accuracy, in a fine-tuning, too"""

    @property
    def names(self) -> tuple[str, ...]:
        """What that name of features stands for."""
        return FEATURES[self.features]


@dataclass(frozen=True, kw_only=True)
class Options(common.Options):
    """All options of this script."""

    script: ClassVar[str] = "resnet50_fashion"
    training: common.TrainingOptions = common.TrainingOptions(epochs=30, batch_size=512)
    results: common.ResultsOptions = common.ResultsOptions(
        output_dir=Path("outputs/resnet50_fashion")
    )
    recipe: RecipeOptions = RecipeOptions()
    network: NetworkOptions = NetworkOptions()
    devices: DeviceOptions = DeviceOptions()
    head: HeadOptions = HeadOptions()
    fine_tuning: FineTuningOptions = FineTuningOptions()


# ----------------------------------------------------------------------------- frozen network


def load_backbone(options: Options) -> Backbone:
    """The frozen network with all that comes before it: raw images → its last activations.

    Raises:
        UsageError: `--image-size` is too small for it.
        UserError: its weights cannot be downloaded or read, or do not fit.
    """
    name, weights = options.network.backbone, options.network.weights
    architecture = architectures.ARCHITECTURES[name]
    size = options.network.image_size or architecture.image_size
    network = architectures.load_network(name, size, weights, options.training.seed)
    precision = devices.choose_precision(options.devices.precision)

    images = keras.Input((28, 28), dtype="uint8", name="images")
    rgb = architecture.preprocess_input(common.to_rgb(images, size))
    copy = fold_batch_norm(network, rgb, devices.DTYPES[precision])
    folded = keras.Model(images, activations_at(copy, END))
    return Backbone(name=name, network=network, folded=folded, precision=precision)


def build_extractor(backbone: Backbone, names: tuple[str, ...]) -> keras.Model:
    """The frozen part: uint8 (N, 28, 28) → {name: float16 (N, channels)}, as far as `names` need.

    The names are conv3_avg, conv3_max, conv4_avg …: each channel's average or maximum over the
    positions of a stage's output, computed in float32 and kept as float16, within a saved model
    just as in the cache. Averages and maxima cost nothing, and there may be another use for them.
    """
    last = max((stage_of(name) for name in names), key=architectures.STAGES.index)
    features = {}
    for stage in architectures.STAGES[: architectures.STAGES.index(last) + 1]:
        activations = activations_at(backbone.folded, backbone.stages[stage])
        for kind, pooled in pool(activations).items():
            if kind in ("avg", "max") or f"{stage}_{kind}" in names:
                features[f"{stage}_{kind}"] = to_float16(pooled)
    return keras.Model(backbone.folded.input, features)


def build_extractors(
    backbone: Backbone, names: tuple[str, ...], mirror: bool
) -> dict[str, keras.Model]:
    """That of the images, as "", and of their mirror images, whose names end in "_mirrored"."""
    extractor = build_extractor(backbone, names)
    if not mirror:
        return {"": extractor}
    return {"": extractor, "_mirrored": mirror_images(extractor, "_mirrored")}


def extract_once(
    extractors: dict[str, keras.Model], names: tuple[str, ...], folder: Path, run: common.Run
) -> dict[str, np.ndarray]:
    """The named features of each split's images, float16 (N, channels), from the cache's folder.

    Those of their mirror images, if any, come after them: (2·N, channels).

    Raises:
        UserError: the cache cannot be written.
    """
    caches = {suffix: FeatureCache(folder, model) for suffix, model in extractors.items()}
    splits = run.data.splits
    with run.stage("extraction", lower="--image-size"):
        for suffix, cache in caches.items():
            progress = Progress("Mirrored" if suffix else "Features", run.wandb_run)
            cache.fill(splits.values(), progress)
            run.note(extraction={"images_per_second": progress.rate})
        return {name: read_copies(caches, split, names) for name, split in splits.items()}


# -------------------------------------------------------------------------------------- head


def build_standardiser(features: np.ndarray) -> keras.Model:
    """Makes features comparable: (N, channels) → float32 (N, channels).

    Their logarithm (of 1 + the absolute value, with its sign: most are small, a few huge) less its
    mean, by its standard deviation, both taken from `features`, the training images'.
    """
    standardise = keras.layers.Normalization(dtype="float32")
    # 5,000 images tell a mean and a variance well enough; in float16 the sums would overflow.
    some = features[:5000].astype("float32")
    standardise.adapt(np.copysign(np.log1p(np.abs(some)), some))
    inputs = keras.Input(features.shape[1:], dtype="float32", name="features")
    logarithms = keras.ops.sign(inputs) * keras.ops.log(1 + keras.ops.abs(inputs))
    # A channel that is constant in training has no deviation: without a bound, its values in other
    # images would be millions of deviations, more than float16 can hold.
    outputs = keras.ops.clip(standardise(logarithms), -10, 10)
    return keras.Model(inputs, outputs, name="standardiser")


def build_classifier(channels: int, classes: int, dropout: float, precision: str) -> keras.Model:
    """The trained part: standardised float16 (N, channels) → float32 (N, classes) probabilities."""
    dtype = devices.DTYPES[precision]
    return keras.Sequential(
        [
            keras.Input((channels,), dtype="float16", name="standardised"),
            keras.layers.Dense(512, activation="relu", dtype=dtype),
            keras.layers.Dropout(dropout, dtype=dtype),
            keras.layers.Dense(classes, "softmax", dtype="float32", name="probabilities"),
        ],
        name="classifier",
    )


def build_head(features: np.ndarray, classes: int, options: Options, precision: str) -> keras.Model:
    """Standardiser and classifier: the training images' (N, channels) → (N, classes)."""
    standardiser = build_standardiser(features)
    keras.utils.set_random_seed(options.training.seed)  # again: features may be the cache's
    classifier = build_classifier(features.shape[1], classes, options.head.dropout, precision)
    # No Sequential: newer Keras versions would warn of the inputs of one that Keras 3.10 saved.
    inputs = keras.Input(features.shape[1:], dtype="float32", name="features")
    return keras.Model(inputs, classifier(standardiser(inputs)), name="head")


def standardise(head: keras.Model, features: dict[str, np.ndarray]) -> None:
    """Turns each split's features into what the classifier sees, float16 (N, channels).

    In place, since they are the bulk of a run's memory.
    """
    for values in features.values():
        for start in range(0, len(values), 1000):
            batch = values[start : start + 1000]
            batch[:] = devices.predict_in_batches(head.get_layer("standardiser"), batch)


def train(
    head: keras.Model, features: dict[str, np.ndarray], patience: int, run: common.Run
) -> None:
    """Trains by Adam on smoothed labels, the learning rate falling to 0 as a cosine.

    It ends with the weights of the best epoch. The losses of its log are of smoothed labels, too.
    `features` are standardised already; mirror images have the labels of the images.
    """
    classifier, options = head.get_layer("classifier"), run.options.training
    one_hot = {
        name: keras.utils.to_categorical(split.labels, len(run.data.class_names))
        for name, split in run.data.splits.items()
    }
    copies = len(features["train"]) // run.data.train.size
    labels = np.tile(one_hot["train"], (copies, 1))
    batches = common.batches(features["train"], labels, options.batch_size, options.seed)
    # Without mirror images: so a fine-tuning's epochs compare with the head's.
    validation = features["validation"][: run.data.validation.size]
    schedule = keras.optimizers.schedules.CosineDecay(
        options.learning_rate, len(batches) * options.epochs
    )
    classifier.compile(
        optimizer=devices.scale_loss(keras.optimizers.Adam(schedule), classifier.layers[0]),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
        # Several GPUs cannot yet do several steps at once ("must feed a value for placeholder").
        steps_per_execution=20 if devices.count() == 1 else 1,
    )
    classifier.fit(
        batches,
        epochs=options.epochs,
        shuffle=False,  # they are
        validation_data=common.batches(validation, one_hot["validation"], 1000),
        callbacks=[run.epoch_log, common.best_epoch(patience)],
        verbose=2,
    )


def assemble(
    extractors: dict[str, keras.Model], names: tuple[str, ...], head: keras.Model
) -> keras.Model:
    """The whole: uint8 (N, 28, 28) → probabilities (N, classes), the mean of its copies'."""
    images, answers = extractors[""].input, []
    for suffix, extractor in extractors.items():
        features = extractor.output if not suffix else extractor(images)
        # LiteRT cannot put float16 values side by side.
        seen = [keras.ops.cast(features[f"{name}{suffix}"], "float32") for name in names]
        answers.append(head(keras.ops.concatenate(seen, axis=1) if len(seen) > 1 else seen[0]))
    answer = keras.layers.average(answers) if len(answers) > 1 else answers[0]
    return keras.Model(images, answer, name="resnet50_fashion")


def evaluate(
    head: keras.Model, features: dict[str, np.ndarray], run: common.Run
) -> dict[str, Answers]:
    """The answers to each split's images, from their standardised features."""
    classifier = head.get_layer("classifier")
    with run.stage("evaluation"):
        return {
            name: answer(classifier, values, copies=len(values) // run.data.splits[name].size)
            for name, values in features.items()
        }


def main(options: Options) -> None:
    """Data → features, once → head → fine-tuning, if any → evaluation → output."""
    devices.use(options.devices.gpus)
    with common.Run(options) as run:
        with run.stage("data"):
            data = common.load_fashion_mnist(options.data)
        with run.stage("backbone", lower="--image-size"):
            names = options.head.names
            backbone = load_backbone(options)
            extractors = build_extractors(backbone, names, options.head.mirror)
            run.note(weights=backbone.record(options.network.weights))
        tuning = fine_tuner.prepare(options.fine_tuning, options.head, backbone, data, run)
        resumed = tuning.resumed if tuning else None
        common.start_wandb(run, data, resumed)
        folder = options.data.cache_dir / backbone.cache_name
        features = extract_once(extractors, names, folder, run)
        with run.stage("training"):
            head = build_head(features["train"], len(data.class_names), options, backbone.precision)
            standardise(head, features)
            if not resumed:
                train(head, features, options.head.patience, run)
        if tuning:
            model, answers = tuning.train(head, folder, run)
        else:
            model = assemble(extractors, names, head)
            answers = evaluate(head, features, run)
        run.save(model, answers)
        if tuning:
            tuning.checkpoint.finish()
    run.conclude()


if __name__ == "__main__":
    common.run_script(main, Options, __doc__)
