"""The files in a run's output directory."""

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import shlex
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fashion import errors, machine, startup, wandb_session
from fashion.datasets import splits
from fashion.datasets.photos import IMAGE_SIZE
from fashion.datasets.splits import Split
from fashion.errors import UsageError, UserError
from fashion.files import replacing, staging_dir, try_lock, write_csv
from fashion.options import SharedOptions
from fashion.results import dashboard
from fashion.results.comparison import HEADER, Comparison, compare
from fashion.results.evaluation import Evaluation, Predictions, nearest_neighbors
from fashion.results.figures import FIGURES, NUM_NEIGHBOR_MISTAKES, NUM_NEIGHBORS, save_figures
from fashion.results.html import render_report
from fashion.run import Run, best_epoch, parameter_counts

import keras

RESULT_FILES = (
    "model.keras",  # replaced first
    "classes.txt",
    "metrics.json",
    "history.csv",
    "predictions.csv",
    "validation_predictions.csv",
)
OUTPUT_FILES = (*RESULT_FILES, "report.html", *FIGURES)
UPLOAD_BYTES_PER_SECOND = 250_000  # 2 Mbit/s


@contextlib.contextmanager
def claim_output_dir(output_dir: Path) -> Iterator[Path]:
    """Lock the output directory, yield it, and print which files will be overwritten.

    If it is locked, a trial of a sweep takes `<output_dir>-2` …: W&B gives up after three failures.
    """
    if not 1980 <= time.localtime().tm_year < 2108:
        raise UserError(f"a .keras file cannot contain the date {time.ctime()}; set the clock")
    directory, numbers = output_dir, itertools.count(2)
    while not (lock := try_lock(directory)):
        if not os.environ.get("WANDB_SWEEP_ID"):
            reason = f"another run uses {directory}; wait until it ends, or use another directory"
            raise UsageError(f"--output-dir: {reason}")
        directory = Path(f"{output_dir}-{next(numbers)}")
    try:
        if subdirs := [name for name in OUTPUT_FILES if (directory / name).is_dir()]:
            reason = f"{directory / subdirs[0]} is a directory; remove it, or use another directory"
            raise UserError(f"--output-dir: {reason}")
        if existing := [name for name in OUTPUT_FILES if (directory / name).exists()]:
            print(f"Existing files in {directory} will be overwritten: {', '.join(existing)}")
        for parent in (directory, directory / "checkpoint") if lock.is_locked else ():
            for path in parent.glob(".incomplete-run-*"):  # of killed runs
                shutil.rmtree(path, ignore_errors=True)
        yield directory
    finally:
        lock.release()


def save_results(
    run: Run,
    model: keras.Model,
    predictions: dict[str, Predictions],
    evaluations: dict[str, Evaluation],
    temperature: float,
) -> Comparison:
    """Save the results, then figures, report and dashboard; return what `print_summary` prints.

    Files of an earlier run stay until `RESULT_FILES` are complete; what fails later is a warning.

    Args:
        run: Run with at least one epoch.
        model: uint8 (N, 28, 28) images → (N, classes) probabilities.
        predictions: Predictions before the calibration, by the name of the split.
    """
    run.lap("saving")
    output_dir, test = run.options.output_dir, evaluations["test"]
    uncalibrated = Evaluation(predictions["test"].probabilities, test.labels, test.class_names)
    run.metadata["calibration"] = {
        "temperature": temperature,
        "uncalibrated_error": uncalibrated.expected_calibration_error,  # of the test images
    }
    comparison, neighbors = Comparison([list(HEADER)], ""), None
    with staging_dir(output_dir) as directory:
        _write_results(directory, run, model, evaluations)
        with errors.warn_on_failure("the comparison"):
            comparison = compare(run, directory)
        replace_results(directory, output_dir)
    with errors.warn_on_failure("neighbors.png"):
        mistakes = test.most_confident_errors(NUM_NEIGHBOR_MISTAKES)
        neighbors = nearest_neighbors(
            predictions["test"].embeddings[mistakes], predictions["train"].embeddings, NUM_NEIGHBORS
        )
    with errors.warn_on_failure("the figures"):
        epochs = run.epoch_logger.epochs
        save_figures(
            output_dir, evaluations=evaluations, data=run.data, epochs=epochs, neighbors=neighbors
        )
    with errors.warn_on_failure("report.html"), replacing(output_dir / "report.html") as path:
        page = render_report(run, evaluations, comparison, output_dir)
        path.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    with errors.warn_on_failure("the W&B dashboard"):
        model_size = (output_dir / "model.keras").stat().st_size
        run.log_with(
            lambda wandb_run: dashboard.log_results(
                wandb_run, output_dir, run, evaluations, neighbors
            ),
            upload_seconds=60 + model_size // UPLOAD_BYTES_PER_SECOND,
        )
    return comparison


def replace_results(source: Path, output_dir: Path) -> None:
    """Replace the files of an earlier run; a kill leaves a model, and other files of its run."""
    for name in OUTPUT_FILES[1:]:
        with contextlib.suppress(OSError):  # if it is in use, replacing it fails, after the model
            (output_dir / name).unlink()
    for name in RESULT_FILES:
        (source / name).replace(output_dir / name)


def print_summary(run: Run, comparison: Comparison) -> None:
    """Print the comparison, the output files, and how to view an offline W&B run."""
    print()
    widths = [max(map(len, column)) for column in zip(*comparison.rows, strict=True)]
    for row in comparison.rows:
        cells = zip(row, "<>><>", widths, strict=True)
        print("  ".join(f"{cell:{align}{width}}" for cell, align, width in cells))
    if comparison.difference:
        print(comparison.difference)
    saved = [name for name in OUTPUT_FILES if (run.options.output_dir / name).exists()]
    print(f"\nSaved in {run.options.output_dir}: {', '.join(saved)}")
    for line in wandb_session.hints(run.wandb_run):
        print(line)


def _write_results(
    directory: Path, run: Run, model: keras.Model, evaluations: dict[str, Evaluation]
) -> None:
    """Write all of `RESULT_FILES`."""
    metadata, data, epochs = run.metadata, run.data, run.epoch_logger.epochs
    save_model(model, directory / "model.keras", data.class_names)
    splits.write_class_names(directory, data.class_names)
    with open(directory / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, dataclasses.asdict(epochs[0]))
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, epochs))
    for prefix, name in ("", "test"), ("validation_", "validation"):
        path = directory / f"{prefix}predictions.csv"
        write_predictions(path, data.splits[name], evaluations[name], data.first_label)
    # Fine-tuning counts the parameters before it folds the model.
    metadata.setdefault("parameters", parameter_counts(model))
    metadata.update({name: evaluation.summary() for name, evaluation in evaluations.items()})
    metadata["test"] |= {
        "confusion_matrix": evaluations["test"].confusion_matrix.tolist(),
        "per_class": evaluations["test"].per_class,
    }
    metadata["best_epoch"] = best_epoch(epochs).epoch
    metadata["sweep"] = run.wandb_run.sweep_id if run.wandb_run else None
    metadata["memory"] = machine.peak_memory()
    metadata["seconds"]["total"] = round(time.perf_counter() - startup.START_TIME, 2)
    (directory / "metrics.json").write_text(json.dumps(metadata, indent=2) + "\n")


def write_predictions(
    path: Path, split: Split, evaluation: Evaluation, first_label: int = 0
) -> None:
    """Write a CSV file with one row per image: index, label, prediction and all probabilities.

    The columns of the probabilities are named after the classes, such as "p(Coat)". The index is
    the image's position in the data set's file, whose first class has the label `first_label`. For
    image folders, columns with the names of label and prediction, and with the file, are added.
    """
    names = evaluation.class_names
    header = ["index", "label", "predicted", "confidence", *(f"p({name})" for name in names)]
    header += ["label_name", "predicted_name", "file"] if split.filenames else []
    rows: list[list[object]] = [list(header)]
    for i, probabilities in enumerate(evaluation.probabilities.tolist()):
        index, label, predicted = split.indices[i], evaluation.labels[i], evaluation.predicted[i]
        numbers = (f"{value:.4g}" for value in (max(probabilities), *probabilities))
        row = [index, label + first_label, predicted + first_label, *numbers]
        if split.filenames:
            row += [names[label], names[predicted], split.filenames[index]]
        rows.append(row)
    write_csv(path, rows)


def save_model(model: keras.Model, path: Path, class_names: tuple[str, ...]) -> None:
    """Save a model and its class names; `keras.saving.load_model` loads the model.

    A .keras file is a zip archive. The class names are its comment, which Keras ignores and `unzip
    -z` prints. Keras would take a file with the names for an asset, and unpack the complete archive
    to disk before loading.
    """
    model.save(path)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = json.dumps({"classes": class_names}).encode()


def load_trained_model(options: SharedOptions) -> tuple[keras.Model, tuple[str, ...]]:
    """Load the model in `--output-dir` and its class names.

    Returns:
        The model, uint8 (N, 28, 28) images → (N, classes) probabilities, and the class names, from
        `classes.txt` if another tool has saved the model again, without its names.
    """
    path, names_path = (options.output_dir / name for name in ("model.keras", "classes.txt"))
    command = f"python {options.script_name}.py"
    if options.output_dir != type(options)().output_dir:
        command += f" --output-dir {shlex.quote(str(options.output_dir))}"
    if not path.exists():
        raise UserError(f"{path} does not exist; `{command}` trains a model")
    try:
        with zipfile.ZipFile(path) as file:  # before Keras, which prints "not found" if damaged
            has_names = file.comment.startswith(b'{"classes"')
            names = json.loads(file.comment)["classes"] if has_names else ()
        if has_names:
            names = splits.validate_class_names(map(str, names), "its list of classes")
        model = keras.saving.load_model(path, safe_mode=True)
        shapes = model.input_shape, model.output_shape
    except Exception as error:  # zip, JSON, HDF5 and Keras each raise their own
        raise UserError(
            f"{path} cannot be loaded: {errors.first_line(error)}; if a newer Keras saved it, "
            f"upgrade Keras, else train another model with `{command}`"
        ) from None
    if not has_names and names_path.exists():
        names = splits.read_class_names(names_path)
    if not has_names and len(names) != shapes[1][-1]:
        raise UserError(f"{path} contains no class names; write them to {names_path}, one per line")
    if shapes != ((None, IMAGE_SIZE, IMAGE_SIZE), (None, len(names))):
        raise UserError(f"{path} is not a model of these scripts; `{command}` trains one")
    if not has_names:
        print(f"Class names: from {names_path}, since {path} contains none")
    return model, names
