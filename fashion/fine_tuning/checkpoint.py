"""What `--resume` needs: the weights of the last and the best epoch, and the state of the run."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fashion.backbones.architectures import Backbone
from fashion.datasets.dataset import FashionMNIST
from fashion.errors import UsageError, UserError
from fashion.tracking.history import Epoch, EpochLog
from fashion.tracking.run import Run

import keras

# Options that decide nothing about the figures: a run may be resumed with others.
FREE_TO_CHANGE = frozenset(
    {
        "resume",
        "output_dir",
        "data_dir",
        "cache_dir",
        "wandb",
        "project",
        "require_accuracy",
        "recipe",  # what it stands for decides
        "weights",  # their digest decides
        "gpus",
        "fine_tune_learning_rate",
    }
)


@dataclass(kw_only=True)
class Checkpoint:
    """A folder with `state.json` and the epochs' weights that it names."""

    folder: Path
    config: dict[str, Any]  # what must be the same to go on
    learning_rate: float
    last: str | None = None  # the file of the last epoch; None before the first
    best: str | None = None
    epochs: list[Epoch] = field(default_factory=list)
    head_epochs: int = 0  # how many of them were the head's
    wandb_id: str | None = None
    finished: bool = False

    @property
    def has_begun(self) -> bool:
        """Whether the head's training is behind it."""
        return self.last is not None

    def save(self, model: keras.Model, log: EpochLog) -> None:
        """Keeps the weights of the epoch just ended, with the optimizer's, and the run's state.

        Before the first, of the best of the epochs so far. Old files are there until the new ones
        are: `state.json` names those that count.

        Raises:
            UserError: they cannot be written.
        """
        epoch = log.epochs[-1].epoch if self.has_begun else log.best.epoch
        self.last = f"epoch-{epoch:03}.weights.h5"
        if epoch == log.best.epoch:
            self.best = self.last
        self.epochs = log.epochs
        with self._writing() as temporary:
            _try_to_write(temporary, model)
            model.save_weights(part := temporary / self.last)
            part.replace(self.folder / self.last)
            self._write_state(temporary)
            for path in self.folder.glob("epoch-*.weights.h5"):
                if path.name not in (self.last, self.best):
                    path.unlink()

    def load(self, model: keras.Model, name: str | None) -> None:
        """Loads the weights of `last` or `best`, with the optimizer's.

        Raises:
            UserError: the file is not there or damaged.
        """
        path = self.folder / str(name)
        try:
            model.load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is damaged ({reason}): delete its folder") from None

    def finish(self) -> None:
        """Notes that the run's results are written.

        Raises:
            UserError: that cannot be.
        """
        self.finished = True
        with self._writing() as temporary:
            self._write_state(temporary)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Path]:
        """A folder for what is not whole yet, beside what it will replace."""
        try:
            self.folder.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".incomplete-") as temporary:
                yield Path(temporary)
        except OSError as error:
            raise UserError(f"no checkpoint could be written: {error}") from None

    def _write_state(self, temporary: Path) -> None:
        state = dataclasses.asdict(self)
        del state["folder"]
        state["rows"] = state.pop("epochs")
        part = temporary / "state.json"
        part.write_text(json.dumps(state, indent=2) + "\n")
        part.replace(self.folder / "state.json")


def _try_to_write(folder: Path, model: keras.Model) -> None:
    """Raises an `OSError` if there is no room for the model's weights, and the optimizer's.

    Since h5py may bring the whole process down then (3.16: "Segmentation fault"). Unlike the disk's
    free space, this knows quotas and limits, too.
    """
    variables = [*model.variables, *model.optimizer.variables]
    size = sum(4 * math.prod(variable.shape) + 4096 for variable in variables)  # with HDF5's tables
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        elif size > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_checkpoint(
    run: Run, data: FashionMNIST, backbone: Backbone, learning_rate: float, resume: bool
) -> Checkpoint:
    """What a run's output folder has to be resumed, or a new checkpoint, before its first epoch.

    Args:
        run: whose options decide whether the figures could be the same.
        data: so do its digests,
        backbone: and its weights and precision.
        learning_rate: may be another than before.
        resume: whether that is wanted.

    Raises:
        UsageError: the run there had other options, data or weights, or should not be lost.
        UserError: it cannot be read.
    """
    config = {
        name: value for name, value in run.options.config().items() if name not in FREE_TO_CHANGE
    }
    config["data_sha256"] = data.sha256
    config["weights_sha256"] = backbone.digest
    config["computed_in"] = backbone.precision
    folder = run.options.results.output_dir / "checkpoint"
    new = Checkpoint(folder=folder, config=config, learning_rate=learning_rate)
    try:
        old = _read(folder)
    except FileNotFoundError:
        if resume:
            print(
                f"There is no {folder / 'state.json'} to resume from: it starts at its beginning."
            )
        return new
    if not resume:
        if old.finished:
            (folder / "state.json").unlink()  # or a later `--resume` might take it for this run's
            return new
        raise UsageError(
            f"{folder} has an unfinished run's epoch {old.epochs[-1].epoch}: --resume continues it"
            "\nTo start anew, delete that folder or use another --output-dir."
        )
    defaults = type(run.options)().config()  # of options that an old checkpoint does not name
    theirs = {name: old.config.get(name, defaults.get(name)) for name in new.config | old.config}
    # Before its first epoch, it may be that the batches were too large for the memory.
    if len(old.epochs) == old.head_epochs:
        theirs["fine_tune_batch_size"] = new.config["fine_tune_batch_size"]
    other = [
        name if isinstance(value, dict) else f"{name} ({value}, not {new.config.get(name)})"
        for name, value in sorted(theirs.items())
        if value != new.config.get(name)
    ]
    if other:
        raise UsageError(f"--resume: the run in {folder} had another {', '.join(other)}")
    if old.finished and old.learning_rate != new.learning_rate:
        raise UsageError(
            f"--resume: the run in {folder} has finished, with another fine_tune_learning_rate"
        )
    return dataclasses.replace(old, config=new.config, learning_rate=new.learning_rate)


def _read(folder: Path) -> Checkpoint:
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text())
        needed = {"config", "rows", "last", "best", "head_epochs", "learning_rate", "finished"}
        missing = needed - (set(state) if isinstance(state, dict) else set())
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        epochs = [Epoch(**row) for row in state.pop("rows")]
        if not epochs or not isinstance(state["config"], dict):
            raise ValueError("it has no epoch or no config")
        return Checkpoint(folder=folder, epochs=epochs, **state)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}; delete that folder") from None
