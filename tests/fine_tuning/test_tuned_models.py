"""Folded models of runs with trained batch normalization."""

import csv

import keras
import numpy as np
import pytest
from helpers.data import load_sample
from helpers.networks import use_small_chunks, use_small_resnet
from helpers.scripts import SAMPLE, parse_options, train_in_process

import resnet50_fashion

ARGV = (
    *("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32"),
    *("--train-size", 60, "--validation-size", 20, "--test-size", 20, "--epochs", 1),
    *("--learning-rate", 1e-7, "--fine-tune-blocks", 2, "--fine-tune-epochs", 3),
    *("--fine-tune-batch-size", 20, "--fine-tune-learning-rate", 1e-3),
    *("--fine-tune-inputs", "augmented", "--fine-tune-batch-norm", "trained"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with trained batch normalization, whose best epoch is fine-tuned."""
    directory = tmp_path_factory.mktemp("trained")
    folders = ("--output-dir", directory / "output", "--cache-dir", directory / "cache")
    with pytest.MonkeyPatch.context() as patch:
        use_small_resnet(patch)
        use_small_chunks(patch)
        result = train_in_process(resnet50_fashion, *ARGV, *folders)
    assert result.metrics["best_epoch"] > 1
    return result


def test_saved_model_has_folded_batch_norm_and_reported_metrics(trained):
    (blocks,) = (layer for layer in trained.model.layers if isinstance(layer, keras.Model))
    for layer in blocks.layers:
        assert type(layer).__module__.startswith("keras.")
        assert not isinstance(layer, keras.layers.BatchNormalization)
    test = load_sample(train_size=60, validation_size=20, test_size=20).test
    probabilities = trained.model.predict(test.images, verbose=0)
    accuracy = np.mean(probabilities.argmax(axis=1) == test.labels)
    assert trained.metrics["test"]["accuracy"] == pytest.approx(accuracy)
    with open(trained.directory / "predictions.csv") as file:
        confidences = [float(row["confidence"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(confidences, probabilities.max(axis=1), atol=1e-4)


def test_reported_parameters_are_those_trained(trained, small_resnet):
    options = parse_options(resnet50_fashion, *ARGV)
    backbone = resnet50_fashion.load_backbone(options)
    first = backbone.model.get_layer(backbone.blocks[-3])
    names = [layer.name for layer in backbone.model.layers]
    layers = backbone.model.layers[names.index(first.name) :]
    norms = [x for x in layers if isinstance(x, keras.layers.BatchNormalization)]
    kernels = sum(int(np.prod(w.shape)) for x in layers for w in x.weights)
    moving = sum(2 * int(norm.gamma.shape[0]) for norm in norms)
    channels = backbone.model.output.shape[-1]
    classifier = channels * 512 + 512 + 512 * 10 + 10
    assert trained.metrics["parameters"]["trainable"] == kernels - moving + classifier
