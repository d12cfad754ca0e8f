"""What goes wrong around a run: signals, disks, pipes, other runs; each in a process of its own.

Most processes come from a server that has imported TensorFlow already, are of a small network, and
keep 20 images in a file of the cache: a trial takes a second or two.
"""

import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import (
    ROOT,
    SAMPLE,
    Result,
    contents,
    environment,
    make_files_small,
    make_pictures_fast,
    make_resnet_small,
    read_wandb_run,
)

import common

resource = pytest.importorskip("resource", reason="needs signals and limits as Unix has them")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["test_faults"])

# --------------------------------------------------------------------------- a script's process


def run_as_script(script, words, folder, variables, limit):
    """What the process of a `Script` does."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    # As a shell starts it, however this process was started itself (`nohup … &`).
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream, name in (sys.stdout, "out"), (sys.stderr, "err"):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
        stream.reconfigure(line_buffering=True)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for make in make_resnet_small, make_files_small, make_pictures_fast:
        make(pytest.MonkeyPatch())
    sys.argv = [f"{script}.py", *map(str, words)]
    script = importlib.import_module(script)
    common.run_script(script.main, script.Options, script.__doc__)


class Script:
    """A script in a process of its own, with `folder` as the current one."""

    def __init__(self, script, folder, *words, limit=None, **changes):
        """`limit`, in bytes, is of each file; `changes` are of the environment."""
        folder.mkdir(exist_ok=True)
        self.folder = folder
        arguments = (script, words, folder, environment(folder, **changes), limit)
        self.process = SERVER.Process(target=run_as_script, args=arguments)
        self.process.start()

    def wait(self):
        """The exit code, or less than 0 for the signal that it died of."""
        self.process.join(600)
        assert self.process.exitcode is not None, "it hangs"
        return self.process.exitcode

    def wait_until(self, condition):
        """Returns as soon as that holds; the process must not end before."""
        deadline = time.monotonic() + 600
        while not condition():
            assert self.process.is_alive(), self.err
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def wait_for_files(self, count):
        """Until so many are in the cache beside it."""
        self.wait_until(lambda: len(list(self.folder.glob("cache/*/*/0*.npz"))) >= count)

    def wait_for_epochs(self, count):
        """Until the checkpoint says so many."""
        self.wait_until(lambda: len(state_of(self.folder)["rows"]) >= count)

    def send(self, number):
        """Sends a signal and waits for the end."""
        os.kill(self.process.pid, number)
        return self.wait()

    @property
    def out(self):
        path = self.folder / "out"  # which the process makes
        return path.read_text() if path.exists() else ""

    @property
    def err(self):
        return (self.folder / "err").read_text()


@pytest.fixture(scope="module", autouse=True)
def server():
    """Starts it where it finds these modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
        (process := SERVER.Process(target=time.sleep, args=(0,))).start()
        process.join()


@pytest.fixture(autouse=True)
def no_process_is_left():
    """After a test that failed."""
    yield
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


WORDS = ("--data-dir", SAMPLE, "--weights", "none", "--image-size", 64, "--precision", "float32")
FINE_TUNING = ("--fine-tune-blocks", 1, "--fine-tune-epochs", 20, "--fine-tune-batch-size", 400)
FILES = (1760 + 160 + 400) // 20  # of the cache


def resnet50(folder, *words, **settings):
    """A process of resnet50_fashion.py: its output is in `folder`/output, its cache beside that."""
    folders = ("--output-dir", folder / "output", "--cache-dir", folder / "cache")
    words = (*WORDS, "--epochs", 2, "--wandb", "disabled", *folders, *words)
    return Script("resnet50_fashion", folder, *words, **settings)


def cache_of(folder):
    """The files in the cache beside a run, but for what those that were killed had not finished."""
    files = contents(folder / "cache").items()
    return {path: content for path, content in files if ".incomplete-" not in str(path)}


def state_of(folder):
    """What the checkpoint of a run says, if there is one."""
    path = folder / "output" / "checkpoint" / "state.json"
    return json.loads(path.read_text()) if path.exists() else {"rows": []}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nothing disturbs."""
    script = resnet50(tmp_path_factory.mktemp("undisturbed"))
    assert script.wait() == 0, script.err
    assert len(cache_of(script.folder)) == FILES
    return script.folder


def check_results(folder, expected):
    """The same figures, to the last digit, and not a file too many."""
    ours, theirs = Result(folder / "output"), Result(expected / "output")
    assert ours.without_time() == theirs.without_time()
    answers = [(x / "output" / "predictions.csv").read_bytes() for x in (folder, expected)]
    assert answers[0] == answers[1]


# ------------------------------------------------------------------------------------- killed

slowly = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("kills", [3, slowly(20)])
def test_killed_extraction_goes_on_to_the_same_bytes(kills, undisturbed, tmp_path):
    expected, rng = cache_of(undisturbed), np.random.default_rng(kills)
    for left in range(kills, 0, -1):
        done = len(cache_of(tmp_path)) if left < kills else 0
        more = 1 + rng.integers((FILES - done) // left // 2)
        script = resnet50(tmp_path)
        script.wait_for_files(done + more)
        time.sleep(rng.uniform(0, 0.01))
        assert script.send(signal.SIGKILL) == -signal.SIGKILL
        assert cache_of(tmp_path).items() <= expected.items()
        assert not list((tmp_path / "output").iterdir())
    assert len(cache_of(tmp_path)) < FILES
    script = resnet50(tmp_path)
    assert script.wait() == 0, script.err
    assert cache_of(tmp_path) == expected
    check_results(tmp_path, undisturbed)


@pytest.fixture(scope="module")
def fine_tuned(undisturbed, tmp_path_factory):
    """The folder of a fine-tuning that nothing disturbs."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    shutil.copytree(undisturbed / "cache", folder / "cache")
    script = resnet50(folder, *FINE_TUNING)
    assert script.wait() == 0, script.err
    return folder


@pytest.mark.parametrize("kills", [1, slowly(5)])
def test_killed_fine_tuning_resumes_to_the_same_figures(kills, fine_tuned, tmp_path):
    shutil.copytree(fine_tuned / "cache", tmp_path / "cache")
    rng, words = np.random.default_rng(kills), (*FINE_TUNING, "--wandb", "offline")
    for i in range(kills):
        epochs = max(len(state_of(tmp_path)["rows"]), 2)  # the head's are two
        script = resnet50(tmp_path, *words, *(["--resume"] if i else []))
        script.wait_for_epochs(epochs + rng.integers(1, 3))
        time.sleep(rng.uniform(0, 0.05))
        assert script.send(signal.SIGKILL) == -signal.SIGKILL
        assert len(state_of(tmp_path)["rows"]) < 22

    forgetful = resnet50(tmp_path, *words)
    assert forgetful.wait() == 2
    assert "--resume continues it\n" in forgetful.err
    resumed = resnet50(tmp_path, *words, "--resume")
    assert resumed.wait() == 0, resumed.err
    assert "Resuming after epoch " in resumed.out
    check_results(tmp_path, fine_tuned)
    checkpoints = [set(os.listdir(x / "output" / "checkpoint")) for x in (tmp_path, fine_tuned)]
    assert {name for name in checkpoints[0] if not name.startswith(".")} == checkpoints[1]
    runs = [path.name for path in tmp_path.glob("wandb/offline-run-*")]
    assert len(runs) == kills + 1
    assert len({name.split("-")[-1] for name in runs}) == 1  # the same run, continued


@pytest.mark.parametrize("kills", [1, slowly(8)])
def test_kill_while_results_are_written_leaves_each_file_whole(kills, undisturbed, tmp_path):
    rng = np.random.default_rng(kills)
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    output, before = tmp_path / "output", contents(undisturbed / "output")
    for _ in range(kills):
        script = resnet50(tmp_path, "--dropout", 0.1)
        script.wait_until(lambda: list(output.glob(".incomplete-*/model.keras")))
        time.sleep(rng.uniform(0, 0.5))
        assert script.send(signal.SIGKILL) == -signal.SIGKILL
        left = {path: content for path, content in contents(output).items() if len(path.parts) == 1}
        assert left == before
        for path in output.glob(".incomplete-*"):
            shutil.rmtree(path)


@pytest.mark.slow
def test_killed_training_leaves_a_readable_run_and_no_output(tmp_path):
    words = ("--data-dir", SAMPLE, "--epochs", 100000, "--output-dir", "output")
    script = Script("cnn_basic", tmp_path, *words)
    script.wait_until(lambda: "\nEpoch 30/" in script.out)
    assert script.send(signal.SIGKILL) == -signal.SIGKILL
    assert not list((tmp_path / "output").iterdir())
    run = read_wandb_run(tmp_path)
    assert len(run.rows) >= 10
    assert all(0 < row["epoch/val_accuracy"] <= 1 for row in run.rows)
    assert run.summary["config"]["data"]["train"] == 1760


# ------------------------------------------------------------------- interrupted or terminated

ENDS = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}


def check_closed(folder):
    """Nothing half-written, and a W&B run that can be read and is marked as failed."""
    assert not list(folder.rglob(".incomplete-*"))
    run = read_wandb_run(folder)
    assert run.records[-1]["type"] == "exit"
    assert run.records[-1]["exit"]["exit_code"] == 1
    return run


@pytest.mark.parametrize("sent", [signal.SIGTERM, slowly(signal.SIGINT)])
@pytest.mark.parametrize("stage", ["extraction", "fine_tuning"])
def test_signal_closes_what_is_open(stage, sent, undisturbed, tmp_path):
    if stage == "fine_tuning":
        shutil.copytree(undisturbed / "cache", tmp_path / "cache")
    script = resnet50(tmp_path, *FINE_TUNING, "--wandb", "offline")
    if stage == "extraction":
        script.wait_for_files(5)
    else:
        script.wait_for_epochs(4)
    time.sleep(np.random.default_rng(sent).uniform(0, 0.05))
    code, word = ENDS[sent]
    assert script.send(sent) == code
    assert script.err == f"\nresnet50_fashion.py: {word}\n"
    run = check_closed(tmp_path)
    if stage == "extraction":
        assert not list((tmp_path / "output").iterdir())
        assert 5 <= len(cache_of(tmp_path)) < FILES
        assert cache_of(tmp_path).items() <= cache_of(undisturbed).items()
        assert run.rows[-1]["features/images"] >= 100
    else:
        assert os.listdir(tmp_path / "output") == ["checkpoint"]
        assert 4 <= len(state_of(tmp_path)["rows"]) < 22
        assert run.rows[-1]["epoch/epoch"] >= 4


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_a_whole_group_of_processes(sent, tmp_path):
    """As a terminal sends it, or a cluster: W&B's process gets it, too."""
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "cnn_basic.py", "--data-dir", SAMPLE, "--epochs", "100000"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Ctrl-C reaches it, also where this process ignores it (`nohup … &`).
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:
        if line.startswith("Epoch 4/"):
            break
    os.killpg(process.pid, sent)
    _, err = process.communicate(timeout=300)
    code, word = ENDS[sent]
    assert process.returncode == code
    assert err == f"\ncnn_basic.py: {word}\n"
    assert not list((tmp_path / "outputs" / "cnn_basic").iterdir())
    assert check_closed(tmp_path).summary["summary"]["epoch/epoch"] >= 3


def test_reader_that_goes_away_ends_it_quietly(tmp_path):
    words = map(str, (ROOT / "cnn_basic.py", "--data-dir", SAMPLE, "--epochs", 100000))
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -1; exit ${PIPESTATUS[0]}', "-", sys.executable, *words],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (141, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("Data: ")
    assert not list((tmp_path / "outputs" / "cnn_basic").iterdir())
    check_closed(tmp_path)


# --------------------------------------------------------------------------- damage, company


def test_flipped_bit_in_the_cache_is_made_good_with_a_word(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "cache", tmp_path / "cache")
    path = sorted((tmp_path / "cache").rglob("*.npz"))[7]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    script = resnet50(tmp_path)
    assert script.wait() == 0, script.err
    (line,) = script.err.splitlines()
    assert line.startswith(f"{path} is damaged (") and line.endswith(") and computed anew.")
    assert cache_of(tmp_path) == cache_of(undisturbed)
    check_results(tmp_path, undisturbed)


@pytest.mark.slow
def test_two_runs_at_once_share_a_cache(undisturbed, tmp_path):
    both = [resnet50(tmp_path / name, "--cache-dir", tmp_path / "cache") for name in ("a", "b")]
    assert [script.wait() for script in both] == [0, 0]
    assert contents(tmp_path / "cache") == contents(undisturbed / "cache")
    for name in "a", "b":
        check_results(tmp_path / name, undisturbed)


# -------------------------------------------------------------------------------- full disks


class Disk:
    """A folder on a disk of its own, so many kB large, that can be filled.

    Of the kind "limit", and where nothing may be mounted, it is any folder, and what is filled is
    each file: the `limit` of a process.
    """

    def __init__(self, folder, kilobytes, kind):
        folder.mkdir()
        self.folder, self.is_mounted, self.limit = folder, False, 4096
        if kind == "disk":
            mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder]
            self.is_mounted = not subprocess.run(mount, capture_output=True).returncode
        if self.is_mounted:
            self.limit = None

    def leave(self, kilobytes):
        """Fills it but for so much."""
        if self.is_mounted:
            free = shutil.disk_usage(self.folder).free - 1024 * kilobytes
            filler = (self.folder / "filler").open("wb", buffering=0)
            with filler, contextlib.suppress(OSError):  # a script may take some meanwhile, too
                while free > 0:
                    free -= filler.write(bytes(min(free, 4096)))
        else:
            self.limit = 1024 * kilobytes

    def empty(self):
        (self.folder / "filler").unlink(missing_ok=True)


@pytest.fixture
def make_disk(tmp_path):
    """Makes disks; they are gone after the test."""
    disks = []

    def make(name, kilobytes, kind="disk"):
        disks.append(Disk(tmp_path / name, kilobytes, kind))
        return disks[-1]

    yield make
    for disk in disks:
        if disk.is_mounted:
            subprocess.run(["umount", disk.folder], check=True)


FULL = r"\[Errno (28|27)\] (No space left on device|File too large)"


@pytest.mark.parametrize("kind", ["disk", slowly("limit")])
def test_cache_that_fills_up_is_gone_on_with(kind, undisturbed, make_disk, tmp_path):
    disk = make_disk("cache", 4000, kind)
    script = resnet50(tmp_path, limit=disk.limit)
    if disk.is_mounted:
        script.wait_for_files(5)
        disk.leave(0)
    assert script.wait() == 1
    assert re.fullmatch(rf"resnet50_fashion.py: error: --cache-dir: {FULL}.*\n", script.err)
    disk.empty()
    assert not list(disk.folder.rglob(".incomplete-*"))
    assert cache_of(tmp_path).items() <= cache_of(undisturbed).items()
    assert not list((tmp_path / "output").iterdir())
    again = resnet50(tmp_path)
    assert again.wait() == 0, again.err
    assert cache_of(tmp_path) == cache_of(undisturbed)
    check_results(tmp_path, undisturbed)


def test_cache_without_room_is_an_error_before_the_work(make_disk, tmp_path):
    disk = make_disk("cache", 3000)
    script = resnet50(tmp_path, "--backbone", "mobilenetv2", limit=disk.limit)
    assert script.wait() == 1
    (line,) = script.err.splitlines()
    if disk.is_mounted:
        what, room = re.fullmatch(
            r"resnet50_fashion.py: error: Features of 2,320 images take (\d+) MB, but .*/cache/\S+ "
            r"has only (\d+) MB left: use another --cache-dir, or fewer images",
            line,
        ).groups()
        assert 3 == int(room) < int(what)
    assert not contents(disk.folder)


@pytest.mark.parametrize("kind", ["disk", slowly("limit")])
@pytest.mark.parametrize("room", [20, slowly(200)])  # kB: it ends at the model, or at a picture
def test_full_disk_leaves_the_results_that_were_there(kind, room, undisturbed, make_disk, tmp_path):
    disk = make_disk("output", 4000, kind)
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    disk.leave(room)
    before = contents(disk.folder)
    script = resnet50(tmp_path, "--dropout", 0.1, limit=disk.limit)
    assert script.wait() == 1
    assert re.fullmatch(
        rf"resnet50_fashion.py: error: not all results could be written: {FULL}\n", script.err
    )
    assert contents(disk.folder) == before
    assert cache_of(tmp_path) == cache_of(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "limit"])
def test_full_disk_leaves_the_last_checkpoint(kind, fine_tuned, make_disk, tmp_path):
    disk = make_disk("output", 8000, kind)
    shutil.copytree(fine_tuned / "cache", tmp_path / "cache")
    script = resnet50(tmp_path, *FINE_TUNING, limit=disk.limit)
    if disk.is_mounted:
        script.wait_for_epochs(4)
        disk.leave(40)
    assert script.wait() == 1
    # h5py's own way to fail, if it is let to, is a traceback or a segmentation fault.
    assert re.fullmatch(
        rf"resnet50_fashion.py: error: no checkpoint could be written: {FULL}\n", script.err
    )
    disk.empty()
    assert not list(disk.folder.rglob(".incomplete-*"))
    assert (len(state_of(tmp_path)["rows"]) >= 4) == disk.is_mounted
    resumed = resnet50(tmp_path, *FINE_TUNING, "--resume")
    assert resumed.wait() == 0, resumed.err
    check_results(tmp_path, fine_tuned)


# ---------------------------------------------------------------------------- Weights & Biases


@pytest.mark.slow
def test_key_without_network_goes_on_offline(tmp_path):
    start = time.monotonic()
    words = ("--data-dir", SAMPLE, "--epochs", 1, "--output-dir", tmp_path / "output")
    nowhere = {"WANDB_API_KEY": 40 * "a", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    script = Script("cnn_basic", tmp_path, *words, **nowhere)
    assert script.wait() == 0, script.err
    assert time.monotonic() - start < 60
    assert "W&B: not online, so this run stays offline" in script.out
    assert Result(tmp_path / "output").metrics["config"]["wandb"] == "auto"
    assert read_wandb_run(tmp_path).records[-1]["exit"].get("exit_code", 0) == 0


@pytest.mark.slow
def test_folder_that_wandb_cannot_write_ends_it_in_one_line(tmp_path):
    (tmp_path / "nowhere").touch()
    words = ("--data-dir", SAMPLE, "--epochs", 1, "--wandb", "offline")
    changes = {"WANDB_DATA_DIR": str(tmp_path / "nowhere" / "data")}
    script = Script("cnn_basic", tmp_path, *words, **changes)
    assert script.wait() == 1
    assert script.err.splitlines()[-1].startswith("cnn_basic.py: error: W&B: ")
    assert "Traceback" not in script.err
