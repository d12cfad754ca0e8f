"""Charts and tables of the W&B dashboard, read from the files of an offline run."""

import collections
import gzip

from fashion.datasets.dataset import CLASS_NAMES
from fashion.evaluation.metrics import Evaluation, SplitEvaluations
from fashion.reporting import dashboard

import numpy as np
import pytest
from helpers.embeddings import compute_embeddings
from helpers.scripts import SAMPLE
from PIL import Image


def test_dashboard_contains_confusion_matrix_and_class_scores(wandb_tables, metrics):
    matrix = np.zeros((10, 10), int)
    for row in wandb_tables["test/confusion_matrix_table"]:
        i, j = (CLASS_NAMES.index(row[name]) for name in ("Actual", "Predicted"))
        matrix[i, j] = row["nPredictions"]
    assert matrix.tolist() == metrics["test"]["confusion_matrix"]
    assert matrix.sum(axis=1).tolist() == [row["support"] for row in wandb_tables["test/per_class"]]
    assert matrix.sum() == metrics["data"]["test"]
    assert np.trace(matrix) / matrix.sum() == metrics["test"]["accuracy"]
    assert wandb_tables["test/per_class"] == metrics["test"]["per_class"]


@pytest.mark.parametrize(("num_classes", "is_logged"), [(100, True), (101, False)])
def test_confusion_matrix_that_wandb_cannot_draw_is_left_out(num_classes, is_logged):
    labels = np.arange(num_classes)
    names = tuple(map(str, labels))
    evaluation = Evaluation(np.eye(num_classes), labels, names)
    charts = dashboard._evaluation_charts(SplitEvaluations(*3 * [evaluation]))
    assert ("test/confusion_matrix" in charts) == is_logged


def test_dashboard_contains_mistakes_and_examples_with_upscaled_images(
    wandb_tables, metrics, wandb_records
):
    matrix = np.array(metrics["test"]["confusion_matrix"])
    mistakes, examples = wandb_tables["test/mistakes"], wandb_tables["test/examples"]
    assert len(mistakes) == min(100, matrix.sum() - np.trace(matrix))
    assert all(row["true"] != row["predicted"] and not row["correct"] for row in mistakes)
    confidences = [row["confidence"] for row in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert collections.Counter(row["true"] for row in examples) == dict.fromkeys(CLASS_NAMES, 10)
    assert all(row["correct"] == (row["true"] == row["predicted"]) for row in examples)
    assert all(row["top three"].startswith(row["predicted"]) for row in mistakes + examples)

    # The image in a row is the one at its position in the data set's file, upscaled by 4.
    _, _, artifacts = wandb_records
    content = (SAMPLE / "t10k-images-idx3-ubyte.gz").read_bytes()
    images = np.frombuffer(gzip.decompress(content)[16:], "uint8").reshape(-1, 28, 28)
    (artifact,) = (a for a in artifacts["run_table"] if "mistakes" in a["name"])
    shown = {
        entry["path"]: np.asarray(Image.open(entry["local_path"]))
        for entry in artifact["manifest"]["contents"]
        if entry["path"].endswith(".png")
    }
    upscaled = [
        Image.fromarray(images[row["position"]]).resize((112, 112), Image.Resampling.NEAREST)
        for row in mistakes
    ]
    assert sorted(image.tobytes() for image in shown.values()) == sorted(
        {image.tobytes() for image in upscaled}
    )


def test_dashboard_contains_learning_and_coverage_curves(wandb_tables, offline_run, metrics):
    history = offline_run.result.history
    for metric in "accuracy", "loss":
        rows = wandb_tables[f"report/{metric}_table"]
        for key, name in ("train", metric), ("validation", f"val_{metric}"):
            line = {row["step"]: row["lineVal"] for row in rows if row["lineKey"] == key}
            assert line == pytest.approx({row["epoch"]: row[name] for row in history})
    lines = collections.defaultdict(list)
    for row in wandb_tables["test/coverage_table"]:
        lines[row["lineKey"]].append(row["lineVal"])
    assert lines["test"][-1] == metrics["test"]["accuracy"]
    assert lines["validation"][-1] == metrics["validation"]["accuracy"]
    reliability = {row["lineKey"] for row in wandb_tables["test/reliability_table"]}
    assert reliability == {"validation", "test", "ideal"}


def test_dashboard_contains_nearest_training_images(wandb_tables, offline_run, sample, metrics):
    """Compare with the distances to all training images, computed from the saved model."""
    split, test = sample.train, sample.test
    images = split.images[: metrics["data"]["train"]]
    train, test_embeddings = (
        compute_embeddings(offline_run.result.model, x) for x in (images, test.images)
    )
    # In bfloat16, features depend on the batch size.
    is_bfloat16 = metrics.get("weights", {}).get("precision") == "bfloat16"
    tolerance = 0.05 if is_bfloat16 else 0.01
    rows, mistakes = wandb_tables["test/nearest_neighbors"], wandb_tables["test/mistakes"][:12]
    assert [row["index"] for row in rows] == [row["position"] for row in mistakes]
    for row in rows:
        (i,) = np.flatnonzero(test.indices == row["index"])
        assert (row["true"], row["confidence"]) == (
            CLASS_NAMES[test.labels[i]],
            next(m["confidence"] for m in mistakes if m["position"] == row["index"]),
        )
        distances = np.linalg.norm(train - test_embeddings[i], axis=1)
        logged = [row[f"distance {k}"] for k in range(1, 5)]
        np.testing.assert_allclose(logged, np.sort(distances)[:4], tolerance, tolerance)
        for k, distance in enumerate(logged, start=1):
            (j,) = np.flatnonzero(split.indices[: len(images)] == row[f"neighbor index {k}"])
            assert distances[j] == pytest.approx(distance, tolerance, tolerance)
            assert row[f"label {k}"] == CLASS_NAMES[split.labels[j]]


def test_dashboard_contains_embeddings_for_the_projector(
    wandb_tables, offline_run, sample, metrics
):
    rows = wandb_tables["test/embeddings"]
    assert len(rows) == metrics["data"]["test"] == 400  # at most 1,000
    labels = sample.test.labels
    assert [row["class"] for row in rows] == [CLASS_NAMES[label] for label in labels]
    assert np.mean([row["correct"] for row in rows]) == pytest.approx(metrics["test"]["accuracy"])
    assert all(row["correct"] == (row["class"] == row["predicted"]) for row in rows)
    # 512 units are projected onto 50 components; of 32 units, all distances are preserved.
    points = np.array([row["embedding"] for row in rows])
    expected = compute_embeddings(offline_run.result.model, sample.test.images)
    assert points.shape[1] == min(50, expected.shape[1])
    expected = expected - expected.mean(axis=0)
    distances = np.linalg.norm(expected - expected[0], axis=1)
    shown = np.linalg.norm(points - points[0], axis=1)
    assert np.corrcoef(shown, distances)[0, 1] > 0.9
    if expected.shape[1] <= 50:
        np.testing.assert_allclose(shown, distances, rtol=0.01, atol=0.02)
    else:  # the maximum of the variance in fewer dimensions
        variances = np.linalg.svd(expected, compute_uv=False) ** 2
        assert np.sum(points**2) == pytest.approx(np.sum(variances[:50]), rel=0.01)
