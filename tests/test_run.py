"""A run: its epochs, laps, metadata, W&B run and the offline copy of it."""

import dataclasses
import os
import signal
import subprocess
from types import SimpleNamespace

import fashion
from fashion import errors, run as fashion_run, wandb_session
from fashion.errors import UsageError, UserError
from fashion.options import config
from fashion.run import EpochLogger, Run, best_epoch

import keras
import numpy as np
import pytest
from helpers.results import make_epoch
from helpers.wandb_runs import read_wandb_run
from helpers.wandb_server import Server

from cnn_basic import Options, build_model

pytestmark = pytest.mark.usefixtures("home")
LOGS = {"accuracy": 0.5, "loss": 1.0, "val_accuracy": 0.5, "val_loss": 1.0}


def test_epochs_equal_keras_history_and_are_logged(sample):
    """Also those of a run that is resumed."""
    keras.utils.set_random_seed(0)
    model = build_model(8, 10)
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 60)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=7,
    )
    rows, summary = [], {}
    wandb_run = SimpleNamespace(log=rows.append, summary=summary)
    logger = EpochLogger(lambda function: function(wandb_run), [make_epoch(1, 0.25)])
    history = model.fit(
        sample.train.images[:400],
        sample.train.labels[:400],
        batch_size=20,
        validation_data=(sample.validation.images, sample.validation.labels),
        callbacks=[logger],
        verbose=0,
        initial_epoch=1,
        epochs=4,
    ).history
    assert [row.epoch for row in logger.epochs] == [1, 2, 3, 4]
    trained = logger.epochs[1:]
    for metric in "accuracy", "loss", "val_accuracy", "val_loss":
        assert [getattr(row, metric) for row in trained] == history[metric]
    # The learning rate at the epoch's first step, independent of steps per execution.
    expected = [1e-2 * (1 + np.cos(np.pi * step / 60)) / 2 for step in (0, 20, 40)]
    assert [row.learning_rate for row in trained] == pytest.approx(expected, rel=1e-4)
    assert all(0 < row.seconds < 60 for row in trained)

    for row, sent in zip(trained, rows, strict=True):
        best = sent.pop("best/val_accuracy")
        assert best == max(0.25, *history["val_accuracy"][: row.epoch - 1])
        assert sent == {f"epoch/{k}": v for k, v in dataclasses.asdict(row).items()}
    assert summary["best/epoch"] == best_epoch(logger.epochs).epoch


def test_best_is_the_first_epoch_with_highest_validation_accuracy():
    assert best_epoch([make_epoch(1, 0.5), make_epoch(2, 0.75), make_epoch(3, 0.75)]).epoch == 2


def log_epoch(logger, **logs):
    """Log an epoch as a fit does."""
    logger.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    logger.model.compile("adam", "mse")
    logger.on_epoch_begin(len(logger.epochs))
    logger.on_epoch_end(len(logger.epochs), LOGS | logs)


@pytest.mark.parametrize("name", ["loss", "val_loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_loss_raises_and_is_not_logged(name, value):
    logged = []
    logger = EpochLogger(logged.append)
    log_epoch(logger)
    message = f"^training diverged: loss is {value} in epoch 2; try a lower --l"
    with pytest.raises(UserError, match=message):
        log_epoch(logger, **{name: value})
    assert len(logger.epochs) == len(logged) == 1


def test_signal_that_python_has_swallowed_ends_training_and_lap(sample, monkeypatch):
    run = Run(Options(wandb="disabled"), sample)
    monkeypatch.setattr(errors, "_received_signal", 15)
    with pytest.raises(SystemExit, match="143"):
        run.epoch_logger.on_epoch_begin(0)
    with pytest.raises(SystemExit, match="143"):
        run.lap("evaluation")


def test_laps_are_timed(sample, monkeypatch):
    run = Run(Options(wandb="disabled"), sample)
    times = iter([100.0, 101.5, 104.0, 109.0])
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(fashion_run, "time", clock)
    for name in "extraction", "training", "extraction", "evaluation":
        run.lap(name)
        assert errors.current_lap == name
    seconds = run.metadata["seconds"]
    assert list(seconds) == ["imports", "loading", "extraction", "training"]
    assert (seconds["extraction"], seconds["training"]) == (6.5, 2.5)


def test_metadata_contain_options_versions_data_and_weights(sample):
    options = Options(wandb="disabled", epochs=3)
    metadata = Run(options, sample, {"source": "imagenet", "sha256": "0"}).metadata
    assert metadata.pop("seconds") and metadata.pop("versions")["keras"] == keras.__version__
    assert metadata == {
        "model": "cnn_basic",
        "version": fashion.__version__,
        "config": config(options),
        "data": sample.metadata(),
        "weights": {"source": "imagenet", "sha256": "0"},
    }
    assert Run(options, sample).metadata["weights"] == {"source": "none"}


def test_disabled_run_logs_nothing_and_keeps_the_id_to_resume(sample):
    with Run(Options(wandb="disabled"), sample, wandb_id="earlier") as run:
        run.log_with(lambda wandb_run: pytest.fail("called"))
        run.log_metrics({"a": 1})
    assert run.wandb_run is None and run.wandb_id == "earlier"
    assert wandb_session.hints(run.wandb_run) == []


EXIT_CODES = {
    UserError("no"): 1,
    UsageError("no"): 2,
    ValueError("a bug"): 1,
    KeyboardInterrupt(): 130,
    SystemExit(143): 143,
    SystemExit("text"): 1,
    BrokenPipeError(): 141,
    None: 0,
}


@pytest.mark.parametrize("error", EXIT_CODES, ids=repr)
def test_wandb_run_has_the_exit_code_of_the_error(error, sample, monkeypatch):
    codes = []
    monkeypatch.setattr(Run, "finish", lambda run, code: codes.append(code))
    try:
        with Run(Options(wandb="disabled"), sample):
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    assert codes == [EXIT_CODES[error]]


def kill_wandb():
    children = ["pgrep", "-P", str(os.getpid()), "wandb-core"]
    for pid in subprocess.check_output(children, text=True).split():
        os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def dying_server():
    """A server that an online run uses, to be stopped by the test."""
    with Server() as server:
        os.environ |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": 40 * "a"}
        os.environ |= {"WANDB_FINISH_TIMEOUT": "2", "WANDB_INIT_TIMEOUT": "60"}
        yield server


@pytest.mark.parametrize("mode", ["offline", "auto"])
def test_run_is_copied_if_process_or_server_of_wandb_fail(mode, sample, home, request, capsys):
    server = request.getfixturevalue("dying_server") if mode == "auto" else None
    data = dataclasses.replace(sample, class_names=tuple("abcdefghij"), name="Letters")
    run = Run(Options(wandb=mode, project="mine"), data, None, "resumed", [make_epoch(1, 0.5)])
    assert run.wandb_id == "resumed" and run.wandb_run.offline == (mode == "offline")
    run.log_metrics({"a": 1})
    if server:
        server.die()
        sent = []
        run.log_with(sent.append, upload_seconds=60)  # the server is checked first
        assert sent == []
    else:
        kill_wandb()
        (directory,) = home.glob("wandb/offline-run-*")
        directory.rename(home / "killed")
    log_epoch(run.epoch_logger)
    run.log_metrics({"a": 2})
    run.finish(1)
    assert run.wandb_run.offline and run.wandb_run.id != "resumed"
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("W&B failed (")
    assert line.endswith("; saving an offline copy of this run.")
    copy = read_wandb_run(home)
    (started,) = (x["run"] for x in copy.records if x["type"] == "run" and "project" in x["run"])
    assert started["run_id"] == run.wandb_run.id and started["project"] == "mine"
    assert started["run_group"] == "1760-train-images-of-letters"
    assert started["tags"] == ["letters"]
    for name in "version", "versions", "data", "weights":
        assert copy.summary["config"][name] == run.metadata[name]
    assert [row["epoch/epoch"] for row in copy.rows if "epoch/epoch" in row] == [1, 2]
    assert len(copy.artifacts("code")) == len(copy.artifacts("dataset")) == 1
    assert [row["a"] for row in copy.rows if "a" in row] == [1, 2]
    assert copy.records[-1]["exit"]["exit_code"] == 1
    assert len(wandb_session.hints(run.wandb_run)) == 2


def test_failure_of_the_copy_keeps_the_exit_code(sample, home, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="143"), Run(Options(wandb="offline"), sample):
        kill_wandb()
        monkeypatch.setattr(wandb_session, "ROOT", home / "nowhere")
        raise SystemExit(143)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("W&B failed (")
    assert second.startswith("W&B: could not save the copy (") and "nowhere" in second


def test_sweep_is_not_copied_if_the_server_fails(sample, home, dying_server, capsys):
    os.environ["WANDB_SWEEP_ID"] = "abcd1234"
    with Run(Options(wandb="auto"), sample) as run:
        dying_server.die()
    assert not list(home.glob("wandb/offline-run-*"))
    assert wandb_session.hints(run.wandb_run) == []
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("W&B failed (Timed out finishing run")
    assert line.endswith("; the results in the output directory are complete.")


def test_metadata_lack_what_the_user_forbids_wandb_to_record(sample, home):
    os.environ |= {"WANDB_DISABLE_GIT": "true", "WANDB_X_DISABLE_MACHINE_INFO": "true"}
    with Run(Options(wandb="offline"), sample) as run:
        pass
    versions = run.metadata["versions"]
    assert versions["commit"] is versions["platform"] is versions["processor"] is None
