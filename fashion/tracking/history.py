"""The epochs of a run: their figures, noted as they end."""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from fashion.errors import UserError

import keras
import wandb


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch's figures: the training's are means over it, the validation's from its end."""

    epoch: int  # from 1
    accuracy: float
    loss: float
    val_accuracy: float
    val_loss: float
    learning_rate: float  # at its start
    seconds: float


class EpochLog(keras.callbacks.Callback):
    """Notes each epoch's metrics, learning rate and seconds, and sends them to W&B.

    `wandb.integration.keras.WandbMetricsLogger` is not used: with `steps_per_execution` it counts
    executions for steps, and so logs a wrong learning rate from a schedule.
    """

    def __init__(self, run: wandb.Run, epochs: Iterable[Epoch] = ()) -> None:
        """`run` is the open W&B run; `epochs` are those of the run that this one resumes."""
        super().__init__()
        self.run = run
        self.epochs = list(epochs)
        self.advice = "try a lower --learning-rate"  # when the loss is no longer a number
        self._define(run)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Notes when, and at which learning rate, the epoch begins."""
        self.start = time.perf_counter()
        self.learning_rate = float(self.model.optimizer.learning_rate)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keeps and logs the epoch's row.

        Raises:
            UserError: the loss is no longer a number.
        """
        assert logs
        row = Epoch(
            epoch=epoch + 1,
            **{name: float(value) for name, value in logs.items()},
            learning_rate=self.learning_rate,
            seconds=time.perf_counter() - self.start,
        )
        # The last step of an epoch shows in the validation loss alone.
        for loss in row.loss, row.val_loss:
            if not math.isfinite(loss):
                raise UserError(f"the loss in epoch {epoch + 1} is {loss}: {self.advice}")
        self.epochs.append(row)
        self._log(self.run, self.epochs)

    def repeat(self, run: wandb.Run) -> None:
        """Sends all epochs so far to another run."""
        self._define(run)
        for i in range(len(self.epochs)):
            self._log(run, self.epochs[: i + 1])

    @property
    def best(self) -> Epoch:
        """The (first) epoch with the best validation accuracy."""
        return _best(self.epochs)

    def _define(self, run: wandb.Run) -> None:
        run.define_metric("epoch/epoch")
        run.define_metric("epoch/*", step_metric="epoch/epoch")
        run.define_metric("best/val_accuracy", step_metric="epoch/epoch")
        run.define_metric("epoch/val_accuracy", step_metric="epoch/epoch", summary="max,last")

    def _log(self, run: wandb.Run, epochs: list[Epoch]) -> None:
        """Sends the last of some epochs."""
        best = _best(epochs)
        # Sweeps can maximise what is logged, not the maximum of what is logged.
        values = {f"epoch/{name}": value for name, value in asdict(epochs[-1]).items()}
        run.log(values | {"best/val_accuracy": best.val_accuracy})
        run.summary["best/epoch"] = best.epoch


def _best(epochs: list[Epoch]) -> Epoch:
    return max(epochs, key=lambda row: row.val_accuracy)
