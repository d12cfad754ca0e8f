"""A network cut in two: what stays frozen, and the blocks above it that fine-tuning trains."""

from dataclasses import dataclass

from fashion import devices
from fashion.backbones import feature_cache, folding
from fashion.backbones.architectures import Backbone, activations_at, stage_of
from fashion.errors import UsageError

import keras


@dataclass(frozen=True)
class Cut:
    """A network before one of its blocks: what is below stays frozen, what is above is trained."""

    backbone: Backbone
    names: tuple[str, ...]  # the features that the head sees
    block: str  # the first of the upper part

    @classmethod
    def before_last(cls, blocks: int, backbone: Backbone, names: tuple[str, ...]) -> "Cut":
        """So many blocks before the end of what the features need.

        Raises:
            UsageError: there are not so many.
        """
        end = max(backbone.blocks.index(backbone.stages[stage_of(name)]) for name in names)
        if blocks > end:
            raise UsageError(
                f"--fine-tune-blocks {blocks}: only {end} blocks are before the features' end"
            )
        return cls(backbone, names, backbone.blocks[end - blocks])

    def split(self, head: keras.Model) -> tuple[keras.Model, keras.Model]:
        """The whole network in two parts, the upper one with the weights of `head` itself.

        Returns:
            The lower part: uint8 (N, 28, 28) → {"activations": float16 at the cut, and features
            from below it: float16 (N, channels)}. The upper part: these → probabilities
            (N, classes). Its kernels are trainable; its BatchNormalizations are not, which keeps
            them in inference mode.
        """
        lower = self._lower()
        return lower, self._upper(lower.output, head)

    def _stages(self, above: bool) -> dict[str, str]:
        """The stages that the features need, above or below the cut."""
        blocks, used = self.backbone.blocks, {stage_of(name) for name in self.names}
        return {
            stage: block
            for stage, block in self.backbone.stages.items()
            if stage in used and (blocks.index(block) > blocks.index(self.block)) == above
        }

    def _lower(self) -> keras.Model:
        folded = self.backbone.folded
        values = {"activations": activations_at(folded, self.block)}
        for stage, block in self._stages(above=False).items():
            for kind, pooled in feature_cache.pool(activations_at(folded, block)).items():
                if f"{stage}_{kind}" in self.names:
                    values[f"{stage}_{kind}"] = pooled
        values = {name: feature_cache.to_float16(value) for name, value in values.items()}
        name = f"activations-{self.backbone.blocks.index(self.block):02}"
        return keras.Model(folded.input, values, name=name)

    def _upper(self, values: dict[str, keras.KerasTensor], head: keras.Model) -> keras.Model:
        network, stages = self.backbone.network, self._stages(above=True)
        inputs = {k: keras.Input(v.shape[1:], dtype="float16", name=k) for k, v in values.items()}
        original = keras.Model(
            activations_at(network, self.block),
            [activations_at(network, block) for block in stages.values()],
        )
        dtype = devices.DTYPES[self.backbone.precision]
        unfrozen = folding.copy_network(original, inputs["activations"], dtype)
        for layer in original.layers:
            if layer.weights:
                copy = unfrozen.get_layer(layer.name)
                copy.set_weights(layer.get_weights())
                copy.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        seen = {name: keras.ops.cast(value, "float32") for name, value in inputs.items()}
        for stage, activations in zip(stages, unfrozen.outputs, strict=True):
            for kind, pooled in feature_cache.pool(activations).items():
                seen[f"{stage}_{kind}"] = pooled
        outputs = keras.ops.concatenate([seen[name] for name in self.names], axis=1)
        # The head's layers one by one: as a model, the classifier would first make its input
        # float16, and so its gradients, many of which are too small for that.
        layers = [head.get_layer("standardiser"), *head.get_layer("classifier").layers]
        # A layer of this network alone before the last one, for `embeddings.answering` to find.
        layers.insert(-1, keras.layers.Identity(dtype=layers[-2].compute_dtype))
        for layer in layers:
            outputs = layer(outputs)
        return keras.Model(inputs, outputs)
