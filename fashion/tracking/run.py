"""One run, from its options to what it leaves behind: W&B, pictures, report.html, metrics.json."""

import contextlib
import functools
import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import fashion
from fashion import devices, environment
from fashion.datasets.dataset import FashionMNIST
from fashion.errors import UserError
from fashion.evaluation.closer_look import CloserLook
from fashion.evaluation.embeddings import Answers
from fashion.evaluation.metrics import Evaluations
from fashion.options import Options
from fashion.reporting import comparison, dashboard, figures, model_io, result_files
from fashion.reporting.html_report import Page
from fashion.tracking import upload, wandb_session
from fashion.tracking.history import Epoch, EpochLog

import keras
import wandb

OUTPUT_FILES = (
    "model.keras",
    "history.csv",
    "metrics.json",
    "predictions.csv",
    "report.html",
    *figures.NAMES,
)


# The page's last sections, and which part of the record is in each.
SETTINGS = {
    "Options": "config",
    "Data": "data",
    "Weights": "weights",
    "Parameters": "parameters",
    "Time, in seconds": "seconds",
    "Memory": "memory",
    "Computed with": "versions",
}


class Run:
    """A training: its options, its W&B run, its epochs, the seconds of its stages, its results.

    Entering it checks the output folder; leaving it closes the W&B run, marked as failed if it was
    left by an error. (A `wandb.Run` itself can be used so, but prints a traceback then, even for
    Ctrl-C.)
    """

    data: FashionMNIST  # these three from `open_wandb` on
    wandb_run: wandb.Run
    epoch_log: EpochLog

    def __init__(self, options: Options) -> None:
        """Starts the record, which grows into metrics.json."""
        self.options = options
        self._is_open = False
        self._seconds = {"imports": round(time.perf_counter() - fashion.START, 2)}
        self._record: dict[str, Any] = {
            "model": options.script,
            "config": options.config(),
            "versions": environment.versions(),
            "seconds": self._seconds,
            "weights": {"source": "none"},
        }

    def __enter__(self) -> "Run":
        """Makes the output folder, before any work is done for it; says what will be replaced.

        Raises:
            UserError: nothing can be written there.
        """
        folder = self.options.results.output_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"--output-dir: {error}") from None
        if folders := [name for name in OUTPUT_FILES if (folder / name).is_dir()]:
            raise UserError(f"--output-dir: {folder / folders[0]} is a folder")
        if existing := [name for name in OUTPUT_FILES if (folder / name).exists()]:
            print(f"The end of this run replaces {', '.join(existing)} in {folder}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the W&B run, if it is open."""
        if self._is_open:
            upload.finish(self.wandb_run, exit_code=1 if error else None)

    @contextlib.contextmanager
    def stage(self, name: str, lower: str = "--batch-size") -> Iterator[None]:
        """Notes how many seconds the block took.

        Raises:
            UserError: memory does not suffice; the option `lower` should be lower.
        """
        start = time.perf_counter()
        with devices.enough_memory(name.replace("_", "-"), lower):
            yield
        self._seconds[name] = round(time.perf_counter() - start, 2)

    def note(self, **parts: dict[str, Any]) -> None:
        """Adds parts to the record, or replaces them."""
        self._record |= parts

    def open_wandb(self, data: FashionMNIST, epochs: Iterable[Epoch] = (), **settings: Any) -> None:
        """Opens the W&B run; its config is every option, versions, data and weights.

        Args:
            data: the run's, from now on.
            epochs: those so far, if it resumes another.
            settings: what else `wandb.init` is told.

        Raises:
            UserError: W&B cannot write its files, or its settings are unusable.
        """
        self.data = data
        self.note(data=data.record())
        config = self._record["config"] | {
            name: self._record[name] for name in ("versions", "data", "weights")
        }
        mode = self.options.results.wandb
        self.wandb_run = wandb_session.start(mode, config=config, **settings)
        self._is_open = True
        self._log_inputs = functools.partial(wandb_session.log_inputs, self.options.script, data)
        self.wandb_run = upload.carry(self.wandb_run, self._log_inputs)
        self.epoch_log = EpochLog(self.wandb_run, epochs)

    def save(self, model: keras.Model, answers: dict[str, Answers]) -> None:
        """Writes `OUTPUT_FILES`, and the same to W&B, each file whole or not at all.

        Args:
            model: uint8 (N, 28, 28) → probabilities (N, classes).
            answers: its own, for the images of each split.

        Raises:
            UserError: a file cannot be written.
        """
        folder = self.options.results.output_dir
        evaluations = Evaluations.of({k: v.probabilities for k, v in answers.items()}, self.data)
        closer = CloserLook.at(answers, evaluations.test)
        self._note_results(evaluations, model)
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as temporary:
                part = Path(temporary)
                model_io.save(model, part / "model.keras", self.data.class_names)
                self._write_files(part, evaluations, closer)
                try:
                    # From here and not from `folder`, which another trial of a sweep may write to.
                    log = functools.partial(self._log, part, evaluations, closer)
                    so_far = self._log_inputs, self.epoch_log.repeat
                    size = sum(path.stat().st_size for path in part.iterdir())
                    self.wandb_run = upload.carry(self.wandb_run, log, so_far, size)
                finally:  # whatever became of W&B
                    for name in OUTPUT_FILES:
                        (part / name).replace(folder / name)
        except OSError as error:
            raise UserError(f"not all results could be written: {error}") from None

    def conclude(self) -> None:
        """The last lines: the comparison, where things are, and whether it was good enough.

        Raises:
            UserError: the validation accuracy is below `--require-accuracy`.
        """
        print()
        for row in self._comparison.rows:
            print("{:<28} {:>12}  {:>10}  {:<24} {:>8}".format(*row))
        if self._comparison.sentence:
            print(self._comparison.sentence)
        results = self.options.results
        print(f"\nSaved in {results.output_dir}: {', '.join(OUTPUT_FILES)}")
        for line in wandb_session.ways_to_look(self.wandb_run):
            print(line)
        reached, required = self._record["validation"]["accuracy"], results.require_accuracy
        if required and reached < required:
            raise UserError(f"validation accuracy {reached:.4f} is below the required {required}")

    def _note_results(self, evaluations: Evaluations, model: keras.Model) -> None:
        self.note(
            train=evaluations.train.summary(),
            validation=evaluations.validation.summary(),
            test=evaluations.test.summary() | evaluations.test.tables(),
            parameters={
                "trainable": sum(math.prod(weight.shape) for weight in model.trainable_weights),
                "frozen": sum(math.prod(weight.shape) for weight in model.non_trainable_weights),
            },
        )
        self._record["best_epoch"] = self.epoch_log.best.epoch

    def _write_files(self, folder: Path, evaluations: Evaluations, closer: CloserLook) -> None:
        """All of `OUTPUT_FILES` but the model."""
        result_files.write_history(folder, self.epoch_log.epochs)
        result_files.write_predictions(folder, self.data.test, evaluations.test)
        figures.draw_run(folder, evaluations, closer, self.data, self.epoch_log)
        self._record["memory"] = environment.peak_memory()
        self._seconds["total"] = round(time.perf_counter() - fashion.START, 2)
        (folder / "metrics.json").write_text(json.dumps(self._record, indent=2) + "\n")
        output_dir = self.options.results.output_dir
        self._comparison = comparison.compare(
            this=result_files.read(folder), others=result_files.read_beside(output_dir)
        )
        page = Page(
            model=self.options.script,
            data=self.data.name,
            evaluations=evaluations,
            best_epoch=self.epoch_log.best.epoch,
            comparison=self._comparison,
            pictures=folder,
            settings={title: self._record[name] for title, name in SETTINGS.items()},
        )
        path = folder / "report.html"
        path.write_text(page.render(), encoding="utf-8", errors="xmlcharrefreplace")

    def _log(
        self, folder: Path, evaluations: Evaluations, closer: CloserLook, run: wandb.Run
    ) -> wandb.Artifact | None:
        if run.disabled:
            return None
        dashboard.log(run, evaluations, closer, self.data, self.epoch_log.epochs)
        summary = self._record | {"test": evaluations.test.summary()}  # its tables go as such
        for part in "train", "validation", "test", "parameters", "memory", "seconds":
            for name, value in summary[part].items():
                run.summary[f"{part}/{name}"] = value
        wandb_session.log_files(
            run, [folder / name for name in figures.NAMES], folder / "report.html"
        )
        model = folder / "model.keras"
        return wandb_session.log_model(run, model, self.options.script, metadata=summary)
