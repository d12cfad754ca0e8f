"""A run in progress: output directory, timed stages, metadata, the W&B run."""

import contextlib
import functools
import tempfile
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, NamedTuple

import fashion
from fashion import devices, environment
from fashion.datasets.dataset import ImageDataset
from fashion.errors import UserError
from fashion.options import OptionsT
from fashion.tracking import offline_fallback, wandb_session, wandb_settings
from fashion.tracking.history import EpochLogger, EpochMetrics
from fashion.tracking.offline_fallback import LogFunction

import wandb

# Files that a run writes into its output directory.
OUTPUT_FILES = (
    "model.keras",
    "history.csv",
    "metrics.json",
    "predictions.csv",
    "validation_predictions.csv",
    "report.html",
    "curves.png",
    "confusion_matrix.png",
    "mistakes.png",
    "neighbors.png",
    "map.png",
    "reliability.png",
)


class PreviousRun(NamedTuple):
    """An interrupted run that is continued: its W&B run and its epochs."""

    wandb_id: str | None
    epochs: list[EpochMetrics]


class Run(Generic[OptionsT]):
    """One run of a script: output directory, stages and their seconds, metadata, W&B run.

    Entering checks the output directory; leaving closes the W&B run, marked as failed if an error
    occurred. (`wandb.Run` is a context manager as well, but prints a traceback even for Ctrl-C.)

    Attributes:
        options: Options of the script.
        metadata: Contents of metrics.json so far.
        data: Data set, once the W&B run is open.
        wandb_run: W&B run, once it is open.
        epoch_logger: Callback that records and logs the epochs, once the W&B run is open.
    """

    data: ImageDataset
    wandb_run: wandb.Run
    epoch_logger: EpochLogger

    def __init__(self, options: OptionsT) -> None:
        """Start the metadata with options and versions."""
        self.options = options
        self._is_wandb_open = False
        self.metadata: dict[str, Any] = {
            "model": options.script_name,
            "config": options.config(),
            "versions": environment.environment_info(),
            "seconds": {"imports": round(time.perf_counter() - fashion.START_TIME, 2)},
            "weights": {"source": "none"},
        }

    def __enter__(self) -> "Run[OptionsT]":
        """Create the output directory, and list the files that will be overwritten.

        Raises:
            UserError: If the directory is not writable.
        """
        directory = self.options.results.output_dir
        try:
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as error:
            raise UserError(
                f"--output-dir: {error}; use a directory that you can write to"
            ) from None
        if subdirs := [name for name in OUTPUT_FILES if (directory / name).is_dir()]:
            raise UserError(
                f"--output-dir: {directory / subdirs[0]} is a directory; remove it, or use another "
                "output directory"
            )
        if existing := [name for name in OUTPUT_FILES if (directory / name).exists()]:
            print(f"Existing files in {directory} will be overwritten: {', '.join(existing)}")
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the W&B run if it is open."""
        if self._is_wandb_open:
            offline_fallback.finish(self.wandb_run, exit_code=1 if error else None)

    @contextlib.contextmanager
    def stage(self, name: str, to_reduce: str = "--batch-size") -> Iterator[None]:
        """Record the seconds of a block.

        Args:
            name: Key of the seconds in metrics.json.
            to_reduce: Option to reduce if memory runs out, for the message.

        Raises:
            UserError: If memory runs out; the message suggests what `to_reduce`.
        """
        start = time.perf_counter()
        with devices.handle_out_of_memory(name.replace("_", "-"), to_reduce):
            yield
        self.metadata["seconds"][name] = round(time.perf_counter() - start, 2)

    def update_metadata(self, **parts: Any) -> None:
        """Add parts to the metadata, or replace them."""
        self.metadata |= parts

    def start_wandb(
        self, data: ImageDataset, previous: PreviousRun | None = None, **init_kwargs: Any
    ) -> None:
        """Open the W&B run with options, versions, data and weights as its config.

        Args:
            data: Data set of the run.
            previous: Run to continue, if any.
            init_kwargs: Further arguments of `wandb.init`.

        Raises:
            UsageError: If W&B's settings are invalid.
            UserError: If W&B cannot write its files.
        """
        self.data = data
        self.update_metadata(data=data.metadata())
        mode = self.options.results.wandb
        if not wandb_settings.is_disabled(mode):
            versions = self.metadata["versions"]
            configured = wandb_settings.read_settings()
            self.update_metadata(
                versions=wandb_settings.remove_private_entries(versions, configured)
            )
        config = self.metadata["config"] | {
            name: self.metadata[name] for name in ("versions", "data", "weights")
        }
        self.wandb_run = wandb_session.init_run(mode, config=config, **init_kwargs)
        self._is_wandb_open = True
        self._log_code_and_data = functools.partial(
            wandb_session.log_code_and_data, self.options.script_name, data
        )
        self.wandb_run = offline_fallback.log_with_offline_fallback(
            self.wandb_run, self._log_code_and_data
        )
        self.epoch_logger = EpochLogger(self.wandb_run, previous.epochs if previous else ())

    def log(self, log_fn: LogFunction, size: int | None = None) -> None:
        """Log to the W&B run, or to an offline copy of it if the server does not respond.

        Args:
            log_fn: Called with the W&B run; may return an artifact to wait for.
            size: If given, this is the last call, and uploads about this number of bytes; the run
                is then finished.
        """
        replay = self._log_code_and_data, self.epoch_logger.replay
        self.wandb_run = offline_fallback.log_with_offline_fallback(
            self.wandb_run, log_fn, replay, size
        )
