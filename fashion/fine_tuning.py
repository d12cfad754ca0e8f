"""Fine-tuning: the backbone's last blocks trained together with the head, after the head alone."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fashion import features
from fashion.backbones import Backbone
from fashion.checkpoints import Checkpoint, open_checkpoint
from fashion.cut import Cut
from fashion.data import CLASS_NAMES, FashionMNIST, Split
from fashion.errors import UsageError, UserError
from fashion.features import FeatureCache
from fashion.options import PositiveFloat, PositiveInt, WholeNumber
from fashion.run import Run

import keras
import numpy as np
import tensorflow as tf


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions:
    """After the head's training, of the backbone's last blocks with the head."""

    fine_tune_blocks: WholeNumber = 0
    """train the backbone's last N blocks, too; with 0, all are frozen"""
    fine_tune_epochs: PositiveInt = 5
    """passes over the training images"""
    fine_tune_batch_size: PositiveInt = 32
    """images per training step"""
    fine_tune_learning_rate: PositiveFloat = 1e-4
    """Adam's, at its highest"""
    fine_tune_inputs: Literal["cached", "computed", "augmented"] = "cached"
    """kept on disk, computed in each epoch, or that of flipped and shifted images"""
    resume: bool = False
    """go on after the last finished epoch of the fine-tuning in --output-dir"""

    def __post_init__(self) -> None:
        """Raises a `UsageError` if there is nothing to resume."""
        if self.resume and not self.fine_tune_blocks:
            raise UsageError(
                "--resume: only fine-tuning can be resumed, by the same --fine-tune-blocks"
            )


def augment(model: keras.Model) -> keras.Model:
    """The same model, trained on images that are flipped and shifted by up to two pixels."""
    images = keras.Input((28, 28), dtype="uint8")
    flip = keras.layers.RandomFlip("horizontal", dtype="float32")
    shift = keras.layers.RandomTranslation(
        height_factor=2 / 28,
        width_factor=2 / 28,
        fill_mode="constant",
        interpolation="nearest",
        dtype="float32",
    )
    augmented = shift(flip(keras.ops.expand_dims(keras.ops.cast(images, "float32"), -1)))
    return keras.Model(images, model(keras.ops.cast(keras.ops.squeeze(augmented, -1), "uint8")))


class Batches:
    """Batches of a split for a model that takes its images or, from a cache, its activations."""

    def __init__(self, model: keras.Model, cache: FeatureCache | None, batch_size: int) -> None:
        """With a cache, the model takes {name: float16 (N, …)} of it, else uint8 (N, 28, 28)."""
        self.inputs, self.cache, self.batch_size = model.input, cache, batch_size
        self.error: UserError | None = None

    def of(self, split: Split, seed: list[int] | None = None) -> tf.data.Dataset:
        """(inputs, one-hot labels float32 (N, classes)), each of the split's images once.

        With a seed they are shuffled: the files' order, and then images among those of eight files.
        Each epoch has a seed of its own, so that one after an interruption is as without.
        """
        one_hot = keras.utils.to_categorical(split.labels, len(CLASS_NAMES))
        starts, rng = np.arange(0, split.size, features.CHUNK), np.random.default_rng(seed)
        if seed is not None:
            rng.shuffle(starts)

        def chunks() -> Iterator[tuple]:
            for start in starts.tolist():
                rows = slice(start, min(start + features.CHUNK, split.size))
                inputs: Any = split.images[rows]
                if self.cache:
                    try:
                        chunk = self.cache.read_chunk(split, start)
                    except UserError as error:
                        self.error = error
                        raise
                    inputs = {name: chunk[name] for name in self.inputs}
                yield inputs, one_hot[rows]

        inputs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), self.inputs)
        signature = inputs, tf.TensorSpec((None, one_hot.shape[1]))
        batches = tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()
        if seed is not None:
            batches = batches.shuffle(
                8 * features.CHUNK, seed=int(rng.integers(2**31)), reshuffle_each_iteration=False
            )
        steps = math.ceil(split.size / self.batch_size)
        settings = tf.data.Options()
        settings.autotune.enabled = False
        return (
            batches.batch(self.batch_size)
            .apply(tf.data.experimental.assert_cardinality(steps))
            .prefetch(2)
            .with_options(settings)
        )

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raises a `UserError` of the cache as such, which TensorFlow has made one of its own."""
        try:
            yield
        except tf.errors.OpError:
            if self.error:
                raise self.error from None
            raise


@dataclass(frozen=True)
class FineTuning:
    """The fine-tuning of one run."""

    options: FineTuningOptions
    cut: Cut
    checkpoint: Checkpoint

    def run(
        self, head: keras.Sequential, cache: FeatureCache, patience: int, run: Run
    ) -> tuple[keras.Model, dict[str, np.ndarray]]:
        """Trains, from where the checkpoint is: the whole model, and its probabilities by split.

        Args:
            head: standardiser and classifier, trained unless the checkpoint is past that.
            cache: the features'; activations are kept in a folder of it.
            patience: it ends after so many epochs without a better validation accuracy.
            run: has the data and the epochs so far.

        Raises:
            UserError: the loss is no longer a number, or a file cannot be read or written.
        """
        inputs, splits = self.options.fine_tune_inputs, run.data.splits
        with run.stage("activations"):
            lower, upper = self.cut.split(head)
            model = keras.Model(lower.input, upper(lower.output), name=run.options.script)
            activations = FeatureCache(cache.folder / lower.name) if inputs == "cached" else None
            if activations:
                activations.fill(lower, splits.values(), "Activations", run)
        trained = upper if activations else model
        with run.stage("fine_tuning"):
            if inputs == "augmented":
                self._train(augment(model), activations, patience, run)
            else:
                self._train(trained, activations, patience, run)
        with run.stage("evaluation"):
            batches = Batches(trained, activations, batch_size=100)
            with batches.errors():
                probabilities = {
                    name: trained.predict(batches.of(split), verbose=0)
                    for name, split in splits.items()
                }
        return model, probabilities

    def _train(
        self, model: keras.Model, activations: FeatureCache | None, patience: int, run: Run
    ) -> None:
        """Trains by Adam, the learning rate rising for a tenth of the steps, then falling.

        After each epoch the checkpoint has everything needed to go on from there. It ends with the
        weights of the best epoch, which may be the head's.
        """
        checkpoint, log, data = self.checkpoint, run.epoch_log, run.data
        seed = run.options.training.seed
        if not checkpoint.last:
            checkpoint.head_epochs, checkpoint.wandb_id = len(log.epochs), run.wandb_run.id
        run.note(fine_tuning={"head_epochs": checkpoint.head_epochs})
        self._compile(model, data)
        if checkpoint.last:
            checkpoint.load(model, checkpoint.best)  # whether it is whole shows before the work
            checkpoint.load(model, checkpoint.last)
            print(f"Resuming after epoch {log.epochs[-1].epoch}.")
        else:
            checkpoint.save(model, log)
        first = checkpoint.head_epochs
        log.advice = "go on with --resume and a lower --fine-tune-learning-rate"
        batches = Batches(model, activations, self.options.fine_tune_batch_size)
        validation = batches.of(data.validation)
        seeds = [v for v in model.variables if v.path.endswith("seed_generator_state")]
        for epoch in range(len(log.epochs), first + self.options.fine_tune_epochs):
            if epoch - max(first, log.best.epoch) >= patience:
                break
            for i, variable in enumerate(seeds):  # of dropout and augmentation
                variable.assign(np.array([seed + i, epoch << 20], variable.dtype))
            with batches.errors():
                model.fit(
                    batches.of(data.train, [seed, epoch]),
                    shuffle=False,  # they are
                    initial_epoch=epoch,
                    epochs=epoch + 1,
                    validation_data=validation,
                    callbacks=[keras.callbacks.TerminateOnNaN(), log],
                    verbose=2,
                )
            checkpoint.save(model, log)
        checkpoint.load(model, checkpoint.best)

    def _compile(self, model: keras.Model, data: FashionMNIST) -> None:
        options = self.options
        steps = math.ceil(data.train.size / options.fine_tune_batch_size) * options.fine_tune_epochs
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0,
            steps - steps // 10,
            warmup_target=options.fine_tune_learning_rate,
            warmup_steps=steps // 10,
        )
        model.compile(
            optimizer=keras.optimizers.Adam(schedule),
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
            metrics=["accuracy"],
        )
        model.optimizer.build(model.trainable_variables)


def prepare(
    options: FineTuningOptions,
    backbone: Backbone,
    names: tuple[str, ...],
    data: FashionMNIST,
    run: Run,
) -> FineTuning | None:
    """The fine-tuning that is asked for, if any, and what of it is done already.

    Raises:
        UsageError: there are not so many blocks, or the checkpoint is another run's.
        UserError: the checkpoint cannot be read.
    """
    if not options.fine_tune_blocks:
        return None
    cut = Cut.before_last(options.fine_tune_blocks, backbone, names)
    rate = options.fine_tune_learning_rate
    checkpoint = open_checkpoint(run, data, backbone, learning_rate=rate, resume=options.resume)
    return FineTuning(options, cut, checkpoint)
