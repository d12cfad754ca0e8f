"""Errors in the loading of a trained model, for each action that uses it."""

import keras
import pytest

import cnn_basic
import resnet50_fashion

ACTIONS = [("--predict", "shoe.jpg"), ("--export", "savedmodel")]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("script", [cnn_basic, resnet50_fashion])
def test_without_model_prints_how_to_train_one(script, action, command_line, tmp_path):
    name = f"{script.__name__}.py"
    done = command_line(script, *action, "--output-dir", "my model")
    assert done.code == 1
    expected = (
        f"my model/model.keras does not exist; `python {name} --output-dir 'my model'` trains a "
        "model"
    )
    assert done.err == f"{name}: error: {expected}\n"
    done = command_line(script, *action)
    expected = (
        f"outputs/{script.__name__}/model.keras does not exist; `python {name}` trains a model"
    )
    assert done.err == f"{name}: error: {expected}\n"
    assert not (tmp_path / "my model").exists() and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_damaged_model_raises(action, command_line, tmp_path):
    path = tmp_path / "outputs" / "cnn_basic" / "model.keras"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    done = command_line(cnn_basic, *action)
    assert done.code == 1
    assert done.err.splitlines()[-1] == (
        "cnn_basic.py: error: outputs/cnn_basic/model.keras cannot be loaded: File is not a zip "
        "file; if a newer Keras saved it, upgrade Keras, else train another model with `python "
        "cnn_basic.py`"
    )


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("layers", [[keras.Input((28, 28)), keras.layers.Flatten()], []])
def test_model_of_another_kind_raises(layers, action, command_line, tmp_path):
    (tmp_path / "outputs" / "cnn_basic").mkdir(parents=True)
    path = tmp_path / "outputs" / "cnn_basic" / "model.keras"
    keras.Sequential(layers).save(path)
    done = command_line(cnn_basic, *action)
    assert done.code == 1
    expected = "outputs/cnn_basic/model.keras is not a model of these scripts"
    expected += "; `python cnn_basic.py` trains one"
    assert done.err == f"cnn_basic.py: error: {expected}\n"
