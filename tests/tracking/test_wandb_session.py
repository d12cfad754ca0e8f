"""Weights & Biases: what is in an offline run's files, and when a run is offline."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from fashion.errors import UserError
from fashion.reporting import figures
from fashion.tracking import wandb_session

import keras
import pytest
import wandb
from conftest import ROOT, SAMPLE_SIZES, environment

# --------------------------------------------------------------------------- what it is told


def test_wandb_has_the_options_and_what_the_run_stands_on(offline_run, metrics):
    assert offline_run.wandb.started["project"] == "mine"
    config = offline_run.wandb.summary["config"]
    for name in "data", "weights", "versions":
        assert config[name] == metrics[name]
    for name, value in metrics["config"].items():
        # Of the option --weights and the record of that name, the latter counts, and has both.
        assert value == (config[name]["source"] if name == "weights" else config[name])
    assert metrics["versions"]["keras"] == keras.__version__
    if metrics["model"] == "cnn_basic":
        assert {name: metrics["data"][name] for name in SAMPLE_SIZES} == SAMPLE_SIZES


def test_wandb_has_the_epochs(offline_run):
    logged = [row for row in offline_run.wandb.rows if "epoch/epoch" in row]
    history = offline_run.result.history
    for row, logged_row in zip(history, logged, strict=True):
        for name, value in row.items():
            assert logged_row[f"epoch/{name}"] == pytest.approx(value), name
    best = max(row["val_accuracy"] for row in history)
    summary = offline_run.wandb.summary["summary"]
    assert summary["epoch/val_accuracy"]["max"] == pytest.approx(best)


def test_wandb_has_the_summary(wandb_records, metrics):
    run, _, _ = wandb_records
    summary = run["summary"]
    for part in "train", "validation", "test":
        for name in "accuracy", "loss", "interval95", "expected_calibration_error":
            assert summary[f"{part}/{name}"] == pytest.approx(metrics[part][name])
    for part in "parameters", "memory", "seconds":
        for name, value in metrics[part].items():
            assert summary[f"{part}/{name}"] == pytest.approx(value)
    assert summary["best/epoch"] == metrics["best_epoch"]
    assert summary["best/val_accuracy"] == summary["epoch/val_accuracy"]["max"]
    assert 0.3 < metrics["memory"]["peak_gb"] < 3


def test_wandb_has_the_pictures_and_the_page(wandb_records, run_folder, offline_run):
    _, history, _ = wandb_records
    output = offline_run.result.folder
    for name in figures.NAMES:
        logged = run_folder / "files" / history[f"report/{name.removesuffix('.png')}.path"]
        assert logged.read_bytes() == (output / name).read_bytes()
    page = run_folder / "files" / history["report/page.path"]
    assert page.read_text().strip() == (output / "report.html").read_text().strip()


def test_wandb_has_code_data_and_model(wandb_records, offline_run, metrics):
    run, _, artifacts = wandb_records
    script = metrics["model"]
    (code,) = artifacts["code"]
    files = {e["path"]: e["local_path"] for e in code["manifest"]["contents"]}
    rooms = {f"fashion/{path.name}" for path in (ROOT / "fashion").glob("*.py")}
    assert files.keys() == {f"{script}.py", "common.py", "requirements.txt"} | rooms
    for name, path in files.items():
        assert Path(path).read_text() == (ROOT / name).read_text()
    (data,) = artifacts["dataset"]
    (sums,) = data["manifest"]["contents"]
    assert int(sums["size"]) < 1000  # and not the images
    lines = Path(sums["local_path"]).read_text().splitlines()
    assert dict(reversed(line.split()) for line in lines) == metrics["data"]["sha256"]
    assert json.loads(data["metadata"]) == metrics["data"]
    (model,) = artifacts["model"]
    (entry,) = model["manifest"]["contents"]
    saved = (offline_run.result.folder / "model.keras").read_bytes()
    assert Path(entry["local_path"]).read_bytes() == saved
    metadata = json.loads(model["metadata"])
    for name in "data", "weights", "train", "validation", "config":
        assert metadata[name] == metrics[name]
    assert metadata["test"].items() <= metrics["test"].items()
    if script == "resnet50_fashion":
        assert re.fullmatch("[0-9a-f]{64}", metadata["weights"]["sha256"])
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    assert run["config"]["versions"]["commit"].removesuffix("-dirty") == commit


def test_both_scripts_log_under_the_same_names(offline_runs):
    logged, started = {}, {}
    for script, run in offline_runs.items():
        logged[script] = {
            key.removesuffix(".path")
            for row in run.wandb.rows
            for key in row
            if key.endswith(".path") or "." not in key
        }
        first = run.wandb.started
        started[script] = {key: first[key] for key in ("job_type", "tags", "project")}
        size = run.wandb.summary["config"]["data"]["train"]
        assert first["run_group"] == f"{size}-train-images"
    assert started["cnn_basic"] == started["resnet50_fashion"]
    assert started["cnn_basic"]["tags"] == ["fashion-mnist"]
    extraction = {"features/images", "features/images_per_second", "features/seconds"}
    assert logged["resnet50_fashion"] - logged["cnn_basic"] == extraction
    assert logged["cnn_basic"] <= logged["resnet50_fashion"]


def test_what_waits_for_its_upload_is_beside_the_run(wandb_records, offline_run):
    _, _, artifacts = wandb_records
    for artifact in [a for kind in artifacts.values() for a in kind]:
        for entry in artifact["manifest"]["contents"]:
            assert Path(entry["local_path"]).is_relative_to(offline_run.folder / "wandb")
            assert Path(entry["local_path"]).exists()


def test_without_a_key_auto_is_offline_without_a_word(offline_run, run_folder):
    assert offline_run.result.metrics["config"]["wandb"] == "auto"
    assert "no key" not in offline_run.out
    assert list(run_folder.glob("*.wandb"))


# ------------------------------------------------------------------- whether it is online


@pytest.fixture
def no_credentials(tmp_path, monkeypatch):
    """An environment without a key, whose home is a folder of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in "NETRC", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb"))
    return tmp_path


@pytest.fixture
def start(no_credentials):
    """Opens a W&B run in this process, with its files in a folder of the test's own."""
    opened = []

    def open_one(wanted, **settings):
        opened.append(wandb_session.start(wanted, dir=str(no_credentials), **settings))
        return opened[-1]

    yield open_one
    for run in opened:
        run.finish()


def test_run_without_a_key_is_offline_and_says_so_if_online_was_wanted(start, capsys, tmp_path):
    run = start("online", project="mine", config={"epochs": 3})
    assert run.offline and not run.disabled
    assert (run.project, dict(run.config)) == ("mine", {"epochs": 3})
    assert capsys.readouterr().out == (
        "W&B: no key, so this run stays offline; `wandb login` configures one.\n"
    )
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    lines = wandb_session.ways_to_look(run)  # of an old W&B, only one
    assert lines[0].startswith("W&B, offline. ") and "wandb sync " in lines[-1]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.21.0", None),
        ("0.22.1", None),
        ("0.22.2", "wandb beta leet"),
        ("0.27.2", "wandb beta leet"),
        ("0.28.0", "wandb leet"),
        ("0.28.0rc1", "wandb leet"),
        ("1.0.0", "wandb leet"),
    ],
)
def test_viewer_is_what_that_version_has(version, expected, start, monkeypatch):
    assert wandb_session.viewer(version) == expected
    monkeypatch.setattr(wandb, "__version__", version)
    lines = wandb_session.ways_to_look(start("offline"))
    assert len(lines) == (2 if expected else 1)
    assert ("leet" in lines[0]) == bool(expected) and "wandb sync " in lines[-1]
    assert {line.index(" wandb ") for line in lines} == {lines[0].index(" wandb ")}


def test_hinted_commands_are_commands(start, tmp_path):
    """Of the W&B that is installed; its command line says what it has."""
    for line in wandb_session.ways_to_look(start("offline")):
        words = shlex.split(line.split(" wandb ")[1])[:-1]
        command = [sys.executable, "-m", "wandb", *words, "--help"]
        done = subprocess.run(
            command, env=environment(tmp_path), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "Usage: " in done.stdout


def test_folder_in_a_hint_can_be_pasted(no_credentials, monkeypatch):
    folder = no_credentials / "Zoë's runs"
    folder.mkdir()
    run = wandb_session.start("offline", dir=str(folder))
    run.finish()
    monkeypatch.chdir(no_credentials)
    relative = os.path.relpath(Path(run.dir).parent)
    for line in wandb_session.ways_to_look(run):
        assert shlex.split(line.split(" wandb ")[1])[-1] == relative


def test_disabled_run_takes_everything_and_leaves_nothing(start, sample, tmp_path):
    run = start("disabled")
    assert run.disabled
    wandb_session.log_inputs("cnn_basic", sample, run)
    assert wandb_session.ways_to_look(run) == []
    run.finish()
    assert not list(tmp_path.iterdir())


def test_credentials_are_found_where_wandb_has_them(no_credentials, monkeypatch):
    url = "https://api.wandb.ai"
    assert not wandb_session._has_wandb_key(url)
    entry = f"machine api.wandb.ai login user password {40 * 'a'}\n"
    for path, other in (".netrc", "_netrc"), ("_netrc", ".netrc"), ("elsewhere", ".netrc"):
        monkeypatch.setenv("NETRC", str(no_credentials / "elsewhere"))
        (no_credentials / path).write_text(entry)
        (no_credentials / other).write_text(entry.replace("api.wandb.ai", "example.com"))
        assert wandb_session._has_wandb_key(url)
        (no_credentials / path).write_text("no such file format")
        assert not wandb_session._has_wandb_key(url)
        (no_credentials / path).unlink()
    for name in "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE":
        monkeypatch.setenv(name, "given")
        assert wandb_session._has_wandb_key(url)
        monkeypatch.delenv(name)


def test_folder_that_cannot_be_written_to_is_an_error(start, sample, tmp_path, monkeypatch):
    run = start("offline")
    (tmp_path / "nowhere").touch()
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "nowhere" / "data"))
    with pytest.raises(UserError, match=r"^W&B: "):
        wandb_session.log_inputs("cnn_basic", sample, run)


def test_trial_of_a_sweep_logs_no_model(open_run, tmp_path, monkeypatch):
    """Hundreds of them would be uploaded. (A whole trial is in test_sweeps.py.)"""
    logged = []
    (tmp_path / "model.keras").write_bytes(b"a model")
    run = open_run.wandb_run
    monkeypatch.setattr(run, "log_artifact", logged.append)
    wandb_session.log_model(run, tmp_path / "model.keras", "cnn_basic", {"a": 1})
    (artifact,) = logged
    assert (artifact.type, artifact.name, artifact.metadata) == ("model", "cnn_basic", {"a": 1})
    monkeypatch.setattr(type(run), "sweep_id", "abcd1234")
    wandb_session.log_model(run, tmp_path / "model.keras", "cnn_basic", {"a": 1})
    assert logged == [artifact]
