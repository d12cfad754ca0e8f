"""The user's W&B settings (environment, settings files), which override the scripts' defaults."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fashion.errors import UsageError, UserError

import wandb

DEFAULT_PROJECT = "fashion-mnist"
# Entries of the versions that describe the machine; W&B's `x_disable_machine_info` turns them off.
MACHINE_INFO = ("platform", "processor", "cores", "gpus")


def is_disabled(mode: str) -> bool:
    """Return whether `--wandb` or a variable disables W&B, without reading other settings.

    W&B itself has no WANDB_DISABLED any more, but tutorials set it, and other libraries heed it.
    """
    if mode == "auto":
        is_off = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on")
        mode = os.environ.get("WANDB_MODE", "disabled" if is_off else "online")
    return mode == "disabled"


@contextlib.contextmanager
def hide_settings() -> Iterator[None]:
    """Hide variables and settings files inside the block, for runs with W&B disabled.

    Even then, W&B checks all settings, and raises an error if one is invalid.
    """
    variables = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("WANDB_")}
    try:
        # W&B also reads config-defaults.yaml in the working directory.
        with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
            os.environ |= {"WANDB_DIR": empty, "WANDB_CONFIG_DIR": empty}
            yield
    finally:
        for name in "WANDB_DIR", "WANDB_CONFIG_DIR":
            os.environ.pop(name, None)
        os.environ |= variables


def read_settings() -> wandb.Settings:
    """Return W&B's settings.

    Raises:
        UsageError: If a setting is invalid.
    """
    # Files that wait for their upload stay next to the run, not in the user's home directory. This
    # must be set before W&B reads its settings. W&B does not use a directory that is not writable.
    root = os.environ.get("WANDB_DIR") or "."
    existing = root if os.path.exists(root) else os.path.dirname(os.path.abspath(root))
    if os.path.isdir(existing) and os.access(existing, os.W_OK):
        name = ".wandb" if os.path.exists(os.path.join(root, ".wandb")) else "wandb"
        os.environ.setdefault("WANDB_DATA_DIR", os.path.abspath(os.path.join(root, name)))
    try:
        settings = wandb.setup().settings
        _ = settings.wandb_dir  # computed from the variables
        return settings
    except Exception as error:  # of several classes: pydantic's, configparser's, W&B's own
        raise invalid_settings_error(error) from None


def invalid_settings_error(error: Exception) -> UsageError:
    """Return an error of one line for an exception raised by W&B about its settings."""
    lines = str(error) or type(error).__name__
    reason = " ".join(lines.split()).split(" For further information")[0].rstrip(".")
    names = ", ".join(_rejected_variables())
    return UsageError(
        f"W&B rejects {names or 'its settings'}: {reason}. Correct "
        f"{names or 'the WANDB_… variable or the settings file'}, or use --wandb disabled"
    )


def _rejected_variables() -> list[str]:
    """Return the names of the W&B variables that W&B rejects."""
    rejected = []
    for name, value in os.environ.items():
        if name.startswith("WANDB_"):
            try:
                wandb.Settings().update_from_env_vars({name: value})
            except Exception:  # of several classes
                rejected.append(name)
    return rejected


def files_error(error: OSError) -> UserError:
    """Return an error of one line for W&B's files that cannot be written."""
    return UserError(
        f"W&B could not write its files: {error}; set WANDB_DIR to another directory, or use "
        "--wandb disabled"
    )


def wandb_dir() -> Path:
    """Return the directory in which W&B stores the files of runs."""
    return Path(read_settings().wandb_dir).absolute()


def merge(configured: wandb.Settings, **defaults: Any) -> dict[str, Any]:
    """Return arguments of `wandb.init`; the user's settings override `defaults`.

    Tags are the union of both. A project that is not None was given on the command line.
    """
    tags = [*(configured.run_tags or ()), *defaults.get("tags", ())]
    return defaults | {
        "project": defaults.get("project") or configured.project or DEFAULT_PROJECT,
        "group": configured.run_group or defaults.get("group"),
        "job_type": configured.run_job_type or defaults.get("job_type"),
        "tags": list(dict.fromkeys(tags)),
    }


def settings_unless_set(configured: wandb.Settings, **values: Any) -> wandb.Settings:
    """Return settings with the `values` that the user has not set."""
    user_settings = configured.model_fields_set
    return wandb.Settings(**{k: v for k, v in values.items() if k not in user_settings})


def allows_code(settings: wandb.Settings) -> bool:
    """Return whether the user allows W&B to record source code."""
    return not settings.disable_code and settings.save_code is not False


def remove_private_entries(versions: dict[str, Any], settings: wandb.Settings) -> dict[str, Any]:
    """Return the versions without what the user does not want W&B to record."""
    removed: set[str] = {"commit"} if settings.disable_git else set()
    if getattr(settings, "x_disable_machine_info", False):
        removed.update(MACHINE_INFO)
    return {name: None if name in removed else value for name, value in versions.items()}
