"""Sweeps: valid for W&B's sampler, and trials run as by an agent."""

import importlib
import subprocess
import sys

import pytest
import yaml
from helpers.scripts import ROOT, SAMPLE, parse_options, process_environment
from helpers.wandb_runs import read_wandb_run

import cnn_basic
import resnet50_fashion

# Additional options that shorten a trial.
SMALL = ("--train-size", "20", "--validation-size", "20", "--test-size", "20")
SWEEPS = {
    "cnn_basic": (cnn_basic, ()),
    "resnet50_head": (resnet50_fashion, ("--weights", "none", *SMALL)),
}


@pytest.fixture
def sweeps():
    # Not "sweeps", which without the package is the project's directory of this name.
    reason = "needs wandb's sampler: pip install --no-deps sweeps, and what it imports"
    pytest.importorskip("sweeps.config", reason=reason)
    return importlib.import_module("sweeps")


def load_sweep(name):
    return yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())


def sample_trial(config, sweeps):
    """Sample a trial's parameters as W&B's server does."""
    return {name: entry["value"] for name, entry in sweeps.next_run(config, []).config.items()}


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_is_valid_and_has_numeric_bounds(name, sweeps):
    from sweeps.config import schema_violations_from_proposed_config

    config = load_sweep(name)
    assert schema_violations_from_proposed_config(config) == []
    assert schema_violations_from_proposed_config(config | {"method": "guess"})
    for entry in config["parameters"].values():
        if "min" in entry:
            assert type(entry["min"]) is type(entry["max"]) is float
            assert entry["min"] < entry["max"]


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_parameters_are_valid_options(name, sweeps):
    script, _ = SWEEPS[name]
    config = load_sweep(name)
    assert config["program"] == f"{script.__name__}.py"
    for _ in range(10):
        trial = sample_trial(config, sweeps)
        assert trial.keys() == config["parameters"].keys()
        argv = [f"--{parameter}={value}" for parameter, value in trial.items()]
        options = parse_options(script, *argv).config()
        for parameter, value in trial.items():
            parsed = options[parameter]
            assert parsed == (value if isinstance(value, int | float) else type(parsed)(value))


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("name", SWEEPS)
def test_trial_logs_the_metric_of_the_sweep(name, sweeps, tmp_path):
    short_argv = SWEEPS[name][1]
    config = load_sweep(name)
    config["parameters"]["epochs"] = {"value": 4}
    trial = sample_trial(config, sweeps)
    # As an agent does: parameters in their spelling, the sweep's id in the environment.
    command = [sys.executable, ROOT / config["program"]]
    arguments = [f"--{parameter}={value}" for parameter, value in trial.items()]
    done = subprocess.run(
        [*command, *arguments, "--data-dir", SAMPLE, *short_argv],
        cwd=tmp_path,
        env=process_environment(tmp_path, WANDB_SWEEP_ID="abcd1234", XDG_CACHE_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    metric = config["metric"]["name"]
    run = read_wandb_run(tmp_path)
    rows = run.rows
    logged = [row[metric] for row in rows if metric in row]
    by_epoch = [row["epoch/val_accuracy"] for row in rows if "epoch/val_accuracy" in row]
    assert logged == [max(by_epoch[: i + 1]) for i in range(len(by_epoch))]
    assert run.summary["summary"][metric] == max(by_epoch)
    # Trials log no model, since a sweep would upload hundreds.
    kinds = [r["artifact"]["type"] for r in run.records if r["type"] == "artifact"]
    assert "dataset" in kinds
    assert "model" not in kinds
    keys = {key for row in rows for key in row}
    assert "test/mistakes.path" in keys and "test/embeddings.path" not in keys

    # W&B's search uses the metric, and its early termination stops a worse trial.
    def as_run(name, state, values):
        return sweeps.SweepRun(
            name=name,
            state=state,
            config={k: {"value": v} for k, v in trial.items()},
            summary_metrics={metric: values[-1]},
            history=[{metric: value} for value in values],
        )

    epochs = 2 * config["early_terminate"]["min_iter"]
    better = [as_run(f"{i}", sweeps.RunState.finished, [0.95 + i / 100] * epochs) for i in range(4)]
    worse = as_run("worse", sweeps.RunState.running, (logged * epochs)[:epochs])
    assert not sweeps.next_run(config, better).search_info["warnings"]
    assert [run.name for run in sweeps.stop_runs(config, [*better, worse])] == ["worse"]
