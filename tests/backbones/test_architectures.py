"""Architectures, their stages, checksums of weights and names of cache directories."""

import dataclasses
import hashlib
import re
import time

from fashion.backbones import architectures

import numpy as np
import pytest
from helpers.networks import random_network
from helpers.scripts import SAMPLE

import common
import resnet50_fashion


@pytest.fixture(scope="module")
def network():
    """A MobileNetV2 with random weights and BatchNormalization statistics."""
    return random_network("mobilenetv2", 64)


def weights_sha256(network):
    return architectures.Backbone("mobilenetv2", network, network, "float32").weights_sha256


@pytest.mark.parametrize(
    ("name", "conv3", "conv4", "conv5", "blocks"),
    [
        ("resnet50", (28, 512), (14, 1024), (7, 2048), 16),
        ("efficientnetb0", (28, 240), (14, 672), (7, 1280), 16),
        ("efficientnetv2b0", (28, 192), (14, 672), (7, 1280), 21),
        ("inceptionv3", (35, 288), (17, 768), (8, 2048), 13),
        ("mobilenetv2", (28, 192), (14, 576), (7, 1280), 17),
        ("convnexttiny", (28, 192), (14, 384), (7, 768), 18),
    ],
)
def test_stages_and_blocks_are_the_published_ones(name, conv3, conv4, conv5, blocks):
    size = architectures.ARCHITECTURES[name].image_size
    network = architectures.build_network(name, size, "none", seed=0)
    backbone = architectures.Backbone(name, network, network, "float32")
    assert len(backbone.blocks) == blocks + 1
    assert list(backbone.block_after_stage) == ["conv3", "conv4", "conv5"]
    shapes = [
        backbone.stage_output(network, stage).shape[2:] for stage in backbone.block_after_stage
    ]
    assert shapes == [conv3, conv4, conv5]


def test_stages_of_resnet50_end_at_its_blocks():
    network = random_network("resnet50", 64)
    backbone = architectures.Backbone("resnet50", network, network, "float32")
    stages = backbone.block_after_stage
    outputs = {stage: backbone.stage_output(network, stage) for stage in stages}
    names = {"conv3": "conv3_block4_out", "conv4": "conv4_block6_out", "conv5": "conv5_block3_out"}
    assert outputs.keys() == names.keys()
    assert all(outputs[stage] is network.get_layer(names[stage]).output for stage in names)


def test_weights_sha256_is_the_checksum_of_all_weights(network):
    content = b"".join(array.tobytes() for array in network.get_weights())
    assert weights_sha256(network) == hashlib.sha256(content).hexdigest()
    same, other = (architectures.build_network("mobilenetv2", 64, "none", seed) for seed in (0, 1))
    assert weights_sha256(same) == weights_sha256(
        architectures.build_network("mobilenetv2", 96, "none", 0)
    )
    assert weights_sha256(same) != weights_sha256(other)


def test_cache_dir_name_contains_network_size_precision_and_weights(network):
    backbone = architectures.Backbone("mobilenetv2", network, network, "float32")
    names = [
        backbone.cache_dir_name,
        dataclasses.replace(backbone, precision="bfloat16").cache_dir_name,
        dataclasses.replace(backbone, model=random_network("mobilenetv2", 96)).cache_dir_name,
        dataclasses.replace(
            backbone, model=architectures.build_network("mobilenetv2", 64, "none", 0)
        ).cache_dir_name,
    ]
    assert names[0] == f"mobilenetv2-64-bilinear-expanded-float32-{backbone.weights_sha256[:16]}"
    assert names[2].startswith("mobilenetv2-96-")
    assert len(set(names)) == 4
    resnet50 = dataclasses.replace(backbone, name="resnet50")
    assert resnet50.cache_dir_name == names[0].replace(
        "mobilenetv2-64-bilinear-expanded", "resnet50-64-bilinear"
    )
    assert backbone.weights_metadata("some.h5") == {
        "source": "some.h5",
        "sha256": backbone.weights_sha256,
        "precision": "float32",
    }


def test_random_weights_warn_and_depend_on_seed(capsys):
    networks = [architectures.build_network("mobilenetv2", 32, "none", seed) for seed in (0, 0, 1)]
    warning = "WARNING: --weights none: mobilenetv2 is randomly initialized, not pretrained."
    assert capsys.readouterr().out.count(warning) == 3
    first, equal, other = ([w.numpy() for w in network.weights] for network in networks)
    assert all(np.array_equal(a, b) for a, b in zip(first, equal, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_too_small_image_size_raises_usage_error():
    with pytest.raises(
        common.UsageError, match=r"^--image-size 31: Input size must be at least 32"
    ):
        architectures.build_network("resnet50", 31, "none", seed=0)


def test_imagenet_weights_offline_raise_with_what_to_do(command_line, tmp_path, monkeypatch):
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
def test_weights_url_is_the_one_keras_downloads(name, monkeypatch, tmp_path):
    fetched = []

    def get_file(fname, origin, **kwargs):
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
