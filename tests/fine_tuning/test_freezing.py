"""A network cut in two is the network."""

from fashion import devices
from fashion.backbones import architectures
from fashion.backbones.architectures import Backbone
from fashion.evaluation.embeddings import answering
from fashion.fine_tuning.freezing import Cut

import keras
import numpy as np
import pytest
from conftest import random_network

import common
import resnet50_fashion

CASES = [
    ("resnet50", "conv5"),
    ("resnet50", "conv4_3x3"),
    *((name, "conv4") for name in architectures.ARCHITECTURES),
]
QUICK = ("resnet50", "conv5"), ("mobilenetv2", "conv4")


def linear_head(channels):
    """One that standardises nothing: features of random networks would be but rounding errors."""
    inputs = keras.Input((channels,))
    nothing = keras.Sequential([inputs, keras.layers.Identity()], name="standardiser")
    linear = keras.Sequential([inputs, keras.layers.Dense(10)], name="classifier")
    return keras.Sequential([nothing, linear])


@pytest.mark.parametrize(
    ("name", "features"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow, id="-".join(case))
        for case in CASES
    ],
)
def test_network_in_two_parts_is_the_network(name, features, sample, random_backbone):
    """Whatever the cut, before any training: lower and upper part together give what the head
    gives on the extractor's features."""
    names = resnet50_fashion.FEATURES[features]
    backbone = random_backbone(name, 96, "float32")
    extractor = resnet50_fashion.build_extractor(backbone, names)
    images = sample.test.images[:8]
    extracted = extractor.predict(images, verbose=0)
    values = np.concatenate([extracted[name] for name in names], axis=1)
    head = linear_head(values.shape[1])
    expected = head.predict(values, verbose=0)
    assert expected.std() > 0.01
    for unfreeze in 1, len(backbone.blocks) // 2:
        cut = Cut.before_last(unfreeze, backbone, names)
        lower, upper = cut.split(head)
        assert upper.trainable_weights
        both = upper.predict(lower.predict(images, verbose=0), verbose=0)
        np.testing.assert_allclose(both, expected, atol=0.01 * expected.std())
        # What its last layer sees is told, too, and is not what the head's own sees.
        outputs = answering(upper).predict(lower.predict(images, verbose=0), verbose=0)
        np.testing.assert_allclose(outputs[:, :10], both, rtol=1e-5)
        kernel, bias = head.layers[-1].get_weights()
        np.testing.assert_allclose(outputs[:, 10:] @ kernel + bias, both, rtol=1e-3, atol=1e-4)


def test_upper_part_trains_kernels_and_head_and_no_batch_normalisation(random_backbone):
    backbone = random_backbone("mobilenetv2", 96, "float32")
    names = ("conv4_avg", "conv4_max")
    head = linear_head(2 * 96)
    lower, upper = Cut.before_last(2, backbone, names).split(head)
    assert not lower.trainable_weights
    trained = {weight.path for weight in upper.trainable_weights}
    assert any("depthwise" in path for path in trained)
    assert not any("BN" in path for path in trained)
    norms = [x for x in upper.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 2 * 3 and not any(norm.trainable for norm in norms)
    for weight in head.trainable_weights:  # the head's own, and no copies
        assert any(weight is ours for ours in upper.trainable_weights)
    # In training, they normalise by what they have learnt, and learn nothing.
    before = [norm.moving_mean.numpy() for norm in norms]
    values = {k: np.ones((4, *v.shape[1:]), "float16") for k, v in upper.input.items()}
    np.testing.assert_allclose(
        upper(values, training=True), upper(values, training=False), rtol=1e-5, atol=1e-5
    )
    for norm, mean in zip(norms, before, strict=True):
        np.testing.assert_array_equal(norm.moving_mean, mean)


def test_upper_part_is_in_the_backbones_precision(random_backbone):
    for precision, policy in devices.DTYPES.items():
        backbone = random_backbone("mobilenetv2", 96, precision)
        lower, upper = Cut.before_last(1, backbone, ("conv5_avg",)).split(linear_head(1280))
        (convolution, *_) = (x for x in upper.layers if isinstance(x, keras.layers.Conv2D))
        assert convolution.dtype_policy.name == policy
        assert {value.dtype for value in lower.output.values()} == {"float16"}


def test_values_from_below_the_cut_are_the_features_that_the_head_sees(random_backbone):
    backbone = random_backbone("resnet50", 96, "float32")
    names = resnet50_fashion.FEATURES["conv4"]
    lower, _ = Cut.before_last(1, backbone, names).split(linear_head(512 + 2 * 1024))
    shapes = {name: value.shape[1:] for name, value in lower.output.items()}
    assert shapes == {"activations": (6, 6, 1024), "conv3_avg": (512,)}
    assert lower.name == "activations-12"  # of ResNet50's 16 blocks, conv4 ends with the 13th


@pytest.mark.parametrize(
    ("names", "blocks"),
    [(("conv5_avg",), 16), (("conv3_avg", "conv4_avg", "conv4_max"), 13), (("conv3_max",), 7)],
)
def test_no_more_blocks_than_there_are_before_the_features(names, blocks):
    network = random_network("resnet50", 64)
    backbone = Backbone("resnet50", network, network, "float32")
    assert Cut.before_last(blocks, backbone, names).block == backbone.blocks[0]
    assert Cut.before_last(1, backbone, names).block == backbone.blocks[blocks - 1]
    with pytest.raises(
        common.UsageError,
        match=f"^--fine-tune-blocks {blocks + 1}: only {blocks} blocks are before the features",
    ):
        Cut.before_last(blocks + 1, backbone, names)
