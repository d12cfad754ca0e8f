"""The split of a network into frozen blocks and blocks that fine-tuning trains."""

import math
from dataclasses import dataclass

from fashion import devices
from fashion.backbones import folding
from fashion.backbones.architectures import Backbone, block_input, feature_stage
from fashion.backbones.pooling import pool, to_float16
from fashion.errors import UsageError
from fashion.fine_tuning import batch_norm

import keras


@dataclass(frozen=True)
class FreezePoint:
    """The first trainable block of a backbone; earlier blocks stay frozen.

    Attributes:
        backbone: Backbone to fine-tune.
        feature_names: Features that the head takes.
        block: First trainable block.
        train_batch_norm: Whether BatchNormalization layers are trained. Otherwise they are not
            trainable, which keeps them in inference mode.
    """

    backbone: Backbone
    feature_names: tuple[str, ...]
    block: str
    train_batch_norm: bool = False

    @classmethod
    def from_end(
        cls,
        num_blocks: int,
        backbone: Backbone,
        feature_names: tuple[str, ...],
        train_batch_norm: bool = False,
    ) -> "FreezePoint":
        """Create the freeze point after which the features need `num_blocks` blocks.

        Raises:
            UsageError: If there are fewer blocks, or no BatchNormalization layers to train.
        """
        blocks, stages = backbone.blocks, backbone.block_after_stage
        end = max(blocks.index(stages[feature_stage(name)]) for name in feature_names)
        if num_blocks > end:
            raise UsageError(
                f"--fine-tune-blocks {num_blocks}: with these --features, at most {end} blocks can "
                "be fine-tuned"
            )
        freeze_point = cls(backbone, feature_names, blocks[end - num_blocks], train_batch_norm)
        if train_batch_norm and not batch_norm.batch_norms(freeze_point._original_blocks):
            raise UsageError(
                f"--fine-tune-batch-norm trained: {backbone.name} has no batch normalization; use "
                "--fine-tune-batch-norm frozen"
            )
        return freeze_point

    def split_model(self, head: keras.Model) -> tuple[keras.Model, keras.Model, keras.Model]:
        """Split backbone and head into a frozen and a trainable model.

        Args:
            head: Standardizer and classifier; the trainable model shares their weights.

        Returns:
            The frozen model: uint8 (N, 28, 28) → {"activations": float16 activations at the freeze
            point, and features of earlier stages: float16 (N, channels)}. The unfrozen blocks:
            activations → outputs of stages. The trainable model, which consists of these blocks and
            the head: outputs of the frozen model → (N, classes) probabilities.
        """
        frozen = self._build_frozen()
        activations = keras.Input(
            frozen.output["activations"].shape[1:], dtype="float16", name="activations"
        )
        blocks = self._copy_unfrozen_blocks(activations)
        return frozen, blocks, self.build_trainable(frozen, blocks, head)

    def _needed_stages(self, trainable: bool) -> list[str]:
        """Return the needed stages after (or before) the freeze point."""
        blocks = self.backbone.blocks
        needed = {feature_stage(name) for name in self.feature_names}
        return [
            stage
            for stage, block in self.backbone.block_after_stage.items()
            if stage in needed and (blocks.index(block) > blocks.index(self.block)) == trainable
        ]

    def _build_frozen(self) -> keras.Model:
        inference_model = self.backbone.inference_model
        outputs = {"activations": block_input(inference_model, self.block)}
        for stage in self._needed_stages(trainable=False):
            activations = self.backbone.stage_output(inference_model, stage)
            for kind, pooled in pool(activations).items():
                if f"{stage}_{kind}" in self.feature_names:
                    outputs[f"{stage}_{kind}"] = pooled
        outputs = {name: to_float16(values) for name, values in outputs.items()}
        # The name is also that of the directory of the cached activations.
        name = f"activations-{self.backbone.blocks.index(self.block):02}"
        return keras.Model(inference_model.input, outputs, name=name)

    def build_trainable(
        self, frozen: keras.Model, blocks: keras.Model, head: keras.Model
    ) -> keras.Model:
        """Build the trainable model that `split_model` describes."""
        inputs = {
            name: keras.Input(values.shape[1:], dtype="float16", name=name)
            for name, values in frozen.output.items()
        }
        inputs["activations"] = blocks.input
        features = {name: keras.ops.cast(values, "float32") for name, values in inputs.items()}
        stages = self._needed_stages(trainable=True)
        for stage, activations in zip(stages, blocks.outputs, strict=True):
            for kind, pooled in pool(activations).items():
                features[f"{stage}_{kind}"] = pooled
        outputs = keras.ops.concatenate([features[name] for name in self.feature_names], axis=1)
        # Call the layers of the head one by one. Called as a model, the classifier would cast its
        # input, and so the gradients, to float16, in which many of them would be 0.
        layers = [head.get_layer("standardizer"), *head.get_layer("classifier").layers]
        # A layer of this model only, before the last one, for `with_embedding_output`.
        layers.insert(-1, keras.layers.Identity(dtype=layers[-2].compute_dtype))
        for layer in layers:
            outputs = layer(outputs)
        return keras.Model(inputs, outputs)

    def fold_blocks(self, blocks: keras.Model) -> keras.Model:
        """Return a frozen copy of trained blocks with folded batch normalization."""
        activations = keras.Input(blocks.input.shape[1:], dtype="float16", name="activations")
        return folding.fold_batch_norm(blocks, activations, self._dtype)

    @property
    def activation_bytes(self) -> int:
        """The bytes of all activations of the unfrozen blocks for one image."""
        itemsize = 4 if self.backbone.precision == "float32" else 2
        shapes = (layer.output.shape[1:] for layer in self._original_blocks.layers)
        return itemsize * sum(map(math.prod, shapes))

    @property
    def _dtype(self) -> str:
        return devices.DTYPE_POLICIES[self.backbone.precision]

    @property
    def _original_blocks(self) -> keras.Model:
        """The backbone's blocks after the freeze point: activations → outputs of stages."""
        model, stages = self.backbone.model, self._needed_stages(trainable=True)
        outputs = [self.backbone.stage_output(model, stage) for stage in stages]
        return keras.Model(block_input(model, self.block), outputs)

    def _copy_unfrozen_blocks(self, activations: keras.KerasTensor) -> keras.Model:
        """Copy the blocks after the freeze point, with weights."""
        original = self._original_blocks
        if self.train_batch_norm:
            return batch_norm.copy_with_trained_batch_norm(original, activations, self._dtype)
        copy = folding.copy_network(original, activations, self._dtype)
        for layer in original.layers:
            if layer.weights:
                copied_layer = copy.get_layer(layer.name)
                copied_layer.set_weights(layer.get_weights())
                copied_layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        return copy
