"""Online runs with a local W&B server: the data that it receives, and its faults."""

import base64
import contextlib
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.forkserver import ForkedScript, kill_remaining_processes
from helpers.scripts import ROOT, SAMPLE, Result, process_environment
from helpers.wandb_server import Server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fork_server")]

KEY = {"WANDB_API_KEY": 40 * "a"}
FAST = ("--data-dir", SAMPLE, "--train-size", 125, "--validation-size", 125, "--epochs", 3)
SCRIPTS = {"cnn_basic": (), "resnet50_fashion": ("--weights", "random", "--image-size", 64)}
TIMES = re.compile("seconds|memory/|images_per_second|_timestamp|_runtime|_wandb")
SAVES_COPY = r"^W&B failed \(.+\); saving an offline copy of this run\.$"
IS_OFFLINE = r"^W&B: could not connect, so this run is offline \(.+\)\.$"


@pytest.fixture(autouse=True)
def no_remaining_processes():
    yield
    kill_remaining_processes()


def sync(directory: Path, server: Server) -> None:
    """Upload an offline run."""
    (run,) = directory.glob("wandb/offline-run-*")
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(run)],
        cwd=directory,
        env=process_environment(directory, WANDB_BASE_URL=server.url, **KEY),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=SCRIPTS)
def runs(request, tmp_path_factory, fork_server):
    """Servers and results of a run online, and of one offline with `wandb sync` afterwards."""
    script = request.param
    with contextlib.ExitStack() as stack:
        runs = {}
        for mode in "online", "offline":
            directory = tmp_path_factory.mktemp(mode)
            server = stack.enter_context(Server())
            changes = {"WANDB_BASE_URL": server.url, **KEY} if mode == "online" else {}
            argv = (*FAST, *SCRIPTS[script], "--cache-dir", "cache")
            process = ForkedScript(script, directory, *argv, **changes)
            assert process.wait() == 0, process.err
            assert "Traceback" not in process.out + process.err
            if mode == "offline":
                assert server.requests == []
                sync(directory, server)
            assert bool(list(directory.glob("wandb/offline-run-*"))) == (mode == "offline")
            runs[mode] = server, Result(directory / "outputs" / script)
        yield runs


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
    table = json.loads(run.files[run.summary["test/per_class"]["path"]])
    support = [row[table["columns"].index("support")] for row in table["data"]]
    assert support == [sum(row) for row in metrics["test"]["confusion_matrix"]]


def check_artifacts(server: Server, result: Result) -> None:
    """Check that all artifacts are received and match their manifests."""
    assert all(artifact.committed for artifact in server.artifacts.values())
    kinds = [artifact.type for artifact in server.artifacts.values()]
    assert sorted(kinds) == ["code", "dataset", "model", *9 * ["run_table"]]
    for artifact in server.artifacts.values():
        entries = artifact.manifest["contents"]
        assert entries.keys() >= artifact.files.keys()  # equal images are uploaded once
        for name, content in artifact.files.items():
            digest = base64.b64encode(hashlib.md5(content).digest()).decode()
            assert (entries[name]["digest"], entries[name]["size"]) == (digest, len(content))
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


@pytest.mark.versions
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_server_receives_the_complete_run(runs, mode):
    server, result = runs[mode]
    check_run(server.run, result)
    check_artifacts(server, result)


@pytest.mark.versions
def test_synced_offline_run_equals_online_run(runs):
    def plain(row):
        # Names of media depend on their content, which includes times and random ids.
        return {
            key: sorted(value) if isinstance(value, dict) else value
            for key, value in row.items()
            if not TIMES.search(key)
        }

    def comparable(server):
        config = {key: value for key, value in server.run.config.items() if key != "_wandb"}
        stored = [a for a in server.artifacts.values() if a.type in ("code", "dataset")]
        digests = {artifact.name: artifact.digest for artifact in stored}
        history = [plain(row) for row in server.run.history]
        return config, plain(server.run.summary), history, digests

    (online, first), (offline, second) = runs["online"], runs["offline"]
    assert first.deterministic_metrics() == second.deterministic_metrics()
    assert online.run.config["wandb"] == offline.run.config["wandb"] == "auto"
    for one, other in zip(comparable(online), comparable(offline), strict=True):
        assert one == other


class ServedScript:
    """A script's process and its W&B server, which may fail."""

    def __init__(self, directory: Path, fault=None, since="", only=False):
        self.server = Server(fault, since, only).__enter__()
        self.directory, self.seconds, self.start = directory, 0.0, time.monotonic()
        argv = (*FAST, "--output-dir", "output")
        variables = {"WANDB_BASE_URL": self.server.url, **KEY}
        self.script = ForkedScript("cnn_basic", directory, *argv, **variables)

    def record_end(self) -> bool:
        """Record the end of the process; return whether it has ended."""
        if not self.seconds and not self.script.process.is_alive():
            self.seconds = time.monotonic() - self.start
            self.server.die()
        return bool(self.seconds)

    def check(self, healthy: "ServedScript", message: str, is_synced: bool = True) -> None:
        """Check message, delay and results, and optionally a later upload."""
        script = self.script
        assert script.wait() == 0, script.err
        assert self.server.failing.is_set()
        assert self.seconds - healthy.seconds < 40
        assert "Traceback" not in script.out + script.err
        assert len(re.findall(message, script.out, re.MULTILINE)) == 1
        assert script.out.count("wandb sync ") == 1
        result = Result(self.directory / "output")
        expected = Result(healthy.directory / "output").deterministic_metrics()
        assert result.deterministic_metrics() == expected
        if is_synced:
            with Server() as later:
                sync(self.directory, later)
                check_run(later.run, result)
                check_artifacts(later, result)


def run_all(scripts: list[ServedScript]) -> None:
    """Wait for all processes, which run at the same time."""
    while [script for script in scripts if not script.record_end()]:
        assert time.monotonic() - scripts[0].start < 300, "a process hangs"
        time.sleep(0.05)


@pytest.mark.parametrize("since", ["", "CommitArtifact"], ids=["at the start", "later"])
def test_faults_delay_a_run_by_at_most_40_s(since, tmp_path):
    healthy = ServedScript(tmp_path / "healthy")
    faults = ["dies", "hangs", 500, 401]
    faulty = {fault: ServedScript(tmp_path / str(fault), fault, since) for fault in faults}
    run_all([healthy, *faulty.values()])
    for fault, each in faulty.items():
        each.check(healthy, SAVES_COPY if since else IS_OFFLINE, is_synced=fault in ("dies", 401))


@pytest.mark.versions
def test_server_dies_or_refuses_only_the_model(tmp_path):
    """W&B itself reports no error in the second case."""
    healthy = ServedScript(tmp_path / "healthy")
    faulty = [
        ServedScript(tmp_path / "dies", "dies", "CommitArtifact"),
        ServedScript(tmp_path / "refuses", 403, since="model.keras", only=True),
    ]
    run_all([healthy, *faulty])
    assert healthy.script.wait() == 0, healthy.script.err
    assert healthy.script.out.count("W&B: ") == 1  # the URL
    for each in faulty:
        each.check(healthy, SAVES_COPY)


@pytest.mark.parametrize(
    ("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_signal_ends_a_blocked_upload(signal_number, code, tmp_path):
    faulty = ServedScript(tmp_path / "run", "hangs", "CommitArtifact")
    faulty.script.wait_until(lambda: list(tmp_path.glob("run/output/.incomplete-*/report.html")))
    assert faulty.server.failing.is_set()
    time.sleep(1)
    start = time.monotonic()
    assert faulty.script.send(signal_number) == code
    assert time.monotonic() - start < 40
    assert "Traceback" not in faulty.script.out + faulty.script.err
    Result(tmp_path / "run" / "output")
    faulty.server.die()
