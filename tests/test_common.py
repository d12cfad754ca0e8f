"""Code shared by both scripts: data, batches, early stopping, the command line."""

import keras
import numpy as np
import pytest
from helpers.scripts import SAMPLE, parse_options

import cnn_basic
import common


def test_load_fashion_mnist_prints_sizes_and_source(capsys):
    options = parse_options(cnn_basic, "--data-dir", SAMPLE, "--train-size", 30)
    data = common.load_fashion_mnist(options)
    sizes = {"train": 30, "validation": 160, "test": 400}
    assert {name: split.size for name, split in data.splits.items()} == sizes
    expected = f"Data: 30 training, 160 validation and 400 test images from {SAMPLE} (--data-dir"
    assert capsys.readouterr().out.startswith(expected)


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


@pytest.mark.parametrize(("patience", "num_epochs"), [(5, 5), (2, 4)])
def test_early_stopping_restores_the_first_best_epoch(patience, num_epochs):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    callback = common.early_stopping(patience)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, accuracy in enumerate([0.1, 0.3, 0.2, 0.3, 0.2]):
        model.set_weights([np.full((1, 1), epoch)])
        callback.on_epoch_end(epoch, {"val_accuracy": accuracy})
        if model.stop_training:
            break
    callback.on_train_end()
    assert (epoch + 1, model.get_weights()[0]) == (num_epochs, 1)


@pytest.fixture
def calls(monkeypatch):
    """The actions of a command line, in order, instead of their execution."""
    names = []
    monkeypatch.setattr(cnn_basic, "main", lambda options: names.append("main"))
    monkeypatch.setattr(common.export, "export_model", lambda *args: names.append("export"))
    monkeypatch.setattr(common.predict, "predict_images", lambda *args: names.append("predict"))
    return names


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), ["main"]),
        (("--predict", "a.png"), ["predict"]),
        (("--predict", "a.png", "--export", "onnx", "litert"), ["export", "predict"]),
    ],
)
def test_run_script_trains_or_acts_on_the_model(argv, expected, calls, command_line, tmp_path):
    assert command_line(cnn_basic, "--output-dir", "here", *argv).code == 0
    assert calls == expected
    assert (tmp_path / "here").exists() == (expected == ["main"])  # claimed before the training


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--epochs 0", "--epochs: expected an integer >= 1, got '0'\nSee cnn_basic.py --help."),
        ("--data-dir data --output-dir data/new", "--output-dir"),
        ("--data-dir data --cache-dir data/new", "--cache-dir"),
        ("--output-dir data/image.png/run", "--output-dir"),
    ],
)
def test_run_script_checks_the_command_line_first(argv, message, calls, command_line, tmp_path):
    for name in "boots", "coats":
        (tmp_path / "data" / name).mkdir(parents=True)  # each class would be a directory
    (tmp_path / "data" / "image.png").touch()
    done = command_line(cnn_basic, *argv.split())
    assert done.code in (1, 2) and done.out == ""
    assert done.err.startswith(f"cnn_basic.py: error: {message}")
    assert calls == [] and not (tmp_path / "data" / "new").exists()
