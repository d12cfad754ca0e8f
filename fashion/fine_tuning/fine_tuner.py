"""Fine-tuning: training the backbone's last blocks together with the trained head."""

import math
from dataclasses import dataclass

from fashion import devices
from fashion.backbones.architectures import Backbone
from fashion.backbones.augmentation import add_augmentation, build_augmentation, with_flip_tta
from fashion.backbones.feature_cache import FeatureCache
from fashion.backbones.progress import Progress
from fashion.datasets.dataset import ImageDataset
from fashion.evaluation.embeddings import Predictions
from fashion.evaluation.metrics import parameter_counts
from fashion.fine_tuning import batch_norm
from fashion.fine_tuning.checkpoint import Checkpoint, load_or_create_checkpoint
from fashion.fine_tuning.freezing import FreezePoint
from fashion.fine_tuning.input_pipeline import InputPipeline
from fashion.fine_tuning.tuned_models import TunedModels
from fashion.fine_tuning.tuning_options import FineTuningOptions, HeadConfig, ScriptOptions
from fashion.tracking.run import PreviousRun, Run

import keras
import numpy as np

RECALIBRATION_IMAGES = 2000
MAX_SHIFT = 1  # pixels, of augmented images; 2 was not better


@dataclass(frozen=True)
class FineTuner:
    """The fine-tuning of one run.

    Attributes:
        options: Options of fine-tuning.
        head_config: Options of the head.
        freeze_point: First trainable block.
        checkpoint: Checkpoint that fine-tuning starts from and writes.
    """

    options: FineTuningOptions
    head_config: HeadConfig
    freeze_point: FreezePoint
    checkpoint: Checkpoint

    @property
    def previous_run(self) -> PreviousRun | None:
        """The run to continue, if there is a checkpoint."""
        if not self.checkpoint.is_started:
            return None
        return PreviousRun(self.checkpoint.wandb_id, self.checkpoint.epochs)

    def train(self, head: keras.Model, run: Run) -> tuple[keras.Model, dict[str, Predictions]]:
        """Train, starting from the checkpoint if there is one.

        Args:
            head: Standardizer and classifier; trained, unless there is a checkpoint.
            run: Run with the data and the epochs so far.

        Returns:
            The model, uint8 (N, 28, 28) → (N, classes) probabilities, and its predictions by split.

        Raises:
            UserError: If the loss is not finite, or a file cannot be read or written.
        """
        with run.stage("activations", to_reduce="--image-size"):
            models = self._build_models(head, run)
        to_reduce = "--fine-tune-batch-size, then continue with --resume"
        with run.stage("fine_tuning", to_reduce=to_reduce):
            if self.freeze_point.train_batch_norm and not self.checkpoint.is_started:
                self._recalibrate(models, run)
            is_augmented = self.options.fine_tune_inputs == "augmented"
            training_model = (
                add_augmentation(models.full, MAX_SHIFT) if is_augmented else models.pipeline_model
            )
            # A model of its own, which keeps the optimizer out of the saved model.
            training_model = keras.Model(training_model.input, training_model.output)
            self._fit(training_model, models.activation_cache, run)
        with run.stage("evaluation", to_reduce="--image-size"):
            if self.freeze_point.train_batch_norm:
                run.update_metadata(parameters=parameter_counts(models.full))
                models = models.fold(self.freeze_point, head)
            predictions = models.predict_splits(run.data, average_flips=self.head_config.mirror)
        model = with_flip_tta(models.full) if self.head_config.mirror else models.full
        return model, predictions

    def mark_finished(self) -> None:
        """Record in the checkpoint that the results are written."""
        self.checkpoint.mark_finished()

    def _build_models(self, head: keras.Model, run: Run) -> TunedModels:
        """Split backbone and head at the freeze point; fill the cache of activations, if any."""
        frozen, blocks, trainable = self.freeze_point.split_model(head)
        name = run.options.script_name
        full = keras.Model(frozen.input, trainable(frozen.output), name=name)
        activation_cache = None
        if self.options.fine_tune_inputs == "cached":
            cache_dir = run.options.data.cache_dir / self.freeze_point.backbone.cache_dir_name
            activation_cache = FeatureCache(cache_dir / frozen.name, frozen)
            splits = run.data.splits.values()
            activation_cache.compute_missing(splits, Progress("Activations", run.wandb_run))
        return TunedModels(full, frozen, blocks, trainable, activation_cache)

    def _recalibrate(self, models: TunedModels, run: Run) -> None:
        """Recalibrate batch normalization to training images, augmented if training is."""
        images = run.data.train.images
        images = images[:: max(len(images) // RECALIBRATION_IMAGES, 1)][:RECALIBRATION_IMAGES]
        if self.options.fine_tune_inputs == "augmented":
            augmentation = build_augmentation(MAX_SHIFT)
            _reseed(augmentation, run.options.training.seed, epoch=0)
            images = np.asarray(augmentation(images, training=True))
        batches = (images[i : i + 100] for i in range(0, len(images), 100))
        outputs = (devices.predict_on_replicas(models.frozen, [batch])[0] for batch in batches)
        batch_norm.recalibrate(models.blocks, (output["activations"] for output in outputs))

    def _fit(self, model: keras.Model, activation_cache: FeatureCache | None, run: Run) -> None:
        """Train with Adam(W), warm-up and cosine decay; restore the weights of the best epoch.

        The best epoch may be one of head training. A checkpoint is written after each epoch.
        """
        checkpoint, logger, data = self.checkpoint, run.epoch_logger, run.data
        if not checkpoint.is_started:
            checkpoint.head_epochs, checkpoint.wandb_id = len(logger.epochs), run.wandb_run.id
        run.update_metadata(fine_tuning={"head_epochs": checkpoint.head_epochs})
        self._compile(model, data)
        if checkpoint.is_started:
            checkpoint.load(model, checkpoint.best_weights)  # a damaged file fails before training
            checkpoint.load(model, checkpoint.last_weights)
            print(f"Resuming after epoch {logger.epochs[-1].epoch}.")
        else:
            checkpoint.save(model, logger)
        logger.nan_loss_hint = "continue with --resume and a lower --fine-tune-learning-rate"
        pipeline = InputPipeline(model, activation_cache, self.options.fine_tune_batch_size)
        validation_data = pipeline.dataset(data.validation)
        first_epoch, seed = checkpoint.head_epochs, run.options.training.seed
        for epoch in range(len(logger.epochs), first_epoch + self.options.fine_tune_epochs):
            if epoch - max(first_epoch, logger.best.epoch) >= self.head_config.patience:
                break
            _reseed(model, seed, epoch)
            with pipeline.reraise_cache_errors():
                model.fit(
                    pipeline.dataset(data.train, [seed, epoch]),
                    shuffle=False,  # the dataset is already shuffled
                    initial_epoch=epoch,
                    epochs=epoch + 1,
                    validation_data=validation_data,
                    callbacks=[keras.callbacks.TerminateOnNaN(), logger],
                    verbose=2,
                )
            checkpoint.save(model, logger)
        checkpoint.load(model, checkpoint.best_weights)

    def _compile(self, model: keras.Model, data: ImageDataset) -> None:
        options = self.options
        steps_per_epoch = math.ceil(data.train.size / options.fine_tune_batch_size)
        num_steps = steps_per_epoch * options.fine_tune_epochs
        warmup_steps = num_steps // 10
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0,
            num_steps - warmup_steps,
            warmup_target=options.fine_tune_learning_rate,
            warmup_steps=warmup_steps,
        )
        last_layer = self.freeze_point.backbone.inference_model.layers[-1]
        optimizer = keras.optimizers.Adam(schedule)
        if options.fine_tune_weight_decay:
            optimizer = keras.optimizers.AdamW(schedule, options.fine_tune_weight_decay)
            optimizer.exclude_from_weight_decay([x for x in model.variables if x.ndim == 1])
        model.compile(
            optimizer=devices.with_loss_scaling(optimizer, last_layer),
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
            metrics=["accuracy"],
        )
        model.optimizer.build(model.trainable_variables)


def _reseed(model: keras.Model, seed: int, epoch: int) -> None:
    """Reseed dropout and augmentation, so that a resumed run equals an uninterrupted one.

    Each step increases the state of a seed generator; the states of two epochs differ by more than
    an epoch has steps.
    """
    seed_states = [v for v in model.variables if v.path.endswith("seed_generator_state")]
    for i, variable in enumerate(seed_states):
        variable.assign(np.array([seed + i, epoch << 20], variable.dtype))


def create_fine_tuner(
    options: ScriptOptions, backbone: Backbone, data: ImageDataset
) -> FineTuner | None:
    """Create the fine-tuner, including any checkpoint to resume from; None if not requested.

    Args:
        options: Options of resnet50_fashion.py.
        backbone: Backbone to fine-tune.
        data: Data set to train on.

    Raises:
        UsageError: If there are fewer blocks than requested, or a checkpoint does not match.
        UserError: If the checkpoint cannot be read.
    """
    num_blocks = options.fine_tuning.fine_tune_blocks
    if not num_blocks:
        return None
    train_batch_norm = options.fine_tuning.fine_tune_batch_norm == "trained"
    freeze_point = FreezePoint.from_end(
        num_blocks, backbone, options.head.feature_names, train_batch_norm
    )
    needed = options.fine_tuning.fine_tune_batch_size * freeze_point.activation_bytes
    # Gradients need memory too, but not all activations are kept.
    devices.warn_if_memory_is_low(needed, "--fine-tune-batch-size")
    checkpoint = load_or_create_checkpoint(options, data, backbone)
    return FineTuner(options.fine_tuning, options.head, freeze_point, checkpoint)
