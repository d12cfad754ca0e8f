"""Code shared by both scripts: data, RGB images, batches, early stopping, W&B settings."""

from fashion.tracking.run import PreviousRun

import keras
import numpy as np
import pytest
from helpers.epochs import make_epoch
from helpers.scripts import SAMPLE, SAMPLE_SIZES, parse_options
from PIL import Image

import cnn_basic
import common


def test_load_fashion_mnist_prints_sizes_and_source(capsys):
    options = common.DataOptions(data_dir=SAMPLE, train_size=30)
    data = common.load_fashion_mnist(options)
    assert {name: split.size for name, split in data.splits.items()} == SAMPLE_SIZES | {"train": 30}
    expected = f"Data: 30 training, 160 validation and 400 test images from {SAMPLE} (--data-dir"
    assert capsys.readouterr().out.startswith(expected)


def test_to_rgb_equals_pillow(sample):
    images = sample.test.images[:20]
    inputs = keras.Input((28, 28), dtype="uint8")
    upscaled = keras.Model(inputs, common.to_rgb(inputs, 224)).predict(images, verbose=0)
    assert upscaled.dtype == np.float32 and upscaled.shape == (20, 224, 224, 3)
    for image, rgb in zip(images, upscaled, strict=True):
        expected = Image.fromarray(image.astype("float32")).resize((224, 224), Image.BILINEAR)
        for channel in range(3):
            np.testing.assert_allclose(rgb[..., channel], np.asarray(expected), atol=1e-3)


# Several small batches are gathered per call.
@pytest.mark.parametrize(("batch_size", "sizes"), [(20, [20] * 55 + [5]), (700, [700, 405])])
def test_make_dataset_contains_each_input_once_in_a_new_order_per_epoch(batch_size, sizes):
    num_inputs = 1105
    inputs = np.arange(num_inputs, dtype="float16")[:, None]
    labels = np.arange(num_inputs) + 100

    def epochs(seed):
        dataset = common.make_dataset(inputs, labels, batch_size, seed)
        orders = []
        for _ in range(2):
            batches = list(dataset.as_numpy_iterator())
            assert [len(part) for part, _ in batches] == sizes == sizes[: len(dataset)]
            assert batches[0][0].dtype == np.float16
            values = np.concatenate([part[:, 0] for part, _ in batches]).astype(int)
            assert (np.concatenate([part for _, part in batches]) == values + 100).all()
            assert sorted(values) == list(range(num_inputs))
            orders.append(values.tolist())
        return orders

    first = epochs(seed=0)
    assert first[0] != first[1] and list(range(num_inputs)) not in first
    assert epochs(seed=0) == first
    assert epochs(seed=1) != first
    assert epochs(seed=None) == [list(range(num_inputs))] * 2


@pytest.mark.parametrize(
    ("accuracies", "patience", "best", "num_epochs"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.2], 5, 1, 5),
        ([0.1, 0.3, 0.2, 0.3, 0.2], 2, 1, 4),
        ([0.1, 0.2, 0.3], 1, 2, 3),
    ],
)
def test_early_stopping_restores_the_first_best_epoch(accuracies, patience, best, num_epochs):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    callback = common.early_stopping(patience)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, accuracy in enumerate(accuracies):
        model.set_weights([np.full((1, 1), epoch)])
        callback.on_epoch_end(epoch, {"val_accuracy": accuracy})
        if model.stop_training:
            break
    callback.on_train_end()
    assert epoch + 1 == num_epochs
    assert model.get_weights()[0] == best


def test_start_wandb_groups_by_training_set_and_continues_a_previous_run(
    monkeypatch, sample, tmp_path
):
    calls = []
    argv = ("--output-dir", tmp_path, "--project", "mine")
    with common.Run(parse_options(cnn_basic, *argv)) as run:
        monkeypatch.setattr(
            run,
            "start_wandb",
            lambda data, previous, **settings: calls.append((previous, settings)),
        )
        common.start_wandb(run, sample)
        previous = PreviousRun("abcd1234", [make_epoch(1, 0.5)])
        common.start_wandb(run, sample, previous)
    expected = {
        "project": "mine",
        "group": "1760-train-images",
        "job_type": "train",
        "tags": ["fashion-mnist"],
        "id": None,
        "resume": None,
    }
    assert calls == [
        (None, expected),
        (previous, expected | {"id": "abcd1234", "resume": "allow"}),
    ]
