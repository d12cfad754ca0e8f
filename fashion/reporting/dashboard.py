"""The W&B dashboard of a run: charts, tables, report and model."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from fashion.datasets.dataset import ImageDataset, Split
from fashion.evaluation.embeddings import EmbeddingAnalysis, sample_rows
from fashion.evaluation.metrics import Evaluation, SplitEvaluations
from fashion.tracking.history import EpochMetrics

import numpy as np
import wandb

MAX_PROJECTOR_ROWS = 1000  # rows of a table that W&B's projector uses
MAX_CONFUSION_CLASSES = 100  # W&B draws at most 10,000 cells
MAX_MISTAKES, EXAMPLES_PER_CLASS = 100, 10  # rows of the image tables


def log_dashboard(
    wandb_run: wandb.Run,
    evaluations: SplitEvaluations,
    analysis: EmbeddingAnalysis,
    data: ImageDataset,
    epochs: list[EpochMetrics],
) -> None:
    """Log all charts and tables; in sweeps, skip neighbors and embeddings to limit uploads."""
    test = evaluations.test
    examples = [
        np.flatnonzero(test.labels == label)[:EXAMPLES_PER_CLASS]
        for label in range(len(test.class_names))
    ]
    mistakes = test.most_confident_errors(MAX_MISTAKES)
    wandb_run.log(
        _epoch_charts(epochs)
        | _evaluation_charts(evaluations)
        | {
            "test/mistakes": _image_table(test, data.test, mistakes),
            "test/examples": _image_table(test, data.test, np.concatenate(examples)),
        }
    )
    if not wandb_run.sweep_id:
        log_embedding_analysis(wandb_run, analysis, data)


def _epoch_charts(epochs: list[EpochMetrics]) -> dict[str, object]:
    def curves(metric: str) -> dict[str, list[tuple]]:
        return {
            "train": [(row.epoch, getattr(row, metric)) for row in epochs],
            "validation": [(row.epoch, getattr(row, f"val_{metric}")) for row in epochs],
        }

    return {
        "report/accuracy": _line_chart(curves("accuracy"), "epoch", "Accuracy by epoch"),
        "report/loss": _line_chart(curves("loss"), "epoch", "Loss by epoch"),
    }


def _evaluation_charts(evaluations: SplitEvaluations) -> dict[str, object]:
    test = evaluations.test
    eval_splits = {"validation": evaluations.validation, "test": test}
    reliability: dict[str, list[tuple]] = {
        name: [(bin.confidence, bin.accuracy) for bin in evaluation.calibration_bins]
        for name, evaluation in eval_splits.items()
    }
    coverage: dict[str, list[tuple]] = {
        name: [*evaluation.coverage_curve] for name, evaluation in eval_splits.items()
    }
    class_scores = [scores.as_dict() for scores in test.per_class]
    charts: dict[str, object] = {}
    if len(test.class_names) <= MAX_CONFUSION_CLASSES:
        charts["test/confusion_matrix"] = wandb.plot.confusion_matrix(
            y_true=test.labels.tolist(),
            preds=test.predicted.tolist(),
            class_names=list(test.class_names),
            title="Test images by class",
        )
    return charts | {
        "test/per_class": wandb.Table(
            columns=list(class_scores[0]), data=[list(scores.values()) for scores in class_scores]
        ),
        "test/reliability": _line_chart(
            reliability | {"ideal": [(0, 0), (1, 1)]}, "confidence", "Accuracy by confidence"
        ),
        "test/coverage": _line_chart(
            coverage, "coverage", "Accuracy on the most confident fraction of the images"
        ),
    }


def _line_chart(lines: Mapping[str, Iterable[tuple]], x: str, title: str) -> object:
    xs = [[point[0] for point in line] for line in lines.values()]
    ys = [[point[1] for point in line] for line in lines.values()]
    return wandb.plot.line_series(xs, ys, keys=list(lines), title=title, xname=x)


def _image_table(evaluation: Evaluation, split: Split, indices: np.ndarray) -> wandb.Table:
    """Return a table of images with their labels and predictions."""
    columns: list[str | int] = ["image", "true", "predicted", "confidence", "correct"]
    columns += ["top three", "position", *(["file"] if split.filenames else [])]
    table = wandb.Table(columns)
    for i in indices:
        row = [*_prediction_cells(evaluation, split, i), float(evaluation.confidence[i])]
        row += [bool(evaluation.correct[i]), evaluation.format_top3(i), int(split.indices[i])]
        table.add_data(*row, *([split.image_name(i)] if split.filenames else []))
    return table


def log_embedding_analysis(
    wandb_run: wandb.Run, analysis: EmbeddingAnalysis, data: ImageDataset
) -> None:
    """Log the most confident errors with their nearest training images, and the embeddings."""
    evaluation, names = analysis.evaluation, analysis.evaluation.class_names
    columns: list[str | int] = ["image", "true", "predicted", "confidence", "index"]
    for k in range(1, analysis.neighbors.indices.shape[1] + 1):
        columns += [f"neighbor {k}", f"label {k}", f"distance {k}", f"neighbor index {k}"]
    neighbors_table = wandb.Table(columns)
    for i, neighbors, distances in zip(analysis.mistakes, *analysis.neighbors, strict=True):
        row = [*_prediction_cells(evaluation, data.test, i), float(evaluation.confidence[i])]
        row.append(int(data.test.indices[i]))
        for j, distance in zip(neighbors, distances, strict=True):
            row += [_to_wandb_image(data.train.images[j]), names[data.train.labels[j]]]
            row += [float(distance), int(data.train.indices[j])]
        neighbors_table.add_data(*row)
    indices = sample_rows(len(analysis.projection.points), MAX_PROJECTOR_ROWS)
    # Without the zero padding of embeddings that have fewer dimensions.
    points = analysis.projection.points[indices, : analysis.embedding_dim]
    embeddings_table = wandb.Table(["image", "class", "predicted", "correct", "embedding"])
    for i, point in zip(indices, points, strict=True):
        embedding = [round(float(x), 4) for x in point]
        cells = _prediction_cells(evaluation, data.test, i)
        embeddings_table.add_data(*cells, bool(evaluation.correct[i]), embedding)
    wandb_run.log({"test/nearest_neighbors": neighbors_table, "test/embeddings": embeddings_table})


def _prediction_cells(evaluation: Evaluation, split: Split, index: int) -> list:
    """Return the cells image, true class and predicted class."""
    names = evaluation.class_names
    true, predicted = evaluation.labels[index], evaluation.predicted[index]
    return [_to_wandb_image(split.images[index]), names[true], names[predicted]]


def _to_wandb_image(image: np.ndarray) -> wandb.Image:
    """Upscale an image, uint8 (28, 28), by a factor of 4."""
    return wandb.Image(image.repeat(4, axis=0).repeat(4, axis=1))


def log_report(wandb_run: wandb.Run, figures: Iterable[Path], report: Path) -> None:
    """Log the figures and the HTML report."""
    images = {f"report/{path.stem}": wandb.Image(str(path)) for path in figures}
    wandb_run.log(images | {"report/page": wandb.Html(str(report), inject=False)})


def log_model(
    wandb_run: wandb.Run, path: Path, name: str, metadata: dict[str, object]
) -> wandb.Artifact | None:
    """Log the model as an artifact and return it; in sweeps, skip it and return None.

    A sweep would upload hundreds of models, and the best one can be trained again with its options.
    """
    if wandb_run.sweep_id:
        return None
    artifact = wandb.Artifact(name, type="model", metadata=metadata)
    artifact.add_file(str(path), skip_cache=True)
    return wandb_run.log_artifact(artifact)
