"""Fashion-MNIST above 90 %: a frozen, ImageNet-trained ResNet50 and a small head on top.

Each image goes through the ResNet50 once, enlarged to 224×224 RGB. The features that come out are
kept on disk, so that the head, and every later run with any head, trains in seconds. The saved
model is one whole: raw uint8 (N, 28, 28) images → probabilities (N, 10).
"""

import argparse
import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import common  # before Keras: it chooses the backend
import h5py
import keras
import numpy as np
import tensorflow as tf
import wandb

import predict
import report

# What the head can see: averages and maxima of stages' outputs over their positions. Fashion-MNIST
# is far from ImageNet: the last stage, made for ImageNet's classes, is not the best place to look.
FEATURES = {
    "conv5": ("conv5_avg",),  # what the backbone's own classifier sees; the published recipe
    "conv4": ("conv3_avg", "conv4_avg", "conv4_max"),
}


# ---------------------------------------------------------------------------------- backbone


def freeze(name: str, backbone: keras.Model, precision: str) -> keras.Model:
    """The frozen network with all that comes before it: uint8 (N, 28, 28) → last activations."""
    images = keras.Input((28, 28), dtype="uint8", name="images")
    rgb = BACKBONES[name].preprocess(common.to_rgb(images, backbone.input.shape[1]))
    folded = fold_batch_norm(backbone, rgb, DTYPES[precision])
    return keras.Model(images, activations_at(folded, ""))


def build_extractor(folded: keras.Model, stages: dict[str, str], last_stage: str) -> keras.Model:
    """The frozen part: uint8 (N, 28, 28) → {name: float16 (N, channels)}, as far as a stage.

    The names are conv3_avg, conv3_max, conv4_avg …: each channel's average or maximum over the
    positions of a stage's output, computed in float32 and kept as float16, within a saved model
    just as in the cache.
    """
    features = {}
    for stage in list(stages)[: list(stages).index(last_stage) + 1]:
        for kind, pooled in pool(activations_at(folded, stages[stage])).items():
            features[f"{stage}_{kind}"] = to_float16(pooled)
    return keras.Model(folded.input, features)


# ---------------------------------------------------------------------------------- features


# -------------------------------------------------------------------------------------- head


def build_standardiser(features: np.ndarray) -> keras.Model:
    """Makes features comparable: (N, channels) → float32 (N, channels).

    Their logarithm (of 1 + the absolute value, with its sign: most are small, a few huge) less its
    mean, by its standard deviation, both taken from `features`, the training images'.
    """
    standardise = keras.layers.Normalization(dtype="float32")
    # 10,000 images tell a mean and a variance well enough; in float16 the sums would overflow.
    some = features[:10_000].astype("float32")
    standardise.adapt(np.sign(some) * np.log1p(np.abs(some)))
    inputs = keras.Input(features.shape[1:], dtype="float32", name="features")
    logarithms = keras.ops.sign(inputs) * keras.ops.log1p(keras.ops.abs(inputs))
    # A channel that is constant in training has no deviation: without a bound, its values in other
    # images would be millions of deviations, more than float16 can hold.
    outputs = keras.ops.clip(standardise(logarithms), -10, 10)
    return keras.Model(inputs, outputs, name="standardiser")


def build_classifier(channels: int, dropout: float, precision: str) -> keras.Model:
    """The trained part: standardised float16 (N, channels) → float32 (N, 10) probabilities."""
    return keras.Sequential(
        [
            keras.Input((channels,), dtype="float16", name="standardised"),
            keras.layers.Dense(512, activation="relu", dtype=DTYPES[precision]),
            keras.layers.Dropout(dropout, dtype=DTYPES[precision]),
            keras.layers.Dense(10, activation="softmax", dtype="float32", name="probabilities"),
        ],
        name="classifier",
    )


def train(
    classifier: keras.Model,
    features: dict[str, np.ndarray],
    data: common.FashionMNIST,
    options: argparse.Namespace,
    log: report.EpochLog,
) -> None:
    """Trains by Adam on smoothed labels, the learning rate falling to 0 as a cosine.

    It ends with the weights of the best epoch. The losses of its log are of smoothed labels, too.
    """
    one_hot = {
        name: keras.utils.to_categorical(data.splits[name].labels, len(common.CLASS_NAMES))
        for name in ("train", "validation")
    }
    batches = common.shuffled_batches(
        features["train"], one_hot["train"], options.batch_size, options.seed
    )
    schedule = keras.optimizers.schedules.CosineDecay(
        options.learning_rate, len(batches) * options.epochs
    )
    classifier.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
        # Several GPUs cannot yet do several steps at once ("must feed a value for placeholder").
        steps_per_execution=20 if common.devices() == 1 else 1,
    )
    classifier.fit(
        batches,
        epochs=options.epochs,
        shuffle=False,  # they are
        validation_data=(features["validation"], one_hot["validation"]),
        validation_batch_size=1000,
        callbacks=[log, common.best_epoch(options.patience)],
        verbose=2,
    )


def assemble(extractor: keras.Model, names: Iterable[str], head: keras.Model) -> keras.Model:
    """The whole: uint8 (N, 28, 28) → probabilities (N, 10)."""
    features = [extractor.output[name] for name in names]
    joined = keras.ops.concatenate(features, axis=1) if len(features) > 1 else features[0]
    return keras.Model(extractor.input, head(joined), name="resnet50_fashion")


# -------------------------------------------------------------------------------- fine-tuning


# -------------------------------------------------------------------------------- checkpoint


# -------------------------------------------------------------------------------------- GPUs


def main() -> None:
    """Data → features, once → head → fine-tuning, if any → evaluation → output."""
    options = parse_options()
    if options.predict:
        return predict.predict(options)
    use_gpus(options.gpus)
    report.prepare_output(options.output_dir)
    record = report.new_record(options)
    seconds, names = record["seconds"], FEATURES[options.features]

    with common.timed(seconds, "data"):
        data = common.load_fashion_mnist(
            options.data_dir, options.train_size, options.validation_size, options.test_size
        )
        record["data"] = data.record()
    with common.timed(seconds, "backbone"):
        image_size = options.image_size or BACKBONES[options.backbone].image_size
        backbone = build_backbone(options.backbone, image_size, options.weights, options.seed)
        precision = resolve_precision(options.precision)
        frozen = freeze(options.backbone, backbone, precision)
        blocks = blocks_of(backbone, BACKBONES[options.backbone].block_starts)
        extractor = build_extractor(frozen, stages_of(backbone, blocks), options.features)
        cut = cut_before(backbone, blocks, names, options.fine_tune_blocks)
        digest = weights_digest(backbone)
        record["weights"] = {"source": options.weights, "sha256": digest, "precision": precision}
    state = load_checkpoint(options, record)

    with report.wandb_run(options, record, state.get("wandb_id")) as run:
        with common.timed(seconds, "extraction"):
            folder = f"{options.backbone}-{image_size}-bilinear-{precision}-{digest[:16]}"
            cache = options.cache_dir.absolute() / folder
            rate = extract_features(extractor, data.splits.values(), cache, run, "Features")
            record["extraction"] = {"images_per_second": rate}
            features = {
                name: read_features(split, cache, names) for name, split in data.splits.items()
            }
        with common.timed(seconds, "training"):
            standardiser = build_standardiser(features["train"])
            for name in features:
                features[name] = common.predict(standardiser, features[name], "float16")
            keras.utils.set_random_seed(options.seed)  # again: features may come from the cache
            channels = features["train"].shape[1]
            classifier = build_classifier(channels, options.dropout, precision)
            head = keras.Sequential([standardiser, classifier], name="head")
            log = report.EpochLog(run, state.get("rows", ()))
            if not state["last"]:
                train(classifier, features, data, options, log)
        if options.fine_tune_blocks:
            state = {"wandb_id": run.id, "head_epochs": len(log.rows)} | state
            record["fine_tuning"] = {"head_epochs": state["head_epochs"]}
            with common.timed(seconds, "activations"):
                lower, upper = split_network(backbone, frozen, blocks, cut, names, head, precision)
                model = keras.Model(lower.input, upper(lower.output), name="resnet50_fashion")
                if options.fine_tune_inputs == "cached":
                    trained, cache = upper, cache / lower.name
                    extract_features(lower, data.splits.values(), cache, run, "Activations")
                else:
                    trained, cache = model, None
            with common.timed(seconds, "fine_tuning"):
                fine_tune(trained, data, cache, options, log, state)
            with common.timed(seconds, "evaluation"), errors_of_reading():
                batches = functools.partial(
                    fine_tuning_batches, trained, cache=cache, batch_size=100
                )
                probabilities = {
                    name: trained.predict(batches(split=split), verbose=0)
                    for name, split in data.splits.items()
                }
        else:
            model = assemble(extractor, names, head)
            with common.timed(seconds, "evaluation"):
                probabilities = {
                    name: common.predict(classifier, features[name]) for name in data.splits
                }
        evaluations = {
            name: report.Evaluation(probabilities[name], split.labels)
            for name, split in data.splits.items()
        }
        comparison = report.save_results(options, run, record, evaluations, data, model, log)
        if options.fine_tune_blocks:
            write_state(options.output_dir / "checkpoint", state | {"finished": True})
    report.conclude(options, run, record, comparison)


if __name__ == "__main__":
    common.run_script(main)
