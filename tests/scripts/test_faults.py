"""Faults during a run: signals, full disks, closed pipes, concurrent runs.

The processes are forked from a server that has imported TensorFlow, use a small network and store
20 images per cache file, so that a test takes a second or two.
"""

import functools
import glob
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.forkserver import SMALL, ForkedScript, read_state
from helpers.scripts import SAMPLE, Result, directory_contents
from helpers.wandb_runs import read_wandb_run

pytest.importorskip("resource", reason="needs signals and limits as on Unix")
pytestmark = pytest.mark.usefixtures("fork_server")

FAST = ("--data-dir", SAMPLE, "--weights", "random", "--image-size", 64, "--precision", "float32")
FINE_TUNING = ("--fine-tune-blocks", 1, "--fine-tune-epochs", 8, "--fine-tune-batch-size", 400)
NUM_EPOCHS = 2 + 8
# In the cache: files of 20 images, for the averages of three stages.
NUM_FILES = (1760 + 160 + 400) // 20 * 3
slow_param = functools.partial(pytest.param, marks=pytest.mark.slow)


def start_resnet50(directory, *argv, **settings):
    """Start resnet50_fashion.py with `directory`/output and `directory`/cache."""
    directories = ("--output-dir", directory / "output", "--cache-dir", directory / "cache")
    argv = (*FAST, "--epochs", 2, "--wandb", "disabled", *directories, *argv)
    return ForkedScript("resnet50_fashion", directory, *argv, **settings)


def start_basic(directory, **settings):
    """Start cnn_basic.py with more epochs than it will finish."""
    argv = ("--data-dir", SAMPLE, "--epochs", 100_000, "--output-dir", directory / "output")
    return ForkedScript("cnn_basic", directory, *argv, **settings)


def cache_of(directory):
    """Return the SHA-256 of the complete files in the cache of a run."""
    contents = directory_contents(directory / "cache").items()
    return {path: x for path, x in contents if not any(part[0] == "." for part in path.parts)}


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory, fork_server):
    """The directory of an undisturbed run."""
    script = start_resnet50(tmp_path_factory.mktemp("reference"))
    assert script.wait() == 0, script.err
    assert len(cache_of(script.directory)) == NUM_FILES
    return script.directory


def check_results(directory, expected):
    """Check for equal metrics and predictions, and an equal set of files."""
    result, reference = Result(directory / "output"), Result(expected / "output")
    assert result.deterministic_metrics() == reference.deterministic_metrics()
    predictions = [(x / "output" / "predictions.csv").read_bytes() for x in (directory, expected)]
    assert predictions[0] == predictions[1]


def check_resumes(directory, expected):
    """Check that a run extracts the missing features, and has the expected results."""
    script = start_resnet50(directory)
    assert script.wait() == 0, script.err
    assert cache_of(directory) == cache_of(expected)
    check_results(directory, expected)


# ------------------------------------------------------------------------------------- killed


@pytest.mark.any_version
@pytest.mark.parametrize("kills", [1, slow_param(10)])
def test_killed_extraction_resumes_to_equal_files(kills, reference_run, tmp_path):
    expected, rng = cache_of(reference_run), np.random.default_rng(kills)
    for left in range(kills, 0, -1):
        done = len(cache_of(tmp_path)) if left < kills else 0
        more = 1 + rng.integers(max((NUM_FILES - done) // left // 2, 1))
        script = start_resnet50(tmp_path)
        script.wait_for_files(done + more)
        time.sleep(rng.uniform(0, 0.01))
        assert script.send(signal.SIGKILL) == -signal.SIGKILL
        assert cache_of(tmp_path).items() <= expected.items()
        assert os.listdir(tmp_path / "output") == [".lock"]
    assert len(cache_of(tmp_path)) < NUM_FILES
    check_resumes(tmp_path, reference_run)


@pytest.mark.slow
def test_killed_fine_tuning_resumes_to_equal_metrics(reference_run, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for directory in undisturbed, killed:
        shutil.copytree(reference_run / "cache", directory / "cache")
    argv, rng = (*FINE_TUNING, "--wandb", "offline"), np.random.default_rng(2)
    reference = start_resnet50(undisturbed, *argv)
    assert reference.wait() == 0, reference.err
    for i in range(2):
        epochs = max(len(read_state(killed)["epochs"]), 2)  # the head has two
        script = start_resnet50(killed, *argv, *(["--resume"] if i else []))
        script.wait_for_epochs(epochs + rng.integers(1, 3))
        time.sleep(rng.uniform(0, 0.05))
        assert script.send(signal.SIGKILL) == -signal.SIGKILL
        assert len(read_state(killed)["epochs"]) < NUM_EPOCHS

    without_resume = start_resnet50(killed, *argv)
    assert without_resume.wait() == 2
    assert "Use --resume to continue it,\n" in without_resume.err
    resumed = start_resnet50(killed, *argv, "--resume")
    assert resumed.wait() == 0, resumed.err
    assert "Resuming after epoch " in resumed.out
    check_results(killed, undisturbed)
    runs = [path.name for path in killed.glob("wandb/offline-run-*")]
    assert len(runs) == 3
    assert len({name.split("-")[-1] for name in runs}) == 1  # one run, continued
    upload = resumed.out.splitlines()[-1]
    assert upload.strip().startswith("Upload it:") and all(name in upload for name in runs)


@pytest.mark.any_version
@pytest.mark.parametrize("kills", [1, slow_param(8)])
def test_kill_while_writing_results_keeps_the_files_of_one_run(kills, reference_run, tmp_path):
    rng, output = np.random.default_rng(kills), tmp_path / "output"
    before = directory_contents(reference_run / "output")
    time_before = (reference_run / "output" / "model.keras").stat().st_mtime_ns  # is copied as well

    def is_writing():
        written = list(output.glob(".incomplete-*/model.keras"))
        return written or (output / "model.keras").stat().st_mtime_ns != time_before

    for _ in range(kills):
        for path in output.glob(".incomplete-*"):  # of the process before
            shutil.rmtree(path)
        shutil.copytree(reference_run, tmp_path, dirs_exist_ok=True)
        script = start_resnet50(tmp_path, "--dropout", 0.1, patches=SMALL)
        script.wait_until(is_writing)
        time.sleep(rng.uniform(0, 0.02))
        assert script.send(signal.SIGKILL) == -signal.SIGKILL
        after = {k: v for k, v in directory_contents(output).items() if len(k.parts) == 1}
        if after != before:  # killed after all results were complete
            constant = {Path(".lock"), Path("classes.txt")}
            assert not (after.items() & before.items()) - {
                (path, before[path]) for path in constant
            }
    script = start_resnet50(tmp_path)
    assert script.wait() == 0 and not list(output.glob(".incomplete-*"))


# ------------------------------------------------------------------- interrupted or terminated

EXITS = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}


def check_closed(directory, exit_code):
    """Check for no partial files, and a readable W&B run with the exit code."""
    # Unlike Path.rglob, glob.glob tolerates that W&B removes a directory meanwhile.
    pattern = "**/.incomplete-*"
    assert not glob.glob(pattern, root_dir=directory, recursive=True, include_hidden=True)
    run = read_wandb_run(directory)
    assert run.records[-1]["type"] == "exit"
    assert run.records[-1]["exit"]["exit_code"] == exit_code
    return run


def test_sigterm_in_extraction_closes_the_wandb_run(reference_run, tmp_path):
    script = start_resnet50(tmp_path, "--wandb", "offline")
    script.wait_for_files(30)
    assert script.send(signal.SIGTERM) == 143
    assert script.err.splitlines()[-1] == "resnet50_fashion.py: terminated"
    assert "Traceback" not in script.err
    assert os.listdir(tmp_path / "output") == [".lock"]
    assert 30 <= len(cache_of(tmp_path)) < NUM_FILES
    assert cache_of(tmp_path).items() <= cache_of(reference_run).items()
    assert check_closed(tmp_path, 143).rows[-1]["features/images"] >= 80


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", EXITS)
def test_signal_in_fine_tuning_closes_the_wandb_run(signal_number, reference_run, tmp_path):
    shutil.copytree(reference_run / "cache", tmp_path / "cache")
    script = start_resnet50(tmp_path, *FINE_TUNING, "--wandb", "offline")
    script.wait_for_epochs(4)
    code, word = EXITS[signal_number]
    assert script.send(signal_number) == code
    assert script.err.splitlines()[-1] == f"resnet50_fashion.py: {word}"
    assert "Traceback" not in script.err
    assert sorted(os.listdir(tmp_path / "output")) == [".lock", "checkpoint"]
    assert 4 <= len(read_state(tmp_path)["epochs"]) < NUM_EPOCHS
    assert check_closed(tmp_path, code).rows[-1]["epoch/epoch"] >= 4


def start_process_group(patch):
    os.setsid()


def print_to_fifo(patch):
    patch.setattr(sys, "stdout", os.fdopen(os.open("fifo", os.O_WRONLY), "w", buffering=1))


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", EXITS)
def test_signal_to_a_process_group(signal_number, tmp_path):
    """Terminals and clusters also send the signal to the process of W&B."""
    script = start_basic(tmp_path, patches=[start_process_group])
    script.wait_until(lambda: (tmp_path / "out").exists() and "\nEpoch 4/" in script.out)
    os.killpg(script.process.pid, signal_number)
    code, word = EXITS[signal_number]
    assert (script.wait(), script.err) == (code, f"\ncnn_basic.py: {word}\n")
    assert os.listdir(tmp_path / "output") == [".lock"]
    assert check_closed(tmp_path, code).summary["summary"]["epoch/epoch"] >= 3


def test_closed_pipe_ends_the_run_quietly(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    script = start_basic(tmp_path, patches=[print_to_fifo])
    with open(tmp_path / "fifo") as reader:
        assert reader.readline().startswith("Data: ")
    assert (script.wait(), script.err) == (141, "")
    assert os.listdir(tmp_path / "output") == [".lock"]
    check_closed(tmp_path, 141)


# ---------------------------------------------------------------- concurrent runs, full disks


@pytest.mark.slow
def test_concurrent_runs_share_a_cache(reference_run, tmp_path):
    both = [
        start_resnet50(tmp_path / name, "--cache-dir", tmp_path / "cache") for name in ("a", "b")
    ]
    assert [script.wait() for script in both] == [0, 0]
    assert cache_of(tmp_path) == cache_of(reference_run)
    for name in "a", "b":
        check_results(tmp_path / name, reference_run)


@pytest.mark.any_version
def test_one_run_at_a_time_uses_an_output_directory(tmp_path):
    """A trial of a sweep takes another one, since an agent gives up after three failed trials."""
    first = start_resnet50(tmp_path, *FINE_TUNING)
    first.wait_for_epochs(3)
    os.kill(first.process.pid, signal.SIGSTOP)  # it must not end before the others start
    argv = ("--output-dir", tmp_path / "output")
    second = start_resnet50(tmp_path / "second", *argv)
    resumed = start_resnet50(tmp_path / "resumed", *argv, *FINE_TUNING, "--resume")
    trial = start_resnet50(tmp_path / "trial", *argv, WANDB_SWEEP_ID="abcd1234")
    for refused in second, resumed:
        assert refused.wait() == 2
        (line,) = refused.err.splitlines()
        reason = f"--output-dir: another run uses {tmp_path / 'output'}; wait until it ends, or"
        assert line.startswith(f"resnet50_fashion.py: error: {reason}") and refused.out == ""
    assert trial.wait() == 0
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.wait() == 0
    assert len(Result(tmp_path / "output").history) == NUM_EPOCHS
    assert len(Result(tmp_path / "output-2").history) == 2


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20_000, 200_000])  # for the model, or for a figure
def test_full_disk_keeps_existing_results(limit, reference_run, tmp_path):
    shutil.copytree(reference_run, tmp_path, dirs_exist_ok=True)
    before = directory_contents(tmp_path / "output")
    script = start_resnet50(tmp_path, "--dropout", 0.1, limit=limit, patches=SMALL)
    assert script.wait() == 1
    pattern = r"resnet50_fashion.py: error: .*--output-dir.*: \[Errno 27\] File too large.*; raise "
    assert re.match(pattern, script.err.splitlines()[-1])
    assert "Traceback" not in script.err
    assert directory_contents(tmp_path / "output") == before
    assert cache_of(tmp_path) == cache_of(reference_run)
