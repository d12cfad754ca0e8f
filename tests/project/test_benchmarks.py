"""The benchmarks, on tiny sizes: that they run, and that their tables say what was measured."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.scripts import ROOT, SAMPLE, run_script, train_in_process

import resnet50_fashion

PATHS = ("--data-dir", SAMPLE, "--weights", "random")
VERSIONS = {"cores": 2, "processor": "CPU", "python": "3", "tensorflow": "2.21", "keras": "3.15"}


@pytest.fixture
def main(monkeypatch, tmp_path):
    """Return a function that runs a benchmark in this process, in a directory of the test."""
    monkeypatch.chdir(tmp_path)

    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
        importlib.import_module(name).main()

    return run


@pytest.fixture
def measured(monkeypatch, main):
    """Replace the commands by made-up results; return the list of their arguments."""
    commands = []

    def measure(script, *argv, output_dir):
        commands.append(list(map(str, argv)))
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "history.csv").write_text("epoch,seconds\n1,9\n2,0.5\n")
        values = {"train": 0.9, "validation": 0.87, "test": 0.84 + 0.02 * len(commands)}
        metrics = {k: {"accuracy": x, "accuracy_ci95": [x - 0.02, x]} for k, x in values.items()}
        metrics["test"]["expected_calibration_error"] = 0.02 * len(commands)
        metrics |= {"calibration": {"uncalibrated_error": 0.08}}
        metrics |= {"weights": {"precision": "bfloat16"}, "versions": VERSIONS, "peak_gb": 0.8}
        metrics |= {"command_seconds": 80.0 * len(commands), "difference": 0.012}
        metrics |= {"images_per_second": [90.0, 60.0, 60.0], "validation_seconds": [9, 4, 4, 8]}
        return metrics | ({"epoch_seconds": [9, 1, 1, 2]} if "naive" in script else {})

    monkeypatch.setattr("runner.measure", measure)
    monkeypatch.setattr("speed.measure", measure)
    return commands


def rows(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
def test_small_cnn_averages_predictions_over_flips(tmp_path, sample):
    argv = ("--train-size", 40, "--validation-size", 20, "--test-size", 20, "--batch-size", 10)
    argv += ("--data-dir", SAMPLE, "--epochs", 2, "--precision=float32", "--output-dir", tmp_path)
    result = train_in_process(importlib.import_module("small_cnn"), *argv)
    rows = np.loadtxt(tmp_path / "predictions.csv", delimiter=",", skiprows=1)
    for images in sample.test.images[:20], sample.test.images[:20, :, ::-1]:
        probabilities = result.model.predict(images, verbose=0)
        np.testing.assert_allclose(probabilities, rows[:, 4:], atol=1e-4, rtol=2e-3)


def test_stored_runs_are_not_repeated_and_make_the_table(main, measured):
    argv = ("--rows", "fast", "--weights", "/private/a.h5", "--output", "out", "--seeds", 0)
    main("accuracy", *argv)
    table = Path("out/accuracy.md")
    assert rows(table)[0][3:5] == ["87.00%", "86.00% (84.0 to 86.0)"]  # its interval
    main("accuracy", *argv, 1)
    assert [argv[argv.index("--seed") + 1] for argv in measured] == ["0", "1"]
    assert "private" not in Path("out/runs/fast-1.json").read_text()
    ((command, *cells),) = rows(table)
    assert command == "`python resnet50_fashion.py --recipe fast`"
    assert cells[:4] == ["2", "90.00 ± 0.00%", "87.00 ± 0.00%", "87.00 ± 1.41%"]
    # Without a cache of its features, each made-up run is a first one.
    assert cells[4:] == ["0.080 → 0.030", "2.0 min", "–", "0.8 GB", "bfloat16, a.h5"]
    assert "2 cores of CPU; Python 3, TensorFlow 2.21, Keras 3.15" in table.read_text()
    assert Path("out/frontier.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match=r"fast-0\.json has other options"):
        main("accuracy", *argv, "--epochs", 1)


def test_times_are_those_of_complete_runs_on_an_idle_machine(main, measured):
    argv = ("--output", "out", "--work-dir", "work", "--seeds")
    main("accuracy", "--rows", "tuned", *argv, 0)
    Path("work/tuned").mkdir()  # its cache
    Path("work/tuned-2/checkpoint").mkdir(parents=True)
    Path("work/tuned-2/checkpoint/state.json").touch()
    main("accuracy", "--rows", "tuned", *argv, 1, 2)
    main("accuracy", "--rows", "basic", *argv, 0, "--untimed")
    assert ["--resume" in argv for argv in measured] == [False, False, True, False]
    times = [row[6:8] for row in rows(Path("out/accuracy.md"))]
    assert times == [["–", "–"], ["80 s", "2.7 min"]]


def test_speedups_are_ratios_of_medians(main, measured, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    main("speed", "--rounds", 2, "--output", tmp_path)
    keras, _, *projects = [row[1:] for row in rows(tmp_path / "runtimes.md")]
    assert keras == ["32.0 (16.0–32.0)", "1.0 ×", "–"]
    assert projects == [["60.0 (60.0–90.0)", "1.9 ×", "1.2%"]] * 2
    naive, _, first, later, *_ = rows(tmp_path / "end_to_end.md")
    # 10 · 11,000 + 2,000 images, in validation 128 in 4 s; commands 11 and 19, 12 and 20.
    assert naive == ["naive Keras script, float32", "58.3 min (extrapolated)", "1.0 ×", "–"]
    assert first == ["`--recipe plain`, first run", "20.0 min", "3 ×", "0.8 GB"]
    assert later[1] == "21.3 min"
    epochs = [row[1:3] for row in rows(tmp_path / "baseline.md")]
    assert epochs == [["1.00 (1.00–2.00) s", "1.0 ×"], ["0.50 (0.50–0.50) s", "2.0 ×"]]
    assert rows(tmp_path / "time_to_90.md")[0][1:4] == ["87.0 ± 0.0%", "85.0%", "39.3 min"]


def test_docs_contain_the_tables():
    results = (ROOT / "docs" / "results.md").read_text()
    for path in (ROOT / "benchmarks" / "results").glob("*.md"):
        assert path.read_text().strip() in results, path.name


def test_readme_has_rounded_numbers_of_the_stored_runs():
    accuracy = importlib.import_module("accuracy")
    table = accuracy.read_runs(ROOT / "benchmarks" / "results")
    exact = {row[0]: row for row in rows(ROOT / "benchmarks" / "results" / "accuracy.md")}
    stored = {f"`python {accuracy.ROWS[row]}`": (row, runs) for row, runs in table.items()}
    readme = [row for row in rows(ROOT / "README.md") if row[0].startswith("`python ")]
    assert len(readme) == 7
    for command, *cells in readme:
        row, runs = stored[re.match("`.*?`", command)[0]]
        for cell, split in zip(cells, accuracy.SPLITS, strict=False):
            values = [run["accuracy"][split] for run in runs]
            assert cell.strip("*") == accuracy.runner.format_mean(values, digits=1), command
        assert exact[f"`python {accuracy.ROWS[row]}`"] == accuracy.table_row(row, runs)
        *_, first, later, memory, _ = accuracy.table_row(row, runs)
        assert cells[5] == memory
        for cell, time in zip(cells[3:5], (first, later), strict=True):
            if time == "–":
                assert cell == ("–" if "--recipe" in command else "same"), command
            else:
                assert cell.split()[-1] == time.split()[-1], command  # the unit
                assert float(cell.split()[0]) == pytest.approx(float(time.split()[0]), rel=0.03)


@pytest.mark.slow
def test_naive_keras_measures_resnet50_and_its_head(main, run_main, small_resnet):
    path = Path("outputs/naive_keras/metrics.json")
    main("naive_keras", "resnet50", *PATHS, "--train-size", 40, "--epochs", 2)
    metrics = json.loads(path.read_text())
    seconds = metrics["epoch_seconds"], metrics["validation_seconds"]
    assert all(0 < validation < epoch for epoch, validation in zip(*seconds, strict=True))
    run_main(resnet50_fashion, *PATHS, "--cache-dir", "cache", "--epochs", 1)
    main("naive_keras", "head", *PATHS, "--cache-dir", "cache")
    metrics = json.loads(path.read_text())
    assert metrics["train"]["accuracy"] > 0.3 and metrics["data"]["train"] == 1760


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["project", "openvino", "onnxruntime"])
def test_runtimes_compute_equal_features(runtime, main, small_resnet, small_chunks, monkeypatch):
    if runtime != "project":
        pytest.importorskip(runtime, reason=f"needs {runtime}")
    monkeypatch.setattr("runtimes.NUM_IMAGES", 40)
    main("runtimes", runtime, *PATHS)
    metrics = json.loads(Path("outputs/runtimes/metrics.json").read_text())
    assert metrics["difference"] < 0.005 and min(metrics["images_per_second"]) > 0


@pytest.mark.slow
def test_commands_run(tmp_path):
    for script, *argv in (
        ("accuracy.py", "--rows", "basic", "small", "--seeds", 0, "--epochs", 3, "--output", "."),
        ("speed.py", "baseline", "--rounds", 1, "--output", "."),
    ):
        done = run_script(tmp_path, f"benchmarks/{script}", *argv, *PATHS)
        assert done.returncode == 0, done.stdout + done.stderr
    basic, small = rows(tmp_path / "accuracy.md")
    for cell in basic[2:5] + small[2:5]:
        assert 10 < float(cell.split("%")[0]) < 100
    assert small[9] in ("float32", "bfloat16", "float16")
    assert all(row[1].endswith(" s") for row in rows(tmp_path / "baseline.md"))
