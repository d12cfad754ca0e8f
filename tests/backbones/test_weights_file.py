"""Weights files in both of Keras' layouts."""

from fashion.backbones import architectures, weights_file

import h5py
import keras
import pytest
from helpers.networks import random_network

import common


@pytest.fixture(scope="module")
def network():
    """A MobileNetV2 with random weights and BatchNormalization statistics."""
    return random_network("mobilenetv2", 64)


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


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """A directory with files of equal weights in both of Keras' layouts."""
    directory = tmp_path_factory.mktemp("weights")
    network.save_weights(directory / "current.weights.h5")
    write_legacy(network, directory / "legacy.h5")
    return directory


def weights_sha256(network):
    return architectures.Backbone("mobilenetv2", network, network, "float32").weights_sha256


def test_load_weights_of_both_layouts_ignores_the_file_name(network, weights, tmp_path):
    expected = weights_sha256(network)
    for name, other in ("current.weights.h5", "some.h5"), ("legacy.h5", "some.weights.h5"):
        (tmp_path / other).write_bytes((weights / name).read_bytes())
        for path in weights / name, tmp_path / other:
            loaded = architectures.build_network("mobilenetv2", 64, str(path), seed=1)
            assert weights_sha256(loaded) == expected
            assert not loaded.trainable_weights


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    "layout", [pytest.param("current.weights.h5", marks=pytest.mark.slow), "legacy.h5"]
)
def test_weights_of_another_network_raise_with_a_layer_name(layout, tmp_path):
    other = keras.applications.ResNet101(include_top=False, weights=None, input_shape=(64, 64, 3))
    path = tmp_path / layout
    write_legacy(other, path) if layout == "legacy.h5" else other.save_weights(path)
    with pytest.raises(
        common.UserError,
        match=r"conv[45]_block\d+_1_(conv|bn).*; the weights of resnet50 with include_top=False",
    ) as e:
        architectures.build_network("resnet50", 64, str(path), seed=0)
    assert len(str(e.value).splitlines()) == 1


def test_unreadable_weights_raise(network, tmp_path):
    (tmp_path / "junk.h5").write_bytes(b"junk")
    for path in tmp_path / "junk.h5", tmp_path / "none.h5", tmp_path:
        with pytest.raises(
            common.UserError, match=f"^--weights {path}: (cannot be read|no such file)"
        ):
            weights_file.load_weights(network, str(path))
