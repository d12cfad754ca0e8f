"""W&B: settings of the user, privacy, modes, failures, hints."""

import functools
import math
import os
import shlex
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from fashion import wandb_session
from fashion.errors import UsageError

import pytest
import wandb
from helpers.wandb_runs import read_wandb_run

pytestmark = pytest.mark.usefixtures("home")


def configure(**variables):
    """Set variables of W&B."""
    os.environ.update(variables)
    wandb.teardown()  # W&B reads its settings once


def write_settings(directory, line):
    """Write a settings file as `wandb init` and `wandb disabled` do."""
    (directory / "wandb").mkdir(exist_ok=True)
    (directory / "wandb" / "settings").write_text(f"[default]\n{line}\n")


def start(mode="offline", **kwargs):
    """Start a W&B run with defaults."""
    tags = ("fashion-mnist",)
    return wandb_session.start(mode, group="ours", tags=tags, config={"epochs": 3}, **kwargs)


def start_and_finish(*args, **kwargs):
    run = start(*args, **kwargs)
    run.finish()
    return run


def fail(error, *_):
    raise error


def finish(function, timeout, exit_code=0):
    """Finish a W&B run whose `finish` is a function."""
    settings = SimpleNamespace(finish_timeout=timeout)
    return wandb_session.finish(SimpleNamespace(settings=settings, finish=function), exit_code)


REJECTED = r"\AW&B rejects its settings: .*--wandb disabled\Z"  # in one line
INVALID = {
    "WANDB_MODE": "sometimes",
    "WANDB_RUN_ID": "exp:1",
    "WANDB_API_KEY": "key\n",
    "WANDB_PROJECT": "a/b",
}


@pytest.mark.parametrize(("name", "value"), INVALID.items(), ids=INVALID)
def test_invalid_setting_raises_usage_error_unless_disabled(name, value):
    configure(**{name: value})
    with pytest.raises(UsageError, match=REJECTED) as info:
        start()
    word = name.removeprefix("WANDB_").lower().replace("_", " ")
    assert word in str(info.value).lower().replace("_", " ")
    before = dict(os.environ), os.listdir()
    assert start("disabled") is None
    assert (dict(os.environ), os.listdir()) == before


def test_settings_of_the_user_win_over_defaults(tmp_path):
    run = start_and_finish()
    expected = ("fashion-mnist", "ours", "train", ("fashion-mnist",))
    assert (run.project, run.group, run.job_type, run.tags) == expected
    assert dict(run.config) == {"epochs": 3}

    write_settings(tmp_path, "project = file")
    configure(WANDB_RUN_GROUP="g", WANDB_JOB_TYPE="eval", WANDB_TAGS="a,b", WANDB_RUN_ID="theirs")
    configure(WANDB_INIT_TIMEOUT="33", WANDB_SILENT="false", WANDB_RESUME="must")
    run = start_and_finish()
    expected = ("file", "g", "eval", ("a", "b", "fashion-mnist"), "theirs")
    assert (run.project, run.group, run.job_type, run.tags, run.id) == expected
    assert run.settings.init_timeout == 33 and not run.settings.silent

    configure(WANDB_PROJECT="variable")
    assert start_and_finish().project == "variable"
    run = start_and_finish(project="given", run_id="resumed")  # wins over all
    assert (run.project, run.id) == ("given", "resumed")


def test_wandb_dir_is_that_of_wandb(tmp_path):
    assert wandb_session.wandb_dir() == tmp_path / "wandb"
    (tmp_path / ".wandb").mkdir()  # W&B prefers a hidden directory that exists
    configure()
    assert wandb_session.wandb_dir() == tmp_path / ".wandb"
    configure(WANDB_DIR=str(tmp_path / "elsewhere"))
    assert wandb_session.wandb_dir() == tmp_path / "elsewhere" / "wandb"


def test_directories_that_cannot_be_written_to_are_replaced(tmp_path, capfd):
    """W&B has a directory for temporary files; files to upload are stored where the run is."""
    (tmp_path / "file").touch()
    for name in "WANDB_DATA_DIR", "XDG_CACHE_HOME":
        os.environ.pop(name, None)
    configure(WANDB_DIR=str(tmp_path / "file"), HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path))
    run = start_and_finish()
    assert Path(run.dir).is_relative_to(os.environ["WANDB_DATA_DIR"])
    assert not Path(run.dir).is_relative_to(tmp_path / "file")
    wandb.teardown()
    assert capfd.readouterr() == ("", "")


def test_wandb_disabled_holds_unless_another_mode_is_given():
    configure(WANDB_DISABLED="true")
    assert wandb_session.is_disabled("auto")
    assert not wandb_session.is_disabled("offline")
    configure(WANDB_MODE="offline")
    assert not wandb_session.is_disabled("auto")


def test_wandb_disabled_by_a_settings_file(tmp_path):
    write_settings(tmp_path, "mode = disabled")
    assert start("auto") is None
    assert not start_and_finish("offline").disabled


NO_KEY = "W&B: no API key, so this run is offline; `wandb login` stores one.\n"
NO_SERVER = "W&B: could not connect, so this run is offline ("
SERVER = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": 40 * "a"}


@pytest.mark.parametrize(
    ("mode", "variables", "message"),
    [
        ("auto", {}, ""),
        ("auto", {"WANDB_MODE": "dryrun"}, ""),
        ("online", {}, NO_KEY),
        ("auto", SERVER, NO_SERVER),
    ],
)
def test_run_is_offline_without_key_or_server(mode, variables, message, capsys, tmp_path):
    configure(**variables)
    assert start_and_finish(mode).offline
    out = capsys.readouterr().out
    assert out.startswith(message) and out.count("\n") == bool(message)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_run_of_the_calling_program_stays_open():
    host = wandb.init(mode="offline", project="host")
    run = start(project="ours")
    run.log({"accuracy": 1})
    run.finish()
    assert run.id != host.id and run.project == "ours"
    host.log({"loss": 2})
    assert host.summary["loss"] == 2 and "accuracy" not in dict(host.summary)
    host.finish()


@pytest.mark.parametrize(
    "switch", [{"WANDB_DISABLE_CODE": "true"}, {"WANDB_SAVE_CODE": "false"}, {}], ids=str
)
def test_privacy_switches_hold_for_code_commit_and_machine(switch, sample, tmp_path):
    private = {"commit": "c", "platform": "p", "processor": "p", "cores": 2, "gpus": []}
    versions = private | {"keras": "3.15"}
    assert wandb_session.remove_private_versions(versions) == versions
    if not switch:
        write_settings(tmp_path, "disable_code = true")
    configure(WANDB_X_DISABLE_MACHINE_INFO="true", WANDB_DISABLE_GIT="true", **switch)
    expected = dict.fromkeys(private) | {"keras": "3.15"}
    assert wandb_session.remove_private_versions(versions) == expected
    run = start()
    wandb_session.log_code_and_data("cnn_basic", sample, run)
    run.finish()
    recorded = read_wandb_run(tmp_path)
    assert not recorded.artifacts("code") and len(recorded.artifacts("dataset")) == 1
    assert "git" not in str([r for r in recorded.records if r["type"] == "run"])


def test_call_returns_failures_of_wandb_and_raises_others(sample, tmp_path):
    run = start()

    assert wandb_session.call(lambda run: run.log({"a": 1}), run, upload_seconds=9) is None
    for error in wandb.Error("no"), ConnectionResetError("gone"), TimeoutError("late"):
        assert wandb_session.call(functools.partial(fail, error), run) is error
    with pytest.raises(KeyError):
        wandb_session.call(functools.partial(fail, KeyError("bug")), run)
    (tmp_path / "nowhere").touch()
    os.environ["WANDB_DATA_DIR"] = str(tmp_path / "nowhere" / "data")
    log = functools.partial(wandb_session.log_code_and_data, "cnn_basic", sample)
    assert isinstance(wandb_session.call(log, run), OSError)  # with a message of W&B
    run.finish()


@pytest.mark.parametrize("timeout", [0, -20, math.inf, math.nan])
def test_finish_waits_if_the_user_sets_no_limit(timeout):
    codes = []
    assert finish(lambda code: time.sleep(0.1) or codes.append(code), timeout, exit_code=3) is None
    assert codes == [3]


def test_finish_returns_timeouts_and_failures_and_raises_others(monkeypatch):
    monkeypatch.setattr(wandb_session, "FINISH_MARGIN", 0)
    event = threading.Event()
    error = finish(lambda _: event.wait(), 0.05)
    assert isinstance(error, TimeoutError) and str(error) == "uploading took too long"
    event.set()
    failure = ConnectionResetError("gone")
    assert finish(functools.partial(fail, failure), 15) is failure
    with pytest.raises(KeyError):
        finish(functools.partial(fail, KeyError("bug")), 15)


def test_hints_name_each_directory_of_a_resumed_run_in_order(tmp_path):
    (tmp_path / "Zoë's runs").mkdir()
    configure(WANDB_DIR=str(tmp_path / "Zoë's runs"))
    directory = Path(start_and_finish(run_id="resumed").dir).parent
    # As if it was started a year ago.
    earlier = directory.rename(str(directory).replace("offline-run-2", "offline-run-1"))
    run = start_and_finish(run_id="resumed")
    start_and_finish(run_id="another")
    paths = [os.path.relpath(path) for path in (earlier, Path(run.dir).parent)]
    lines = wandb_session.hints(run)
    view, upload = [shlex.split(line.split(" wandb ")[1]) for line in lines]
    assert view == ["leet", paths[-1]] and upload == ["sync", *paths]
    assert {line.index(" wandb ") for line in lines} == {lines[0].index(" wandb ")}
