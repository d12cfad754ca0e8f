"""The W&B session: online or offline mode, code and data artifacts, hints on offline runs."""

import contextlib
import glob
import netrc
import os
import re
import shlex
import shutil
import sys
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any

from fashion import errors
from fashion.datasets.dataset import ImageDataset
from fashion.errors import UserError
from fashion.tracking import offline_fallback, wandb_settings

import wandb

ROOT = Path(__file__).parents[2]
# Files of the project that are logged as code, besides the script itself.
CODE_PATTERNS = (
    "common.py",
    "fashion/**/*.py",
    "fashion/**/*.jinja",
    "fashion/**/*.gz",
    "requirements.txt",
)


def init_run(mode: str, **defaults: Any) -> wandb.Run:
    """Start a W&B run without prompting; fall back to offline without API key or network.

    Args:
        mode: "auto", "online", "offline" or "disabled".
        defaults: Further arguments of `wandb.init`, which the user's settings override.

    Raises:
        UsageError: If W&B's settings are invalid.
        UserError: If W&B cannot write its files, or a file name on the command line is not valid
            Unicode, which W&B needs.
    """
    if wandb_settings.is_disabled(mode):
        try:
            return wandb.init(mode="disabled", **defaults)
        except Exception:  # an invalid setting, which does not matter
            if not wandb.run:
                wandb.teardown()  # it may have read the settings already
            with wandb_settings.hide_settings():
                return wandb.init(mode="disabled", **defaults)
    configured = wandb_settings.read_settings()
    # The settings' mode is "online" unless WANDB_MODE or `wandb offline` sets another one.
    resolved: Any = configured.mode if mode == "auto" else mode
    resolved = "online" if resolved == "run" else resolved  # W&B's old name
    if resolved == "disabled":
        return wandb.init(mode="disabled", **defaults)
    _check_arguments_are_encodable()
    try:
        return _init_enabled_run(resolved, mode, configured, defaults)
    except ConnectionError:
        raise
    except OSError as error:
        raise wandb_settings.files_error(error) from None
    except Exception as error:  # of several classes: pydantic's, W&B's, those of its YAML files
        raise wandb_settings.invalid_settings_error(error) from None


def _init_enabled_run(
    resolved: Any, mode: str, configured: wandb.Settings, defaults: dict[str, Any]
) -> wandb.Run:
    """Start an online or offline run; arguments as in `init_run`."""
    init_kwargs = wandb_settings.merge(configured, **defaults)
    if wandb.run:  # of the program that called `main`; W&B would continue and finish it
        init_kwargs["reinit"] = "create_new"
    silent_settings = wandb_settings.settings_unless_set(configured, silent=True)
    if resolved == "online" and not _has_credentials(configured.base_url):
        resolved = "offline"
        if mode == "online":
            print("W&B: no API key, so this run is offline; `wandb login` configures one.")
    # After a failed connection, W&B 0.21 cannot start offline runs either, so check first.
    if resolved == "online" and not any(
        offline_fallback.server_responds(configured.base_url) for _ in range(3)
    ):
        print(f"W&B: no response from {configured.base_url}, so this run is offline.")
        resolved = "offline"
    if resolved != "online":
        return wandb.init(mode=resolved, settings=silent_settings, **init_kwargs)
    try:
        # W&B adds about 10 s to this time limit.
        timeout_settings = wandb_settings.settings_unless_set(configured, init_timeout=8)
        return wandb.init(mode=resolved, settings=timeout_settings, **init_kwargs)
    except wandb.errors.UsageError:
        raise
    except wandb.Error as error:
        reason = str(error).splitlines()[0]
        print(f"W&B: could not connect, so this run is offline ({reason}).")
        errors.skip_interpreter_shutdown.set()  # W&B keeps retrying in a thread
        wandb.teardown()  # otherwise the id of a resumed run is still in use
        return wandb.init(mode="offline", settings=silent_settings, **init_kwargs)


def _check_arguments_are_encodable() -> None:
    try:
        "".join(sys.argv).encode()  # as W&B does when it records the command
    except UnicodeEncodeError as error:
        raise UserError(
            f"W&B cannot record a file name in the command ({error}); rename the file"
        ) from None


def _has_credentials(base_url: str) -> bool:
    """Return whether W&B would find an API key, in the environment or the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urllib.parse.urlsplit(base_url).hostname or ""
    for path in os.environ.get("NETRC"), "~/.netrc", "~/_netrc":
        with contextlib.suppress(OSError, ValueError, netrc.NetrcParseError):
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(host):
                return True
    return False


def log_code_and_data(script_name: str, data: ImageDataset, wandb_run: wandb.Run) -> None:
    """Log the source code, and the data set's checksums and source without its images.

    Raises:
        UserError: If a file cannot be written.
    """
    if wandb_run.disabled:
        return
    try:
        if wandb_settings.allows_code(wandb_run.settings):
            _log_code(script_name, wandb_run)
        with tempfile.TemporaryDirectory() as directory:
            # Not `new_file`: with W&B 0.21, `wandb sync` does not find its files later.
            checksums = Path(directory) / "SHA256SUMS"
            checksums.write_text("".join(f"{sha}  {name}\n" for name, sha in data.sha256.items()))
            artifact = wandb.Artifact(data.slug, type="dataset", metadata=data.metadata())
            artifact.add_file(str(checksums))
        wandb_run.log_artifact(artifact)
    except OSError as error:
        raise wandb_settings.files_error(error) from None


def _log_code(script_name: str, wandb_run: wandb.Run) -> None:
    # A copy, because log_code walks through the complete directory that it is given.
    with tempfile.TemporaryDirectory() as code_dir:
        for pattern in f"{script_name}.py", *CODE_PATTERNS:
            for path in ROOT.glob(pattern):
                copy = Path(code_dir) / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        wandb_run.log_code(code_dir, f"source-{script_name}", include_fn=lambda path: True)


def offline_viewer_command(version: str) -> str | None:
    """Return the command of a W&B version that shows an offline run in the terminal, or None."""
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if numbers >= (0, 28):
        return "wandb leet"
    return "wandb beta leet" if numbers >= (0, 22, 2) else None


def offline_run_hints(wandb_run: wandb.Run) -> list[str]:
    """Return lines on how to view an offline run, if W&B can, and how to upload it."""
    if wandb_run.disabled or not wandb_run.offline:
        return []
    directory = Path(wandb_run.dir).parent
    # A resumed run has one directory per process; their names start with the time.
    pattern = f"offline-run-{15 * '?'}-{glob.escape(wandb_run.id)}"
    paths = sorted(directory.parent.glob(pattern)) or [directory]
    viewer = offline_viewer_command(wandb.__version__)
    commands = {
        "View the run:": viewer and f"{viewer} {_quote(paths[-1])}",
        "Upload it:": f"wandb sync {' '.join(map(_quote, paths))}",
    }
    lines = [f"{title:<13} {command}" for title, command in commands.items() if command]
    return [f"W&B, offline. {lines[0]}", *(f"{'':14}{line}" for line in lines[1:])]


def _quote(path: Path) -> str:
    """Quote a path, relative to the working directory, for the shell."""
    with contextlib.suppress(ValueError):  # the path is on another Windows drive
        path = Path(os.path.relpath(path))
    # Windows' command line has no single quotes, and its paths contain no double quotes.
    return f'"{path}"' if os.name == "nt" else shlex.quote(str(path))
