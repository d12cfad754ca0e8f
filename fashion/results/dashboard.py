"""The W&B dashboard of a run."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from fashion.datasets.splits import ImageDataset, Split
from fashion.results.evaluation import Evaluation, Neighbors
from fashion.results.figures import FIGURES
from fashion.run import EpochMetrics, Run

import numpy as np
import wandb

MAX_CONFUSION_CLASSES = 100  # W&B draws at most 10,000 cells
MAX_MISTAKES, EXAMPLES_PER_CLASS = 100, 10  # rows of the image tables


def log_results(
    wandb_run: wandb.Run,
    directory: Path,
    run: Run,
    evaluations: dict[str, Evaluation],
    neighbors: Neighbors | None,
) -> wandb.Artifact | None:
    """Log charts, tables, summary, report and model; return the model's artifact, if any.

    Sweeps skip neighbors and models: they would upload hundreds, and the best model can be trained
    again with its options.
    """
    test, data = evaluations["test"], run.data
    examples = [
        np.flatnonzero(test.labels == label)[:EXAMPLES_PER_CLASS]
        for label in range(len(test.class_names))
    ]
    mistakes = test.most_confident_errors(MAX_MISTAKES)
    wandb_run.log(
        _epoch_charts(run.epoch_logger.epochs)
        | evaluation_charts(evaluations)
        | {
            "test/mistakes": _image_table(test, data.test, mistakes),
            "test/examples": _image_table(test, data.test, np.concatenate(examples)),
        }
    )
    # Without the metrics per class, which are tables.
    summary = run.metadata | {"test": test.summary()}
    for part in "train", "validation", "test", "calibration", "parameters", "memory", "seconds":
        for name, value in summary[part].items():
            wandb_run.summary[f"{part}/{name}"] = value
    figures = [path for path in map(directory.joinpath, FIGURES) if path.exists()]
    report: dict[str, object] = {f"report/{path.stem}": wandb.Image(str(path)) for path in figures}
    if (page := directory / "report.html").exists():
        report["report/page"] = wandb.Html(str(page), inject=False)
    wandb_run.log(report)
    if wandb_run.sweep_id:
        return None
    if neighbors:
        wandb_run.log({"test/nearest_neighbors": _neighbors_table(test, data, neighbors)})
    artifact = wandb.Artifact(run.options.script_name, type="model", metadata=summary)
    artifact.add_file(str(directory / "model.keras"), skip_cache=True)
    return wandb_run.log_artifact(artifact)


def _epoch_charts(epochs: list[EpochMetrics]) -> dict[str, object]:
    charts = {}
    for metric in "accuracy", "loss":
        lines = {
            "train": [(row.epoch, getattr(row, metric)) for row in epochs],
            "validation": [(row.epoch, getattr(row, f"val_{metric}")) for row in epochs],
        }
        charts[f"report/{metric}"] = _line_chart(lines, "epoch", f"{metric.title()} by epoch")
    return charts


def evaluation_charts(evaluations: dict[str, Evaluation]) -> dict[str, object]:
    """Return charts of the validation and test images by their W&B keys."""
    test = evaluations["test"]
    reliability: dict[str, Iterable[tuple]] = {"ideal": [(0, 0), (1, 1)]}
    coverage: dict[str, Iterable[tuple]] = {}
    for name in "validation", "test":
        bins = evaluations[name].calibration_bins
        reliability[name] = [(bin.confidence, bin.accuracy) for bin in bins]
        coverage[name] = evaluations[name].coverage_curve.items()
    charts: dict[str, object] = {
        "test/per_class": _table(test.per_class),
        "test/reliability": _line_chart(reliability, "confidence", "Accuracy by confidence"),
        "test/coverage": _line_chart(
            coverage, "coverage", "Accuracy on the most confident fraction of the images"
        ),
    }
    if len(test.class_names) <= MAX_CONFUSION_CLASSES:
        charts["test/confusion_matrix"] = wandb.plot.confusion_matrix(
            y_true=test.labels.tolist(),
            preds=test.predicted.tolist(),
            class_names=list(test.class_names),
            title="Test images by class",
        )
    return charts


def _line_chart(lines: Mapping[str, Iterable[tuple]], x: str, title: str) -> object:
    xs = [[point[0] for point in line] for line in lines.values()]
    ys = [[point[1] for point in line] for line in lines.values()]
    return wandb.plot.line_series(xs, ys, keys=list(lines), title=title, xname=x)


def _table(rows: list[dict[str, object]]) -> wandb.Table:
    columns: list[str | int] = list(rows[0]) if rows else []
    return wandb.Table(columns, [list(row.values()) for row in rows])


def _image_table(evaluation: Evaluation, split: Split, indices: np.ndarray) -> wandb.Table:
    """Return a table of images with their labels and predictions."""
    rows = []
    for i in indices:
        row = _prediction_row(evaluation, split, i)
        row |= {"correct": bool(evaluation.correct[i]), "top three": evaluation.format_top3(i)}
        rows.append(row | ({"file": split.image_name(i)} if split.filenames else {}))
    return _table(rows)


def _neighbors_table(test: Evaluation, data: ImageDataset, neighbors: Neighbors) -> wandb.Table:
    """Return a table of the most confident errors with their nearest training images."""
    rows = []
    mistakes = test.most_confident_errors(len(neighbors.indices))
    for i, indices, distances in zip(mistakes, *neighbors, strict=True):
        row = _prediction_row(test, data.test, i)
        for k, (j, distance) in enumerate(zip(indices, distances, strict=True), start=1):
            row[f"neighbor {k}"] = _to_wandb_image(data.train.images[j])
            row[f"label {k}"] = test.class_names[data.train.labels[j]]
            row[f"distance {k}"] = float(distance)
            row[f"neighbor index {k}"] = int(data.train.indices[j])
        rows.append(row)
    return _table(rows)


def _prediction_row(evaluation: Evaluation, split: Split, i: int) -> dict[str, object]:
    """Return the first cells of the row of an image, by column."""
    return {
        "image": _to_wandb_image(split.images[i]),
        "true": evaluation.class_names[evaluation.labels[i]],
        "predicted": evaluation.class_names[evaluation.predicted[i]],
        "confidence": float(evaluation.confidence[i]),
        "index": int(split.indices[i]),
    }


def _to_wandb_image(image: np.ndarray) -> wandb.Image:
    """Upscale an image, uint8 (28, 28), by a factor of 4."""
    return wandb.Image(image.repeat(4, axis=0).repeat(4, axis=1))
