"""The table of networks, their weights from files, and what tells one network from another."""

import dataclasses
import hashlib
import re
import time

from fashion.backbones import architectures

import h5py
import keras
import numpy as np
import pytest
from conftest import SAMPLE, random_network

import common
import resnet50_fashion


@pytest.fixture(scope="module")
def network():
    """A random MobileNetV2 whose BatchNormalization layers do something."""
    return random_network("mobilenetv2", 64)


def write_legacy(model, path):
    """The layout of Keras 1 and 2, in which keras.applications' own downloads are."""
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
    """Files of the same weights in both of Keras' layouts."""
    folder = tmp_path_factory.mktemp("weights")
    network.save_weights(folder / "current.weights.h5")
    write_legacy(network, folder / "legacy.h5")
    return folder


def digest(network):
    return architectures.Backbone("mobilenetv2", network, network, "float32").digest


@pytest.mark.parametrize(
    ("name", "conv3", "conv4", "conv5", "blocks"),
    [
        ("resnet50", (28, 512), (14, 1024), (7, 2048), 16),
        ("efficientnetb0", (28, 40), (14, 112), (7, 1280), 16),
        ("efficientnetv2b0", (28, 48), (14, 112), (7, 1280), 21),
        ("inceptionv3", (35, 288), (17, 768), (8, 2048), 13),
        ("mobilenetv2", (28, 32), (14, 96), (7, 1280), 17),
        ("convnexttiny", (28, 192), (14, 384), (7, 768), 18),
    ],
)
def test_stages_and_blocks_are_the_papers(name, conv3, conv4, conv5, blocks):
    size = architectures.ARCHITECTURES[name].image_size
    network = architectures.load_network(name, size, "none", seed=0)
    backbone = architectures.Backbone(name, network, network, "float32")
    assert len(backbone.blocks) == blocks + 1
    assert list(backbone.stages) == ["conv3", "conv4", "conv5"]
    shapes = [
        architectures.activations_at(network, block).shape[2:] for block in backbone.stages.values()
    ]
    assert shapes == [conv3, conv4, conv5]


def test_stages_of_the_resnet50_end_where_its_blocks_do():
    network = random_network("resnet50", 64)
    backbone = architectures.Backbone("resnet50", network, network, "float32")
    at = {
        stage: architectures.activations_at(network, block)
        for stage, block in backbone.stages.items()
    }
    names = {"conv3": "conv3_block4_out", "conv4": "conv4_block6_out", "conv5": "conv5_block3_out"}
    assert at.keys() == names.keys()
    assert all(at[stage] is network.get_layer(names[stage]).output for stage in names)


def test_both_layouts_load_whatever_the_file_is_called(network, weights, tmp_path):
    expected = digest(network)
    for name, other in ("current.weights.h5", "some.h5"), ("legacy.h5", "some.weights.h5"):
        (tmp_path / other).write_bytes((weights / name).read_bytes())
        for path in weights / name, tmp_path / other:
            loaded = architectures.load_network("mobilenetv2", 64, str(path), seed=1)
            assert digest(loaded) == expected
            assert not loaded.trainable_weights


def test_digest_is_of_all_the_weights_values_and_of_nothing_else(network):
    content = b"".join(array.tobytes() for array in network.get_weights())
    assert digest(network) == hashlib.sha256(content).hexdigest()
    same, other = (architectures.load_network("mobilenetv2", 64, "none", seed) for seed in (0, 1))
    assert digest(same) == digest(architectures.load_network("mobilenetv2", 96, "none", 0))
    assert digest(same) != digest(other)


def test_cache_is_of_a_network_a_size_a_precision_and_weights(network):
    backbone = architectures.Backbone("mobilenetv2", network, network, "float32")
    names = [
        backbone.cache_name,
        dataclasses.replace(backbone, precision="bfloat16").cache_name,
        dataclasses.replace(backbone, network=random_network("mobilenetv2", 96)).cache_name,
        dataclasses.replace(
            backbone, network=architectures.load_network("mobilenetv2", 64, "none", 0)
        ).cache_name,
    ]
    assert names[0] == f"mobilenetv2-64-bilinear-float32-{backbone.digest[:16]}"
    assert names[2].startswith("mobilenetv2-96-")
    assert len(set(names)) == 4
    assert backbone.record("some.h5") == {
        "source": "some.h5",
        "sha256": backbone.digest,
        "precision": "float32",
    }


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("layout", ["current.weights.h5", "legacy.h5"])
def test_weights_that_do_not_fit_are_an_error_that_names_a_layer(layout, tmp_path):
    other = keras.applications.ResNet101(include_top=False, weights=None, input_shape=(64, 64, 3))
    path = tmp_path / layout
    write_legacy(other, path) if layout == "legacy.h5" else other.save_weights(path)
    with pytest.raises(
        common.UserError, match=r"not the weights of .*conv[45]_block\d+_1_(conv|bn)"
    ) as e:
        architectures.load_network("resnet50", 64, str(path), seed=0)
    assert len(str(e.value).splitlines()) == 1


def test_unreadable_weights_are_an_error(network, tmp_path):
    (tmp_path / "junk.h5").write_bytes(b"junk")
    for path in tmp_path / "junk.h5", tmp_path / "none.h5", tmp_path:
        with pytest.raises(common.UserError, match=f"--weights {path}: cannot be read"):
            architectures.load_weights(network, str(path))


def test_random_weights_are_said_loudly_and_are_the_seeds(capsys):
    networks = [architectures.load_network("mobilenetv2", 32, "none", seed) for seed in (0, 0, 1)]
    warning = "WARNING: --weights none: the mobilenetv2 is RANDOM"
    assert capsys.readouterr().out.count(warning) == 3
    first, same, other = ([w.numpy() for w in network.weights] for network in networks)
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_image_size_that_is_too_small_is_a_usage_error():
    with pytest.raises(
        common.UsageError, match=r"^--image-size 31: Input size must be at least 32"
    ):
        architectures.load_network("resnet50", 31, "none", seed=0)


def test_imagenet_weights_without_network_are_an_error_with_the_way_out(
    command_line, tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    start = time.monotonic()
    done = command_line(resnet50_fashion, "--data-dir", SAMPLE)
    assert done.code == 1
    assert time.monotonic() - start < 30
    error = done.err[done.err.index("resnet50_fashion.py: error: ") :]
    assert "Connection refused" in error and "--weights PATH" in error
    url = architectures.ARCHITECTURES["resnet50"].weights_url
    assert url in error and str(tmp_path / "keras" / "models") in error
    assert len(error.splitlines()) == 2
    assert not list((tmp_path / "outputs" / "resnet50_fashion").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(architectures.ARCHITECTURES))
def test_named_download_is_kerass_own(name, monkeypatch, tmp_path):
    """What the way out names is what Keras itself would fetch."""
    fetched = []

    def get_file(fname, origin, **more):
        fetched.append(origin)
        raise InterruptedError

    architecture = architectures.ARCHITECTURES[name]
    module = __import__("sys").modules[architecture.build.__module__]
    monkeypatch.setattr(module.file_utils, "get_file", get_file)
    with pytest.raises(InterruptedError):
        size = (architecture.image_size, architecture.image_size, 3)
        architecture.build(include_top=False, weights="imagenet", input_shape=size)
    assert [re.sub("/+", "/", url) for url in fetched] == [
        re.sub("/+", "/", architecture.weights_url)
    ]
