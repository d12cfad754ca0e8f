"""The benchmarks, on tiny sizes: that they run, and that their tables say what was measured."""

import argparse
import importlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import forkserver
from helpers.scripts import ROOT, SAMPLE, parse_options, process_environment
from PIL import Image

import cnn_basic
import resnet50_fashion


def run(folder, script, *options):
    command = [sys.executable, ROOT / "benchmarks" / script, *map(str, options)]
    done = subprocess.run(
        [*command, "--data-dir", SAMPLE, "--weights", "none"],
        cwd=folder,
        env=process_environment(folder),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def rows(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(text):
    return float(re.match(r"[\d.,]+", text)[0].replace(",", ""))


@pytest.fixture
def speed(monkeypatch, fork_server):
    """The benchmark as a module whose processes are forked after the import of TensorFlow."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("speed")
    monkeypatch.setattr(module, "PROCESSES", forkserver.SERVER)
    return module


@pytest.mark.slow
def test_speed(speed, monkeypatch, tmp_path):
    sizes = *("--images", 4, "--extraction-images", 100, "--rounds", 1), *("--train-size", 40)
    sizes += *("--epochs", 2), *("--timed-images", 32), *("--recipes", "fast")
    # Other runtimes take minutes to convert the network; test_export.py runs them.
    (tmp_path / "hidden").mkdir()
    for package in "openvino", "onnxruntime", "onnx", "tf2onnx", "torch":
        code = f"raise ModuleNotFoundError('hidden', name={package!r})"
        (tmp_path / "hidden" / f"{package}.py").write_text(code)
    sections = ("runtimes", "end_to_end", "baseline", "fine_tuning")
    sizes += *("--tuning-images", 32), *("--batch-sizes", 16), *("--tuning-blocks", 1)
    monkeypatch.syspath_prepend(tmp_path / "hidden")  # processes get the path as well
    sizes += *("--data-dir", SAMPLE, "--weights", "none"), *("--output", tmp_path)
    monkeypatch.setattr(sys, "argv", ["speed.py", *sections, *map(str, sizes)])
    speed.main()

    *runtimes, _, _, published, fast = rows(tmp_path / "runtimes.md")
    for recipe, alone, whole, ratio in published, fast:
        assert recipe.startswith("`--recipe")
        assert number(ratio) == pytest.approx(number(whole) / number(alone), abs=0.02)
    assert number(fast[1]) > 2 * number(published[1])
    table = {row[0]: row[1:] for row in runtimes}
    first = "Keras `ResNet50.predict`, float32"
    assert len(table) == 9
    for name, (rate, ratio, *_, difference) in table.items():
        if "not installed" in rate:
            assert "Keras `" not in name and "project" not in name
            continue
        assert number(ratio) == pytest.approx(number(rate) / number(table[first][0]), rel=0.5)
        # All runtimes compute the same network: in bfloat16, with eight bits of precision.
        assert number(difference) < (0.5 if "float32" in name else 10)

    naive, *recipes = rows(tmp_path / "end_to_end.md")
    assert "extrapolated" in naive[1]
    assert [row[0].split(",") for row in recipes] == [
        ["`--recipe fast`", run] for run in (" first run", " later run")
    ]
    frozen, *trained = rows(tmp_path / "fine_tuning.md")
    assert [row[0] for row in (frozen, *trained)] == [
        "frozen",
        "trained, Keras' layer",
        "trained, fused",
        "trained, fused, float32",
    ]
    for row in trained:
        assert number(row[3]) == pytest.approx(number(row[2]) / number(frozen[2]), rel=0.1)
    plain, this = rows(tmp_path / "baseline.md")
    assert number(plain[2]) == 1
    # Printed are two decimals of seconds that may be hundredths.
    assert number(this[1]) > 0 and number(this[2]) > 0


@pytest.mark.slow
def test_accuracy(tmp_path, run_main):
    run(
        tmp_path,
        *("accuracy.py", "--rows", "basic", "--seeds", 0, 1, "--epochs", 1),
        *("--output", tmp_path, "--work-dir", tmp_path / "work"),
    )
    ((command, seeds, *cells),) = rows(tmp_path / "accuracy.md")
    assert command == "`python cnn_basic.py`" and seeds == "2"
    with Image.open(tmp_path / "frontier.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) == 255

    argv = "--data-dir", SAMPLE, "--epochs", 1
    results = [run_main(cnn_basic, *argv, "--seed", seed) for seed in (0, 1)]
    one, other = (100 * result.metrics["test"]["accuracy"] for result in results)
    mean, deviation = (one + other) / 2, abs(one - other) / 2**0.5
    assert cells[2] == f"{mean:.2f} ± {deviation:.2f} %"


@pytest.mark.slow
def test_interrupted_fine_tuning_is_resumed_and_not_timed(accuracy, tmp_path, run_main):
    argv = "--recipe", "fast", "--backbone", "mobilenetv2", "--weights", "none", "--epochs", 3
    argv += "--fine-tune-blocks", 1, "--fine-tune-epochs", 1, "--fine-tune-inputs", "computed"
    argv += "--image-size", 32, "--train-size", 100
    argv += "--data-dir", SAMPLE, "--cache-dir", tmp_path / "cache"
    output_dir = tmp_path / "row-0"
    complete = run_main(resnet50_fashion, *argv, "--output-dir", output_dir)
    # As after an interruption between the last epoch and the evaluation.
    (output_dir / "metrics.json").unlink()
    result = accuracy.run("resnet50_fashion.py", [*map(str, argv)], tmp_path / "row-0.log")
    assert result["seconds"] is None
    assert result["accuracy"]["test"] == complete.metrics["test"]["accuracy"] > 0.2
    assert "Epoch" not in (tmp_path / "row-0.log").read_text()
    assert not output_dir.exists()


@pytest.mark.slow
def test_backbones(tmp_path):
    sizes = "--train-size", 100, "--validation-size", 100, "--images", 125, "--rounds", 1
    run(
        tmp_path,
        *("backbones.py", "--backbones", "mobilenetv2", "--sizes", 64, "--heads", "conv4", "best"),
        *(*sizes, "--output", tmp_path, "--work-dir", tmp_path / "work"),
    )
    best, conv4 = rows(tmp_path / "backbones.md")
    assert best[0] == "`--recipe best --image-size 64 --backbone mobilenetv2`"
    assert conv4[0] == "`--recipe fast --features conv4 --image-size 64 --backbone mobilenetv2`"
    # conv3 has 192 channels, conv4 576, pooled twice.
    assert [int(row[2]) for row in (best, conv4)] == [16 * 192 + 2 * 576, 192 + 2 * 576]
    for _, validation, _, rate, ratio, weights in best, conv4:
        assert 0 < number(validation) < 100 and number(rate) > 0 and number(ratio) > 0
        assert weights == "none"
    assert number(best[3]) < number(conv4[3])  # processes each image twice


def test_tables_of_the_docs_are_the_benchmarks():
    results = (ROOT / "docs" / "results.md").read_text()
    tables = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    assert tables
    for path in tables:
        assert path.read_text().strip() in results, path.name


@pytest.fixture
def accuracy(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("accuracy")


def test_rows_of_the_accuracies_are_commands_that_the_scripts_take(accuracy):
    scripts = {"cnn_basic.py": cnn_basic, "resnet50_fashion.py": resnet50_fashion}
    for row, command in accuracy.ROWS.items():
        script, *argv = command.split()
        if script not in scripts:
            assert (ROOT / script).is_file(), row
            continue
        given = {word[2:].replace("-", "_") for word in argv if word.startswith("--")}
        config, plain = (
            parse_options(scripts[script], *argv).config(),
            scripts[script].Options().config(),
        )
        changed = {name for name, value in config.items() if value != plain[name]}
        assert changed >= given, row


def test_accuracies_are_mean_and_deviation_of_a_sample_or_one_with_its_interval(accuracy):
    results = [
        {
            "accuracy": {"validation": value, "test": value},
            "interval95": [value - 0.02, value + 0.03],
        }
        for value in (0.91, 0.93)
    ]
    assert accuracy.format_accuracy(results, "test") == "92.00 ± 1.41 %"
    assert accuracy.format_accuracy(results[:1], "validation") == "91.00 %"
    assert accuracy.format_accuracy(results[:1], "test") == "91.00 % (89.0 to 94.0)"


def test_rows_are_added_to_the_table_and_kept_runs_are_not_repeated(accuracy, tmp_path, capsys):
    runs = tmp_path / "runs"
    runs.mkdir()
    for seed, test in enumerate((0.86, 0.88)):
        identity = {"arguments": ["--seed", str(seed)], "weights": None}
        accuracies = {"train": 0.9, "validation": 0.87, "test": test}
        versions = {"cores": 2, "processor": "Some CPU", "python": "3.11"}
        result = {
            **{"accuracy": accuracies, "interval95": [test - 0.01, test + 0.01]},
            **{"seconds": 90 * (seed + 1), "first": seed == 0, "memory": 0.8},
            **{"precision": "float32", "date": f"2026-01-0{seed + 1}"},
            "versions": versions | {"tensorflow": "2.21", "keras": "3.15"},
        }
        (runs / f"basic-{seed}.json").write_text(json.dumps(identity | result))
    kept = ["`python resnet50_fashion.py --recipe fast`", "5", "99 %", "94 %", "93 %"]
    kept += ["3.5 min", "58 s", "2.8 GB", "another CPU; 2025-12-31"]
    (tmp_path / "accuracy.md").write_text(f"| {' | '.join(kept)} |\n")
    argv = ["--rows", "basic", "--seeds", "0", "1", "--output", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["accuracy.py", *argv])
        accuracy.main()
    expected = ["`python cnn_basic.py`", "2", "90.00 ± 0.00 %", "87.00 ± 0.00 %", "87.00 ± 1.41 %"]
    expected += ["90 s", "3.0 min", "0.8 GB"]
    expected += [
        "2 cores of Some CPU, float32; Python 3.11, TensorFlow 2.21, Keras 3.15; "
        "2026-01-01 to 2026-01-02"
    ]
    assert rows(tmp_path / "accuracy.md") == [expected, kept]


def test_weights_may_differ_between_backbones(accuracy):
    def weights(row, *given):
        options = argparse.Namespace(weights=given)
        return accuracy.weights_of(accuracy.ROWS[row], options)

    assert weights("fast", "imagenet") == "imagenet"
    assert weights("fast", "a.h5", "mobilenetv2=b.h5") == "a.h5"
    assert weights("fast", "resnet50=a.h5") == "a.h5"
    assert weights("fast", "mobilenetv2=b.h5") == "imagenet"


@pytest.fixture
def backbones(accuracy):
    """The benchmark of the backbones as a module; it imports `accuracy`."""
    return importlib.import_module("backbones")


@pytest.mark.parametrize("name", ["train_size", "weights", "precision"])
def test_backbones_does_not_mix_runs_with_other_options(backbones, tmp_path, name):
    options = argparse.Namespace(
        train_size=100, validation_size=50, weights=["a.h5"], precision="auto", output=tmp_path
    )
    run = {"train_size": 100, "validation_size": 50, "weights": "a.h5", "precision": "float32"}
    path = tmp_path / "runs" / "resnet50-112-fast-0.json"
    backbones.accuracy.write_json(path, run)
    assert backbones.read_runs(options) == {"resnet50-112-fast": [run]}
    setattr(options, name, {"train_size": 101, "weights": ["b.h5"], "precision": "bfloat16"}[name])
    with pytest.raises(SystemExit, match=rf"{path} has other options; use another --output"):
        backbones.read_runs(options)


def test_backbones_are_compared_in_the_same_round(backbones):
    name = "mobilenetv2-112-fast"
    runs = [{"validation": value, "weights": "b.h5"} for value in (0.91, 0.93)]
    command = "`--recipe fast --image-size 112 --backbone mobilenetv2`"
    expected = [command, "92.00 ± 1.41 %", "–", "–", "–", "b.h5"]
    assert backbones.table_row(name, runs, {}) == expected
    speed = {
        backbones.REFERENCE: {"width": 1, "rates": [100, 10, 90], "cpu_rates": [50, 40, 50]},
        name: {"width": 480, "rates": [300, 40, 180], "cpu_rates": [150, 100, 160]},
    }
    expected = [command, "92.00 ± 1.41 %", "480", "180", "3.00 ×", "b.h5"]
    assert backbones.table_row(name, runs, speed) == expected


def test_minutes_are_those_of_timed_runs(accuracy):
    runs = [{"seconds": seconds, "first": False} for seconds in (90, None, 100)]
    runs += [{"seconds": 400, "first": True}]

    def minutes(runs, first=False):
        return accuracy.format_duration(accuracy.median_seconds(runs, first))

    assert minutes(runs) == "95 s" and minutes(runs, first=True) == "6.7 min"
    assert minutes(runs[1:2]) == minutes([]) == "–"


@pytest.mark.slow
def test_learning_curve(tmp_path):
    run(
        tmp_path,
        "learning_curve.py",
        "--counts",
        6,
        "--seeds",
        0,
        "--output",
        tmp_path / "table.md",
    )
    ((count, basic, resnet),) = rows(tmp_path / "table.md")
    assert count == "6"
    for cell in basic, resnet:
        assert 10 < number(cell) < 100
