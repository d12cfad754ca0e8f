"""Fashion-MNIST above 90 %: a frozen, ImageNet-trained ResNet50 and a small head on top.

Each image, upscaled to 224×224 RGB, goes through the ResNet50 once (by default). The extracted
features are cached on disk, so the head, and the head of every later run, trains in seconds. The
saved model is end to end: it maps raw uint8 (N, 28, 28) images to (N, classes) probabilities.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from fashion import devices, recipes
from fashion.backbones import architectures
from fashion.backbones.architectures import Backbone
from fashion.backbones.augmentation import flip_extractor_inputs
from fashion.backbones.feature_cache import FeatureCache, read_views
from fashion.backbones.folding import fold_batch_norm
from fashion.backbones.pooling import pool, to_float16
from fashion.backbones.progress import Progress
from fashion.cli import command_line
from fashion.devices import DeviceOptions
from fashion.evaluation.embeddings import predict_splits
from fashion.fine_tuning.fine_tuner import create_fine_tuner
from fashion.fine_tuning.tuning_options import FineTuningOptions
from fashion.options import NonNegativeInt, PositiveInt, Rate, choice
from fashion.reporting import results

import keras
import numpy as np

import common

# Feature sets for the head: pooled outputs of the stages. The last stage is specialized in
# ImageNet's classes; for Fashion-MNIST, earlier stages give better features.
FEATURE_SETS = {
    "conv5": ("conv5_avg",),  # the input of ResNet50's own classifier; the published recipe
    "conv4_avg": ("conv4_avg",),
    "conv4": ("conv3_avg", "conv4_avg", "conv4_max"),
    # Grid pooling keeps spatial layout, which is informative because the garments are centered.
    "conv4_3x3": ("conv3_3x3", "conv4_avg", "conv4_max"),
    "conv4_4x4": ("conv3_4x4", "conv4_avg", "conv4_max"),
}

# ------------------------------------------------------------------------------------ options


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Classifier on frozen features: Dense + Dropout + softmax."""

    features: Annotated[str, choice(FEATURE_SETS)] = "conv5"
    """conv5: average-pooled last stage; conv4_avg: average-pooled conv4; conv4: pooled conv3 and
    conv4; conv4_3x3, conv4_4x4: like conv4, with conv3 pooled on a grid"""
    mirror: bool = False
    """add horizontally flipped images in training, and average predictions over both views"""
    hidden_units: NonNegativeInt = 512
    """units in the head's hidden layer; 0: no hidden layer, a linear classifier"""
    dropout: Rate = 0.3
    """dropout rate of the head"""
    patience: PositiveInt = 10
    """stop after N epochs without improvement in validation accuracy (also when fine-tuning)"""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features in the selected feature set."""
        return FEATURE_SETS[self.features]


@dataclass(frozen=True, kw_only=True)
class Options(common.Options):
    """All options of this script."""

    script_name: ClassVar[str] = "resnet50_fashion"
    training: common.TrainingOptions = common.TrainingOptions(epochs=30, batch_size=512)
    results: common.ResultsOptions = common.ResultsOptions(
        output_dir=Path("outputs/resnet50_fashion")
    )
    recipe: recipes.RecipeOptions = recipes.RecipeOptions()
    network: architectures.NetworkOptions = architectures.NetworkOptions()
    devices: DeviceOptions = DeviceOptions()
    head: HeadOptions = HeadOptions()
    fine_tuning: FineTuningOptions = FineTuningOptions()


# ---------------------------------------------------------------------------- frozen backbone


def load_backbone(options: Options) -> Backbone:
    """Build the frozen backbone including preprocessing: raw images → final activations.

    Raises:
        UsageError: If `--image-size` is too small for the backbone.
        UserError: If the weights cannot be downloaded or read, or do not fit.
    """
    name, network = options.network.backbone, options.network
    architecture = architectures.ARCHITECTURES[name]
    size = network.image_size or architecture.image_size
    model = architectures.build_network(name, size, network.weights, options.training.seed)
    precision = devices.resolve_precision(options.devices.precision)

    images = keras.Input((28, 28), dtype="uint8", name="images")
    rgb = architecture.preprocess_input(common.to_rgb(images, size))
    folded = fold_batch_norm(model, rgb, devices.DTYPE_POLICIES[precision])
    return Backbone(name, model, keras.Model(images, folded.layers[-1].output), precision)


def build_feature_extractor(backbone: Backbone, feature_names: tuple[str, ...]) -> keras.Model:
    """Build the feature extractor: uint8 (N, 28, 28) → {name: float16 (N, channels)}.

    Features are named after stage and pooling (conv3_avg …), and pooled in float32. Later stages
    are left out. Average and max pooling are always included, in case another recipe needs them.
    """
    stages = architectures.STAGES
    last = max(stages.index(architectures.feature_stage(name)) for name in feature_names)
    features = {}
    for stage in stages[: last + 1]:
        activations = backbone.stage_output(backbone.inference_model, stage)
        for kind, pooled in pool(activations).items():
            if kind in ("avg", "max") or f"{stage}_{kind}" in feature_names:
                features[f"{stage}_{kind}"] = to_float16(pooled)
    return keras.Model(backbone.inference_model.input, features)


def build_feature_extractors(backbone: Backbone, options: HeadOptions) -> dict[str, keras.Model]:
    """Build the extractors, by the suffix of their features' names: "", "_mirrored" (flipped)."""
    extractor = build_feature_extractor(backbone, options.feature_names)
    if not options.mirror:
        return {"": extractor}
    return {"": extractor, "_mirrored": flip_extractor_inputs(extractor, "_mirrored")}


def extract_features(
    extractors: dict[str, keras.Model], backbone: Backbone, run: common.Run
) -> dict[str, np.ndarray]:
    """Return the head's features of each split, extracted or cached: float16 (N, channels).

    With mirroring, the features of the flipped images are appended: (2·N, channels).

    Raises:
        UserError: If the cache cannot be written.
    """
    directory = run.options.data.cache_dir / backbone.cache_dir_name
    caches = {suffix: FeatureCache(directory, model) for suffix, model in extractors.items()}
    names, splits = run.options.head.feature_names, run.data.splits
    with run.stage("extraction", to_reduce="--image-size"):
        for suffix, cache in caches.items():
            title = "Flipped-image features" if suffix else "Features"
            progress = Progress(title, run.wandb_run, suffix[1:])
            cache.compute_missing(splits.values(), progress)
            run.update_metadata(extraction={"images_per_second": progress.rate})
        return {name: read_views(caches, split, names) for name, split in splits.items()}


# -------------------------------------------------------------------------------------- head


def build_standardizer(features: np.ndarray) -> keras.Model:
    """Build a model that log-transforms and standardizes features, as float32.

    It computes sign(x)·log(1 + |x|), since most values are small and a few are huge, then subtracts
    the mean and divides by the standard deviation of `features` (N, channels), the training set's.
    """
    normalization = keras.layers.Normalization(dtype="float32")
    # 5,000 images are enough to estimate mean and variance; float16 sums would overflow.
    sample = features[:5000].astype("float32")
    normalization.adapt(np.copysign(np.log1p(np.abs(sample)), sample))
    inputs = keras.Input(features.shape[1:], dtype="float32", name="features")
    logarithms = keras.ops.sign(inputs) * keras.ops.log(1 + keras.ops.abs(inputs))
    # Otherwise, values of a channel that is constant in training would exceed float16's range.
    outputs = keras.ops.clip(normalization(logarithms), -10, 10)
    return keras.Model(inputs, outputs, name="standardizer")


def build_classifier(
    num_features: int, num_classes: int, options: HeadOptions, precision: str
) -> keras.Model:
    """Build the trained part: float16 (N, num_features) → (N, num_classes) probabilities."""
    dtype = devices.DTYPE_POLICIES[precision]
    layers = [keras.Input((num_features,), dtype="float16", name="standardized")]
    if options.hidden_units:
        layers.append(keras.layers.Dense(options.hidden_units, activation="relu", dtype=dtype))
    # A linear classifier has no symmetry to break, so it starts from equal probabilities.
    initializer = "glorot_uniform" if options.hidden_units else "zeros"
    dropout = keras.layers.Dropout(options.dropout, dtype=dtype)
    softmax = keras.layers.Dense(
        num_classes,
        "softmax",
        kernel_initializer=initializer,
        dtype="float32",
        name="probabilities",
    )
    layers += [dropout, softmax]
    return keras.Sequential(layers, name="classifier")


def build_head(
    features: np.ndarray, num_classes: int, options: Options, precision: str
) -> keras.Model:
    """Build standardizer and classifier for the training set's features (N, channels)."""
    standardizer = build_standardizer(features)
    # Reseed: extraction may have been skipped because of the cache.
    keras.utils.set_random_seed(options.training.seed)
    num_features = features.shape[1]
    classifier = build_classifier(num_features, num_classes, options.head, precision)
    # Not a Sequential: newer Keras versions warn about the inputs of one saved by Keras 3.10.
    inputs = keras.Input((num_features,), dtype="float32", name="features")
    return keras.Model(inputs, classifier(standardizer(inputs)), name="head")


def standardize_in_place(head: keras.Model, features: dict[str, np.ndarray]) -> None:
    """Standardize each split's features, float16 (N, channels), without a second copy."""
    for values in features.values():
        for start in range(0, len(values), 1000):
            batch = values[start : start + 1000]
            batch[:] = devices.predict_in_batches(head.get_layer("standardizer"), batch)


def train(head: keras.Model, features: dict[str, np.ndarray], run: common.Run) -> None:
    """Train the classifier with Adam, cosine decay and label smoothing.

    `features` are standardized. The weights of the best epoch are restored. Logged losses include
    label smoothing.
    """
    classifier, data, options = head.get_layer("classifier"), run.data, run.options.training
    num_classes, num_views = len(data.class_names), len(features["train"]) // data.train.size
    labels = np.tile(keras.utils.to_categorical(data.train.labels, num_classes), (num_views, 1))
    dataset = common.make_dataset(features["train"], labels, options.batch_size, options.seed)
    # Without flipped images, so that these epochs are comparable with those of fine-tuning.
    val_features = features["validation"][: data.validation.size]
    val_labels = keras.utils.to_categorical(data.validation.labels, num_classes)
    num_steps = len(dataset) * options.epochs
    schedule = keras.optimizers.schedules.CosineDecay(options.learning_rate, num_steps)
    # Keeps the optimizer out of the saved model.
    trainer = keras.Model(classifier.inputs, classifier.outputs)
    trainer.compile(
        optimizer=devices.with_loss_scaling(keras.optimizers.Adam(schedule), classifier.layers[0]),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
        # On several GPUs, Keras fails to run several steps at once ("must feed a value …").
        steps_per_execution=20 if devices.num_replicas() == 1 else 1,
    )
    trainer.fit(
        dataset,
        epochs=options.epochs,
        shuffle=False,  # the dataset is already shuffled
        validation_data=common.make_dataset(val_features, val_labels, 1000),
        callbacks=[run.epoch_logger, common.early_stopping(run.options.head.patience)],
        verbose=2,
    )


def build_full_model(
    extractors: dict[str, keras.Model], head: keras.Model, options: HeadOptions
) -> keras.Model:
    """Combine extractors and head into one model, averaging predictions over the views."""
    images, predictions = extractors[""].input, []
    for suffix, extractor in extractors.items():
        features = extractor.output if not suffix else extractor(images)
        # LiteRT cannot concatenate float16 values.
        parts = [keras.ops.cast(features[f"{n}{suffix}"], "float32") for n in options.feature_names]
        head_inputs = keras.ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        predictions.append(head(head_inputs))
    outputs = keras.layers.average(predictions) if len(predictions) > 1 else predictions[0]
    return keras.Model(images, outputs, name="resnet50_fashion")


def main(options: Options) -> None:
    """Extract features, train the head, optionally fine-tune, evaluate and save the results."""
    devices.configure_gpus(options.devices.gpus)
    with common.Run(options) as run:
        with run.stage("data", to_reduce="--train-size"):
            data = common.load_fashion_mnist(options.data)
        with run.stage("backbone", to_reduce="--image-size"):
            backbone = load_backbone(options)
            extractors = build_feature_extractors(backbone, options.head)
            run.update_metadata(weights=backbone.weights_metadata(options.network.weights))
        fine_tuner = create_fine_tuner(options, backbone, data)
        previous = fine_tuner.previous_run if fine_tuner else None
        common.start_wandb(run, data, previous)
        features = extract_features(extractors, backbone, run)
        with run.stage("training"):
            head = build_head(features["train"], len(data.class_names), options, backbone.precision)
            standardize_in_place(head, features)
            if not previous:
                train(head, features, run)
        if fine_tuner:
            model, predictions = fine_tuner.train(head, run)
        else:
            model = build_full_model(extractors, head, options.head)
            with run.stage("evaluation", to_reduce="--train-size"):
                predictions = predict_splits(head.get_layer("classifier"), features, data)
        summary = results.save(run, model, predictions)
        if fine_tuner:
            fine_tuner.mark_finished()
    summary.print_and_check_accuracy()


if __name__ == "__main__":
    command_line.run_script(main, Options, __doc__)
