"""Input pipeline of fine-tuning: batches of images, or of cached activations."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from fashion.backbones import feature_cache
from fashion.backbones.feature_cache import FeatureCache
from fashion.datasets.dataset import Split
from fashion.errors import UserError

import keras
import numpy as np
import tensorflow as tf

SHUFFLED_CHUNKS = 8  # chunks whose images are shuffled together


class InputPipeline:
    """Datasets of a split for a model that takes images, or activations from a cache."""

    def __init__(self, model: keras.Model, cache: FeatureCache | None, batch_size: int) -> None:
        """Create a pipeline.

        Args:
            model: Model to train. Its inputs are {name: float16 (N, …)} with a cache, else uint8
                (N, 28, 28) images.
            cache: Cache of the model's inputs, if any.
            batch_size: Images per batch.
        """
        self.inputs, self.cache, self.batch_size = model.input, cache, batch_size
        self.num_classes: int = model.output.shape[-1]
        self.cache_error: UserError | None = None

    def dataset(self, split: Split, seed: list[int] | None = None) -> tf.data.Dataset:
        """Return batches of inputs and one-hot labels, float32 (N, classes), for one epoch.

        With a seed, the chunks are shuffled, and then the images of eight chunks at a time. Each
        epoch has its own seed, so a resumed run sees the same order as an uninterrupted one.
        """
        one_hot = keras.utils.to_categorical(split.labels, self.num_classes)
        chunk_size = feature_cache.CHUNK_SIZE
        starts, rng = np.arange(0, split.size, chunk_size), np.random.default_rng(seed)
        if seed is not None:
            rng.shuffle(starts)

        def chunks() -> Iterator[tuple]:
            for start in starts.tolist():
                rows = slice(start, min(start + chunk_size, split.size))
                yield self._read_inputs(split, rows), one_hot[rows]

        inputs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), self.inputs)
        signature = inputs, tf.TensorSpec((None, one_hot.shape[1]))
        dataset = tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()
        if seed is not None:
            buffer_size, shuffle_seed = SHUFFLED_CHUNKS * chunk_size, int(rng.integers(2**31))
            dataset = dataset.shuffle(buffer_size, shuffle_seed, reshuffle_each_iteration=False)
        num_batches = math.ceil(split.size / self.batch_size)
        dataset_options = tf.data.Options()
        dataset_options.autotune.enabled = False
        return (
            dataset.batch(self.batch_size)
            .apply(tf.data.experimental.assert_cardinality(num_batches))
            .prefetch(2)
            .with_options(dataset_options)
        )

    def _read_inputs(self, split: Split, rows: slice) -> Any:
        """Return the model's inputs of some images of a split."""
        if not self.cache:
            return split.images[rows]
        try:
            chunk = self.cache.read_chunk(split, rows.start)
        except UserError as error:
            self.cache_error = error
            raise
        return {name: chunk[name] for name in self.inputs}

    @contextlib.contextmanager
    def reraise_cache_errors(self) -> Iterator[None]:
        """Re-raise a cache `UserError` that TensorFlow has wrapped in an `OpError`."""
        try:
            yield
        except tf.errors.OpError:
            if self.cache_error:
                raise self.cache_error from None
            raise
