"""Networks, their blocks and stages, weights files, and the key of the feature cache."""

import hashlib
import re
import sys

from fashion.backbones import backbone
from fashion.backbones.backbone import ARCHITECTURES, load_backbone
from fashion.errors import UsageError, UserError

import h5py
import keras
import pytest


@pytest.fixture(scope="module")
def mobilenet():
    return load_backbone("mobilenetv2", 64, "random", seed=0)


@pytest.fixture(scope="module")
def random_backbones():
    """Backbones with random weights at their training resolution."""
    return {name: load_backbone(name, None, "random", seed=0) for name in ARCHITECTURES}


@pytest.mark.parametrize(
    ("name", "stage", "shape", "last_block", "num_layers", "num_blocks"),
    [
        ("resnet50", "conv4", (14, 14, 1024), r"conv4_block6_\d_(conv|bn)", 6, 13),
        ("resnet50", "conv5", (7, 7, 2048), r"conv5_block3_\d_(conv|bn)", 6, 16),
        ("efficientnetv2b0", "conv4", (14, 14, 672), r"block(5e_\w+|6a_expand_(conv|bn))", 10, 13),
        ("efficientnetv2b0", "conv5", (7, 7, 1280), r"block6h_\w+|top_(conv|bn)", 10, 21),
        ("mobilenetv2", "conv4", (14, 14, 576), r"block_(12_\w+|13_expand(_BN)?)", 8, 13),
        ("mobilenetv2", "conv5", (7, 7, 1280), r"block_16_\w+|Conv_1(_bn)?", 8, 17),
        ("inceptionv3", "conv4", (17, 17, 768), r"(conv2d|batch_normalization)_\d+", 20, 10),
        ("inceptionv3", "conv5", (8, 8, 2048), r"(conv2d|batch_normalization)_\d+", 18, 13),
    ],
)
def test_stages_and_their_last_blocks_are_as_documented(
    name, stage, shape, last_block, num_layers, num_blocks, random_backbones
):
    built = random_backbones[name]
    layers = {layer.name: layer for layer in built.network.layers}
    assert layers[built.architecture.stages[stage]].output.shape[1:] == shape
    names = ("conv3_3x3", f"{stage}_avg")  # the last one counts
    one, two, *_, most = (
        layers.keys() & built.last_blocks(names, n) for n in (1, 2, num_blocks - 1, num_blocks)
    )
    assert one < two < most and built.architecture.stages[stage] in one
    with_weights = [layer for layer in one if layers[layer].weights]
    assert len(with_weights) == num_layers
    assert all(re.fullmatch(last_block, layer) for layer in with_weights)
    message = rf"^--fine-tune-blocks {num_blocks + 1}: .* at most {num_blocks} blocks can be "
    with pytest.raises(UsageError, match=message):
        built.last_blocks(names, num_blocks + 1)


def test_key_contains_version_network_size_precision_and_weights(mobilenet, monkeypatch, capsys):
    content = b"".join(array.tobytes() for array in mobilenet.network.get_weights())
    sha256 = mobilenet.weights_sha256
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert mobilenet.key == f"v1-mobilenetv2-64-float32-{sha256[:16]}"
    larger = load_backbone("mobilenetv2", 96, "random", seed=1)
    assert larger.weights_sha256 != sha256
    assert larger.key == f"v1-mobilenetv2-96-float32-{larger.weights_sha256[:16]}"
    warning = "WARNING: --weights random: mobilenetv2 is randomly initialized, not pretrained."
    assert capsys.readouterr().out.splitlines() == [warning]
    assert not larger.network.trainable_weights
    monkeypatch.setattr(backbone, "FEATURES_VERSION", 2)
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert mobilenet.key == f"v2-mobilenetv2-64-bfloat16-{sha256[:16]}"


def test_too_small_image_size_raises_usage_error():
    with pytest.raises(UsageError, match=r"^--image-size 31: Input size must be at least 32"):
        load_backbone("resnet50", 31, "random", seed=0)


def test_imagenet_weights_offline_raise_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="Connection refused") as error:
        load_backbone("resnet50", None, "imagenet", seed=0)
    message = str(error.value)
    assert ARCHITECTURES["resnet50"].weights_url in message
    assert str(tmp_path / "models") in message and "--weights PATH" in message
    assert len(message.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_weights_url_is_the_one_keras_downloads(name, monkeypatch):
    def get_file(fname, origin, **kwargs):
        raise InterruptedError(origin)

    architecture = ARCHITECTURES[name]
    module = sys.modules[architecture.build.__module__]
    monkeypatch.setattr(module.file_utils, "get_file", get_file)
    with pytest.raises(InterruptedError) as error:
        architecture.build(include_top=False, weights="imagenet", input_shape=(224, 224, 3))
    assert re.sub("/+", "/", str(error.value)) == re.sub("/+", "/", architecture.weights_url)


def write_legacy(model, path):
    """Write weights in the layout of Keras 1 and 2, which keras.applications downloads."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value


def test_weights_of_both_layouts_are_loaded_from_any_file_name(mobilenet, tmp_path):
    mobilenet.network.save_weights(tmp_path / "current.weights.h5")
    (tmp_path / "current.weights.h5").rename(tmp_path / "some.h5")
    write_legacy(mobilenet.network, tmp_path / "legacy.weights.h5")
    for name in "some.h5", "legacy.weights.h5":
        loaded = load_backbone("mobilenetv2", 64, str(tmp_path / name), seed=1)
        assert loaded.weights_sha256 == mobilenet.weights_sha256
        assert not loaded.network.trainable_weights


def check_error(path, message, network):
    with pytest.raises(UserError, match=f"^--weights {path}: .*{message}") as error:
        backbone._load_weights(network, path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.h5", None, "No such file"),
        ("junk.h5", b"junk", "this is no HDF5 file"),
        ("resnet50-0676ba61.pth", b"PK" + bytes(28) + b"archive/data.pkl", "a file of PyTorch"),
        ("resnet50-19c8e357.pth", b"\x80\x02\x8a\nl\xfc\x9cF", "a file of PyTorch"),
        ("model.safetensors", b"\x10\1" + bytes(6) + b'{"fc.bias":{', "this is a safetensors file"),
        ("page.h5", b"\n<!DOCTYPE html>", "this is a web page"),
        ("pointer.h5", b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    ],
)
def test_other_files_raise_with_what_they_are(name, content, message, mobilenet, tmp_path):
    if content:
        (tmp_path / name).write_bytes(content)
    check_error(tmp_path / name, message, mobilenet.network)
    check_error(tmp_path, "Is a directory", mobilenet.network)


@pytest.mark.filterwarnings("error::UserWarning")
def test_weights_of_another_network_and_whole_models_raise(mobilenet, tmp_path):
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    write_legacy(other, tmp_path / "legacy.h5")
    other.save_weights(tmp_path / "current.weights.h5")
    for name in "model.h5", "model.keras":
        other.save(tmp_path / name)
    needed = ".*; the weights of mobilenetv2.* with include_top=False are needed$"
    for name, message in (
        ("legacy.h5", "expected 104 layers, found 1"),
        ("current.weights.h5", "Layer 'Conv1' expected 1 variables"),
        ("model.h5", "this is a whole model"),
        ("model.keras", "this is a whole model"),
    ):
        check_error(tmp_path / name, message + needed, mobilenet.network)
    truncated = tmp_path / "truncated.h5"
    truncated.write_bytes((tmp_path / "model.h5").read_bytes()[:3000])
    check_error(truncated, "cannot be read: .*truncated", mobilenet.network)
