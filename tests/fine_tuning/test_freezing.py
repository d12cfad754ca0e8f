"""Frozen and trainable parts together equal the complete network."""

import dataclasses

from fashion import devices
from fashion.backbones import architectures
from fashion.backbones.architectures import Backbone
from fashion.evaluation.embeddings import with_embedding_output
from fashion.fine_tuning.freezing import FreezePoint

import keras
import numpy as np
import pytest
from helpers.networks import linear_head, random_network

import common
import resnet50_fashion

CASES = [
    ("resnet50", "conv5"),
    ("resnet50", "conv4_3x3"),
    *((name, "conv4") for name in architectures.ARCHITECTURES),
]
QUICK = (("mobilenetv2", "conv4"),)  # the others take several seconds each


@pytest.mark.parametrize(
    ("name", "features"),
    [
        pytest.param(
            *case,
            marks=() if case in QUICK else (pytest.mark.slow, pytest.mark.versions),
            id="-".join(case),
        )
        for case in CASES
    ],
)
def test_split_model_equals_the_complete_network(name, features, sample, random_backbone):
    """For any freeze point, before training: compare with the head on the extracted features."""
    names = resnet50_fashion.FEATURE_SETS[features]
    backbone = random_backbone(name, 96, "float32")
    extractor = resnet50_fashion.build_feature_extractor(backbone, names)
    images = sample.test.images[:8]
    extracted = extractor.predict(images, verbose=0)
    values = np.concatenate([extracted[name] for name in names], axis=1)
    head = linear_head(values.shape[1])
    expected = head.predict(values, verbose=0)
    assert expected.std() > 0.01
    for num_blocks in 1, len(backbone.blocks) // 2:
        freeze_point = FreezePoint.from_end(num_blocks, backbone, names)
        frozen, _, trainable = freeze_point.split_model(head)
        assert trainable.trainable_weights
        frozen_outputs = frozen.predict(images, verbose=0)
        outputs = trainable.predict(frozen_outputs, verbose=0)
        np.testing.assert_allclose(outputs, expected, atol=0.01 * expected.std())
        # The embeddings are the inputs of the last layer of the trainable part.
        both = with_embedding_output(trainable).predict(frozen_outputs, verbose=0)
        np.testing.assert_allclose(both[:, :10], outputs, rtol=1e-5)
        kernel, bias = head.layers[-1].get_weights()
        np.testing.assert_allclose(both[:, 10:] @ kernel + bias, outputs, rtol=1e-3, atol=1e-4)


def test_trainable_part_trains_kernels_and_head_but_no_batch_norm(random_backbone):
    backbone = random_backbone("mobilenetv2", 96, "float32")
    names = ("conv4_avg", "conv4_max")
    head = linear_head(2 * 576)
    frozen, _, trainable = FreezePoint.from_end(2, backbone, names).split_model(head)
    assert not frozen.trainable_weights
    trainable_paths = {weight.path for weight in trainable.trainable_weights}
    assert any("depthwise" in path for path in trainable_paths)
    assert not any("BN" in path for path in trainable_paths)
    batch_norms = [x for x in trainable.layers if isinstance(x, keras.layers.BatchNormalization)]
    # Three in each block, and that of the expansion that ends conv4.
    assert len(batch_norms) == 2 * 3 + 1 and not any(norm.trainable for norm in batch_norms)
    for weight in head.trainable_weights:  # shared, not copied
        assert any(weight is other for other in trainable.trainable_weights)
    # In training, BatchNormalization uses its statistics and does not update them.
    before = [norm.moving_mean.numpy() for norm in batch_norms]
    values = {k: np.ones((4, *v.shape[1:]), "float16") for k, v in trainable.input.items()}
    np.testing.assert_allclose(
        trainable(values, training=True), trainable(values, training=False), rtol=1e-5, atol=1e-5
    )
    for norm, mean in zip(batch_norms, before, strict=True):
        np.testing.assert_array_equal(norm.moving_mean, mean)


def test_trainable_part_has_the_backbones_precision(random_backbone):
    for precision, policy in devices.DTYPE_POLICIES.items():
        backbone = random_backbone("mobilenetv2", 96, precision)
        frozen, _, trainable = FreezePoint.from_end(1, backbone, ("conv5_avg",)).split_model(
            linear_head(1280)
        )
        (convolution, *_) = (x for x in trainable.layers if isinstance(x, keras.layers.Conv2D))
        assert convolution.dtype_policy.name == policy
        assert {value.dtype for value in frozen.output.values()} == {"float16"}


def test_frozen_part_outputs_activations_and_earlier_features(random_backbone):
    backbone = random_backbone("resnet50", 96, "float32")
    names = resnet50_fashion.FEATURE_SETS["conv4"]
    frozen, _, _ = FreezePoint.from_end(1, backbone, names).split_model(linear_head(512 + 2 * 1024))
    shapes = {name: value.shape[1:] for name, value in frozen.output.items()}
    assert shapes == {"activations": (6, 6, 1024), "conv3_avg": (512,)}
    assert frozen.name == "activations-12"  # conv4 ends with the 13th of 16 blocks


def test_activation_bytes_are_those_of_all_layers_outputs(random_backbone):
    backbone = random_backbone("resnet50", 96, "float32")
    freeze_point = FreezePoint.from_end(2, backbone, ("conv5_avg",))
    blocks = freeze_point._original_blocks
    inputs = architectures.block_input(backbone.model, freeze_point.block)
    values = np.zeros((3, *inputs.shape[1:]), "float32")
    layers = [layer for layer in blocks.layers if not isinstance(layer, keras.layers.InputLayer)]
    outputs = keras.Model(inputs, [layer.output for layer in layers]).predict(values)
    expected = sum(output.nbytes for output in (values, *outputs))
    assert 3 * freeze_point.activation_bytes == expected
    half = dataclasses.replace(backbone, precision="bfloat16")
    half_freeze_point = dataclasses.replace(freeze_point, backbone=half)
    assert 2 * half_freeze_point.activation_bytes == freeze_point.activation_bytes


@pytest.mark.parametrize(
    ("names", "blocks"),
    [(("conv5_avg",), 16), (("conv3_avg", "conv4_avg", "conv4_max"), 13), (("conv3_max",), 7)],
)
def test_from_end_with_too_many_blocks_raises_usage_error(names, blocks):
    network = random_network("resnet50", 64)
    backbone = Backbone("resnet50", network, network, "float32")
    assert FreezePoint.from_end(blocks, backbone, names).block == backbone.blocks[0]
    assert FreezePoint.from_end(1, backbone, names).block == backbone.blocks[blocks - 1]
    with pytest.raises(
        common.UsageError,
        match=f"^--fine-tune-blocks {blocks + 1}: with these --features, at most {blocks} blocks",
    ):
        FreezePoint.from_end(blocks + 1, backbone, names)
