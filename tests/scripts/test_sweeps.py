"""Each sweep is tried with wandb's own sampler, and one trial is run as an agent would run it."""

import importlib
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, SAMPLE, environment, parse, read_wandb_run

import cnn_basic
import resnet50_fashion

# In a test, a trial is cut short by options beside those of the sweep.
SMALL = ("--train-size", "20", "--validation-size", "20", "--test-size", "20")
SWEEPS = {
    "cnn_basic": (cnn_basic, ()),
    "resnet50_head": (resnet50_fashion, ("--weights", "none", *SMALL)),
}


@pytest.fixture
def sweeps():
    # Not "sweeps": without the package, that is the folder of this name.
    reason = "needs wandb's sampler: pip install --no-deps sweeps, and what it imports"
    pytest.importorskip("sweeps.config", reason=reason)
    return importlib.import_module("sweeps")


def read(name):
    return yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())


def sample(config, sweeps):
    """A trial's parameters, as wandb's server would choose them."""
    return {name: entry["value"] for name, entry in sweeps.next_run(config, []).config.items()}


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_is_valid_and_its_numbers_are_numbers(name, sweeps):
    from sweeps.config import schema_violations_from_proposed_config

    config = read(name)
    assert schema_violations_from_proposed_config(config) == []
    assert schema_violations_from_proposed_config(config | {"method": "guess"})
    for entry in config["parameters"].values():
        if "min" in entry:
            assert type(entry["min"]) is type(entry["max"]) is float
            assert entry["min"] < entry["max"]


@pytest.mark.parametrize("name", SWEEPS)
def test_parameters_are_options_that_take_what_the_sweep_gives(name, sweeps):
    script, _ = SWEEPS[name]
    config = read(name)
    assert config["program"] == f"{script.__name__}.py"
    for _ in range(10):
        trial = sample(config, sweeps)
        assert trial.keys() == config["parameters"].keys()
        words = [f"--{parameter}={value}" for parameter, value in trial.items()]
        options = parse(script, *words).config()
        for parameter, value in trial.items():
            parsed = options[parameter]
            assert parsed == (value if isinstance(value, int | float) else type(parsed)(value))


@pytest.mark.parametrize(
    "name", ["cnn_basic", pytest.param("resnet50_head", marks=pytest.mark.slow)]
)
def test_a_trial_logs_what_the_sweep_maximises(name, sweeps, tmp_path):
    shortened = SWEEPS[name][1]
    config = read(name)
    config["parameters"]["epochs"] = {"value": 4}
    trial = sample(config, sweeps)
    # As an agent does: the parameters as written, the sweep's id in the environment.
    command = [sys.executable, ROOT / config["program"]]
    arguments = [f"--{parameter}={value}" for parameter, value in trial.items()]
    done = subprocess.run(
        [*command, *arguments, "--data-dir", SAMPLE, *shortened],
        cwd=tmp_path,
        env=environment(tmp_path, WANDB_SWEEP_ID="abcd1234", XDG_CACHE_HOME=str(tmp_path)),
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
    # No model in a sweep's trials: hundreds of them would be uploaded.
    kinds = [r["artifact"]["type"] for r in run.records if r["type"] == "artifact"]
    assert "dataset" in kinds
    assert "model" not in kinds
    keys = {key for row in rows for key in row}
    assert "test/mistakes.path" in keys and "test/embeddings.path" not in keys

    # wandb's own search takes the value up, and its early termination stops a worse trial.
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
