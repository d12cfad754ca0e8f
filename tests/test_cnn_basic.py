import functools
import re
import signal
import subprocess
import sys
import time

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

import cnn_basic
import common

FAST = ("--data-dir", SAMPLE, "--wandb", "disabled", "--epochs", 2)


@pytest.fixture
def run(run_main):
    return functools.partial(run_main, cnn_basic)


def width(result, split):
    """Of the 95 % interval, which tells from how many images the accuracy is."""
    low, high = result.metrics[split]["interval95"]
    return high - low


# One row for each option: its arguments, and what only a run that heeds them can show.
OPTIONS = {
    "data_dir": ((), lambda r: r.metrics["data"]["source"].startswith(str(SAMPLE))),
    "train_size": (("--train-size", 320), lambda r: r.model.optimizer.iterations == 2 * 10),
    "validation_size": (("--validation-size", 20), lambda r: width(r, "validation") > 0.2),
    "test_size": (("--test-size", 10), lambda r: width(r, "test") > 0.3),
    "epochs": (("--epochs", 3), lambda r: [row["epoch"] for row in r.history] == [1, 2, 3]),
    "batch_size": (("--batch_size=176",), lambda r: r.model.optimizer.iterations == 2 * 10),
    "learning_rate": (
        ("--learning-rate", "5e-4"),
        lambda r: (
            np.isclose(r.model.optimizer.learning_rate, 5e-4)
            and np.isclose(r.history[0]["learning_rate"], 5e-4)
        ),
    ),
    "hidden_units": (
        ("--hidden_units=7",),
        lambda r: [w.shape for w in r.model.weights] == [(784, 7), (7,), (7, 10), (10,)],
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_option_reaches_what_it_names(option, run):
    arguments, shows = OPTIONS[option]
    result = run(*FAST, *arguments)
    assert shows(result)
    if arguments:
        assert not shows(run(*FAST)), "the default would have passed as well"


def test_every_option_has_a_test(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cnn_basic.py"])
    elsewhere = {"model", "seed", "output_dir", "require_accuracy", "wandb", "project", "predict"}
    assert vars(cnn_basic.parse_options()).keys() == OPTIONS.keys() | elsewhere


def test_seed_decides_the_figures_to_the_last_digit(run):
    first = run(*FAST, "--seed", 1).without_time()
    assert run(*FAST, "--seed", 1).without_time() == first
    assert run(*FAST, "--seed", 2).without_time() != first


def test_saved_model_is_the_best_epoch_and_takes_raw_images(run, sample):
    # So high a rate makes the last epoch a bad one.
    result = run(*FAST, "--epochs", 8, "--learning-rate", 0.05)
    by_epoch = [row["val_accuracy"] for row in result.history]
    assert result.metrics["best_epoch"] == 1 + np.argmax(by_epoch)
    for name, split in sample.splits.items():
        assert split.images.dtype == np.uint8
        predicted = result.model.predict(split.images, verbose=0).argmax(axis=1)
        assert result.metrics[name]["accuracy"] == np.mean(predicted == split.labels)
    assert result.metrics["validation"]["accuracy"] == pytest.approx(max(by_epoch))


def test_diverging_training_is_an_error_that_writes_nothing(run, tmp_path):
    with pytest.raises(common.UserError, match=r"loss in epoch 1 is .*--learning-rate"):
        run(*FAST, "--learning-rate", 1e30)
    assert not list((tmp_path / "outputs" / "cnn_basic").iterdir())


def test_command_line_run_with_offline_wandb(tmp_path):
    done = run_script(tmp_path, "cnn_basic.py", *FAST, "--wandb", "offline", "--project", "mine")
    assert done.returncode == 0, done.stderr
    result = Result(tmp_path / "outputs" / "cnn_basic")
    metrics = result.metrics
    assert {n: metrics["data"][n] for n in SAMPLE_SIZES} == SAMPLE_SIZES
    assert metrics["versions"]["keras"] == keras.__version__
    low, high = metrics["test"]["interval95"]
    assert 0 < low < metrics["test"]["accuracy"] < high < 1

    # The printed table has the figures of metrics.json, the last lines the way to the run.
    assert re.search(
        rf"cnn_basic +1,760 +{metrics['validation']['accuracy']:.1%} +"
        rf"{metrics['test']['accuracy']:.1%} \({low:.1%} to {high:.1%}\)",
        done.stdout,
    )
    look, sync = done.stdout.splitlines()[-2:]
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert look.endswith(f"wandb leet wandb/{folder.name}")
    assert sync.endswith(f"wandb sync wandb/{folder.name}")

    run, records = read_wandb_run(tmp_path)
    (started,) = (r["run"] for r in records if r["type"] == "run" and "project" in r["run"])
    assert started["project"] == "mine"
    for name, value in metrics["config"].items():
        assert run["config"][name] == value
    for name in "data", "weights", "versions":
        assert run["config"][name] == metrics[name]
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    history = [item for item in history if "epoch/epoch" in item]
    for row, logged in zip(result.history, history, strict=True):
        for name, value in row.items():
            assert logged[f"epoch/{name}"] == pytest.approx(value), name
    best = max(row["val_accuracy"] for row in result.history)
    assert run["summary"]["epoch/val_accuracy"]["max"] == pytest.approx(best)


def test_disabled_wandb_leaves_no_folder_and_output_goes_where_it_is_told(tmp_path):
    options = (*FAST, "--output_dir=here", "--require-accuracy", 0.99)
    done = run_script(tmp_path, "cnn_basic.py", *options)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["here"]  # and no wandb
    # The promise was broken: said so at the end, with nothing lost.
    assert done.returncode == 1
    assert re.fullmatch(
        r"cnn_basic.py: error: validation accuracy 0\.\d+ is below the required 0.99",
        done.stderr.splitlines()[-1],
    )
    assert Result(tmp_path / "here").metrics["validation"]["accuracy"] < 0.99
    again = run_script(tmp_path, "cnn_basic.py", *options, "--require-accuracy", 0.1)
    assert again.returncode == 0
    assert f"replaces {', '.join(report.OUTPUT_FILES)} in here" in again.stdout


def test_key_without_network_goes_on_offline(tmp_path):
    start = time.monotonic()
    options = ("--data-dir", SAMPLE, "--epochs", 1)
    nowhere = {"WANDB_API_KEY": 40 * "a", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = run_script(tmp_path, "cnn_basic.py", *options, **nowhere)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    assert "W&B: not online, so this run stays offline" in done.stdout
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_key_the_run_is_offline(mode, tmp_path):
    done = run_script(tmp_path, "cnn_basic.py", *FAST[:2], "--epochs", 1, "--wandb", mode)
    assert done.returncode == 0, done.stderr
    assert ("no key" in done.stdout) == (mode == "online")
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "argument --epochs: expected a whole number from 1, got '0'"),
        (("--batch-size", "-8"), "argument --batch-size: expected a whole number from 1"),
        (("--learning-rate", "fast"), "argument --learning-rate: expected a number above 0"),
        (("--learning-rate", "nan"), "argument --learning-rate: expected a number above 0"),
        (("--hidden-units", "2.5"), "argument --hidden-units: expected a whole number from 1"),
        (("--seed", "-1"), "argument --seed: expected a whole number from 0"),
        (("--require-accuracy", "90"), "expected an accuracy between 0 and 1"),
        (("--wandb", "maybe"), "argument --wandb: invalid choice: 'maybe'"),
        (("--project", "a/b"), "argument --project: expected a name without /"),
        (("--epoch", "3"), "unrecognized arguments: --epoch 3"),
        (("--train-size", "1761"), "--train-size 1761: there are 1760 train images"),
    ],
)
def test_unusable_value_is_a_usage_error(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cnn_basic.py", "--data-dir", str(SAMPLE), *arguments])
    with pytest.raises(SystemExit) as end:
        common.run_script(cnn_basic.main)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_output_folder_that_cannot_be_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    done = run_script(tmp_path, "cnn_basic.py", *FAST, "--output-dir", "file")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("cnn_basic.py: error: --output-dir: ")
    assert "Traceback" not in done.stderr


def test_interrupt_ends_with_one_line_and_a_readable_run(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "cnn_basic.py", "--data-dir", SAMPLE, "--epochs", "100000"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("Epoch 4/"):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.endswith("\ncnn_basic.py: interrupted\n")
    assert "Traceback" not in stderr
    assert not list((tmp_path / "outputs" / "cnn_basic").iterdir())
    run, records = read_wandb_run(tmp_path)
    assert run["summary"]["epoch/epoch"] >= 3
    assert records[-1]["type"] == "exit"


def test_whole_run_reaches_what_is_promised(whole_folder, tmp_path):
    done = run_script(tmp_path, "cnn_basic.py", "--wandb", "disabled", "--data-dir", whole_folder)
    assert done.returncode == 0, done.stderr
    assert Result(tmp_path / "outputs" / "cnn_basic").metrics["test"]["accuracy"] >= 0.865
