"""Metrics of each epoch, recorded and sent to W&B as the epoch ends."""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from fashion.errors import UserError
from fashion.tracking.offline_fallback import tolerate_crash

import keras
import wandb


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Metrics of one epoch: training means over the epoch, validation values at its end."""

    epoch: int  # starting at 1
    accuracy: float
    loss: float
    val_accuracy: float
    val_loss: float
    learning_rate: float  # at the start of the epoch
    seconds: float


class EpochLogger(keras.callbacks.Callback):
    """Record each epoch's metrics, learning rate and seconds, and send them to W&B.

    `wandb.integration.keras.WandbMetricsLogger` is not used: with `steps_per_execution` it counts
    executions instead of steps, and so logs a wrong learning rate from a schedule.
    """

    def __init__(self, wandb_run: wandb.Run, epochs: Iterable[EpochMetrics] = ()) -> None:
        """Create a logger.

        Args:
            wandb_run: Open W&B run.
            epochs: Epochs of the run that this one resumes, if any.
        """
        super().__init__()
        self.wandb_run = wandb_run
        self.epochs = list(epochs)
        self.nan_loss_hint = "try a lower --learning-rate"
        self._define_metrics(wandb_run)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Record the start time and the learning rate."""
        self.start = time.perf_counter()
        self.learning_rate = float(self.model.optimizer.learning_rate)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Record and log the epoch's metrics.

        Raises:
            UserError: If the loss is not finite.
        """
        assert logs
        metrics = EpochMetrics(
            epoch=epoch + 1,
            **{name: float(value) for name, value in logs.items()},
            learning_rate=self.learning_rate,
            seconds=time.perf_counter() - self.start,
        )
        # A divergence in the last step of an epoch shows only in the validation loss.
        for loss in metrics.loss, metrics.val_loss:
            if not math.isfinite(loss):
                raise UserError(
                    f"training diverged: loss is {loss} in epoch {epoch + 1}; {self.nan_loss_hint}"
                )
        self.epochs.append(metrics)
        self._log(self.wandb_run, self.epochs)

    def replay(self, wandb_run: wandb.Run) -> None:
        """Send all epochs so far to another W&B run."""
        self._define_metrics(wandb_run)
        for i in range(len(self.epochs)):
            self._log(wandb_run, self.epochs[: i + 1])

    @property
    def best(self) -> EpochMetrics:
        """The (first) epoch with the highest validation accuracy."""
        return _best_epoch(self.epochs)

    def _define_metrics(self, wandb_run: wandb.Run) -> None:
        wandb_run.define_metric("epoch/epoch")
        wandb_run.define_metric("epoch/*", step_metric="epoch/epoch")
        wandb_run.define_metric("best/val_accuracy", step_metric="epoch/epoch")
        wandb_run.define_metric("epoch/val_accuracy", step_metric="epoch/epoch", summary="max,last")

    def _log(self, wandb_run: wandb.Run, epochs: list[EpochMetrics]) -> None:
        """Send the last of `epochs`, and the best of them."""
        best = _best_epoch(epochs)
        # Sweeps can only maximize a logged metric, not the maximum of a logged metric.
        metrics = {f"epoch/{name}": value for name, value in asdict(epochs[-1]).items()}
        with tolerate_crash():
            wandb_run.log(metrics | {"best/val_accuracy": best.val_accuracy})
            wandb_run.summary["best/epoch"] = best.epoch


def _best_epoch(epochs: list[EpochMetrics]) -> EpochMetrics:
    return max(epochs, key=lambda metrics: metrics.val_accuracy)
