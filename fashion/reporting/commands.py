"""The command lines and options of a run as its report shows them, without the user's paths."""

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Any

from fashion import environment, recipes
from fashion.options import Options

# Options that do not change the model, or that depend on the machine.
LOCAL_OPTIONS = frozenset(
    {
        "cache_dir",
        "output_dir",
        "require_accuracy",
        "wandb",
        "project",
        "predict",
        "export",
        "gpus",
        "resume",
    }
)


def training_command(options: Options) -> str:
    """Return the command that trains the model again, from the beginning if it was resumed.

    It contains the recipe, and the options that differ from the recipe's values; private paths are
    replaced as in `public_config`.
    """
    script_defaults = type(options)().config()
    defaults = recipes.default_options(options).config()
    defaults["recipe"] = script_defaults.get("recipe")
    argv = []
    config = public_config(options)
    for name in sorted(config, key=lambda name: name != "recipe"):  # the recipe first
        # None is the default of all options that may have this value.
        if name not in LOCAL_OPTIONS and config[name] not in (None, defaults[name]):
            argv += _format_option(name, config[name])
    return shlex.join(["python", f"{options.script_name}.py", *argv])


def prediction_command(options: Options) -> str:
    """Return the command that classifies an image with the run's model."""
    command = ["python", f"{options.script_name}.py", "--predict", "photo.jpg"]
    output_dir = public_config(options)["output_dir"]
    if output_dir != type(options)().config()["output_dir"]:
        command += _format_option("output_dir", output_dir)
    return shlex.join(command)


def public_config(options: Options) -> dict[str, Any]:
    """Return all options by name, like `Options.config`, without private paths.

    A path is replaced by the option's name in capitals, such as DATA_DIR, unless it is the default
    `--output-dir`, which is part of the project.
    """
    placeholders = {name: name.upper() for name in _private_paths(options)}
    return options.config() | placeholders


def public_metadata(metadata: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return the contents of metrics.json without private paths."""
    data, weights = metadata["data"], metadata["weights"]
    return metadata | {
        "config": public_config(options),
        "data": data | {"source": _hide_path(data["source"], options)},
        "weights": weights | {"source": Path(weights["source"]).name},
    }


def _private_paths(options: Options) -> dict[str, str]:
    """Return the options whose values are private paths, with these paths."""
    default_output_dir = type(options)().results.output_dir
    paths = {}
    for group in dataclasses.fields(options):
        for name, value in vars(getattr(options, group.name)).items():
            is_file = name == "weights" and value not in ("imagenet", "none")
            if is_file or (isinstance(value, Path) and value != default_output_dir):
                paths[name] = str(value)
    return paths


def _hide_path(text: str, options: Options) -> str:
    """Replace a private path, the home directory or Keras' directory at the start of a text."""
    for name, path in _private_paths(options).items():
        if text.startswith(path) and text[len(path) :][:1] in ("", " ", os.sep):
            return name.upper() + text.removeprefix(path)
    directories = {"~": os.path.expanduser("~"), "KERAS_HOME": str(environment.keras_home())}
    for name, path in directories.items():
        if text.startswith(path + os.sep):
            return name + text.removeprefix(path)
    return text


def _format_option(name: str, value: object) -> list[str]:
    """Return an option as arguments of a command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", str(value)]
