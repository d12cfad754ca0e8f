"""Faults during a run: signals, full disks, closed pipes, damaged files, concurrent runs.

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
from pathlib import Path

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


@pytest.fixture(autouse=True)
def no_remaining_processes():
    yield
    kill_remaining_processes()


FAST = ("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32")
FINE_TUNING = ("--fine-tune-blocks", 1, "--fine-tune-epochs", 20, "--fine-tune-batch-size", 400)
NUM_FILES = (1760 + 160 + 400) // 20  # in the cache


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

slow_param = functools.partial(pytest.param, marks=pytest.mark.slow)


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
@pytest.mark.parametrize("kills", [1, 3])
def test_killed_fine_tuning_resumes_to_equal_metrics(kills, fine_tuned, tmp_path):
    shutil.copytree(fine_tuned / "cache", tmp_path / "cache")
    rng, argv = np.random.default_rng(kills), (*FINE_TUNING, "--wandb", "offline")
    for i in range(kills):
        epochs = max(len(read_state(tmp_path)["rows"]), 2)  # the head has two
        script = start_resnet50(tmp_path, *argv, *(["--resume"] if i else []))
        script.wait_for_epochs(epochs + rng.integers(1, 3))
        time.sleep(rng.uniform(0, 0.05))
        assert script.send(signal.SIGKILL) == -signal.SIGKILL
        assert len(read_state(tmp_path)["rows"]) < 22

    without_resume = start_resnet50(tmp_path, *argv)
    assert without_resume.wait() == 2
    assert "Use --resume to continue it,\n" in without_resume.err
    resumed = start_resnet50(tmp_path, *argv, "--resume")
    assert resumed.wait() == 0, resumed.err
    assert "Resuming after epoch " in resumed.out
    check_results(tmp_path, fine_tuned)
    checkpoints = [set(os.listdir(x / "output" / "checkpoint")) for x in (tmp_path, fine_tuned)]
    assert {name for name in checkpoints[0] if not name.startswith(".")} == checkpoints[1]
    runs = [path.name for path in tmp_path.glob("wandb/offline-run-*")]
    assert len(runs) == kills + 1
    assert len({name.split("-")[-1] for name in runs}) == 1  # one run, continued


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
        files = {
            path: content
            for path, content in directory_contents(output).items()
            if len(path.parts) == 1
        }
        assert files == before
        for path in output.glob(".incomplete-*"):
            shutil.rmtree(path)


@pytest.mark.slow
def test_killed_training_leaves_a_readable_wandb_run_and_no_output(tmp_path):
    argv = ("--data-dir", SAMPLE, "--epochs", 100000, "--output-dir", "output")
    script = ForkedScript("cnn_basic", tmp_path, *argv)
    script.wait_until(lambda: "\nEpoch 30/" in script.out)
    assert script.send(signal.SIGKILL) == -signal.SIGKILL
    assert not list((tmp_path / "output").iterdir())
    run = read_wandb_run(tmp_path)
    assert len(run.rows) >= 10
    assert all(0 < row["epoch/val_accuracy"] <= 1 for row in run.rows)
    assert run.summary["config"]["data"]["train"] == 1760


# ------------------------------------------------------------------- interrupted or terminated

EXITS = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}


def check_closed(directory):
    """Check for no partial files, and a readable W&B run that is marked as failed."""
    assert not list(directory.rglob(".incomplete-*"))
    run = read_wandb_run(directory)
    assert run.records[-1]["type"] == "exit"
    assert run.records[-1]["exit"]["exit_code"] == 1
    return run


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, slow_param(signal.SIGINT)])
@pytest.mark.parametrize("stage", ["extraction", slow_param("fine_tuning")])
def test_signal_closes_the_wandb_run(stage, signal_number, reference_run, tmp_path):
    if stage == "fine_tuning":
        shutil.copytree(reference_run / "cache", tmp_path / "cache")
    script = start_resnet50(tmp_path, *FINE_TUNING, "--wandb", "offline")
    if stage == "extraction":
        script.wait_for_files(5)
    else:
        script.wait_for_epochs(4)
    time.sleep(np.random.default_rng(signal_number).uniform(0, 0.05))
    code, word = EXITS[signal_number]
    assert script.send(signal_number) == code
    assert script.err == f"\nresnet50_fashion.py: {word}\n"
    run = check_closed(tmp_path)
    if stage == "extraction":
        assert not list((tmp_path / "output").iterdir())
        assert 5 <= len(cache_of(tmp_path)) < NUM_FILES
        assert cache_of(tmp_path).items() <= cache_of(reference_run).items()
        assert run.rows[-1]["features/images"] >= 100
    else:
        assert os.listdir(tmp_path / "output") == ["checkpoint"]
        assert 4 <= len(read_state(tmp_path)["rows"]) < 22
        assert run.rows[-1]["epoch/epoch"] >= 4


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_a_process_group(signal_number, tmp_path):
    """Terminals and clusters also send the signal to W&B's process."""
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
    assert process.returncode == code
    assert err == f"\ncnn_basic.py: {word}\n"
    assert not list((tmp_path / "outputs" / "cnn_basic").iterdir())
    assert check_closed(tmp_path).summary["summary"]["epoch/epoch"] >= 3


@pytest.mark.slow
@pytest.mark.versions
def test_run_completes_if_the_process_of_wandb_is_killed(tmp_path):
    argv = ("--data-dir", SAMPLE, "--epochs", 200, "--wandb", "offline")
    script = ForkedScript("cnn_basic", tmp_path, *argv, "--output-dir", tmp_path / "output")
    script.wait_until(lambda: "Epoch 4/" in script.out)
    processes = Path(f"/proc/{script.process.pid}/task").glob("*/children")
    (child,) = {int(pid) for path in processes for pid in path.read_text().split()}
    os.kill(child, signal.SIGKILL)
    assert script.wait() == 0, script.err
    assert script.err == ""
    (line,) = (line for line in script.out.splitlines() if "its process has ended" in line)
    assert line.startswith("W&B: ") and line.endswith("this run continues without it.")
    assert len(Result(tmp_path / "output").history) == 200


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
    check_closed(tmp_path)


# -------------------------------------------------------------- damaged files, concurrent runs


def test_corrupt_cache_file_is_recomputed_with_warning(reference_run, tmp_path):
    shutil.copytree(reference_run / "cache", tmp_path / "cache")
    path = sorted((tmp_path / "cache").rglob("*.npz"))[7]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    script = start_resnet50(tmp_path)
    assert script.wait() == 0, script.err
    (line,) = script.err.splitlines()
    assert line.startswith(f"{path} is damaged (") and line.endswith("); recomputing it.")
    assert cache_of(tmp_path) == cache_of(reference_run)
    check_results(tmp_path, reference_run)


@pytest.mark.slow
def test_concurrent_runs_share_a_cache(reference_run, tmp_path):
    both = [
        start_resnet50(tmp_path / name, "--cache-dir", tmp_path / "cache") for name in ("a", "b")
    ]
    assert [script.wait() for script in both] == [0, 0]
    assert cache_of(tmp_path) == cache_of(reference_run)
    for name in "a", "b":
        check_results(tmp_path / name, reference_run)


# -------------------------------------------------------------------------------- full disks


class Disk:
    """A directory on a small disk that can be filled.

    Kind "disk" mounts a tmpfs; kind "limit", or a system without the permission to mount, limits
    the size of each file of a process instead.
    """

    def __init__(self, directory, kilobytes, kind):
        directory.mkdir()
        self.directory, self.is_mounted, self.limit = directory, False, 4096
        if kind == "disk":
            mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", directory]
            self.is_mounted = not subprocess.run(mount, capture_output=True).returncode
        if self.is_mounted:
            self.limit = None

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

    def make(name, kilobytes, kind="disk"):
        disks.append(Disk(tmp_path / name, kilobytes, kind))
        return disks[-1]

    yield make
    for disk in disks:
        if disk.is_mounted:
            subprocess.run(["umount", disk.directory], check=True)


FULL = r"\[Errno (28|27)\] (No space left on device|File too large)"


@pytest.mark.any_version
@pytest.mark.parametrize("kind", ["disk", slow_param("limit")])
def test_extraction_resumes_after_disk_full(kind, reference_run, make_disk, tmp_path):
    disk = make_disk("cache", 4000, kind)
    script = start_resnet50(tmp_path, limit=disk.limit)
    if disk.is_mounted:
        script.wait_for_files(5)
        disk.leave(0)
    assert script.wait() == 1
    assert re.fullmatch(rf"resnet50_fashion.py: error: --cache-dir: {FULL}.*\n", script.err)
    disk.empty()
    assert not list(disk.directory.rglob(".incomplete-*"))
    assert cache_of(tmp_path).items() <= cache_of(reference_run).items()
    assert not list((tmp_path / "output").iterdir())
    resumed = start_resnet50(tmp_path)
    assert resumed.wait() == 0, resumed.err
    assert cache_of(tmp_path) == cache_of(reference_run)
    check_results(tmp_path, reference_run)


@pytest.mark.any_version
def test_too_small_cache_disk_raises_before_extraction(make_disk, tmp_path):
    disk = make_disk("cache", 3000)
    script = start_resnet50(tmp_path, "--backbone", "mobilenetv2", limit=disk.limit)
    assert script.wait() == 1
    (line,) = script.err.splitlines()
    if disk.is_mounted:
        needed, free = re.fullmatch(
            r"resnet50_fashion.py: error: Features of 2,320 images need (\d+) MB, but .*/cache/\S+ "
            r"has only (\d+) MB left; use another --cache-dir, or fewer images",
            line,
        ).groups()
        assert 3 == int(free) < int(needed)
    assert not directory_contents(disk.directory)


@pytest.mark.any_version
@pytest.mark.parametrize("kind", ["disk", slow_param("limit")])
@pytest.mark.parametrize("kilobytes", [20, slow_param(200)])  # for the model, or for the figures
def test_full_disk_keeps_existing_results(kind, kilobytes, reference_run, make_disk, tmp_path):
    disk = make_disk("output", 4000, kind)
    shutil.copytree(reference_run, tmp_path, dirs_exist_ok=True)
    disk.leave(kilobytes)
    before = directory_contents(disk.directory)
    script = start_resnet50(tmp_path, "--dropout", 0.1, limit=disk.limit, patches=SMALL)
    assert script.wait() == 1
    assert re.fullmatch(
        rf"resnet50_fashion.py: error: could not write all results: {FULL}; .*\n", script.err
    )
    assert directory_contents(disk.directory) == before
    assert cache_of(tmp_path) == cache_of(reference_run)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "limit"])
def test_full_disk_keeps_the_last_checkpoint(kind, fine_tuned, make_disk, tmp_path):
    disk = make_disk("output", 8000, kind)
    shutil.copytree(fine_tuned / "cache", tmp_path / "cache")
    script = start_resnet50(tmp_path, *FINE_TUNING, limit=disk.limit)
    if disk.is_mounted:
        script.wait_for_epochs(4)
        disk.leave(40)
    assert script.wait() == 1
    # Without the check, h5py fails with a traceback or a segmentation fault.
    assert re.fullmatch(
        rf"resnet50_fashion.py: error: could not write the checkpoint: {FULL}; .*\n", script.err
    )
    disk.empty()
    assert not list(disk.directory.rglob(".incomplete-*"))
    assert (len(read_state(tmp_path)["rows"]) >= 4) == disk.is_mounted
    resumed = start_resnet50(tmp_path, *FINE_TUNING, "--resume")
    assert resumed.wait() == 0, resumed.err
    check_results(tmp_path, fine_tuned)


# ---------------------------------------------------------------------------- Weights & Biases


@pytest.mark.slow
def test_api_key_without_network_falls_back_to_offline(tmp_path):
    start = time.monotonic()
    argv = ("--data-dir", SAMPLE, "--epochs", 1, "--output-dir", tmp_path / "output")
    unreachable = {"WANDB_API_KEY": 40 * "a", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    script = ForkedScript("cnn_basic", tmp_path, *argv, **unreachable)
    assert script.wait() == 0, script.err
    assert time.monotonic() - start < 60
    assert "W&B: no response from http://127.0.0.1:9, so this run is offline." in script.out
    assert Result(tmp_path / "output").metrics["config"]["wandb"] == "auto"
    assert read_wandb_run(tmp_path).records[-1]["exit"].get("exit_code", 0) == 0


@pytest.mark.slow
def test_unwritable_wandb_dir_raises_in_one_line(tmp_path):
    (tmp_path / "nowhere").touch()
    argv = ("--data-dir", SAMPLE, "--epochs", 1, "--wandb", "offline")
    changes = {"WANDB_DATA_DIR": str(tmp_path / "nowhere" / "data")}
    script = ForkedScript("cnn_basic", tmp_path, *argv, **changes)
    assert script.wait() == 1
    assert script.err.splitlines()[-1].startswith(
        "cnn_basic.py: error: W&B could not write its files: "
    )
    assert "Traceback" not in script.err
