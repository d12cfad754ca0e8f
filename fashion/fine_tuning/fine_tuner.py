"""Fine-tuning: the backbone's last blocks trained together with the head, after the head alone."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fashion import devices
from fashion.backbones import augmentation
from fashion.backbones.architectures import Backbone
from fashion.backbones.feature_cache import FeatureCache
from fashion.backbones.progress import Progress
from fashion.datasets.dataset import FashionMNIST
from fashion.errors import UsageError
from fashion.evaluation.embeddings import Answers, answering
from fashion.fine_tuning.checkpoint import Checkpoint, open_checkpoint
from fashion.fine_tuning.freezing import Cut
from fashion.fine_tuning.input_pipeline import Batches
from fashion.options import Flag, PositiveFloat, PositiveInt, WholeNumber
from fashion.tracking.run import Run

import keras
import numpy as np


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
    """activations kept on disk, computed in each epoch, or those of images that are flipped,
    shifted and partly erased"""
    resume: Flag = False
    """go on after the last finished epoch of the fine-tuning in --output-dir"""

    def __post_init__(self) -> None:
        """Raises a `UsageError` if there is nothing to resume."""
        if self.resume and not self.fine_tune_blocks:
            raise UsageError(
                "--resume: only fine-tuning can be resumed, by the same --fine-tune-blocks"
            )


class HeadOptions(Protocol):
    """What of the head's options decides here, too."""

    @property
    def names(self) -> tuple[str, ...]:
        """The features that it sees."""

    @property
    def mirror(self) -> bool:
        """Whether the answers to an image and its mirror image are averaged."""

    @property
    def patience(self) -> int:
        """After how many epochs without a better validation accuracy it ends."""


@dataclass(frozen=True)
class FineTuning:
    """The fine-tuning of one run."""

    options: FineTuningOptions
    head: HeadOptions
    cut: Cut
    checkpoint: Checkpoint

    @property
    def resumed(self) -> Checkpoint | None:
        """The checkpoint, if an earlier run has begun it."""
        return self.checkpoint if self.checkpoint.has_begun else None

    def train(
        self, head: keras.Model, folder: Path, run: Run
    ) -> tuple[keras.Model, dict[str, Answers]]:
        """Trains, from where the checkpoint is: the whole model, and its answers by split.

        Args:
            head: standardiser and classifier, trained unless the checkpoint is past that.
            folder: the features'; activations are kept in a folder of it.
            run: has the data and the epochs so far.

        Raises:
            UserError: the loss is no longer a number, or a file cannot be read or written.
        """
        inputs, splits = self.options.fine_tune_inputs, run.data.splits
        with run.stage("activations", lower="--image-size"):
            lower, upper = self.cut.split(head)
            model = keras.Model(lower.input, upper(lower.output), name=run.options.script)
            activations = None
            if inputs == "cached":
                activations = FeatureCache(folder / lower.name, lower)
                activations.fill(splits.values(), Progress("Activations", run.wandb_run))
        trained = upper if activations else model
        with run.stage("fine_tuning", lower="--fine-tune-batch-size, and --resume"):
            learner = augmentation.augment(model) if inputs == "augmented" else trained
            self._fit(learner, activations, run)
        with run.stage("evaluation", lower="--image-size"):
            asked = answering(upper)
            whole = keras.Model(lower.input, asked(lower.output))
            asked = asked if activations else whole
            batches, outputs = Batches(trained, activations, batch_size=100), {}
            with batches.errors():
                for name, split in splits.items():
                    outputs[name] = asked.predict(batches.of(split), verbose=0)
            if self.head.mirror:
                model = augmentation.with_mirror_images(model)
                for name, split in splits.items():
                    mirrored = np.ascontiguousarray(split.images[:, :, ::-1])
                    outputs[name] += devices.predict_in_batches(whole, mirrored, batch_size=125)
                    outputs[name] /= 2
            classes = len(run.data.class_names)
            return model, {name: Answers.of(values, classes) for name, values in outputs.items()}

    def _fit(self, model: keras.Model, activations: FeatureCache | None, run: Run) -> None:
        """Trains by Adam, the learning rate rising for a tenth of the steps, then falling.

        After each epoch the checkpoint has everything needed to go on from there. It ends with the
        weights of the best epoch, which may be the head's.
        """
        checkpoint, log, data = self.checkpoint, run.epoch_log, run.data
        seed = run.options.training.seed
        if not checkpoint.has_begun:
            checkpoint.head_epochs, checkpoint.wandb_id = len(log.epochs), run.wandb_run.id
        run.note(fine_tuning={"head_epochs": checkpoint.head_epochs})
        self._compile(model, data)
        if checkpoint.has_begun:
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
            if epoch - max(first, log.best.epoch) >= self.head.patience:
                break
            # Of dropout and augmentation: as far apart as no epoch has steps, so that one after an
            # interruption is as without.
            for i, variable in enumerate(seeds):
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
            optimizer=devices.scale_loss(
                keras.optimizers.Adam(schedule), self.cut.backbone.folded.layers[-1]
            ),
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
            metrics=["accuracy"],
        )
        model.optimizer.build(model.trainable_variables)


def prepare(
    options: FineTuningOptions,
    head: HeadOptions,
    backbone: Backbone,
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
    cut = Cut.before_last(options.fine_tune_blocks, backbone, head.names)
    rate = options.fine_tune_learning_rate
    checkpoint = open_checkpoint(run, data, backbone, learning_rate=rate, resume=options.resume)
    return FineTuning(options, head, cut, checkpoint)
