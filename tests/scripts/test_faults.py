"""Faults during a run: signals, full disks, closed pipes, concurrent runs.

Most processes are forked from a server that has imported TensorFlow, use a small network and store
20 images per cache file, so that a test takes a second or two.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.forkserver import (
    SMALL,
    SMALL_WITHOUT_FIGURES,
    ForkedScript,
    kill_remaining_processes,
    read_state,
)
from helpers.scripts import (
    ROOT,
    SAMPLE,
    Result,
    cached_files,
    directory_contents,
    process_environment,
)
from helpers.wandb_runs import read_wandb_run

pytest.importorskip("resource", reason="needs signals and limits as on Unix")
pytestmark = pytest.mark.usefixtures("fork_server")

FAST = ("--data-dir", SAMPLE, "--weights", "random", "--image-size", 64, "--precision", "float32")
FINE_TUNING = ("--fine-tune-blocks", 1, "--fine-tune-epochs", 8, "--fine-tune-batch-size", 400)
NUM_EPOCHS = 2 + 8
# In the cache: files of 20 images, for average and maximum of three stages.
NUM_FILES = (1760 + 160 + 400) // 20 * 6
slow_param = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def no_remaining_processes():
    yield
    kill_remaining_processes()


def start_resnet50(directory, *argv, patches=SMALL_WITHOUT_FIGURES, **settings):
    """Start resnet50_fashion.py with `directory`/output and `directory`/cache."""
    directories = ("--output-dir", directory / "output", "--cache-dir", directory / "cache")
    argv = (*FAST, "--epochs", 2, "--wandb", "disabled", *directories, *argv)
    return ForkedScript("resnet50_fashion", directory, *argv, patches=patches, **settings)


def cache_of(directory):
    """Return the complete files in the cache of a run."""
    return cached_files(directory / "cache")


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


# ------------------------------------------------------------------------------------- killed


@pytest.mark.any_version
@pytest.mark.parametrize("kills", [1, slow_param(10)])
def test_killed_extraction_resumes_to_equal_files(kills, reference_run, tmp_path):
    expected, rng = cache_of(reference_run), np.random.default_rng(kills)
    for left in range(kills, 0, -1):
        done = len(cache_of(tmp_path)) if left < kills else 0
        more = 1 + rng.integers((NUM_FILES - done) // left // 2)
        script = start_resnet50(tmp_path)
        script.wait_for_files(done + more)
        time.sleep(rng.uniform(0, 0.01))
        assert script.send(signal.SIGKILL) == -signal.SIGKILL
        assert cache_of(tmp_path).items() <= expected.items()
        assert not list((tmp_path / "output").iterdir())
    assert len(cache_of(tmp_path)) < NUM_FILES
    script = start_resnet50(tmp_path)
    assert script.wait() == 0, script.err
    assert cache_of(tmp_path) == expected
    check_results(tmp_path, reference_run)


@pytest.fixture(scope="module")
def fine_tuned(reference_run, tmp_path_factory):
    """The directory of an undisturbed run with fine-tuning."""
    directory = tmp_path_factory.mktemp("fine-tuned")
    shutil.copytree(reference_run / "cache", directory / "cache")
    script = start_resnet50(directory, *FINE_TUNING)
    assert script.wait() == 0, script.err
    return directory


@pytest.mark.slow
def test_killed_fine_tuning_resumes_to_equal_metrics(fine_tuned, tmp_path):
    shutil.copytree(fine_tuned / "cache", tmp_path / "cache")
    argv, rng = (*FINE_TUNING, "--wandb", "offline"), np.random.default_rng(2)
    for i in range(2):
        epochs = max(len(read_state(tmp_path)["epochs"]), 2)  # the head has two
        script = start_resnet50(tmp_path, *argv, *(["--resume"] if i else []))
        script.wait_for_epochs(epochs + rng.integers(1, 3))
        time.sleep(rng.uniform(0, 0.05))
        assert script.send(signal.SIGKILL) == -signal.SIGKILL
        assert len(read_state(tmp_path)["epochs"]) < NUM_EPOCHS

    without_resume = start_resnet50(tmp_path, *argv)
    assert without_resume.wait() == 2
    assert "Use --resume to continue it,\n" in without_resume.err
    resumed = start_resnet50(tmp_path, *argv, "--resume")
    assert resumed.wait() == 0, resumed.err
    assert "Resuming after epoch " in resumed.out
    check_results(tmp_path, fine_tuned)
    checkpoints = [
        directory_contents(directory / "output" / "checkpoint")
        for directory in (tmp_path, fine_tuned)
    ]
    names = [{path.name for path in files if len(path.parts) == 1} for files in checkpoints]
    assert names[0] == names[1]
    runs = [path.name for path in tmp_path.glob("wandb/offline-run-*")]
    assert len(runs) == 3
    assert len({name.split("-")[-1] for name in runs}) == 1  # one run, continued
    upload = resumed.out.splitlines()[-1]
    assert upload.strip().startswith("Upload it:") and all(name in upload for name in runs)


@pytest.mark.any_version
@pytest.mark.parametrize("kills", [1, slow_param(8)])
def test_kill_while_writing_results_keeps_existing_files(kills, reference_run, tmp_path):
    rng = np.random.default_rng(kills)
    shutil.copytree(reference_run, tmp_path, dirs_exist_ok=True)
    output, before = tmp_path / "output", directory_contents(reference_run / "output")
    for _ in range(kills):
        script = start_resnet50(tmp_path, "--dropout", 0.1, patches=SMALL)
        script.wait_until(lambda: list(output.glob(".incomplete-*/model.keras")))
        time.sleep(rng.uniform(0, 0.5))
        assert script.send(signal.SIGKILL) == -signal.SIGKILL
        for path in output.glob(".incomplete-*"):
            shutil.rmtree(path)
        assert directory_contents(output) == before


# ------------------------------------------------------------------- interrupted or terminated

EXITS = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}


def check_closed(directory, exit_code):
    """Check for no partial files, and a readable W&B run with the exit code."""
    assert not list(directory.rglob(".incomplete-*"))
    run = read_wandb_run(directory)
    assert run.records[-1]["type"] == "exit"
    assert run.records[-1]["exit"]["exit_code"] == exit_code
    return run


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, slow_param(signal.SIGINT)])
@pytest.mark.parametrize("lap", ["extraction", slow_param("fine_tuning")])
def test_signal_closes_the_wandb_run(lap, signal_number, reference_run, tmp_path):
    if lap == "fine_tuning":
        shutil.copytree(reference_run / "cache", tmp_path / "cache")
    script = start_resnet50(tmp_path, *FINE_TUNING, "--wandb", "offline")
    if lap == "extraction":
        script.wait_for_files(30)
    else:
        script.wait_for_epochs(4)
    time.sleep(np.random.default_rng(signal_number).uniform(0, 0.05))
    code, word = EXITS[signal_number]
    assert script.send(signal_number) == code
    assert script.err.splitlines()[-1] == f"resnet50_fashion.py: {word}"
    assert "Traceback" not in script.err
    run = check_closed(tmp_path, code)
    if lap == "extraction":
        assert not list((tmp_path / "output").iterdir())
        assert 30 <= len(cache_of(tmp_path)) < NUM_FILES
        assert cache_of(tmp_path).items() <= cache_of(reference_run).items()
        assert run.rows[-1]["features/images"] >= 80
    else:
        assert os.listdir(tmp_path / "output") == ["checkpoint"]
        assert 4 <= len(read_state(tmp_path)["epochs"]) < NUM_EPOCHS
        assert run.rows[-1]["epoch/epoch"] >= 4


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_a_process_group(signal_number, tmp_path):
    """Terminals and clusters also send the signal to the process of W&B."""
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "cnn_basic.py", "--data-dir", SAMPLE, "--epochs", "100000"],
        cwd=tmp_path,
        env=process_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Handle Ctrl-C also if this process ignores it (`nohup … &`).
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:
        if line.startswith("Epoch 4/"):
            break
    os.killpg(process.pid, signal_number)
    _, err = process.communicate(timeout=300)
    code, word = EXITS[signal_number]
    assert (process.returncode, err) == (code, f"\ncnn_basic.py: {word}\n")
    assert not list((tmp_path / "outputs" / "cnn_basic").iterdir())
    assert check_closed(tmp_path, code).summary["summary"]["epoch/epoch"] >= 3


def test_closed_pipe_ends_the_run_quietly(tmp_path):
    argv = map(str, (ROOT / "cnn_basic.py", "--data-dir", SAMPLE, "--epochs", 100000))
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -1; exit ${PIPESTATUS[0]}', "-", sys.executable, *argv],
        cwd=tmp_path,
        env=process_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (141, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("Data: ")
    assert not list((tmp_path / "outputs" / "cnn_basic").iterdir())
    check_closed(tmp_path, 1)


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


class Disk:
    """A directory on a small disk that can be filled.

    Without the permission to mount one, the size of each file of a process is limited instead.
    """

    def __init__(self, directory, kilobytes):
        directory.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", directory]
        self.directory = directory
        self.is_mounted = not subprocess.run(mount, capture_output=True).returncode
        self.limit = None if self.is_mounted else 1024

    def leave(self, kilobytes):
        """Fill the disk except for some kilobytes."""
        if self.is_mounted:
            free = shutil.disk_usage(self.directory).free - 1024 * kilobytes
            filler = (self.directory / "filler").open("wb", buffering=0)
            with filler, contextlib.suppress(OSError):  # the script may use some as well
                while free > 0:
                    free -= filler.write(bytes(min(free, 4096)))
        else:
            self.limit = 1024 * kilobytes

    def empty(self):
        (self.directory / "filler").unlink(missing_ok=True)


@pytest.fixture
def make_disk(tmp_path):
    """Create disks, which are unmounted after the test."""
    disks = []

    def make(name, kilobytes):
        disks.append(Disk(tmp_path / name, kilobytes))
        return disks[-1]

    yield make
    for disk in disks:
        if disk.is_mounted:
            subprocess.run(["umount", disk.directory], check=True)


def check_full(script, option):
    """Check that a script ended with one line on a full disk, with advice."""
    assert script.wait() == 1
    full = r"\[Errno (28\] No space left on device|27\] File too large)"
    pattern = rf"resnet50_fashion.py: error: .*{option}.*: {full}.*; (free|raise) .*"
    assert re.fullmatch(pattern, script.err.splitlines()[-1])
    assert "Traceback" not in script.err


@pytest.mark.any_version
def test_extraction_resumes_after_disk_full(reference_run, make_disk, tmp_path):
    disk = make_disk("cache", 8000)
    script = start_resnet50(tmp_path, limit=disk.limit)
    if disk.is_mounted:
        script.wait_for_files(30)
        disk.leave(0)
    check_full(script, "--cache-dir")
    disk.empty()
    assert not list(disk.directory.rglob(".incomplete-*"))
    assert cache_of(tmp_path).items() <= cache_of(reference_run).items()
    assert not list((tmp_path / "output").iterdir())
    resumed = start_resnet50(tmp_path)
    assert resumed.wait() == 0, resumed.err
    assert cache_of(tmp_path) == cache_of(reference_run)
    check_results(tmp_path, reference_run)


@pytest.mark.any_version
@pytest.mark.parametrize("kilobytes", [20, slow_param(200)])  # for the model, or for the figures
def test_full_disk_keeps_existing_results(kilobytes, reference_run, make_disk, tmp_path):
    disk = make_disk("output", 4000)
    shutil.copytree(reference_run, tmp_path, dirs_exist_ok=True)
    disk.leave(kilobytes)
    before = directory_contents(disk.directory)
    script = start_resnet50(tmp_path, "--dropout", 0.1, limit=disk.limit, patches=SMALL)
    check_full(script, "--output-dir")
    assert directory_contents(disk.directory) == before
    assert cache_of(tmp_path) == cache_of(reference_run)
