"""The W&B session: contents of an offline run's files, modes, hints, credentials."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from fashion.errors import UserError
from fashion.reporting import dashboard, figures
from fashion.tracking import wandb_session

import keras
import pytest
import wandb
from helpers.scripts import ROOT, SAMPLE_SIZES, process_environment

# ------------------------------------------------------------------------- offline runs' files


def test_wandb_config_contains_options_data_weights_and_versions(offline_run, metrics):
    assert offline_run.wandb.started["project"] == "mine"
    config = offline_run.wandb.summary["config"]
    for name in "data", "weights", "versions":
        assert config[name] == metrics[name]
    for name, value in metrics["config"].items():
        # The metadata on weights replace the option, which they contain.
        assert value == (config[name]["source"] if name == "weights" else config[name])
    assert metrics["versions"]["keras"] == keras.__version__
    if metrics["model"] == "cnn_basic":
        assert {name: metrics["data"][name] for name in SAMPLE_SIZES} == SAMPLE_SIZES


def test_wandb_history_contains_the_epochs(offline_run):
    logged = [row for row in offline_run.wandb.rows if "epoch/epoch" in row]
    history = offline_run.result.history
    for row, logged_row in zip(history, logged, strict=True):
        for name, value in row.items():
            assert logged_row[f"epoch/{name}"] == pytest.approx(value), name
    best = max(row["val_accuracy"] for row in history)
    summary = offline_run.wandb.summary["summary"]
    assert summary["epoch/val_accuracy"]["max"] == pytest.approx(best)


def test_wandb_summary_contains_the_metrics(wandb_records, metrics):
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


def test_wandb_contains_figures_and_report(wandb_records, wandb_run_dir, offline_run):
    _, history, _ = wandb_records
    output = offline_run.result.directory
    for name in figures.FIGURE_FILES:
        logged = wandb_run_dir / "files" / history[f"report/{name.removesuffix('.png')}.path"]
        assert logged.read_bytes() == (output / name).read_bytes()
    page = wandb_run_dir / "files" / history["report/page.path"]
    assert page.read_text().strip() == (output / "report.html").read_text().strip()


def test_wandb_contains_code_data_and_model(wandb_records, offline_run, metrics):
    run, _, artifacts = wandb_records
    script = metrics["model"]
    (code,) = artifacts["code"]
    files = {e["path"]: e["local_path"] for e in code["manifest"]["contents"]}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fashion").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"fashion/datasets/dataset.py", "fashion/reporting/report.html.jinja"} <= package
    assert files.keys() == {f"{script}.py", "common.py", "requirements.txt"} | package
    for name, path in files.items():
        assert Path(path).read_bytes() == (ROOT / name).read_bytes()
    (data,) = artifacts["dataset"]
    (checksums,) = data["manifest"]["contents"]
    assert int(checksums["size"]) < 1000  # without the images
    lines = Path(checksums["local_path"]).read_text().splitlines()
    assert dict(reversed(line.split()) for line in lines) == metrics["data"]["sha256"]
    assert json.loads(data["metadata"]) == metrics["data"]
    (model,) = artifacts["model"]
    (entry,) = model["manifest"]["contents"]
    saved = (offline_run.result.directory / "model.keras").read_bytes()
    assert Path(entry["local_path"]).read_bytes() == saved
    metadata = json.loads(model["metadata"])
    for name in "data", "weights", "train", "validation", "config":
        assert metadata[name] == metrics[name]
    assert metadata["test"].items() <= metrics["test"].items()
    if script == "resnet50_fashion":
        assert re.fullmatch("[0-9a-f]{64}", metadata["weights"]["sha256"])
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    assert run["config"]["versions"]["commit"].removesuffix("-dirty") == commit


def test_both_scripts_log_the_same_keys(offline_runs):
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


def test_files_to_upload_are_stored_next_to_the_run(wandb_records, offline_run):
    _, _, artifacts = wandb_records
    for artifact in [a for kind in artifacts.values() for a in kind]:
        for entry in artifact["manifest"]["contents"]:
            assert Path(entry["local_path"]).is_relative_to(offline_run.directory / "wandb")
            assert Path(entry["local_path"]).exists()


def test_auto_mode_without_api_key_is_offline_without_message(offline_run, wandb_run_dir):
    assert offline_run.result.metrics["config"]["wandb"] == "auto"
    assert "no API key" not in offline_run.out
    assert list(wandb_run_dir.glob("*.wandb"))


# -------------------------------------------------------------------------------------- modes


@pytest.fixture
def no_credentials(tmp_path, monkeypatch):
    """An environment without an API key, with an empty home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in "NETRC", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb"))
    return tmp_path


@pytest.fixture
def init_run(no_credentials):
    """Start a W&B run in this process, with its files in a directory of the test."""
    opened = []

    def init(mode, **settings):
        opened.append(wandb_session.init_run(mode, dir=str(no_credentials), **settings))
        return opened[-1]

    yield init
    for run in opened:
        run.finish()


def test_online_mode_without_api_key_is_offline_with_message(init_run, capsys, tmp_path):
    run = init_run("online", project="mine", config={"epochs": 3})
    assert run.offline and not run.disabled
    assert (run.project, dict(run.config)) == ("mine", {"epochs": 3})
    assert capsys.readouterr().out == (
        "W&B: no API key, so this run is offline; `wandb login` configures one.\n"
    )
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    lines = wandb_session.offline_run_hints(run)  # older W&B versions have no viewer
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
def test_offline_run_hints_depend_on_wandb_version(version, expected, init_run, monkeypatch):
    assert wandb_session.offline_viewer_command(version) == expected
    monkeypatch.setattr(wandb, "__version__", version)
    lines = wandb_session.offline_run_hints(init_run("offline"))
    assert len(lines) == (2 if expected else 1)
    assert ("leet" in lines[0]) == bool(expected) and "wandb sync " in lines[-1]
    assert {line.index(" wandb ") for line in lines} == {lines[0].index(" wandb ")}


def test_hinted_commands_exist_in_the_installed_wandb(init_run, tmp_path):
    for line in wandb_session.offline_run_hints(init_run("offline")):
        argv = shlex.split(line.split(" wandb ")[1])[:-1]
        command = [sys.executable, "-m", "wandb", *argv, "--help"]
        done = subprocess.run(
            command, env=process_environment(tmp_path), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "Usage: " in done.stdout


def test_offline_run_hints_quote_the_path(no_credentials, monkeypatch):
    directory = no_credentials / "Zoë's runs"
    directory.mkdir()
    run = wandb_session.init_run("offline", dir=str(directory))
    run.finish()
    monkeypatch.chdir(no_credentials)
    relative = os.path.relpath(Path(run.dir).parent)
    for line in wandb_session.offline_run_hints(run):
        assert shlex.split(line.split(" wandb ")[1])[-1] == relative


def test_disabled_run_writes_no_files(init_run, sample, tmp_path):
    run = init_run("disabled")
    assert run.disabled
    wandb_session.log_code_and_data("cnn_basic", sample, run)
    assert wandb_session.offline_run_hints(run) == []
    run.finish()
    assert not list(tmp_path.iterdir())


def test_has_credentials_finds_keys_where_wandb_does(no_credentials, monkeypatch):
    url = "https://api.wandb.ai"
    assert not wandb_session._has_credentials(url)
    entry = f"machine api.wandb.ai login user password {40 * 'a'}\n"
    for path, other in (".netrc", "_netrc"), ("_netrc", ".netrc"), ("elsewhere", ".netrc"):
        monkeypatch.setenv("NETRC", str(no_credentials / "elsewhere"))
        (no_credentials / path).write_text(entry)
        (no_credentials / other).write_text(entry.replace("api.wandb.ai", "example.com"))
        assert wandb_session._has_credentials(url)
        (no_credentials / path).write_text("no such file format")
        assert not wandb_session._has_credentials(url)
        (no_credentials / path).unlink()
    for name in "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE":
        monkeypatch.setenv(name, "given")
        assert wandb_session._has_credentials(url)
        monkeypatch.delenv(name)


def test_log_code_and_data_to_unwritable_directory_raises(init_run, sample, tmp_path, monkeypatch):
    run = init_run("offline")
    (tmp_path / "nowhere").touch()
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "nowhere" / "data"))
    with pytest.raises(UserError, match=r"^W&B could not write its files: "):
        wandb_session.log_code_and_data("cnn_basic", sample, run)


def test_sweep_trial_logs_no_model(open_run, tmp_path, monkeypatch):
    """A sweep would upload hundreds of models. (test_sweeps.py runs a complete trial.)"""
    logged = []
    (tmp_path / "model.keras").write_bytes(b"a model")
    run = open_run.wandb_run
    monkeypatch.setattr(run, "log_artifact", logged.append)
    dashboard.log_model(run, tmp_path / "model.keras", "cnn_basic", {"a": 1})
    (artifact,) = logged
    assert (artifact.type, artifact.name, artifact.metadata) == ("model", "cnn_basic", {"a": 1})
    monkeypatch.setattr(type(run), "sweep_id", "abcd1234")
    dashboard.log_model(run, tmp_path / "model.keras", "cnn_basic", {"a": 1})
    assert logged == [artifact]
