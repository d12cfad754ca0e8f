"""Options of fine-tuning, and the options of the script that it uses."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fashion.errors import UsageError
from fashion.options import Flag, NonNegativeInt, PositiveFloat, PositiveInt, Rate, ResultsOptions


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions:
    """Training of the backbone's last blocks together with the head, after head training."""

    fine_tune_blocks: NonNegativeInt = 0
    """also train the backbone's last N blocks; 0: all blocks stay frozen"""
    fine_tune_epochs: PositiveInt = 5
    """passes over the training images"""
    fine_tune_batch_size: PositiveInt = 32
    """images per training step"""
    fine_tune_learning_rate: PositiveFloat = 1e-4
    """maximum learning rate"""
    fine_tune_weight_decay: Rate = 0.0
    """weight decay of kernels, by AdamW; 0: Adam"""
    fine_tune_batch_norm: Literal["frozen", "trained"] = "frozen"
    """frozen: batch normalization keeps its ImageNet statistics; trained: it is recalibrated to the
    training images, then trained with the blocks"""
    fine_tune_inputs: Literal["cached", "computed", "augmented"] = "cached"
    """inputs of the trained blocks: activations cached on disk, activations computed in each epoch,
    or activations of randomly flipped, shifted and partly erased images"""
    resume: Flag = False
    """continue after the last finished fine-tuning epoch in --output-dir"""

    def __post_init__(self) -> None:
        """Raise a `UsageError` if there is nothing to resume."""
        if self.resume and not self.fine_tune_blocks:
            raise UsageError("--resume: only fine-tuning can be resumed; give --fine-tune-blocks")


class HeadConfig(Protocol):
    """The head's options that fine-tuning uses."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Features that the head takes."""

    @property
    def mirror(self) -> bool:
        """Whether to average predictions over an image and its horizontal flip."""

    @property
    def patience(self) -> int:
        """Number of epochs without improvement in validation accuracy after which to stop."""


class ScriptOptions(Protocol):
    """The options of resnet50_fashion.py that fine-tuning uses."""

    @property
    def results(self) -> ResultsOptions:
        """Options of the output."""

    @property
    def head(self) -> HeadConfig:
        """Options of the head."""

    @property
    def fine_tuning(self) -> FineTuningOptions:
        """Options of fine-tuning."""

    def config(self) -> dict[str, Any]:
        """Return all options by name."""
