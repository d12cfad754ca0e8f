"""Caches, checkpoints and results of an earlier version are used by this one."""

import json
import shutil

from fashion.reporting.comparison import load_run_summary

import keras
import numpy as np
import pytest
from helpers.scripts import SAMPLE, cached_files

import resnet50_fashion

FILES = SAMPLE / "earlier_version"
# The options of the run that wrote the files.
ARGV = (
    *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32"),
    *("--train-size", 60, "--validation-size", 20, "--test-size", 20, "--epochs", 2),
    *("--fine-tune-blocks", 1, "--fine-tune-epochs", 4, "--fine-tune-batch-size", 20),
)


def test_cache_and_checkpoint_of_an_earlier_version_are_resumed(
    run_main, small_resnet, small_chunks, tmp_path, capsys
):
    if tuple(map(int, keras.version().split(".")[:2])) < (3, 15):
        pytest.skip("needs Keras 3.15")
    shutil.copytree(FILES / "cache", tmp_path / "cache")
    shutil.copytree(FILES / "checkpoint", tmp_path / "output" / "checkpoint")
    directories = ("--cache-dir", tmp_path / "cache", "--output-dir", tmp_path / "output")
    result = run_main(resnet50_fashion, *ARGV, *directories, "--resume")
    out = capsys.readouterr().out
    assert "Features: all cached in" in out and "Activations: all cached in" in out
    assert "Resuming after epoch 4." in out
    assert cached_files(tmp_path / "cache") == cached_files(FILES / "cache")
    metrics, history = json.loads((FILES / "expected.json").read_text())
    for epoch, expected in zip(result.history, history, strict=True):
        for name in "loss", "val_loss", "learning_rate":
            assert epoch[name] == pytest.approx(expected[name], rel=1e-3)
    assert result.metrics["best_epoch"] == metrics["best_epoch"]
    assert result.metrics["test"]["loss"] == pytest.approx(metrics["test"]["loss"], rel=1e-3)


def test_results_of_an_earlier_version_can_be_compared():
    """The first column of predictions.csv was "position"."""
    summary = load_run_summary(FILES / "run")
    indices, correct = summary.load_test_results()
    assert summary.model == "resnet50_fashion, fine-tuned"
    assert indices.shape == correct.shape == (20,)
    assert np.mean(correct) == pytest.approx(summary.test_accuracy)
