"""Fine-tuning: training of the last blocks of the backbone together with the head."""

import math
from collections.abc import Callable

from fashion.backbones import folding
from fashion.backbones.backbone import Backbone
from fashion.datasets.splits import Split
from fashion.fine_tuning import batch_norm
from fashion.fine_tuning.checkpoint import Checkpoint
from fashion.run import Run, parameter_counts

import keras
import numpy as np

RECALIBRATION_IMAGES = 2000
MAX_SHIFT_PIXELS = 1  # of augmented images
WEIGHT_DECAY = 0.05  # of kernels

# (backbone, copy of its network, feature names) → {name: float32 (N, channels)}
FeatureFunction = Callable[[Backbone, keras.Model, tuple[str, ...]], dict[str, keras.KerasTensor]]


def train(
    backbone: Backbone,
    feature_names: tuple[str, ...],
    compute_features: FeatureFunction,
    head: keras.Model,
    run: Run,
    checkpoint: Checkpoint,
    *,
    num_blocks: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    patience: int,
) -> keras.Model:
    """Train on augmented images; restore the best epoch, which may be one of head training.

    Args:
        head: Trained head, (N, channels of all features) → (N, classes), trained further, in place.
        checkpoint: If it is started, the training continues there; written after each epoch.
        learning_rate: Peak learning rate, after warm-up.
        patience: Epochs without improvement in validation accuracy after which training stops.

    Returns:
        A copy of the network of the backbone, with trained weights.
    """
    data, seed = run.data, run.options.seed
    images = keras.Input((28, 28), dtype="uint8", name="images")
    augmentation = build_augmentation()
    network = folding.copy_network(
        backbone.network,
        backbone.preprocess(augmentation(images)),
        trained=backbone.last_blocks(feature_names, num_blocks),
        batch_norm_class=batch_norm.BatchNormalization,
    )
    features = compute_features(backbone, network, feature_names).values()
    model = keras.Model(images, head(keras.ops.concatenate(list(features), axis=1)))

    batches = Batches(data.train, batch_size)
    compile_model(model, learning_rate, num_steps=len(batches) * epochs)
    logger = run.epoch_logger
    logger.nan_loss_hint = "continue with --resume and a lower --fine-tune-learning-rate"
    if checkpoint.is_started:
        checkpoint.load(model, checkpoint.best_weights)  # a damaged file fails before training
        checkpoint.load(model, checkpoint.last_weights)
        print(f"Resuming after epoch {len(logger.epochs)}.")
    else:
        reseed(augmentation, seed, epoch=0)
        sample = augmentation(data.train.images[:RECALIBRATION_IMAGES], training=True)
        batch_norm.recalibrate(model, network, np.asarray(sample))
        checkpoint.start(model, logger.epochs, run.wandb_id)
    run.metadata["fine_tuning"] = {"head_epochs": checkpoint.head_epochs}
    run.metadata["parameters"] = parameter_counts(model)  # the saved model is folded and frozen

    def begin_epoch(epoch: int, logs: dict[str, float] | None = None) -> None:
        batches.shuffle(seed, epoch)
        reseed(model, seed, epoch)

    def end_epoch(epoch: int, logs: dict[str, float] | None = None) -> None:
        checkpoint.save(model, logger.epochs)
        if checkpoint.is_patience_exhausted(patience):
            model.stop_training = True

    num_finished, last_epoch = len(logger.epochs), checkpoint.head_epochs + epochs
    if checkpoint.is_patience_exhausted(patience):
        last_epoch = num_finished
    model.fit(
        batches,
        initial_epoch=num_finished,
        epochs=last_epoch,
        shuffle=False,  # `begin_epoch` shuffles
        validation_data=(data.validation.images, data.validation.one_hot),
        validation_batch_size=100,
        callbacks=[
            keras.callbacks.TerminateOnNaN(),  # then `logger` raises
            logger,
            keras.callbacks.LambdaCallback(on_epoch_begin=begin_epoch, on_epoch_end=end_epoch),
        ],
        verbose=2,
    )
    checkpoint.load(model, checkpoint.best_weights)
    return network


def compile_model(model: keras.Model, learning_rate: float, num_steps: int) -> None:
    """Compile with AdamW, warm-up over a tenth of the steps and cosine decay to 0."""
    num_warmup_steps = num_steps // 10
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0,
            num_steps - num_warmup_steps,
            warmup_target=learning_rate,
            warmup_steps=num_warmup_steps,
        ),
        weight_decay=WEIGHT_DECAY,
    )
    # Biases and batch normalization do not decay.
    optimizer.exclude_from_weight_decay([x for x in model.trainable_variables if x.ndim == 1])
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)  # so that a checkpoint can be loaded


def build_augmentation(max_shift: int = MAX_SHIFT_PIXELS) -> keras.Model:
    """Build random flips, shifts and erasing of uint8 (N, 28, 28) images, active in training.

    Images are flipped horizontally and shifted by up to `max_shift` pixels. In a quarter of them, a
    rectangle is replaced by noise: random erasing (Zhong et al., 2017, arXiv:1708.04896, who erase
    in half of the images, but train for 300 epochs).
    """
    images = keras.Input((28, 28), dtype="uint8")
    flip = keras.layers.RandomFlip("horizontal", dtype="float32")
    shift = keras.layers.RandomTranslation(
        height_factor=max_shift / 28,
        width_factor=max_shift / 28,
        fill_mode="constant",
        interpolation="nearest",
        dtype="float32",
    )
    erase = keras.layers.RandomErasing(
        factor=(0.25, 0.25), scale=(0.02, 0.33), value_range=(0, 255), dtype="float32"
    )
    augmented = erase(shift(flip(keras.ops.expand_dims(keras.ops.cast(images, "float32"), -1))))
    return keras.Model(images, keras.ops.cast(keras.ops.squeeze(augmented, -1), "uint8"))


class Batches(keras.utils.PyDataset):
    """Batches of a split: images, uint8 (N, 28, 28), and one-hot labels, float32 (N, classes)."""

    def __init__(self, split: Split, batch_size: int) -> None:
        """Create batches in the order of the split."""
        super().__init__()
        self.images, self.labels, self.batch_size = split.images, split.one_hot, batch_size
        self.order = np.arange(split.size)

    def shuffle(self, seed: int, epoch: int) -> None:
        """Set the order of an epoch; to be called in `on_epoch_begin`, before Keras reads it."""
        self.order = np.random.default_rng([seed, epoch]).permutation(len(self.order))

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self.order) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a batch."""
        rows = self.order[index * self.batch_size :][: self.batch_size]
        return self.images[rows], self.labels[rows]


def reseed(model: keras.Model, seed: int, epoch: int) -> None:
    """Make dropout and augmentation in an epoch depend on nothing but the seed and the epoch.

    A resumed run then equals an uninterrupted one.
    """
    states = [v for v in model.variables if v.path.endswith("seed_generator_state")]
    for i, state in enumerate(states):
        state.assign(np.random.SeedSequence([seed, epoch, i]).generate_state(2))
