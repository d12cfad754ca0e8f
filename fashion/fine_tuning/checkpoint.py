"""Checkpoints of fine-tuning, from which `--resume` continues an interrupted run."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from fashion import errors, files, machine
from fashion.backbones.backbone import Backbone
from fashion.datasets.splits import ImageDataset
from fashion.errors import UsageError, UserError
from fashion.options import SharedOptions, config, flag
from fashion.run import EpochMetrics, best_epoch

import keras

# What messages call the checksums that must be equal to resume.
CHECKSUM_TITLES = {"data_sha256": "the data (--data-dir)", "weights_sha256": "--weights"}


@dataclass(kw_only=True)
class Checkpoint:
    """A directory with `state.json` and the weights of the last and the best epoch."""

    directory: Path
    config: dict[str, object]  # options and checksums that must be equal to resume
    last_weights: str | None = None  # file name; None before fine-tuning starts
    best_weights: str | None = None  # file name
    epochs: list[EpochMetrics] = field(default_factory=list)  # of head training and fine-tuning
    head_epochs: int = 0  # number of epochs of head training
    wandb_id: str | None = None
    finished: bool = False  # whether the results are written

    @property
    def is_started(self) -> bool:
        """Whether head training has finished and fine-tuning has started."""
        return self.last_weights is not None

    def is_patience_exhausted(self, patience: int) -> bool:
        """Return whether `patience` epochs of fine-tuning have not improved on earlier ones."""
        best = best_epoch(self.epochs).epoch
        return len(self.epochs) - max(self.head_epochs, best) >= patience

    def start(self, model: keras.Model, epochs: list[EpochMetrics], wandb_id: str | None) -> None:
        """Save the compiled model before fine-tuning, with the best weights of head training."""
        self.head_epochs, self.wandb_id = len(epochs), wandb_id
        self.save(model, epochs)

    def save(self, model: keras.Model, epochs: list[EpochMetrics]) -> None:
        """Save weights and optimizer state, and all `epochs` so far."""
        best = best_epoch(epochs).epoch
        epoch = epochs[-1].epoch if self.is_started else best
        self.epochs, self.last_weights = list(epochs), f"epoch-{epoch:03}.weights.h5"
        if epoch == best:
            self.best_weights = self.last_weights
        self._write(model)

    def mark_finished(self) -> None:
        """Record that the results are written, if there was fine-tuning."""
        if self.is_started:
            self.finished = True
            with errors.warn_on_failure("checkpoint/state.json"):
                self._write()

    def _write(self, model: keras.Model | None = None) -> None:
        """Write `state.json`, which names the files in use, after the weights of a model, if any.

        Old weights are deleted only then.
        """
        state = dataclasses.asdict(self)
        del state["directory"]
        try:
            if model:
                # On a full disk, h5py may crash the process (3.16: "Segmentation fault").
                variables = [*model.variables, *model.optimizer.variables]
                size = sum(4 * math.prod(v.shape) + 4096 for v in variables)  # with metadata
                files.check_disk_space(self.directory, size)
                with files.replacing(self.directory / str(self.last_weights)) as path:
                    model.save_weights(path)
            with files.replacing(self.directory / "state.json") as path:
                path.write_text(json.dumps(state, indent=2) + "\n")
            for path in self.directory.glob("epoch-*.weights.h5"):
                if path.name not in (self.last_weights, self.best_weights):
                    path.unlink()
        except UserError as error:
            raise UserError(
                f"could not write the checkpoint: {error}; then continue with --resume"
            ) from None

    def load(self, model: keras.Model, filename: str | None) -> None:
        """Load weights and optimizer state from a file into a compiled and built model."""
        path = self.directory / str(filename)
        advice = f"delete {self.directory} to start over"
        if not path.exists():
            raise UserError(f"{path} is missing; {advice}")
        try:
            model.load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged ({errors.first_line(error)}); {advice}") from None


def load_checkpoint(options: SharedOptions, data: ImageDataset, backbone: Backbone) -> Checkpoint:
    """Load the checkpoint that `--resume` continues, or create one, which is not written yet.

    Without `--resume`, the checkpoint of a finished run is deleted.
    """
    values = config(options)
    fields = dataclasses.fields(options)
    ignored = {field.name for field in fields if field.metadata["may_change"]}
    compared = {name: value for name, value in values.items() if name not in ignored}
    compared["precision"] = machine.precision()  # the one that "auto" stands for
    compared |= {"data_sha256": data.sha256, "weights_sha256": backbone.weights_sha256}
    new = Checkpoint(directory=options.output_dir / "checkpoint", config=compared)
    path = new.directory / "state.json"
    if not values["fine_tune_blocks"]:
        return new
    if not path.exists():
        if values["resume"]:
            print(f"No checkpoint at {path}; starting from scratch.")
        return new
    saved = _read_state(path)
    if values["resume"]:
        _check_resumable(saved, new)
        return dataclasses.replace(saved, config=new.config)
    if not saved.finished:
        raise UsageError(
            f"{new.directory} contains an unfinished run (epoch {len(saved.epochs)}). Use --resume "
            "to continue it,\nor delete the directory or choose another --output-dir to start over."
        )
    path.unlink()  # otherwise a later `--resume` could continue the old run instead of this one
    return new


def _read_state(path: Path) -> Checkpoint:
    """Read a `state.json`."""
    try:
        state = json.loads(path.read_text())
        state["epochs"] = [EpochMetrics(**metrics) for metrics in state["epochs"]]
        return Checkpoint(directory=path.parent, **state)
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        advice = f"delete {path.parent} to start over"
        raise UserError(f"{path} is damaged ({reason}); {advice}") from None


def _check_resumable(saved: Checkpoint, new: Checkpoint) -> None:
    """Raise a `UsageError` if values of `new.config` differ from those of `saved.config`."""
    changeable = set()
    if not saved.finished:
        changeable.add("fine_tune_learning_rate")  # training may have diverged
    if len(saved.epochs) == saved.head_epochs:
        changeable.add("fine_tune_batch_size")  # a batch may have been too large for the memory
    mismatches = [
        CHECKSUM_TITLES.get(name) or f"{flag(name)} ({saved.config.get(name)}, now {value})"
        for name, value in new.config.items()
        if value != saved.config.get(name) and name not in changeable
    ]
    if mismatches:
        raise UsageError(
            f"--resume: options differ from the checkpoint in {saved.directory}: "
            f"{', '.join(mismatches)}; use the same options, or another --output-dir to start over"
        )
