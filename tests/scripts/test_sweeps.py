"""Sweeps: valid for W&B's sampler, and trials run as by an agent."""

import importlib

from fashion.options import config as option_values

import pytest
import yaml
from helpers.scripts import ROOT, SAMPLE, parse_options, run_script
from helpers.wandb_runs import read_wandb_run

import cnn_basic
import resnet50_fashion

# The script of each sweep, and additional options that shorten a trial.
SMALL = ("--weights", "random", "--image-size", "64", "--train-size", "20", "--test-size", "20")
SWEEPS = {"cnn_basic": (cnn_basic, ()), "resnet50_head": (resnet50_fashion, SMALL)}


@pytest.fixture
def sweeps():
    # Not "sweeps", which without the package is the project's directory of this name.
    reason = "needs wandb's sampler: pip install --no-deps sweeps, and what it imports"
    pytest.importorskip("sweeps.config", reason=reason)
    return importlib.import_module("sweeps")


def load_sweep(name):
    return yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())


def sample_trial(config, sweeps):
    """Sample parameters as W&B's server does; return them, and the arguments of an agent."""
    trial = {name: entry["value"] for name, entry in sweeps.next_run(config, []).config.items()}
    return trial, [f"--{parameter}={value}" for parameter, value in trial.items()]


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_is_valid_and_its_parameters_are_options(name, sweeps):
    from sweeps.config import schema_violations_from_proposed_config

    script, _ = SWEEPS[name]
    config = load_sweep(name)
    assert config["program"] == f"{script.__name__}.py"
    assert config["metric"]["goal"] == "maximize"
    assert schema_violations_from_proposed_config(config) == []
    for entry in config["parameters"].values():
        if "min" in entry:
            assert type(entry["min"]) is type(entry["max"]) is float
            assert entry["min"] < entry["max"]
    for _ in range(10):
        trial, argv = sample_trial(config, sweeps)
        assert trial.keys() == config["parameters"].keys()
        options = option_values(parse_options(script, *argv))
        for parameter, value in trial.items():
            parsed = options[parameter]
            assert parsed == (value if isinstance(value, int | float) else type(parsed)(value))


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("name", SWEEPS)
def test_trial_logs_the_metric_of_the_sweep(name, sweeps, tmp_path):
    config = load_sweep(name)
    config["parameters"]["epochs"] = {"value": 4}
    _, argv = sample_trial(config, sweeps)
    argv += ["--data-dir", SAMPLE, *SWEEPS[name][1]]
    variables = {"WANDB_SWEEP_ID": "abcd1234", "XDG_CACHE_HOME": str(tmp_path)}
    done = run_script(tmp_path, config["program"], *argv, **variables)
    assert done.returncode == 0, done.stderr

    metric = config["metric"]["name"]
    run = read_wandb_run(tmp_path)
    logged = [row[metric] for row in run.rows if metric in row]
    by_epoch = [row["epoch/val_accuracy"] for row in run.rows if "epoch/val_accuracy" in row]
    assert logged == [max(by_epoch[: i + 1]) for i in range(len(by_epoch))]
    assert run.summary["summary"][metric] == max(by_epoch)
