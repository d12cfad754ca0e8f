"""Checkpoints of fine-tuning, for `--resume`: weights of the last and best epoch, run state."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fashion.backbones.architectures import Backbone
from fashion.datasets.dataset import ImageDataset
from fashion.environment import check_disk_space, staging_dir
from fashion.errors import UsageError, UserError
from fashion.fine_tuning.tuning_options import ScriptOptions
from fashion.tracking.history import EpochLogger, EpochMetrics

import keras

# Options that may change when a run is resumed. Most do not affect the results; a divergence may
# need a lower learning rate.
OPTIONS_THAT_MAY_CHANGE = frozenset(
    {
        "resume",
        "output_dir",
        "data_dir",
        "cache_dir",
        "wandb",
        "project",
        "require_accuracy",
        "recipe",  # the options that it sets are compared
        "weights",  # their checksum is compared
        "gpus",
        "fine_tune_learning_rate",
    }
)
# Values besides the options that must be equal to resume, and what messages call them.
OTHER_VALUES = {
    "computed_in": "--precision",  # the precision that `auto` stands for
    "data_sha256": "the data (--data-dir)",
    "weights_sha256": "--weights",
}
# Attributes of `Checkpoint` that have another key in state.json.
JSON_KEYS = {"last_weights": "last", "best_weights": "best", "epochs": "rows"}


@dataclass(kw_only=True)
class Checkpoint:
    """A directory with `state.json` and the weights of the epochs that it names.

    Attributes:
        directory: Directory of the checkpoint.
        config: Values that must be equal to resume.
        learning_rate: Fine-tuning's learning rate.
        last_weights: File name of the last epoch's weights, or None before the first.
        best_weights: File name of the best epoch's weights.
        epochs: Epochs of head training and fine-tuning.
        head_epochs: Number of epochs of head training.
        wandb_id: Id of the W&B run.
        finished: Whether the results are written.
    """

    directory: Path
    config: dict[str, Any]
    learning_rate: float
    last_weights: str | None = None
    best_weights: str | None = None
    epochs: list[EpochMetrics] = field(default_factory=list)
    head_epochs: int = 0
    wandb_id: str | None = None
    finished: bool = False

    @property
    def is_started(self) -> bool:
        """Whether head training has finished and fine-tuning has started."""
        return self.last_weights is not None

    def save(self, model: keras.Model, epoch_logger: EpochLogger) -> None:
        """Save the weights and optimizer state of the last epoch, and the run's state.

        Before the first fine-tuning epoch, save the best head weights. Old files are deleted only
        after the new ones are complete; `state.json` names the files in use.

        Raises:
            UserError: If the files cannot be written.
        """
        best = epoch_logger.best.epoch
        epoch = epoch_logger.epochs[-1].epoch if self.is_started else best
        self.last_weights = f"epoch-{epoch:03}.weights.h5"
        if epoch == best:
            self.best_weights = self.last_weights
        self.epochs = epoch_logger.epochs
        with self._staging_dir() as temporary_dir:
            # On a full disk, h5py may crash the process (3.16: "Segmentation fault").
            variables = [*model.variables, *model.optimizer.variables]
            size = sum(4 * math.prod(v.shape) + 4096 for v in variables)  # with HDF5's metadata
            check_disk_space(temporary_dir, size)
            model.save_weights(tmp_path := temporary_dir / self.last_weights)
            tmp_path.replace(self.directory / self.last_weights)
            self._write_state(temporary_dir)
            for path in self.directory.glob("epoch-*.weights.h5"):
                if path.name not in (self.last_weights, self.best_weights):
                    path.unlink()

    def load(self, model: keras.Model, filename: str | None) -> None:
        """Load weights and optimizer state from one of the checkpoint's files.

        Raises:
            UserError: If the file is missing or damaged.
        """
        path = self.directory / str(filename)
        try:
            model.load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path} is damaged ({reason}); delete its directory to start over"
            ) from None

    def mark_finished(self) -> None:
        """Record that the results are written.

        Raises:
            UserError: If the state cannot be written.
        """
        self.finished = True
        with self._staging_dir() as temporary_dir:
            self._write_state(temporary_dir)

    @contextlib.contextmanager
    def _staging_dir(self) -> Iterator[Path]:
        """Yield a temporary directory inside the checkpoint's directory, for atomic replacement."""
        try:
            with staging_dir(self.directory) as temporary_dir:
                yield temporary_dir
        except OSError as error:
            message = f"could not write the checkpoint: {error}; free disk space, then use --resume"
            raise UserError(message) from None

    def _write_state(self, temporary_dir: Path) -> None:
        state = dataclasses.asdict(self)
        del state["directory"]
        state = {JSON_KEYS.get(name, name): value for name, value in state.items()}
        tmp_path = temporary_dir / "state.json"
        tmp_path.write_text(json.dumps(state, indent=2) + "\n")
        tmp_path.replace(self.directory / "state.json")


def load_or_create_checkpoint(
    options: ScriptOptions, data: ImageDataset, backbone: Backbone
) -> Checkpoint:
    """Load the checkpoint in the output directory, or create a new one.

    Args:
        options: Options of resnet50_fashion.py.
        data: Data set; its checksums must match the checkpoint.
        backbone: Backbone; its weights and precision must match the checkpoint.

    Raises:
        UsageError: If the options do not match the checkpoint, or `--resume` is missing.
        UserError: If the checkpoint cannot be read.
    """
    values = options.config()
    config = {name: value for name, value in values.items() if name not in OPTIONS_THAT_MAY_CHANGE}
    config["data_sha256"] = data.sha256
    config["weights_sha256"] = backbone.weights_sha256
    config["computed_in"] = backbone.precision
    directory = options.results.output_dir / "checkpoint"
    learning_rate = values["fine_tune_learning_rate"]
    new = Checkpoint(directory=directory, config=config, learning_rate=learning_rate)
    try:
        saved = _load_state(directory)
    except FileNotFoundError:
        if values["resume"]:
            print(f"No checkpoint at {directory / 'state.json'}; starting from scratch.")
        return new
    if not values["resume"]:
        if saved.finished:
            # Otherwise a later `--resume` could continue the old run instead of this one.
            (directory / "state.json").unlink()
            return new
        raise UsageError(
            f"{directory} contains an unfinished run (epoch {saved.epochs[-1].epoch}). Use "
            "--resume to continue it,\nor delete the directory or choose another --output-dir to "
            "start over."
        )
    _check_resumable(saved, new, defaults=type(options)().config())
    return dataclasses.replace(saved, config=new.config, learning_rate=new.learning_rate)


def _check_resumable(saved: Checkpoint, new: Checkpoint, defaults: dict[str, Any]) -> None:
    """Raise a `UsageError` if the options of `new` differ from the ones of `saved`.

    Older checkpoints lack newer options, which then had the values of `defaults`.
    """
    saved_config = {
        name: saved.config.get(name, defaults.get(name)) for name in new.config | saved.config
    }
    # Before the first fine-tuning epoch, the batch size may change: it may have been too large for
    # the memory.
    if len(saved.epochs) == saved.head_epochs:
        saved_config["fine_tune_batch_size"] = new.config["fine_tune_batch_size"]
    mismatches = []
    for name, value in sorted(saved_config.items()):
        if value != (new_value := new.config.get(name)):
            title = OTHER_VALUES.get(name, f"--{name.replace('_', '-')}")
            values = "" if name.endswith("sha256") else f" ({value}, now {new_value})"
            mismatches.append(title + values)
    if mismatches:
        raise UsageError(
            f"--resume: options differ from the checkpoint in {saved.directory}: "
            f"{', '.join(mismatches)}; use the same options, or another --output-dir to start over"
        )
    if saved.finished and saved.learning_rate != new.learning_rate:
        raise UsageError(
            f"--resume: the run in {saved.directory} has finished with --fine-tune-learning-rate "
            f"{saved.learning_rate}; use this value, or another --output-dir"
        )


def _load_state(directory: Path) -> Checkpoint:
    """Read state.json; raise `FileNotFoundError` if it does not exist."""
    path = directory / "state.json"
    try:
        state = json.loads(path.read_text())
        required = {"config", "rows", "last", "best", "head_epochs", "learning_rate", "finished"}
        missing = required - (set(state) if isinstance(state, dict) else set())
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        attributes = {key: name for name, key in JSON_KEYS.items()}
        state = {attributes.get(key, key): value for key, value in state.items()}
        state["epochs"] = [EpochMetrics(**row) for row in state["epochs"]]
        if not state["epochs"] or not isinstance(state["config"], dict):
            raise ValueError("it contains no epoch or no config")
        return Checkpoint(directory=directory, **state)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; delete its directory to start over"
        ) from None
