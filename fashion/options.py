"""Options as fields of a frozen dataclass, read from the command line by argparse."""

import argparse
import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from fashion.errors import UsageError

EXPORT_FORMATS = ("onnx", "litert", "openvino", "savedmodel")
# How the value of an option is read: arguments of `ArgumentParser.add_argument`.
ArgType = dict[str, Any]


def _value(
    metavar: str, convert: Callable[[str], Any], is_valid: Callable[[Any], object], expected: str
) -> ArgType:
    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = convert(text)
            if is_valid(value):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return {"type": parse, "metavar": metavar}


def choice(names: Iterable[str]) -> ArgType:
    """Return the type of an option that takes one of `names`."""
    names = tuple(names)
    metavar = "{" + ",".join(names) + "}"
    return _value(metavar, str, names.__contains__, f"one of {', '.join(names)}")


def _to_int(text: str) -> int:
    """Convert an integer, also in a sweep's spelling "32.0"."""
    number = float(text)
    return int(number) if number.is_integer() else int(text)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty string")
    if re.match(r"\w+://", text):
        raise argparse.ArgumentTypeError(f"expected a local path, got the URL {text!r}")
    path = os.path.expanduser(text)  # a shell leaves the "~" of `--output-dir=~/run` alone
    if path.startswith("~"):
        raise argparse.ArgumentTypeError(f"there is no user of {text!r}")
    return Path(path)


positive_int = _value("N", _to_int, lambda n: 1 <= n < 2**31, "an integer >= 1")
non_negative_int = _value("N", _to_int, lambda n: 0 <= n < 2**31, "an integer >= 0")
seed_value = _value("N", _to_int, lambda n: 0 <= n < 2**32, "an integer from 0 to 4294967295")
positive_float = _value("X", float, lambda x: 0 < x < math.inf, "a number > 0")
rate = _value("X", float, lambda x: 0 <= x < 1, "a number >= 0 and < 1")
fraction = _value("X", float, lambda x: 0 < x <= 1, "a number > 0 and <= 1")
is_project_name = re.compile(r"[^/\\#?%:]+").fullmatch
project_name = _value("NAME", str, is_project_name, r"a name without / \ # ? % :")
directory = {"type": _path, "metavar": "DIR"}
paths = {"type": _path, "metavar": "PATH", "action": "extend", "nargs": "+"}
weights_source = {"type": os.path.expanduser, "metavar": "imagenet|random|PATH"}


def option(
    default: object,
    help: str,
    type: ArgType | type[bool],
    *,
    section: str | None = None,
    affects_results: bool = True,
    may_change: bool = False,
) -> Any:
    """Return a dataclass field that is also a command-line option.

    Args:
        default: Default; if it is None, `help` describes the default behavior.
        help: Text of `--help`.
        type: How its value is read, such as `positive_int`; `bool` adds a `--no-…` counterpart.
        section: Title of the section of `--help` that begins with this option, if any.
        affects_results: False for output and cache directory, W&B, checks and actions.
        may_change: Whether it may change on `--resume`; what does not affect the results may.
    """
    metadata: dict[str, object] = {"help": help, "type": type, "section": section}
    metadata["affects_results"] = affects_results
    metadata["may_change"] = may_change or not affects_results
    return dataclasses.field(default=default, metadata=metadata)


def redefine(name: str, **changes: object) -> Any:
    """Return an option of `SharedOptions` with another default, help, type or section."""
    field = SharedOptions.__dataclass_fields__[name]
    default = changes.pop("default", field.default)
    return dataclasses.field(default=default, metadata={**field.metadata, **changes})


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/fashion-mnist-features`, by default below `~/.cache`."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache_home.is_absolute():  # to be ignored, according to the XDG specification
        cache_home = Path(os.path.expanduser("~/.cache"))
    return cache_home / "fashion-mnist-features"


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """Options of both scripts; each script adds its own."""

    script_name: ClassVar[str]  # without .py
    recipes: ClassVar[dict[str, dict[str, object]]] = {}  # values of other options

    data_dir: Path | None = option(
        None,
        "directory with IDX or CSV files, or one subdirectory of images per class (default: find "
        "Fashion-MNIST in the Keras cache or a system package, else download it)",
        directory,
        section="data (subsets keep class proportions; a smaller one is part of a larger one)",
        may_change=True,
    )
    cache_dir: Path = option(
        default_cache_dir(),
        "cache for preprocessed images of image folders",
        directory,
        affects_results=False,
    )
    train_size: int | None = option(None, "train on N images (default: all, 55000)", positive_int)
    validation_size: int | None = option(None, "validate on N (default: all, 5000)", positive_int)
    test_size: int | None = option(None, "test on N images (default: all, 10000)", positive_int)

    epochs: int = option(10, "passes over the training images", positive_int, section="training")
    batch_size: int = option(32, "images per training step", positive_int)
    learning_rate: float = option(1e-3, "learning rate of Adam", positive_float)
    seed: int = option(0, "random seed of all training", seed_value)

    output_dir: Path = option(
        Path("outputs"),
        "directory for the model, its metrics, figures and report.html",
        directory,
        section="results",
        affects_results=False,
    )
    require_accuracy: float | None = option(
        None,
        "exit with code 1 if the validation accuracy is below X (default: no check)",
        fraction,
        affects_results=False,
    )
    wandb: str = option(
        "auto",
        "mode of Weights & Biases; auto: as W&B is configured, which is online by default; without "
        "an API key or a server, runs are offline",
        choice(("auto", "online", "offline", "disabled")),
        affects_results=False,
    )
    project: str | None = option(
        None,
        "W&B project (default: $WANDB_PROJECT or fashion-mnist)",
        project_name,
        affects_results=False,
    )

    predict: list[Path] | None = option(
        None,
        "classify image files, or all images in a directory",
        paths,
        section="actions on the model in --output-dir, instead of training",
        affects_results=False,
    )
    export: list[str] | None = option(
        None,
        "export the model for other runtimes, and check that the probabilities agree",
        choice(EXPORT_FORMATS) | {"action": "extend", "nargs": "+"},
        affects_results=False,
    )


OptionsT = TypeVar("OptionsT", bound=SharedOptions)


def config(options: SharedOptions) -> dict[str, object]:
    """Return all options by name, as recorded in metrics.json; paths as strings."""
    values = {"model": options.script_name} | dataclasses.asdict(options)
    return {k: str(value) if isinstance(value, Path) else value for k, value in values.items()}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}\nSee {self.prog} --help.")


def parse(options_type: type[OptionsT], description: str | None, argv: Sequence[str]) -> OptionsT:
    """Parse arguments, also those of a W&B sweep; they override the values of the recipe."""
    fields = dataclasses.fields(options_type)
    bool_flags = {flag(field.name) for field in fields if field.type is bool}
    argv = [new for arg in argv for new in _from_sweep(arg, bool_flags)]
    name = f"{options_type.script_name}.py"
    recipe_parser = _Parser(name, add_help=False, allow_abbrev=False)
    recipe_parser.add_argument("--recipe")
    recipe = options_type.recipes.get(recipe_parser.parse_known_args(argv)[0].recipe, {})

    parser = _Parser(name, f"{name} [OPTION ...]", description, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    section = parser.add_argument_group()
    for field in fields:
        if title := field.metadata["section"]:
            section = parser.add_argument_group(title)
        default = recipe.get(field.name, field.default)
        help, type = field.metadata["help"], field.metadata["type"]
        if default is not None and default is not False:
            help = f"{help.split(' (default:')[0]} (default: %(default)s)"
        arguments = {"action": argparse.BooleanOptionalAction} if type is bool else type
        section.add_argument(flag(field.name), default=default, help=help, **arguments)
    return options_type(**vars(parser.parse_args(argv)))


def flag(name: str) -> str:
    """Return the flag of an option: "--image-size" for "image_size"."""
    return f"--{name.replace('_', '-')}"


def _from_sweep(arg: str, bool_flags: set[str]) -> list[str]:
    """Convert an argument of a W&B sweep to the spelling of argparse.

    A sweep passes `--batch_size=32`, `--flip=True` and, for null, `--train_size=None`, which stands
    for the default.
    """
    name, equals, value = arg.partition("=")
    if not name.startswith("--"):
        return [arg]
    name = flag(name[2:])
    if equals and value in ("None", "null"):
        return []
    if name in bool_flags and value.lower() in ("true", "false", "1", "0"):
        return [name if value.lower() in ("true", "1") else f"--no-{name[2:]}"]
    return [f"{name}{equals}{value}"]
