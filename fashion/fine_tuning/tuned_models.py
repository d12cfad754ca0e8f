"""The models of a fine-tuning run, which share their weights."""

from typing import NamedTuple

from fashion import devices
from fashion.backbones.feature_cache import FeatureCache
from fashion.datasets.dataset import ImageDataset
from fashion.evaluation.embeddings import Predictions, with_embedding_output
from fashion.fine_tuning.freezing import FreezePoint
from fashion.fine_tuning.input_pipeline import InputPipeline

import keras
import numpy as np


class TunedModels(NamedTuple):
    """The models of a fine-tuning run, which share their weights.

    Attributes:
        full: uint8 (N, 28, 28) images → probabilities.
        frozen: Images → inputs of `trainable`.
        blocks: The unfrozen blocks, a part of `trainable`.
        trainable: Outputs of `frozen` → probabilities.
        activation_cache: Cache of the outputs of `frozen`, if they are cached.
    """

    full: keras.Model
    frozen: keras.Model
    blocks: keras.Model
    trainable: keras.Model
    activation_cache: FeatureCache | None

    @property
    def pipeline_model(self) -> keras.Model:
        """The model for the input pipeline's inputs: `trainable` with a cache, else `full`."""
        return self.trainable if self.activation_cache else self.full

    def fold(self, freeze_point: FreezePoint, head: keras.Model) -> "TunedModels":
        """Return models with folded batch normalization.

        The saved model is smaller and faster, and contains no custom layers.

        Args:
            freeze_point: Freeze point that the models were built for.
            head: Standardizer and classifier of the models.
        """
        blocks = freeze_point.fold_blocks(self.blocks)
        trainable = freeze_point.build_trainable(self.frozen, blocks, head)
        inputs, name = self.frozen.input, self.full.name
        full = keras.Model(inputs, trainable(self.frozen.output), name=name)
        return self._replace(full=full, blocks=blocks, trainable=trainable)

    def predict_splits(self, data: ImageDataset, average_flips: bool) -> dict[str, Predictions]:
        """Return probabilities and embeddings of each split.

        Args:
            data: Data set with the splits.
            average_flips: Whether to average over each image and its horizontal flip.
        """
        embedding_model = with_embedding_output(self.trainable)
        full_embedding_model = keras.Model(self.frozen.input, embedding_model(self.frozen.output))
        if not self.activation_cache:
            embedding_model = full_embedding_model
        pipeline, outputs = (
            InputPipeline(self.pipeline_model, self.activation_cache, batch_size=100),
            {},
        )
        with pipeline.reraise_cache_errors():
            for name, split in data.splits.items():
                outputs[name] = embedding_model.predict(pipeline.dataset(split), verbose=0)
        if average_flips:
            for name, split in data.splits.items():
                flipped = np.ascontiguousarray(split.images[:, :, ::-1])
                outputs[name] += devices.predict_in_batches(
                    full_embedding_model, flipped, batch_size=125
                )
                outputs[name] /= 2
        num_classes = len(data.class_names)
        return {
            name: Predictions.from_outputs(values, num_classes) for name, values in outputs.items()
        }
