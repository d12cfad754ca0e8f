"""What both scripts say: data, RGB images, batches, the best epoch, the command line."""

import keras
import numpy as np
import pytest
from conftest import SAMPLE, SAMPLE_SIZES
from PIL import Image

import cnn_basic
import common


def test_data_are_loaded_with_a_line_that_says_what_and_whence(capsys):
    options = common.DataOptions(data_dir=SAMPLE, train_size=30)
    data = common.load_fashion_mnist(options)
    assert {name: split.size for name, split in data.splits.items()} == SAMPLE_SIZES | {"train": 30}
    expected = f"Data: 30 training, 160 validation and 400 test images from {SAMPLE} (--data-dir"
    assert capsys.readouterr().out.startswith(expected)


def test_rgb_is_what_pillow_makes_of_it(sample):
    images = sample.test.images[:20]
    inputs = keras.Input((28, 28), dtype="uint8")
    ours = keras.Model(inputs, common.to_rgb(inputs, 224)).predict(images, verbose=0)
    assert ours.dtype == np.float32 and ours.shape == (20, 224, 224, 3)
    for image, rgb in zip(images, ours, strict=True):
        by_pillow = Image.fromarray(image.astype("float32")).resize((224, 224), Image.BILINEAR)
        for channel in range(3):
            np.testing.assert_allclose(rgb[..., channel], np.asarray(by_pillow), atol=1e-3)


# Small ones are picked several at once.
@pytest.mark.parametrize(("size", "sizes"), [(20, [20] * 55 + [5]), (700, [700, 405])])
def test_batches_are_each_input_once_with_a_seed_in_another_order_each_epoch(size, sizes):
    count = 1105
    inputs = np.arange(count, dtype="float16")[:, None]
    labels = np.arange(count) + 100

    def epochs(seed):
        batches = common.batches(inputs, labels, size, seed)
        orders = []
        for _ in range(2):
            parts = list(batches.as_numpy_iterator())
            assert [len(part) for part, _ in parts] == sizes == sizes[: len(batches)]
            assert parts[0][0].dtype == np.float16
            values = np.concatenate([part[:, 0] for part, _ in parts]).astype(int)
            assert (np.concatenate([part for _, part in parts]) == values + 100).all()
            assert sorted(values) == list(range(count))
            orders.append(values.tolist())
        return orders

    first = epochs(seed=0)
    assert first[0] != first[1] and list(range(count)) not in first
    assert epochs(seed=0) == first
    assert epochs(seed=1) != first
    assert epochs(seed=None) == [list(range(count))] * 2


@pytest.mark.parametrize(
    ("accuracies", "patience", "best", "ended_after"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.2], 5, 1, 5),
        ([0.1, 0.3, 0.2, 0.3, 0.2], 2, 1, 4),
        ([0.1, 0.2, 0.3], 1, 2, 3),
    ],
)
def test_training_ends_with_the_weights_of_the_best_epoch(accuracies, patience, best, ended_after):
    """The first of the best; and after so many epochs without a better one."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    callback = common.best_epoch(patience)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, accuracy in enumerate(accuracies):
        model.set_weights([np.full((1, 1), epoch)])
        callback.on_epoch_end(epoch, {"val_accuracy": accuracy})
        if model.stop_training:
            break
    callback.on_train_end()
    assert epoch + 1 == ended_after
    assert model.get_weights()[0] == best


def test_wandb_run_has_the_group_of_its_training_images(monkeypatch, sample, tmp_path):
    told = []
    words = ("--output-dir", tmp_path, "--project", "mine")
    with common.Run(common.parse(cnn_basic.Options, "", list(map(str, words)))) as run:
        monkeypatch.setattr(run, "open_wandb", lambda data, **settings: told.append(settings))
        common.start_wandb(run, sample)
        resumed = common.Checkpoint(
            folder=tmp_path, config={}, learning_rate=1.0, epochs=[1, 2], wandb_id="abcd1234"
        )
        common.start_wandb(run, sample, resumed)
    new, again = told
    assert new == {
        "epochs": (),
        "project": "mine",
        "group": "1760-train-images",
        "job_type": "train",
        "tags": ["fashion-mnist"],
        "id": None,
        "resume": None,
    }
    assert again == new | {"epochs": [1, 2], "id": "abcd1234", "resume": "allow"}


def test_command_line_is_parsed_before_main_is_called(command_line, monkeypatch):
    seen = []
    monkeypatch.setattr(cnn_basic, "main", seen.append)
    done = command_line(cnn_basic, "--epochs", 3, "--output_dir=here")
    assert done == (0, "", "")
    (options,) = seen
    assert isinstance(options, cnn_basic.Options)
    assert (options.training.epochs, str(options.results.output_dir)) == (3, "here")
    assert command_line(cnn_basic, "--epochs", 0).code == 2
    assert command_line(cnn_basic, "--predict", "a.png").code == 1  # there is no model yet
    assert len(seen) == 1


def test_command_line_without_a_word_is_that_of_the_defaults(command_line, monkeypatch):
    seen = []
    monkeypatch.setattr(cnn_basic, "main", seen.append)
    assert command_line(cnn_basic) == (0, "", "")
    assert seen == [cnn_basic.Options()]
