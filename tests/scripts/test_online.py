"""Online runs, to a stand-in for W&B's server on loopback: what arrives, and what faults cost."""

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
from conftest import ROOT, SAMPLE, Result, environment, run_script
from test_faults import Script, no_process_is_left, server  # noqa: F401 (fixtures)
from wandb_server import Server

KEY = {"WANDB_API_KEY": 40 * "a"}
WORDS = ("--data-dir", SAMPLE, "--train-size", 125, "--validation-size", 125, "--epochs", 3)
SCRIPTS = {"cnn_basic": (), "resnet50_fashion": ("--weights", "none", "--image-size", 64)}
TIMES = re.compile("seconds|memory/|images_per_second|_timestamp|_runtime|_wandb")
HELD_UP = r"^W&B: http://\S+ does not take it all, so this run is kept offline, too\.$"
STAYS = r"^W&B: not online, so this run stays offline \(.+\)$"


def sync(folder: Path, to: Server) -> None:
    """Uploads an offline run."""
    (run,) = folder.glob("wandb/offline-run-*")
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(run)],
        cwd=folder,
        env=environment(folder, WANDB_BASE_URL=to.url, **KEY),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------- what arrives


@pytest.fixture(
    scope="module",
    params=["cnn_basic", pytest.param("resnet50_fashion", marks=pytest.mark.slow)],
)
def runs(request, tmp_path_factory):
    """The same command online, and offline with `wandb sync` afterwards: servers and results."""
    script = request.param
    with contextlib.ExitStack() as stack:
        found = {}
        for mode in "online", "offline":
            folder = tmp_path_factory.mktemp(mode)
            to = stack.enter_context(Server())
            changes = {"WANDB_BASE_URL": to.url, **KEY} if mode == "online" else {}
            done = run_script(
                folder,
                f"{script}.py",
                *(*WORDS, *SCRIPTS[script], "--cache-dir", "cache"),
                **changes,
            )
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stdout + done.stderr
            if mode == "offline":
                assert to.requests == []
                sync(folder, to)
            assert bool(list(folder.glob("wandb/offline-run-*"))) == (mode == "offline")
            found[mode] = to, Result(folder / "outputs" / script)
        yield found


def check_run(run, result: Result, features: bool) -> None:
    """Whether what arrived of a run is what its output folder has."""
    metrics = result.metrics
    for name in "data", "weights", "versions":
        assert run.config[name] == metrics[name]
    for name, value in metrics["config"].items():
        assert value == (run.config[name]["source"] if name == "weights" else run.config[name])
    epochs = [row for row in run.history if "epoch/epoch" in row]
    for row, logged in zip(result.history, epochs, strict=True):
        assert {name: logged[f"epoch/{name}"] for name in row} == pytest.approx(row)
    for part in "train", "validation", "test", "parameters", "memory", "seconds":
        for name, value in metrics[part].items():
            if isinstance(value, int | float):
                assert run.summary[f"{part}/{name}"] == pytest.approx(value), name
    assert run.summary["best/epoch"] == metrics["best_epoch"]
    assert ("features/images" in run.summary) == features
    assert run.exit_code == 0
    assert run.settings["groupName"] == "125-train-images"
    assert run.settings["tags"] == ["fashion-mnist"]
    for key, name in ("curves", "curves.png"), ("page", "report.html"):
        content = run.files[run.summary[f"report/{key}"]["path"]]
        assert content == (result.folder / name).read_bytes()
    table = json.loads(run.files[run.summary["test/per_class"]["path"]])
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["support"] for row in rows] == [
        sum(row) for row in metrics["test"]["confusion_matrix"]
    ]


def check_artifacts(to: Server, result: Result) -> None:
    """Whether all artifacts arrived, and are what their manifests say."""
    assert all(artifact.committed for artifact in to.artifacts.values())
    kinds = [artifact.type for artifact in to.artifacts.values()]
    assert sorted(kinds) == ["code", "dataset", "model", *10 * ["run_table"]]
    for artifact in to.artifacts.values():
        entries = artifact.manifest["contents"]
        assert entries.keys() >= artifact.files.keys()  # the same picture is uploaded once
        for name, content in artifact.files.items():
            digest = base64.b64encode(hashlib.md5(content).digest()).decode()
            assert (entries[name]["digest"], entries[name]["size"]) == (digest, len(content))
    model = to.artifact("model")
    assert model.name == result.metrics["model"]
    assert model.files == {"model.keras": (result.folder / "model.keras").read_bytes()}
    for name in "config", "data", "weights", "train", "validation":
        assert model.metadata[name] == result.metrics[name]
    for name, content in to.artifact("code").files.items():
        assert content == (ROOT / name).read_bytes()
    sums = dict(reversed(line.split()) for line in (SAMPLE / "SHA256SUMS").read_text().splitlines())
    (listed,) = to.artifact("dataset").files.values()
    assert dict(reversed(line.split()) for line in listed.decode().splitlines()) == sums


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_all_of_a_run_arrives(runs, mode):
    to, result = runs[mode]
    check_run(to.run, result, features=result.metrics["model"] == "resnet50_fashion")
    check_artifacts(to, result)


def test_sync_of_an_offline_run_reaches_the_same(runs):
    def comparable(to):
        def plain(row):
            # Of media, the name is of the content, which has times in it on a page, and random ids.
            return {
                key: sorted(value) if isinstance(value, dict) else value
                for key, value in row.items()
                if not TIMES.search(key)
            }

        config = {key: value for key, value in to.run.config.items() if key != "_wandb"}
        digests = {a.name: a.digest for a in to.artifacts.values() if a.type in ("code", "dataset")}
        return config, plain(to.run.summary), [plain(row) for row in to.run.history], digests

    (online, first), (offline, second) = runs["online"], runs["offline"]
    assert first.without_time() == second.without_time()
    assert online.run.config["wandb"] == offline.run.config["wandb"] == "auto"
    for one, other in zip(comparable(online), comparable(offline), strict=True):
        assert one == other


# ------------------------------------------------------------------------------- what faults cost


class Faulty:
    """A script's process, and the server that it meets."""

    def __init__(self, folder: Path, fault=None, since="", only=False, script="cnn_basic"):
        self.server = Server(fault, since, only).__enter__()
        self.folder, self.seconds = folder, 0.0
        words = (*WORDS, *SCRIPTS[script], "--output-dir", "output", "--cache-dir", "cache")
        self.start = time.monotonic()
        self.script = Script(script, folder, *words, WANDB_BASE_URL=self.server.url, **KEY)

    def note_end(self) -> bool:
        """Whether it has ended."""
        if not self.seconds and not self.script.process.is_alive():
            self.seconds = time.monotonic() - self.start
            self.server.die()
        return bool(self.seconds)

    def check(self, healthy: "Faulty", said: str, cost: float, upload: bool = True) -> None:
        """It has all results, and they can be uploaded later (which takes seconds to see)."""
        script = self.script
        assert script.wait() == 0, script.err
        assert self.server.failing.is_set()
        assert self.seconds - healthy.seconds < cost
        assert "Traceback" not in script.out + script.err
        assert len(re.findall(said, script.out, re.MULTILINE)) == 1
        assert script.out.count("W&B: ") == 1 and script.out.count("wandb sync ") == 1
        result = Result(self.folder / "output")
        assert result.without_time() == Result(healthy.folder / "output").without_time()
        if not upload:
            return
        with Server() as later:
            sync(self.folder, later)
            features = "resnet50" in result.metrics["model"] and said == STAYS
            check_run(later.run, result, features)
            check_artifacts(later, result)


def run_all(faulty: list[Faulty]) -> None:
    """Waits for all of them, which run at the same time."""
    while [each for each in faulty if not each.note_end()]:
        assert time.monotonic() - faulty[0].start < 300, "one hangs"
        time.sleep(0.05)


def test_server_that_dies_in_the_middle(tmp_path):
    healthy = Faulty(tmp_path / "healthy")
    faulty = Faulty(tmp_path / "faulty", "dies", "CommitArtifact")
    run_all([healthy, faulty])
    assert healthy.script.wait() == 0, healthy.script.err
    assert "W&B" not in healthy.script.out
    faulty.check(healthy, HELD_UP, cost=30)


FAULTS = ["dies", "hangs", 500, 401, 3.0]


@pytest.mark.slow
@pytest.mark.parametrize("since", ["", "CommitArtifact"], ids=["at the start", "later"])
def test_no_fault_costs_more_than_30_s(since, tmp_path):
    healthy = Faulty(tmp_path / "healthy")
    faulty = {fault: Faulty(tmp_path / str(fault), fault, since) for fault in FAULTS}
    run_all([healthy, *faulty.values()])
    print({fault: round(each.seconds, 1) for fault, each in {None: healthy, **faulty}.items()})
    for fault, each in faulty.items():
        each.check(healthy, HELD_UP if since else STAYS, cost=30, upload=fault in ("dies", 401))


def test_server_that_refuses_the_model_alone(tmp_path):
    """Of which W&B itself says nothing."""
    healthy = Faulty(tmp_path / "healthy")
    faulty = Faulty(tmp_path / "faulty", 403, since="model.keras", only=True)
    run_all([healthy, faulty])
    faulty.check(healthy, HELD_UP, cost=30)


@pytest.mark.slow
def test_server_that_dies_at_the_end_of_the_other_script(tmp_path):
    script = "resnet50_fashion"
    healthy = Faulty(tmp_path / "healthy", script=script)
    faulty = Faulty(tmp_path / "faulty", "dies", "wandb-history", script=script)
    run_all([healthy, faulty])
    faulty.check(healthy, HELD_UP, cost=30)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_closing_that_is_held_up_can_be_ended(number, tmp_path):
    faulty = Faulty(tmp_path / "run", "hangs", "CommitArtifact")
    faulty.script.wait_until(faulty.server.failing.is_set)
    faulty.script.wait_until((tmp_path / "run" / "output").exists)
    faulty.script.wait_until(lambda: "Epoch 3/3" in faulty.script.out)
    faulty.script.wait_until(lambda: list(tmp_path.glob("run/output/.incomplete-*/report.html")))
    time.sleep(1)
    start = time.monotonic()
    code = {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert faulty.script.send(number) == code
    assert time.monotonic() - start < 25
    assert "Traceback" not in faulty.script.out + faulty.script.err
    Result(tmp_path / "run" / "output")
    faulty.server.die()
