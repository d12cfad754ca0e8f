"""The run of a script: its epochs, the seconds of its laps, its metadata, its W&B run."""

import contextlib
import functools
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import fashion
from fashion import errors, machine, startup, wandb_session
from fashion.datasets.splits import ImageDataset
from fashion.errors import UserError
from fashion.options import SharedOptions, config
from fashion.wandb_session import LogFunction

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


def best_epoch(epochs: Sequence[EpochMetrics]) -> EpochMetrics:
    """Return the (first) epoch with the highest validation accuracy."""
    return max(epochs, key=lambda metrics: metrics.val_accuracy)


def parameter_counts(model: keras.Model) -> dict[str, int]:
    """Return the number of trainable and frozen parameters of a model."""
    return {
        "trainable": sum(math.prod(weight.shape) for weight in model.trainable_weights),
        "frozen": sum(math.prod(weight.shape) for weight in model.non_trainable_weights),
    }


def _define_metrics(wandb_run: wandb.Run) -> None:
    wandb_run.define_metric("epoch/*", step_metric="epoch/epoch")
    wandb_run.define_metric("epoch/val_accuracy", step_metric="epoch/epoch", summary="max,last")
    wandb_run.define_metric("best/val_accuracy", step_metric="epoch/epoch")
    wandb_run.define_metric("features/*", step_metric="features/images")


def _log_epochs(epochs: Sequence[EpochMetrics], wandb_run: wandb.Run) -> None:
    """Log the last of `epochs`, and the best of them."""
    best = best_epoch(epochs)
    metrics = {f"epoch/{name}": value for name, value in asdict(epochs[-1]).items()}
    # Sweeps can only maximize a logged metric, not the maximum of a logged metric.
    wandb_run.log(metrics | {"best/val_accuracy": best.val_accuracy})
    wandb_run.summary["best/epoch"] = best.epoch


class EpochLogger(keras.callbacks.Callback):
    """Record the metrics, learning rate and seconds of each epoch, and log them to W&B."""

    def __init__(
        self, log_with: Callable[[LogFunction], None], epochs: Sequence[EpochMetrics] = ()
    ) -> None:
        """Create a logger that continues after `epochs`; `log_with` is that of a `Run`."""
        super().__init__()
        self._log_with = log_with
        self.epochs = list(epochs)
        self.nan_loss_hint = "try a lower --learning-rate"  # for the message if training diverges

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Record the learning rate, unless a signal has ended the run."""
        errors.raise_if_terminated()
        self._start = time.perf_counter()
        self._learning_rate = float(self.model.optimizer.learning_rate)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Record and log the metrics of the epoch."""
        metrics = EpochMetrics(
            epoch=epoch + 1,
            **{name: float(value) for name, value in (logs or {}).items()},
            learning_rate=self._learning_rate,
            seconds=time.perf_counter() - self._start,
        )
        # A divergence in the last step of an epoch shows only in the validation loss.
        for loss in metrics.loss, metrics.val_loss:
            if not math.isfinite(loss):
                raise UserError(
                    f"training diverged: loss is {loss} in epoch {epoch + 1}; {self.nan_loss_hint}"
                )
        self.epochs.append(metrics)
        self._log_with(functools.partial(_log_epochs, tuple(self.epochs)))


class Run:
    """A run of a script; a context manager that finishes its W&B run.

    (`wandb.Run` is a context manager as well, but prints a traceback even for Ctrl-C.)

    Attributes:
        metadata: Contents of metrics.json so far.
        epoch_logger: Callback that records and logs the epochs.
        wandb_run: W&B run, or None if W&B is disabled; an offline copy if it has failed.
        wandb_id: Id with which the W&B run can be resumed, if any.
    """

    def __init__(
        self,
        options: SharedOptions,
        data: ImageDataset,
        weights: dict[str, str] | None = None,
        wandb_id: str | None = None,
        epochs: Sequence[EpochMetrics] = (),
    ) -> None:
        """Collect the metadata, and start the W&B run with them as its config.

        `weights` are metadata of pretrained weights; `wandb_id` and `epochs` are those of the run
        to resume.
        """
        loaded_time = time.perf_counter()
        self.options, self.data = options, data
        versions = machine.environment_info()
        if not wandb_session.is_disabled(options.wandb):
            versions = wandb_session.remove_private_versions(versions)
        self.metadata: dict[str, Any] = {
            "model": options.script_name,
            "version": fashion.__version__,
            "config": config(options),
            "versions": versions,
            "seconds": {
                "imports": round(startup.IMPORTED_TIME - startup.START_TIME, 2),
                "loading": round(loaded_time - startup.IMPORTED_TIME, 2),
            },
            "data": data.metadata(),
            "weights": weights or {"source": "none"},
        }
        self._lap_name, self._lap_start = "", loaded_time
        names = ("version", "versions", "data", "weights")
        self._start_wandb = functools.partial(
            wandb_session.start,
            config=self.metadata["config"] | {name: self.metadata[name] for name in names},
            # A group contains the runs with the same training images.
            group=f"{data.train.size}-train-images"
            + ("" if data.slug == "fashion-mnist" else f"-of-{data.slug}"),
            tags=[data.slug],
            project=options.project,
        )
        self.wandb_run = self._start_wandb(options.wandb, run_id=wandb_id)
        self.wandb_id = self.wandb_run.id if self.wandb_run else wandb_id
        self._log_functions: list[LogFunction] = []
        self._wandb_error: Exception | None = None
        self.log_with(_define_metrics)
        self.log_with(functools.partial(wandb_session.log_code_and_data, options.script_name, data))
        # The W&B run to resume has these epochs, but an offline copy would not.
        for end in range(1, len(epochs) + 1):
            self._log_functions.append(functools.partial(_log_epochs, epochs[:end]))
        self.epoch_logger = EpochLogger(self.log_with, epochs)

    def lap(self, name: str) -> None:
        """End the current lap, whose seconds are recorded, and begin another one."""
        errors.raise_if_terminated()
        now = time.perf_counter()
        if self._lap_name:
            seconds = self.metadata["seconds"].get(self._lap_name, 0) + now - self._lap_start
            self.metadata["seconds"][self._lap_name] = round(seconds, 2)
        self._lap_name, self._lap_start = name, now
        errors.current_lap = name

    def log_with(self, function: LogFunction, upload_seconds: int = 0) -> None:
        """Call a function that logs to the W&B run, unless W&B is disabled or has failed.

        Args:
            function: Called with the W&B run, and later with an offline copy of it if W&B fails.
            upload_seconds: If positive, log to an online run only if the server responds, and wait
                until the artifact that the function returns is uploaded, at most for this time.
        """
        if not self.wandb_run:
            return
        self._log_functions.append(function)
        if not self._wandb_error:
            self._wandb_error = wandb_session.call(function, self.wandb_run, upload_seconds)

    def log_metrics(self, values: dict[str, float]) -> None:
        """Log numbers to the W&B run."""
        self.log_with(lambda wandb_run: wandb_run.log(values))

    def finish(self, exit_code: int = 0) -> None:
        """Finish the W&B run; if W&B has failed, log everything again to an offline run."""
        if not self.wandb_run:
            return
        finish_error = wandb_session.finish(self.wandb_run, exit_code)
        if failures := [error for error in (self._wandb_error, finish_error) if error]:
            reason = f"W&B failed ({errors.first_line(failures[0])})"
            if self.wandb_run.sweep_id:  # W&B allows one run for each trial
                print(f"{reason}; the results in the output directory are complete.")
                return
            print(f"{reason}; saving an offline copy of this run.")
            if not all(isinstance(error, wandb.Error | TimeoutError) for error in failures):
                # The process of W&B was killed.
                with contextlib.suppress(ConnectionError):
                    wandb.teardown()  # so that a new one can start
            try:
                self.wandb_run = self._start_wandb("offline", run_id=secrets.token_hex(4))
                for function in (
                    *self._log_functions,
                    lambda wandb_run: wandb_run.finish(exit_code),
                ):
                    function(self.wandb_run)
            except Exception as copy_error:  # the results are complete
                print(f"W&B: could not save the copy ({errors.first_line(copy_error)}).")

    def __enter__(self) -> Self:
        """Return the run."""
        return self

    def __exit__(self, error_type: object, error: BaseException | None, traceback: object) -> None:
        """Finish the W&B run with the exit code of the error, if any."""
        self.finish(errors.exit_status(error)[0] if error else 0)
