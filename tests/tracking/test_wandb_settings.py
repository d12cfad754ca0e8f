"""Settings of W&B in the environment and in files: precedence, privacy, invalid values."""

import os

from fashion.errors import UsageError
from fashion.tracking import wandb_session, wandb_settings

import pytest
import wandb
from helpers.forkserver import ForkedScript
from helpers.scripts import SAMPLE, Result
from helpers.wandb_runs import read_wandb_run

INVALID = {
    "WANDB_MODE": "",
    "WANDB_RUN_ID": "exp:1",
    "WANDB_API_KEY": "key\n",
    "WANDB_PROJECT": "a/b",
    "WANDB_BASE_URL": "nonsense",
    "WANDB_SILENT": "maybe",
    "WANDB_RESUME": "perhaps",
    "WANDB_INIT_TIMEOUT": "soon",
}


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """Set variables of W&B, in an empty home directory and an empty working directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def set_variables(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # W&B reads its settings once

    yield set_variables
    monkeypatch.undo()
    wandb.teardown()


@pytest.mark.parametrize("name", INVALID)
def test_invalid_setting_raises_usage_error_unless_disabled(name, configure):
    configure(**{name: INVALID[name]})
    message = rf"^W&B rejects {name}: .* Correct {name}, or use --wandb disabled$"
    with pytest.raises(UsageError, match=message) as info:
        wandb_session.init_run("offline")
    assert "\n" not in str(info.value)
    before = dict(os.environ)
    assert wandb_session.init_run("disabled", project="mine").disabled
    assert dict(os.environ) == before


DEFAULTS_FILES = {"flat": "epochs: 99\n", "list": "- 1\n", "malformed": "a: [\n"}


@pytest.mark.parametrize("content", DEFAULTS_FILES.values(), ids=DEFAULTS_FILES)
def test_unusable_config_defaults_raise_usage_error_unless_disabled(content, configure, tmp_path):
    """W&B reads config-defaults.yaml in the working directory, which may be another project's."""
    (tmp_path / "config-defaults.yaml").write_text(content)
    configure()
    with pytest.raises(UsageError, match=r"^W&B rejects its settings: .*--wandb disabled$"):
        wandb_session.init_run("offline")
    assert wandb_session.init_run("disabled", project="mine").disabled
    assert os.getcwd() == str(tmp_path)


def test_wandb_disabled_holds_unless_another_mode_is_given(configure):
    configure(WANDB_DISABLED="true")
    assert wandb_settings.is_disabled("auto")
    assert not wandb_settings.is_disabled("offline")
    configure(WANDB_MODE="offline")
    assert not wandb_settings.is_disabled("auto")


def test_wandb_dir_that_is_a_file_is_not_used(configure, tmp_path, monkeypatch):
    """W&B itself then uses the temporary directory; files that wait go to its default."""
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    (tmp_path / "file").touch()
    configure(WANDB_DIR=str(tmp_path / "file"))
    wandb_settings.read_settings()
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.mark.parametrize("mode", ["run", "online"])
def test_online_mode_without_a_key_is_offline(mode, configure):
    configure(WANDB_MODE=mode)
    run = wandb_session.init_run("auto")
    run.finish()
    assert run.offline


def test_run_of_the_calling_program_stays_open(configure):
    configure(WANDB_MODE="offline")
    host = wandb.init(project="host")
    run = wandb_session.init_run("offline", project="ours")
    run.log({"accuracy": 1})
    run.finish()
    assert run.id != host.id and run.project == "ours"
    host.log({"loss": 2})
    assert host.summary["loss"] == 2 and "accuracy" not in dict(host.summary)
    host.finish()


DEFAULTS = {"group": "ours", "job_type": "train", "tags": ["fashion-mnist"]}


def started_run(**defaults):
    run = wandb_session.init_run("offline", **DEFAULTS, **defaults)
    run.finish()
    return run.project, run.group, run.job_type, run.tags


def test_defaults_hold_without_settings(configure):
    configure()
    expected = ("fashion-mnist", "ours", "train", ("fashion-mnist",))
    assert started_run(project=None) == expected


def test_environment_wins_over_defaults_and_command_line_over_environment(configure):
    configure(WANDB_PROJECT="theirs", WANDB_RUN_GROUP="g", WANDB_JOB_TYPE="eval", WANDB_TAGS="a,b")
    project, *others = started_run(project=None)
    assert project == "theirs"
    assert others == ["g", "eval", ("a", "b", "fashion-mnist")]
    assert started_run(project="given")[0] == "given"


def test_settings_file_wins_over_defaults(configure, tmp_path):
    """As `wandb init` writes it."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nproject = theirs\nentity = me\n")
    configure()
    assert started_run(project=None)[0] == "theirs"


def test_run_id_of_a_resumed_run_wins_over_the_environment(configure):
    configure(WANDB_RUN_ID="theirs", WANDB_RESUME="allow")
    run = wandb_session.init_run("offline", id="resumed", resume="allow")
    run.finish()
    assert run.id == "resumed"


def test_time_limit_and_silence_of_the_user_hold(configure):
    configure(WANDB_INIT_TIMEOUT="33", WANDB_SILENT="false")
    configured = wandb_settings.read_settings()
    values = {"init_timeout": 8, "silent": True, "quiet": True}
    changed = wandb_settings.settings_unless_set(configured, **values)
    assert changed.model_fields_set >= {"quiet"}
    assert not changed.model_fields_set & {"init_timeout", "silent"}


def test_wandb_dir_is_that_of_wandb(configure, tmp_path):
    configure()
    assert wandb_settings.wandb_dir() == tmp_path / "wandb"
    (tmp_path / ".wandb").mkdir()  # W&B prefers a hidden directory that exists
    configure()
    assert wandb_settings.wandb_dir() == tmp_path / ".wandb"
    configure(WANDB_DIR=str(tmp_path / "elsewhere"))
    assert wandb_settings.wandb_dir() == tmp_path / "elsewhere" / "wandb"


def test_hints_name_each_directory_of_a_resumed_run_in_order(configure):
    configure()
    runs = [wandb_session.init_run("offline", id="resumed", resume="allow")]
    runs[0].finish()
    directory = os.path.dirname(runs[0].dir)
    # As if it was started a year ago.
    earlier = directory.replace("offline-run-2", "offline-run-1")
    os.rename(directory, earlier)
    runs.append(wandb_session.init_run("offline", id="resumed", resume="allow"))
    runs[1].finish()
    wandb_session.init_run("offline", id="another").finish()
    line = wandb_session.offline_run_hints(runs[1])[-1]
    paths = [os.path.relpath(path) for path in (earlier, os.path.dirname(runs[1].dir))]
    assert line.endswith(f" wandb sync {' '.join(paths)}")


def test_privacy_switches_hold_for_code_commit_and_machine(tmp_path, fork_server):
    variables = {"WANDB_DISABLE_CODE": "true", "WANDB_DISABLE_GIT": "true"}
    argv = ("--data-dir", SAMPLE, "--epochs", 1, "--output-dir", tmp_path / "output")
    process = ForkedScript(
        "cnn_basic", tmp_path, *argv, WANDB_X_DISABLE_MACHINE_INFO="true", **variables
    )
    assert process.wait() == 0, process.err
    versions = Result(tmp_path / "output").metrics["versions"]
    assert versions["commit"] is versions["processor"] is None and versions["keras"]
    records = read_wandb_run(tmp_path).records
    types = {r["artifact"]["type"] for r in records if r["type"] == "artifact"}
    assert "code" not in types and {"dataset", "model"} <= types
    assert "git" not in str([r for r in records if r["type"] == "run"])


def test_invalid_setting_ends_a_script_in_one_line(tmp_path, fork_server):
    argv = ("--data-dir", SAMPLE, "--epochs", 1, "--output-dir", tmp_path / "output")
    process = ForkedScript("cnn_basic", tmp_path, *argv, WANDB_RUN_ID="exp:1")
    assert process.wait() == 2
    assert process.err.count("\n") == 1 and "Run ID cannot contain" in process.err
    assert not list((tmp_path / "output").glob("*"))
