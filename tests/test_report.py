"""The evaluation against independent computations, and what a run leaves, on disk and for W&B."""

import base64
import collections
import gzip
import html.parser
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import report
from conftest import (
    ROOT,
    SAMPLE,
    SAMPLE_SIZES,
    Result,
    environment,
    read_wandb_run,
    run_script,
)
from PIL import Image
from report import Evaluation

import common


@pytest.fixture
def random_evaluation():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(10, 0.3), 997).astype("float32")
    labels = np.where(random.random(997) < 0.6, probabilities.argmax(1), random.integers(0, 9, 997))
    return Evaluation(probabilities, labels.astype("int32"))


# --------------------------------------------------------------------------- the evaluation


def test_accuracy_and_loss_are_keras():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), 500).astype("float32")
    labels = rng.integers(0, 10, 500)
    probabilities[0, labels[0]] = 0  # log 0
    evaluation = Evaluation(probabilities, labels)
    accuracy = keras.metrics.SparseCategoricalAccuracy()
    accuracy.update_state(labels, probabilities)
    loss = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
    assert evaluation.accuracy == pytest.approx(float(accuracy.result()), abs=1e-7)
    assert evaluation.loss == pytest.approx(float(np.mean(loss)), rel=1e-3)


def test_confusion_matrix_and_per_class(random_evaluation):
    true = random_evaluation.labels.tolist()
    guessed = [max(range(10), key=row.__getitem__) for row in random_evaluation.probabilities]
    pairs = collections.Counter(zip(true, guessed, strict=True))
    matrix = random_evaluation.confusion_matrix
    assert {(i, j): matrix[i, j] for i in range(10) for j in range(10) if matrix[i, j]} == pairs
    for i, row in enumerate(random_evaluation.per_class):
        precision, recall = pairs[i, i] / guessed.count(i), pairs[i, i] / true.count(i)
        assert row["class"] == common.CLASS_NAMES[i]
        assert row["precision"] == pytest.approx(precision)
        assert row["recall"] == pytest.approx(recall)
        assert row["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
        assert row["support"] == true.count(i)
        others = {j: pairs[i, j] for j in range(10) if j != i}
        assert row["confused"] == max(others.values())
        if row["confused_with"] or row["confused"]:
            assert others[common.CLASS_NAMES.index(row["confused_with"])] == row["confused"]


def test_a_class_that_does_not_occur_counts_as_nothing():
    (row,) = Evaluation(np.eye(10)[[0, 1]], np.array([0, 0])).per_class[9:]
    assert (row["precision"], row["recall"], row["f1"], row["support"]) == (0, 0, 0, 0)
    assert (row["confused_with"], row["confused"]) == ("", 0)


def test_expected_calibration_error(random_evaluation):
    e = random_evaluation
    error = 0
    for i in range(15):
        inside = [
            (max(row), max(row) == row[label])
            for row, label in zip(e.probabilities.tolist(), e.labels, strict=True)
            if i / 15 <= max(row) < (i + 1) / 15 + (i == 14)
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            error += abs(confidence - right) * len(inside) / len(e.labels)
    assert e.expected_calibration_error == pytest.approx(error, abs=1e-6)
    # Half of them right at a confidence of 0.9: off by 0.4.
    probabilities = np.full((4, 10), 0.1 / 9)
    probabilities[:, 3] = 0.9
    off = Evaluation(probabilities, np.array([3, 3, 1, 2]))
    assert off.expected_calibration_error == pytest.approx(0.4)


def test_interval_is_wilsons():
    # 81 of 263: the example of Newcombe (Statistics in Medicine 17, 1998), method 3.
    assert report.wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert report.wilson_interval(0 / 20, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_coverage_ends_at_the_accuracy_and_starts_with_the_surest(random_evaluation):
    e = random_evaluation
    assert [row["coverage"] for row in e.coverage] == pytest.approx(np.arange(1, 101) / 100)
    assert e.coverage[-1]["accuracy"] == e.accuracy
    threshold = sorted(e.probabilities.max(1))[-math.ceil(0.3 * len(e.labels))]
    sure = e.probabilities.max(1) >= threshold
    right = e.probabilities[sure].argmax(1) == e.labels[sure]
    assert e.coverage[29]["accuracy"] == pytest.approx(right.mean())


def test_mistakes_are_wrong_and_the_surest_first(random_evaluation):
    e = random_evaluation
    wrong = [i for i, row in enumerate(e.probabilities) if row.argmax() != e.labels[i]]
    wrong.sort(key=lambda i: -e.probabilities[i].max())
    assert e.mistakes(10**6).tolist() == wrong
    assert e.mistakes(7).tolist() == wrong[:7]
    assert Evaluation(np.eye(10), np.arange(10)).mistakes(5).tolist() == []


def test_top3():
    probabilities = np.full((1, 10), 0.01)
    probabilities[0, [6, 0, 2]] = 0.6, 0.2, 0.13
    assert (
        Evaluation(probabilities, np.zeros(1)).top3(0) == "Shirt 60%, T-shirt/top 20%, Pullover 13%"
    )


# ------------------------------------------------------------------------------- the outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which both scripts have run."""
    folder = tmp_path_factory.mktemp("runs")
    options = ("--data-dir", SAMPLE, "--epochs", 3, "--wandb", "offline")
    # One of the two knows nothing.
    subset = ("--train-size", 125, "--validation-size", 125, "--weights", "none")
    for script, more in ("resnet50_fashion", subset), ("cnn_basic", ()):
        (folder / script).mkdir()
        done = run_script(
            folder / script,
            f"{script}.py",
            *(*options, *more, "--output-dir", folder / "outputs" / script),
            XDG_CACHE_HOME=str(folder),
        )
        assert done.returncode == 0, done.stderr
        (folder / script / "stdout").write_text(done.stdout)
    return folder


@pytest.fixture(params=["cnn_basic", "resnet50_fashion"])
def script(request):
    return request.param


@pytest.fixture
def metrics(folder, script):
    return Result(folder / "outputs" / script).metrics


@pytest.fixture
def wandb_records(folder, script):
    """Summary, {history key: value}, and artifacts by type, of a script's W&B run."""
    run, records = read_wandb_run(folder / script)
    history = {}
    for record in records:
        if record["type"] == "history":
            history |= record["history"]["item"]
    artifacts = collections.defaultdict(list)
    for record in records:
        if record["type"] == "artifact":
            artifacts[record["artifact"]["type"]].append(record["artifact"])
    return run, history, artifacts


@pytest.fixture
def tables(folder, script, wandb_records):
    """The rows, as dictionaries, of each table of a script's W&B run."""
    (run_folder,) = (folder / script).glob("wandb/offline-run-*")
    _, history, _ = wandb_records
    tables = {}
    for key, path in history.items():
        if key.endswith(".path") and path.endswith(".table.json"):
            table = json.loads((run_folder / "files" / path).read_text())
            rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
            tables[key.removesuffix(".path")] = rows
    return tables


def test_wandb_has_the_summary(wandb_records, metrics):
    run, _, _ = wandb_records
    summary = run["summary"]
    for part in "train", "validation", "test":
        for name in "accuracy", "loss", "interval95", "expected_calibration_error":
            assert summary[f"{part}/{name}"] == pytest.approx(metrics[part][name])
    for part in "parameters", "memory", "seconds":
        for name, value in metrics[part].items():
            assert summary[f"{part}/{name}"] == pytest.approx(value)
    assert summary["best/epoch"] == metrics["best_epoch"]
    assert summary["best/val_accuracy"] == summary["epoch/val_accuracy"]["max"]
    assert 0.3 < metrics["memory"]["peak_gb"] < 3


def test_parameters_are_counted(metrics, script):
    counts = {
        "cnn_basic": (784 * 32 + 32 + 32 * 10 + 10, 0),
        # The head's; and 23.5 million of the ResNet50 (published), its batch norms folded.
        "resnet50_fashion": (2048 * 512 + 512 + 5130, pytest.approx(23.5e6, rel=0.01)),
    }
    assert (metrics["parameters"]["trainable"], metrics["parameters"]["frozen"]) == counts[script]


def test_wandb_has_the_confusion_matrix_and_the_classes(tables, metrics):
    matrix = np.zeros((10, 10), int)
    for row in tables["test/confusion_matrix_table"]:
        i, j = (common.CLASS_NAMES.index(row[name]) for name in ("Actual", "Predicted"))
        matrix[i, j] = row["nPredictions"]
    assert matrix.tolist() == metrics["test"]["confusion_matrix"]
    assert matrix.sum(axis=1).tolist() == [row["support"] for row in tables["test/per_class"]]
    assert matrix.sum() == metrics["data"]["test"]
    assert np.trace(matrix) / matrix.sum() == metrics["test"]["accuracy"]
    assert tables["test/per_class"] == metrics["test"]["per_class"]


def test_wandb_has_mistakes_and_examples_with_legible_pictures(tables, metrics, wandb_records):
    matrix = np.array(metrics["test"]["confusion_matrix"])
    mistakes, examples = tables["test/mistakes"], tables["test/examples"]
    assert len(mistakes) == min(100, matrix.sum() - np.trace(matrix))
    assert all(row["true"] != row["predicted"] and not row["correct"] for row in mistakes)
    confidences = [row["confidence"] for row in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert collections.Counter(row["true"] for row in examples) == dict.fromkeys(
        common.CLASS_NAMES, 10
    )
    assert all(row["correct"] == (row["true"] == row["predicted"]) for row in examples)
    assert all(row["top three"].startswith(row["predicted"]) for row in mistakes + examples)

    # The picture in a row is the one at its position in the data set's file, four times as large.
    _, _, artifacts = wandb_records
    whole = (SAMPLE / "t10k-images-idx3-ubyte.gz").read_bytes()
    images = np.frombuffer(gzip.decompress(whole)[16:], "uint8").reshape(-1, 28, 28)
    (artifact,) = (a for a in artifacts["run_table"] if "mistakes" in a["name"])
    pictures = {
        entry["path"]: np.asarray(Image.open(entry["local_path"]))
        for entry in artifact["manifest"]["contents"]
        if entry["path"].endswith(".png")
    }
    shown = sorted(picture.tobytes() for picture in pictures.values())
    enlarged = [
        Image.fromarray(images[row["position"]]).resize((112, 112), Image.Resampling.NEAREST)
        for row in mistakes
    ]
    assert shown == sorted({picture.tobytes() for picture in enlarged})


def test_wandb_has_the_curves(tables, folder, script, metrics):
    history = Result(folder / "outputs" / script).history
    for metric in "accuracy", "loss":
        rows = tables[f"report/{metric}_table"]
        for key, name in ("train", metric), ("validation", f"val_{metric}"):
            line = {row["step"]: row["lineVal"] for row in rows if row["lineKey"] == key}
            assert line == pytest.approx({row["epoch"]: row[name] for row in history})
    lines = collections.defaultdict(list)
    for row in tables["test/coverage_table"]:
        lines[row["lineKey"]].append(row["lineVal"])
    assert lines["test"][-1] == metrics["test"]["accuracy"]
    assert lines["validation"][-1] == metrics["validation"]["accuracy"]
    reliability = {row["lineKey"] for row in tables["test/reliability_table"]}
    assert reliability == {"validation", "test", "ideal"}


def test_wandb_has_the_pictures_and_the_page(wandb_records, folder, script):
    _, history, _ = wandb_records
    (run_folder,) = (folder / script).glob("wandb/offline-run-*")
    output = folder / "outputs" / script
    for name in report.PICTURES:
        logged = run_folder / "files" / history[f"report/{name.removesuffix('.png')}.path"]
        assert logged.read_bytes() == (output / name).read_bytes()
    page = run_folder / "files" / history["report/page.path"]
    assert page.read_text().strip() == (output / "report.html").read_text().strip()


def test_wandb_has_code_data_and_model(wandb_records, folder, script, metrics):
    run, _, artifacts = wandb_records
    (code,) = artifacts["code"]
    files = {e["path"]: e["local_path"] for e in code["manifest"]["contents"]}
    shared = {"common.py", "predict.py", "report.py"}
    assert files.keys() == {f"{script}.py", "requirements.txt"} | shared
    for name, path in files.items():
        assert Path(path).read_text() == (ROOT / name).read_text()
    (data,) = artifacts["dataset"]
    (sums,) = data["manifest"]["contents"]
    assert int(sums["size"]) < 1000  # and not the images
    lines = Path(sums["local_path"]).read_text().splitlines()
    assert dict(reversed(line.split()) for line in lines) == metrics["data"]["sha256"]
    assert json.loads(data["metadata"]) == metrics["data"]
    (model,) = artifacts["model"]
    (entry,) = model["manifest"]["contents"]
    saved = (folder / "outputs" / script / "model.keras").read_bytes()
    assert Path(entry["local_path"]).read_bytes() == saved
    metadata = json.loads(model["metadata"])
    for name in "data", "weights", "train", "validation", "config":
        assert metadata[name] == metrics[name]
    assert metadata["test"].items() <= metrics["test"].items()
    if script == "resnet50_fashion":
        assert re.fullmatch("[0-9a-f]{64}", metadata["weights"]["sha256"])
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    assert run["config"]["versions"]["commit"].removesuffix("-dirty") == commit


def test_both_scripts_log_under_the_same_names(folder):
    logged, started = {}, {}
    for script in "cnn_basic", "resnet50_fashion":
        run, records = read_wandb_run(folder / script)
        logged[script] = {
            key.removesuffix(".path")
            for record in records
            if record["type"] == "history"
            for key in record["history"]["item"]
            if key.endswith(".path") or "." not in key
        }
        (first,) = (r["run"] for r in records if r["type"] == "run" and "project" in r["run"])
        started[script] = {key: first[key] for key in ("job_type", "tags", "project")}
        assert first["run_group"] == f"{run['config']['data']['train']}-train-images"
    assert started["cnn_basic"] == started["resnet50_fashion"]
    extraction = {"features/images", "features/images_per_second", "features/seconds"}
    assert logged["resnet50_fashion"] - logged["cnn_basic"] == extraction
    assert logged["cnn_basic"] <= logged["resnet50_fashion"]


def test_pictures_are_legible(folder, script):
    for name in report.PICTURES:
        with Image.open(folder / "outputs" / script / name) as picture:
            assert picture.width == 1200
            assert len(picture.convert("L").getcolors(256)) > 50  # something is drawn


class Page(html.parser.HTMLParser):
    """What a page refers to, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_page_is_self_contained_and_has_the_figures(folder, script, metrics):
    output = folder / "outputs" / script
    page = Page((output / "report.html").read_text())
    assert len(page.sources) == len(report.PICTURES)
    contents = {base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in page.sources}
    assert contents == {(output / name).read_bytes() for name in report.PICTURES}
    for part in "train", "validation", "test":
        assert f"{metrics[part]['accuracy']:.2%}" in page.texts
    options = page.texts[page.texts.index("Options") :]
    for name, value in metrics["config"].items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        assert options[options.index(name) + 1] == shown
    for row in metrics["test"]["per_class"]:
        cells = page.texts[page.texts.index(row["class"]) :]
        assert cells[1] == f"{row['precision']:.1%}"


def test_comparison_is_of_paired_test_images(folder):
    """The second run stands beside the first, with the interval of the paired difference."""
    first, second = (
        np.loadtxt(folder / "outputs" / s / "predictions.csv", delimiter=",", skiprows=1).T
        for s in ("resnet50_fashion", "cnn_basic")
    )
    assert first[:2].tolist() == second[:2].tolist()
    differences = (second[2] == second[1]).astype(int) - (first[2] == first[1]).astype(int)
    count, mean = len(differences), np.mean(differences)
    half = 1.96 * math.sqrt(np.mean((differences - mean) ** 2) / (count - 1))
    sentence = (
        f"On the same 400 test images, cnn_basic is {100 * mean:.1f} points better than "
        f"resnet50_fashion (difference, 95 % interval: {100 * (mean - half):+.1f} to "
        f"{100 * (mean + half):+.1f})."
    )
    stdout = (folder / "cnn_basic" / "stdout").read_text()
    assert sentence in stdout
    assert "resnet50_fashion" in stdout
    assert sentence in Page((folder / "outputs/cnn_basic/report.html").read_text()).texts
    assert "On the same" not in (folder / "resnet50_fashion" / "stdout").read_text()


def test_other_images_are_not_compared(folder, tmp_path, sample):
    record = Result(folder / "outputs" / "cnn_basic").metrics
    other = tmp_path / "outputs" / "resnet50_fashion"
    shutil.copytree(folder / "outputs" / "resnet50_fashion", other)
    test = Evaluation(np.eye(10)[sample.test.labels], sample.test.labels)

    def compare(positions):
        return report.compare(tmp_path / "outputs" / "cnn_basic", record, test, positions)

    rows, sentence = compare(sample.test.positions)
    assert len(rows) == 3
    assert "cnn_basic is" in sentence
    assert compare(sample.test.positions[::-1])[1] == ""
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["data"]["sha256"]["t10k-images-idx3-ubyte"] = 64 * "0"
    (other / "metrics.json").write_text(json.dumps(metrics))
    assert len(compare(sample.test.positions)[0]) == 2
    for garbage in '{"model": ["q"]}', 100_000 * "[", "\x00", "[1]":
        (other / "metrics.json").write_text(garbage)
        assert len(compare(sample.test.positions)[0]) == 2


def test_what_waits_for_its_upload_is_beside_the_run(wandb_records, folder, script):
    _, _, artifacts = wandb_records
    for artifact in [a for kind in artifacts.values() for a in kind]:
        for entry in artifact["manifest"]["contents"]:
            assert Path(entry["local_path"]).is_relative_to(folder / script / "wandb")
            assert Path(entry["local_path"]).exists()


def test_folder_that_wandb_cannot_write_is_an_error(tmp_path):
    (tmp_path / "nowhere").touch()
    options = ("--data-dir", SAMPLE, "--epochs", 1, "--wandb", "offline")
    done = run_script(
        tmp_path, "cnn_basic.py", *options, WANDB_DATA_DIR=str(tmp_path / "nowhere" / "data")
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("cnn_basic.py: error: W&B: ")
    assert "Traceback" not in done.stderr


def test_mistakes_picture_without_a_mistake(sample):
    labels = sample.test.labels[:20]
    figure = report.draw_mistakes(Evaluation(np.eye(10)[labels], labels), sample.test)
    figure.savefig(buffer := io.BytesIO())
    assert "0 most confident of 0 mistakes" in figure.get_suptitle()
    assert Image.open(buffer).width == 1200


def test_killed_run_leaves_a_readable_run_and_no_output(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "cnn_basic.py", "--data-dir", SAMPLE, "--epochs", "100000"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("Epoch 30/"):
            break
    process.kill()
    process.wait()
    assert not list((tmp_path / "outputs" / "cnn_basic").iterdir())
    _, records = read_wandb_run(tmp_path)
    rows = [r["history"]["item"] for r in records if r["type"] == "history"]
    assert len(rows) >= 10
    assert all(0 < row["epoch/val_accuracy"] <= 1 for row in rows)
    assert SAMPLE_SIZES["train"] == read_wandb_run(tmp_path)[0]["config"]["data"]["train"]
