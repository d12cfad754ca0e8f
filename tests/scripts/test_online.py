"""Online runs with a local W&B server: the data that it receives, and its faults."""

import re
import signal
import time
from pathlib import Path

import pytest
from helpers.forkserver import ForkedScript
from helpers.scripts import ROOT, SAMPLE, Result, run_python, run_script
from helpers.wandb_server import Server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fork_server")]

KEY = {"WANDB_API_KEY": 40 * "a"}
FAST = ("--train-size", 125, "--validation-size", 125, "--epochs", 3, "--output-dir", "output")
SAVES_COPY = r"^W&B failed \(.+\); saving an offline copy of this run\.$"
IS_OFFLINE = r"^W&B: could not connect, so this run is offline \(.+\)\.$"


def check_run(run, result: Result) -> None:
    """Check that the received run equals the files in the output directory."""
    metrics = result.metrics
    for name in "version", "data", "weights", "versions":
        assert run.config[name] == metrics[name]
    for name, value in metrics["config"].items():
        # The metadata of the weights replace the option.
        assert name == "weights" or value == run.config[name]
    epochs = [row for row in run.history if "epoch/epoch" in row]
    for row, logged in zip(result.history, epochs, strict=True):
        assert {name: logged[f"epoch/{name}"] for name in row} == pytest.approx(row)
    best = max(row["val_accuracy"] for row in result.history)
    assert run.summary["epoch/val_accuracy"]["max"] == pytest.approx(best)
    for part in "train", "validation", "test", "parameters", "memory", "seconds":
        for name, value in metrics[part].items():
            if isinstance(value, int | float):
                assert run.summary[f"{part}/{name}"] == pytest.approx(value), name
    assert run.summary["best/epoch"] == metrics["best_epoch"]
    assert ("features/images" in run.summary) == (metrics["model"] == "resnet50_fashion")
    assert run.exit_code == 0
    assert run.settings["groupName"] == "125-train-images"
    assert run.settings["tags"] == ["fashion-mnist"]
    for key, name in ("curves", "curves.png"), ("page", "report.html"):
        content = run.files[run.summary[f"report/{key}"]["path"]]
        assert content == (result.directory / name).read_bytes()


def check_artifacts(server: Server, result: Result) -> None:
    """Check that all artifacts are received."""
    assert all(artifact.committed for artifact in server.artifacts.values())
    kinds = [artifact.type for artifact in server.artifacts.values()]
    assert sorted(kinds) == ["code", "dataset", "model", *9 * ["run_table"]]
    model, code = server.artifact("model"), server.artifact("code")
    assert model.name == result.metrics["model"]
    assert model.files == {"model.keras": (result.directory / "model.keras").read_bytes()}
    for name in "config", "data", "weights", "train", "validation":
        assert model.metadata[name] == result.metrics[name]
    package = [*(ROOT / "fashion").rglob("*.py"), *(ROOT / "fashion").rglob("*.jinja")]
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    expected |= {f"{model.name}.py", "common.py", "requirements.txt"}
    # Equal files, such as empty ones, are uploaded once.
    assert code.manifest["contents"].keys() == expected >= code.files.keys()
    for name, content in code.files.items():
        assert content == (ROOT / name).read_bytes()
    (listed,) = server.artifact("dataset").files.values()
    checksums = dict(reversed(line.split()) for line in listed.decode().splitlines())
    assert checksums == result.metrics["data"]["sha256"]


def check_upload(directory: Path) -> None:
    """Upload the offline run with `wandb sync`, and check what the server receives."""
    (run,) = directory.glob("wandb/offline-run-*")
    result = Result(directory / "output")
    with Server() as server:
        argv = ("-m", "wandb", "sync", run)
        done = run_python(directory, *argv, WANDB_BASE_URL=server.url, **KEY)
        assert done.returncode == 0, done.stderr
    check_run(server.run, result)
    check_artifacts(server, result)


class ServedScript(ForkedScript):
    """A script's process and its W&B server, which may fail."""

    def __init__(self, script: str, directory: Path, *argv, fault=None, since="", only=False):
        self.server = Server(fault, since, only).__enter__()
        variables = {"WANDB_BASE_URL": self.server.url, **KEY}
        super().__init__(script, directory, "--data-dir", SAMPLE, *FAST, *argv, **variables)


@pytest.mark.versions
def test_server_receives_the_complete_run_online_or_later(tmp_path):
    argv = ("--weights", "random", "--image-size", 64, "--cache-dir", "cache")
    online = ServedScript("resnet50_fashion", tmp_path / "online", *argv)
    argv = ("--data-dir", SAMPLE, *FAST, *argv)
    offline = ForkedScript("resnet50_fashion", tmp_path / "offline", *argv)
    for script in online, offline:
        assert script.wait() == 0, script.err
        assert "Traceback" not in script.out + script.err
    assert not list(tmp_path.glob("online/wandb/offline-run-*"))
    result = Result(tmp_path / "online" / "output")
    check_run(online.server.run, result)
    check_artifacts(online.server, result)
    check_upload(tmp_path / "offline")
    online.server.die()


def run_all(scripts: list[ServedScript]) -> None:
    """Wait for all processes, which run at the same time, and record their seconds."""
    start, running = time.monotonic(), set(scripts)
    while running:
        seconds = time.monotonic() - start
        assert seconds < 150, "a process hangs"
        for script in [script for script in running if not script.process.is_alive()]:
            script.seconds = seconds
            script.server.die()
            running.remove(script)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "since",
    ["", pytest.param("CommitArtifact", marks=pytest.mark.versions)],
    ids=["first", "later"],
)
def test_faults_delay_a_run_by_at_most_40_s(since, tmp_path):
    """Since the first request, or since results are uploaded."""
    healthy = ServedScript("cnn_basic", tmp_path / "healthy")
    faulty = [
        ServedScript("cnn_basic", tmp_path / str(fault), fault=fault, since=since)
        for fault in ("dies", "hangs", 500, 401)
    ]
    if since:  # W&B itself reports no error if only the model is refused
        model = {"fault": 403, "since": "model.keras", "only": True}
        faulty.append(ServedScript("cnn_basic", tmp_path / "403", **model))
    run_all([healthy, *faulty])
    assert healthy.wait() == 0, healthy.err
    assert healthy.out.count("W&B: ") == 1  # the URL
    expected = Result(healthy.directory / "output").deterministic_metrics()
    for script in faulty:
        assert script.wait() == 0, script.err
        assert script.server.failing.is_set()
        # At most 40 s, and a margin for processes that compete for the CPU.
        assert script.seconds - healthy.seconds < 40 + 15
        assert "Traceback" not in script.out + script.err
        message = SAVES_COPY if since else IS_OFFLINE
        assert len(re.findall(message, script.out, re.MULTILINE)) == 1
        assert script.out.count("wandb sync ") == 1
        assert Result(script.directory / "output").deterministic_metrics() == expected
        if script.server.fault in ("dies", 401, 403):
            check_upload(script.directory)


@pytest.mark.versions
def test_process_ends_although_wandb_retries_an_upload(tmp_path):
    """The server stops after giving the URL of a file; W&B retries for many minutes, also at exit.

    A forked process would not call what W&B registers for its exit.
    """
    start = time.monotonic()
    with Server("dies", "manifest/0") as server:
        argv = ("cnn_basic.py", "--data-dir", SAMPLE, *FAST)
        done = run_script(tmp_path, *argv, WANDB_BASE_URL=server.url, **KEY)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < 150
    assert len(re.findall(SAVES_COPY, done.stdout, re.MULTILINE)) == 1
    check_upload(tmp_path)


@pytest.mark.parametrize(
    ("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_signal_ends_a_blocked_upload(signal_number, code, tmp_path):
    script = ServedScript("cnn_basic", tmp_path, fault="hangs", since="CommitArtifact")
    report = tmp_path / "output" / "report.html"
    script.wait_until(lambda: report.exists() and script.server.failing.is_set())
    time.sleep(1)
    start = time.monotonic()
    assert script.send(signal_number) == code
    assert time.monotonic() - start < 40
    assert "Traceback" not in script.out + script.err
    Result(tmp_path / "output")
    script.server.die()
