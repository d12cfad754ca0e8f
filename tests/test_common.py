"""Code shared by both scripts: batches, the command line."""

import numpy as np
import pytest

import cnn_basic
import common


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
