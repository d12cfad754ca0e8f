"""Made-up results of a run."""

from pathlib import Path

from fashion.results.evaluation import Predictions
from fashion.run import EpochMetrics, Run

import numpy as np

import cnn_basic
from helpers.scripts import SAMPLE, parse_options


def make_epoch(epoch: int, val_accuracy: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        accuracy=0.5,
        loss=1.0,
        val_accuracy=val_accuracy,
        val_loss=1.0,
        learning_rate=1e-3,
        seconds=1.0,
    )


EPOCHS = [make_epoch(1, 0.25), make_epoch(2, 0.5), make_epoch(3, 0.375)]


def make_predictions(data, num_errors: int) -> dict[str, Predictions]:
    """Return predictions with `num_errors` errors, of different confidence, for each split."""
    rng = np.random.default_rng(0)
    predictions = {}
    for name, split in data.splits.items():
        labels = split.labels.copy()
        labels[:num_errors] = (labels[:num_errors] + rng.integers(1, 10, num_errors)) % 10
        probabilities = (np.eye(10)[labels] + rng.dirichlet(np.full(10, 0.3), split.size)) / 2
        embeddings = rng.normal(size=(split.size, 6)) + 2 * np.eye(10)[labels][:, :6]
        predictions[name] = Predictions(
            probabilities.astype("float32"), embeddings.astype("float16")
        )
    return predictions


def open_run(data, output_dir: Path, *argv: object) -> Run:
    """Return a run on the sample with `EPOCHS`, whose W&B run is disabled by default."""
    argv = ("--wandb", "disabled", "--data-dir", SAMPLE, "--output-dir", output_dir, *argv)
    run = Run(parse_options(cnn_basic, *argv), data)
    run.epoch_logger.epochs = EPOCHS
    return run
