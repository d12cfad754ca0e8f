"""Batches for fine-tuning: of images, or of activations that are kept on disk."""

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


class Batches:
    """Batches of a split for a model that takes its images or, from a cache, its activations."""

    def __init__(self, model: keras.Model, cache: FeatureCache | None, batch_size: int) -> None:
        """With a cache, the model takes {name: float16 (N, …)} of it, else uint8 (N, 28, 28)."""
        self.inputs, self.cache, self.batch_size = model.input, cache, batch_size
        self.classes: int = model.output.shape[-1]
        self.error: UserError | None = None

    def of(self, split: Split, seed: list[int] | None = None) -> tf.data.Dataset:
        """(inputs, one-hot labels float32 (N, classes)), each of the split's images once.

        With a seed they are shuffled: the files' order, and then images among those of eight files.
        Each epoch has a seed of its own, so that one after an interruption is as without.
        """
        one_hot = keras.utils.to_categorical(split.labels, self.classes)
        starts, rng = np.arange(0, split.size, feature_cache.CHUNK), np.random.default_rng(seed)
        if seed is not None:
            rng.shuffle(starts)

        def chunks() -> Iterator[tuple]:
            for start in starts.tolist():
                rows = slice(start, min(start + feature_cache.CHUNK, split.size))
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
                8 * feature_cache.CHUNK,
                seed=int(rng.integers(2**31)),
                reshuffle_each_iteration=False,
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
