"""Comparison of a run with another one on the same test images."""

import csv
import json
import math
import os
from types import SimpleNamespace

from fashion.options import config
from fashion.results.comparison import HEADER, compare

import numpy as np
import pytest
from helpers.scripts import parse_options

import cnn_basic
import resnet50_fashion

ALL_CORRECT = np.ones(400, int)
HALF_CORRECT = np.tile([1, 0], 200)


@pytest.fixture
def write_run(tmp_path):
    """Write a run's files in a directory; later calls write later runs."""
    times = iter(range(1000, 1100))

    def write(name, script, *argv, correct=HALF_CORRECT, **changes):
        output_dir = tmp_path / name
        output_dir.mkdir(exist_ok=True)
        options = parse_options(script, *argv, "--output-dir", output_dir)
        metrics = {
            "model": options.script_name,
            "config": config(options),
            "data": {"sha256": {"a file": "a checksum"}, "train": 1760, "test": len(correct)},
            "validation": {"accuracy": 0.8125},
            "test": {"accuracy": float(np.mean(correct)), "accuracy_ci95": (0.25, 0.5)},
            "seconds": {"total": 12.3},
            "sweep": None,
        }
        for part, values in changes.items():
            metrics[part] = metrics[part] | values if isinstance(values, dict) else values
        path = output_dir / "metrics.json"
        path.write_text(json.dumps(metrics))
        os.utime(path, (time := next(times), time))
        with open(output_dir / "predictions.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "label", "predicted", "confidence"])
            labels = np.arange(400) % 10
            writer.writerows(np.transpose([range(400), labels, labels + 1 - correct, labels]))
        return SimpleNamespace(options=options, metadata=metrics), output_dir

    return write


def compared_label(run, directory):
    """Return the label of the other run, or None."""
    header, *others, _ = compare(run, directory).rows
    assert header == list(HEADER)
    return others[0][0] if others else None


def test_difference_is_the_paired_difference(write_run):
    one, other = (np.random.default_rng(0).random((2, 400)) < [[0.9], [0.8]]).astype(int)
    first = write_run("first", resnet50_fashion, "--recipe", "fast", correct=one)
    assert compare(*first).difference == ""  # there is no other run
    second = write_run("second", cnn_basic, correct=other)
    compared = compare(*first)
    test_accuracy = f"{other.mean():.1%} (25.0% to 50.0%)"
    assert compared.rows[1] == ["cnn_basic", "1,760", "81.2%", test_accuracy, "12 s"]
    differences = one - other
    mean = differences.mean()
    half = 1.96 * math.sqrt(np.mean((differences - mean) ** 2) / 399)
    assert compared.difference == (
        f"On the same 400 test images, resnet50_fashion fast is {100 * mean:.1f} percentage points "
        f"better than cnn_basic (difference, 95% CI: {100 * (mean - half):+.1f} to "
        f"{100 * (mean + half):+.1f})."
    )
    expected = f"cnn_basic is {100 * mean:.1f} percentage points worse than resnet50_fashion fast"
    assert expected in compare(*second).difference


def test_latest_run_of_another_script_or_recipe_comes_first(write_run):
    run = write_run("this", resnet50_fashion, "--recipe", "fast")
    write_run("fewer", resnet50_fashion, "--recipe", "fast", "--epochs", 3)
    assert compared_label(*run) == "resnet50_fashion fast, other options"
    write_run("script", cnn_basic)
    assert compared_label(*run) == "cnn_basic"
    write_run("recipe", resnet50_fashion, "--recipe", "best")
    assert compared_label(*run) == "resnet50_fashion best"
    write_run("more", resnet50_fashion, "--recipe", "fast", "--epochs", 99)
    assert compared_label(*run) == "resnet50_fashion best"


def test_previous_run_in_the_output_directory_counts(write_run):
    _, output_dir = write_run("this", cnn_basic, "--epochs", 7, correct=ALL_CORRECT)
    run, new_files = write_run("new", cnn_basic, "--epochs", 9)
    new_files = new_files.rename(output_dir / ".incomplete")
    run.options = parse_options(cnn_basic, "--output-dir", output_dir)
    compared = compare(run, new_files)
    labels = [row[0] for row in compared.rows]
    assert labels == ["model", "cnn_basic, other options", "cnn_basic"]
    assert "is 50.0 percentage points worse than cnn_basic, other options" in compared.difference


@pytest.mark.parametrize(
    ("argv", "changes", "label"),
    [
        (("--recipe", "tuned"), {}, "resnet50_fashion tuned"),
        (("--recipe", "fast", "--fine-tune-blocks", 2), {}, "resnet50_fashion fast, fine-tuned"),
        (("--dropout", 0.1), {}, "resnet50_fashion, other options"),
        (("--seed", 5), {}, None),
        (("--cache-dir", "elsewhere", "--wandb", "offline", "--project", "p"), {}, None),
        (("--data-dir", "a copy", "--require-accuracy", 0.5, "--test-size", 400), {}, None),
        (("--dropout", 0.1), {"sweep": "trial"}, None),
        (("--dropout", 0.1), {"data": {"sha256": {"a file": "another checksum"}}}, None),
        (("--dropout", 0.1), {"data": {"test": 399}}, None),
    ],
    ids=str,
)
def test_only_other_options_on_the_same_test_images_are_compared(argv, changes, label, write_run):
    write_run("other", resnet50_fashion, *argv, **changes)
    assert compared_label(*write_run("this", resnet50_fashion)) == label


def test_difference_needs_ten_disagreements(write_run):
    run = write_run("this", cnn_basic, correct=ALL_CORRECT)
    for num_different in 9, 10:
        other = np.arange(400) >= num_different
        write_run("other", resnet50_fashion, correct=other.astype(int))
        assert bool(compare(*run).difference) == (num_different == 10)


def test_unreadable_predictions_or_those_of_other_images_give_no_difference(write_run):
    run = write_run("this", cnn_basic)
    _, other_dir = write_run("other", resnet50_fashion, correct=ALL_CORRECT)
    assert compare(*run).difference
    path = other_dir / "predictions.csv"
    as_many_others = path.read_text().replace("\n399,", "\n400,")
    for text in "", "index,label\n1,2\n", "index,label,predicted\n1,2,3", as_many_others:
        path.write_text(text)
        assert compared_label(*run) == "resnet50_fashion"
        assert compare(*run).difference == ""


@pytest.mark.parametrize("garbage", ['{"model": ["q"]}', 100_000 * "[", "\x00"], ids=range(3))
def test_unreadable_metrics_are_ignored(garbage, write_run):
    run, directory = write_run("this", cnn_basic)
    write_run("complete", resnet50_fashion)
    _, other_dir = write_run("damaged", resnet50_fashion, "--recipe", "best")
    (other_dir / "metrics.json").write_text(garbage)
    (directory.parent / "a folder" / "metrics.json").mkdir(parents=True)
    assert compared_label(run, directory) == "resnet50_fashion"
