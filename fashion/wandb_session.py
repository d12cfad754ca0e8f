"""Calls of W&B that never cost a run its results, whatever W&B or its server does.

W&B itself limits how long the start of a run waits for the server. Three problems remain:

- Each table or artifact blocks for 20 s if the server does not respond, so results are logged only
  after a check of the server.
- The end of a run can block for much longer than its timeout, so it gets a deadline.
- `wandb sync` finds no artifacts in the files of a run that was online, so if the server has
  failed, `Run` logs everything again, to an offline run.
"""

import contextlib
import glob
import logging
import os
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fashion.datasets.splits import ImageDataset
from fashion.errors import UsageError, UserError, describe, first_line
from fashion.machine import ROOT, call_with_timeout

import wandb

CODE_FILES = ("common.py", "requirements.txt")  # logged besides the script and the package
MACHINE_INFO = ("platform", "processor", "cores", "gpus")  # entries of the versions
# Settings that hold where the user has set nothing.
DEFAULTS: dict[str, object] = {
    "project": "fashion-mnist",
    "run_job_type": "train",
    "init_timeout": 10,
    "finish_timeout": 15,
    "finish_timeout_raises": True,
}
# Seconds of a request that checks API key and server; W&B's retries make that 8 s at most.
SERVER_TIMEOUT = 5
FINISH_MARGIN = 10  # seconds; W&B itself may exceed `finish_timeout` by 5 s
LogFunction = Callable[[wandb.Run], wandb.Artifact | None]  # may return an artifact to wait for


def is_disabled(mode: str) -> bool:
    """Return whether `--wandb` or a variable disables W&B.

    W&B itself ignores WANDB_DISABLED, but tutorials set it, and other libraries heed it.
    """
    if mode == "auto":
        is_off = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on")
        mode = os.environ.get("WANDB_MODE", "disabled" if is_off else "online")
    return mode == "disabled"


def read_settings() -> wandb.Settings:
    """Return the W&B settings of the user; first set variables that keep W&B quiet."""
    os.environ.setdefault("WANDB_SILENT", "true")  # otherwise W&B asks for a missing API key
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # delays the exit without a server
    logging.raiseExceptions = False  # on a full disk, W&B would print a traceback per logged line
    cache_dir = wandb.env.get_cache_dir()
    with contextlib.suppress(OSError):
        cache_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(cache_dir, os.W_OK):  # W&B would print what it cannot write to a log file
        os.environ["WANDB_CACHE_DIR"] = tempfile.mkdtemp(prefix="wandb-")
    try:
        return wandb.setup().settings
    except Exception as error:  # of several classes: of pydantic, configparser, W&B
        raise _settings_error(error) from None


def _settings_error(error: Exception) -> UsageError:
    reason = " ".join(str(error).split()).split(" For further information")[0].rstrip(".")
    return UsageError(
        f"W&B rejects its settings: {reason}. Correct the WANDB_… variable or the settings file, "
        "or use --wandb disabled"
    )


def wandb_dir() -> Path:
    """Return the directory in which W&B stores the files of runs."""
    return Path(read_settings().wandb_dir).absolute()


def remove_private_versions(versions: dict[str, Any]) -> dict[str, Any]:
    """Return the versions without what the user forbids W&B to record."""
    settings = read_settings()
    private = {"commit"} if settings.disable_git else set()
    if settings.x_disable_machine_info:
        private.update(MACHINE_INFO)
    return {name: None if name in private else value for name, value in versions.items()}


def start(
    mode: str,
    *,
    group: str,
    tags: Sequence[str],
    config: dict[str, Any],
    project: str | None = None,
    run_id: str | None = None,
) -> wandb.Run | None:
    """Start a W&B run; it is offline without an API key or if the server does not respond.

    Settings of the user win over `group` and `DEFAULTS`, but not over `project`. If `mode`, the
    value of `--wandb`, disables W&B, not even its settings are read.
    """
    if is_disabled(mode):
        return None
    user = read_settings()
    resolved = user.mode if mode == "auto" else mode
    if resolved == "disabled":  # by a settings file
        return None
    defaults = DEFAULTS | {"run_group": group}
    values = {name: v for name, v in defaults.items() if name not in user.model_fields_set}
    values["run_tags"] = tuple(dict.fromkeys((*(user.run_tags or ()), *tags)))
    if project:
        values["project"] = project
    if run_id:
        values |= {"run_id": run_id, "resume": "allow"}
    if wandb.run:  # of the program that called `main`; W&B would continue and finish it
        values["reinit"] = "create_new"
    try:
        settings = wandb.Settings.model_validate(values)
        run = _init(mode, resolved, config=config, settings=settings)
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        reason = f"W&B could not write its files: {describe(error)}"
        raise UserError(f"{reason} (WANDB_DIR sets the directory)") from None
    except Exception as error:  # of several classes, also for an unusable config-defaults.yaml
        raise _settings_error(error) from None
    # Files that wait for their upload stay next to the run, not in the home directory.
    os.environ.setdefault("WANDB_DATA_DIR", os.path.abspath(run.settings.wandb_dir))
    return run


def _init(requested_mode: str, mode: Any, **init_kwargs: Any) -> wandb.Run:
    """Call `wandb.init` with the mode, or "offline" if there is no key or no server."""
    if mode not in ("offline", "dryrun"):
        try:
            wandb.Api(timeout=SERVER_TIMEOUT)
            run = wandb.init(mode=mode, **init_kwargs)
            print(f"W&B: {run.url}")
            return run
        except wandb.errors.UsageError:  # no API key
            if requested_mode == "online":
                print("W&B: no API key, so this run is offline; `wandb login` stores one.")
        except wandb.Error as error:
            print(f"W&B: could not connect, so this run is offline ({first_line(error)}).")
    return wandb.init(mode="offline", **init_kwargs)


def call(function: LogFunction, run: wandb.Run, upload_seconds: int = 0) -> Exception | None:
    """Call a function that logs to a run; return the error if W&B fails.

    With `upload_seconds`, the function of an online run is called only if the server responds, and
    the artifact that it returns must be uploaded in that time.
    """
    waits = upload_seconds > 0 and not run.offline
    try:
        if waits:
            wandb.Api(timeout=SERVER_TIMEOUT)
        artifact = function(run)
        if waits and artifact:
            try:
                artifact.wait(timeout=upload_seconds)
            except ValueError as error:  # the server refuses it
                return wandb.Error(str(error))
    except Exception as error:
        # If the process of W&B was killed, for example for lack of memory, each call raises a
        # `ConnectionError`, or an error of an internal class if that happened while it answered.
        # Other `OSError`s come from a full disk.
        if not (isinstance(error, OSError) or type(error).__module__.startswith("wandb.")):
            raise
        return error
    return None


def finish(run: wandb.Run, exit_code: int) -> Exception | None:
    """Finish a run; return the error if W&B fails or takes too long.

    W&B's `finish_timeout` does not end all uploads of files: it retries them for many minutes if
    the server stops in the middle of them.
    """
    timeout = run.settings.finish_timeout  # 0 or less: no limit
    limit = min(timeout + FINISH_MARGIN, threading.TIMEOUT_MAX) if timeout > 0 else None
    try:
        return call_with_timeout(lambda: call(lambda _: run.finish(exit_code), run), limit)
    except TimeoutError:
        return TimeoutError("uploading took too long")


def hints(run: wandb.Run | None) -> list[str]:
    """Return lines on how to view a run and how to upload it, if it is offline."""
    if not run or not run.offline:
        return []
    directory = Path(run.dir).parent
    # A resumed run has one directory per process; their names start with the time.
    pattern = f"offline-run-{15 * '?'}-{glob.escape(run.id)}"
    paths = [_quote(path) for path in sorted(directory.parent.glob(pattern))]
    return [
        f"W&B, offline. View the run: wandb leet {paths[-1]}",
        f"{'':14}Upload it:    wandb sync {' '.join(paths)}",
    ]


def _quote(path: Path) -> str:
    """Quote a path for the shell, relative to the working directory if it is below."""
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    # The command line of Windows has no single quotes, and its paths contain no double quotes.
    return f'"{path}"' if os.name == "nt" else shlex.quote(str(path))


def log_code_and_data(script_name: str, data: ImageDataset, run: wandb.Run) -> None:
    """Log the source code unless the user forbids it, and the checksums of the data set."""
    if not run.settings.disable_code and run.settings.save_code is not False:
        with tempfile.TemporaryDirectory() as copy:  # log_code walks through the whole directory
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "fashion", Path(copy) / "fashion", ignore=ignore)
            for name in f"{script_name}.py", *CODE_FILES:
                shutil.copy(ROOT / name, copy)
            run.log_code(copy, f"source-{script_name}", include_fn=lambda path: True)
    artifact = wandb.Artifact(data.slug, type="dataset", metadata=data.metadata())
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "SHA256SUMS"
        path.write_text("".join(f"{sha256}  {name}\n" for name, sha256 in data.sha256.items()))
        artifact.add_file(str(path))  # copies it; what `new_file` writes may be gone before a sync
    run.log_artifact(artifact)
