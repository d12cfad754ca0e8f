"""The results of a run: files in its output directory, and the W&B dashboard."""

import csv
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import fashion
from fashion import environment
from fashion.datasets.dataset import Split
from fashion.environment import staging_dir
from fashion.errors import UserError
from fashion.evaluation.embeddings import EmbeddingAnalysis, Predictions
from fashion.evaluation.metrics import Evaluation, SplitEvaluations, parameter_counts
from fashion.reporting import commands, comparison, dashboard, figures, model_io
from fashion.reporting.comparison import Comparison
from fashion.reporting.html_report import Report
from fashion.tracking.history import EpochMetrics
from fashion.tracking.run import OUTPUT_FILES, Run
from fashion.tracking.wandb_session import offline_run_hints

import keras
import numpy as np
import wandb

# The last tables of the report: heading → part of the metadata.
REPORT_TABLES = {
    "Options": "config",
    "Data": "data",
    "Weights": "weights",
    "Parameters": "parameters",
    "Time, in seconds": "seconds",
    "Memory": "memory",
    "Versions and hardware": "versions",
}


@dataclass(frozen=True)
class ConsoleSummary:
    """The last lines that a run prints."""

    run: Run
    comparison: Comparison

    def print_and_check_accuracy(self) -> None:
        """Print the comparison and output paths; check `--require-accuracy`.

        Raises:
            UserError: If the validation accuracy is below `--require-accuracy`.
        """
        print()
        for row in self.comparison.rows:
            print("{:<28} {:>12}  {:>10}  {:<24} {:>8}".format(*row))
        if self.comparison.difference:
            print(self.comparison.difference)
        options = self.run.options.results
        print(f"\nSaved in {options.output_dir}: {', '.join(OUTPUT_FILES)}")
        for line in offline_run_hints(self.run.wandb_run):
            print(line)
        accuracy = self.run.metadata["validation"]["accuracy"]
        if options.require_accuracy and accuracy < options.require_accuracy:
            raise UserError(
                f"validation accuracy {accuracy:.4f} is below the required "
                f"{options.require_accuracy}"
            )


def save(run: Run, model: keras.Model, predictions: dict[str, Predictions]) -> ConsoleSummary:
    """Write all output files and log them to W&B; each file is written completely or not at all.

    Args:
        run: Run with an open W&B run and at least one epoch.
        model: uint8 (N, 28, 28) images → (N, classes) probabilities.
        predictions: The model's predictions for the images of each split.

    Returns:
        The summary to print after the W&B run is closed.

    Raises:
        UserError: If a file cannot be written.
    """
    output_dir = run.options.results.output_dir
    probabilities = {name: values.probabilities for name, values in predictions.items()}
    evaluations = SplitEvaluations.from_probabilities(probabilities, run.data)
    analysis = EmbeddingAnalysis.from_predictions(predictions, evaluations.test)
    _add_results(run, evaluations, model)
    try:
        with staging_dir(output_dir) as directory:
            model_io.save_model(model, directory / "model.keras", run.data.class_names)
            compared = _write_files(directory, run, evaluations, analysis)
            try:
                # Log from `directory`: another trial of a sweep may write to `output_dir`.
                log_fn = functools.partial(_log_to_wandb, directory, run, evaluations, analysis)
                run.log(log_fn, size=sum(path.stat().st_size for path in directory.iterdir()))
            except OSError as error:
                raise UserError(
                    f"W&B could not write its files: {error}; the results in {output_dir} are "
                    "complete"
                ) from None
            finally:  # keep the results even if W&B fails
                for name in OUTPUT_FILES:
                    (directory / name).replace(output_dir / name)
    except OSError as error:
        raise UserError(
            f"could not write all results: {error}; free disk space, or use another "
            "--output-dir, and run the same command again"
        ) from None
    return ConsoleSummary(run, compared)


def _add_results(run: Run, evaluations: SplitEvaluations, model: keras.Model) -> None:
    """Add metrics and parameter counts to the run's metadata."""
    if "parameters" not in run.metadata:  # fine-tuning counts them before it folds the model
        run.update_metadata(parameters=parameter_counts(model))
    run.update_metadata(
        train=evaluations.train.summary(),
        validation=evaluations.validation.summary(),
        test=evaluations.test.summary() | evaluations.test.class_metrics(),
        best_epoch=run.epoch_logger.best.epoch,
    )


def _write_files(
    directory: Path, run: Run, evaluations: SplitEvaluations, analysis: EmbeddingAnalysis
) -> Comparison:
    """Write all of `OUTPUT_FILES` except the model; return the comparison with another run."""
    write_history(directory, run.epoch_logger.epochs)
    for filename, split, evaluation in (
        ("predictions.csv", run.data.test, evaluations.test),
        ("validation_predictions.csv", run.data.validation, evaluations.validation),
    ):
        write_predictions(directory / filename, split, evaluation, run.data.first_label)
    figures.save_figures(directory, evaluations, analysis, run.data, run.epoch_logger)
    run.update_metadata(memory=environment.peak_memory())
    run.metadata["seconds"]["total"] = round(time.perf_counter() - fashion.START_TIME, 2)
    (directory / "metrics.json").write_text(json.dumps(run.metadata, indent=2) + "\n")
    compared = comparison.compare(
        this=comparison.load_run_summary(directory),
        others=comparison.find_sibling_runs(run.options.results.output_dir),
    )
    metadata = commands.public_metadata(run.metadata, run.options)
    report = Report(
        model_name=run.options.script_name,
        data_name=run.data.name,
        evaluations=evaluations,
        best_epoch=run.epoch_logger.best.epoch,
        comparison=compared,
        figures_dir=directory,
        training_command=commands.training_command(run.options),
        prediction_command=commands.prediction_command(run.options),
        details={heading: metadata[part] for heading, part in REPORT_TABLES.items()},
    )
    path = directory / "report.html"
    path.write_text(report.render(), encoding="utf-8", errors="xmlcharrefreplace")
    return compared


def write_history(directory: Path, epochs: Sequence[EpochMetrics]) -> None:
    """Write history.csv, one row per epoch."""
    with open(directory / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, asdict(epochs[0]))
        writer.writeheader()
        writer.writerows(asdict(metrics) for metrics in epochs)


def write_predictions(
    path: Path, split: Split, evaluation: Evaluation, first_label: int = 0
) -> None:
    """Write a CSV file with one row per image: index, label, prediction and all probabilities.

    The columns of the probabilities are named after the classes, such as "p(Coat)". The index is
    the image's position in the data set's file. Image folders add a column with the file name. The
    first class has the label `first_label`, as in the data set's file.
    """
    header = ["index", "label", "predicted", "confidence"]
    header += [f"p({name})" for name in evaluation.class_names]
    labels = (values + first_label for values in (evaluation.labels, evaluation.predicted))
    probabilities = np.column_stack([evaluation.confidence, evaluation.probabilities])
    texts = ([f"{value:.4g}" for value in row] for row in probabilities.tolist())
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "file"] if split.filenames else header)
        for i, (index, label, predicted, row) in enumerate(
            zip(split.indices, *labels, texts, strict=True)
        ):
            filename = [split.image_name(i)] if split.filenames else []
            writer.writerow([index, label, predicted, *row, *filename])


def _log_to_wandb(
    directory: Path,
    run: Run,
    evaluations: SplitEvaluations,
    analysis: EmbeddingAnalysis,
    wandb_run: wandb.Run,
) -> wandb.Artifact | None:
    """Log dashboard, summary, report and model; return the model's artifact, if any."""
    if wandb_run.disabled:
        return None
    dashboard.log_dashboard(wandb_run, evaluations, analysis, run.data, run.epoch_logger.epochs)
    # Without the metrics per class, which the dashboard shows as tables.
    summary = run.metadata | {"test": evaluations.test.summary()}
    for part in "train", "validation", "test", "parameters", "memory", "seconds":
        for name, value in summary[part].items():
            wandb_run.summary[f"{part}/{name}"] = value
    figure_paths = [directory / name for name in figures.FIGURE_FILES]
    dashboard.log_report(wandb_run, figure_paths, directory / "report.html")
    return dashboard.log_model(
        wandb_run, directory / "model.keras", run.options.script_name, metadata=summary
    )
