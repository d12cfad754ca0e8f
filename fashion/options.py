"""Options shared by both scripts, and the types of option values.

Options are frozen dataclasses; each field is followed by its help text. A class is a group of
options; a script's `Options` has one field per group.
"""

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

EXPORT_FORMATS = ("onnx", "litert", "openvino", "savedmodel")

# ---------------------------------------------------------------------------- types of values


@dataclass(frozen=True)
class ArgType:
    """How `argparse` reads the arguments of an option; used inside `Annotated`."""

    parse: Callable[[str], Any]  # raises an `ArgumentTypeError` with the expected values
    metavar: str
    multiple: bool = False


def _number_parser(
    convert: Callable[[str], float], is_valid: Callable[[float], bool], expected: str
) -> Callable[[str], float]:
    """Return a function that parses a number and reports the expected range."""

    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan  # fails every comparison
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


def choice(names: Iterable[str]) -> ArgType:
    """Return the type of an option that takes one of `names`."""
    names = tuple(names)

    def parse(text: str) -> str:
        if text not in names:
            expected = ", ".join(names)
            raise argparse.ArgumentTypeError(f"expected one of {expected}, got {text!r}")
        return text

    return ArgType(parse, "{" + ",".join(names) + "}")


def expand_user(text: str) -> str:
    """Replace "~" and "~user" at the start of a path, which shells leave alone after a "=".

    Raises:
        ArgumentTypeError: If there is no such user.
    """
    path = os.path.expanduser(text)
    # A file's name may start with "~", as those of some temporary files.
    if path.startswith("~") and not Path(Path(path).parts[0]).exists():
        raise argparse.ArgumentTypeError(
            f"expected a path; {text!r} names a user who does not exist (write './{text}' for a "
            "directory of that name)"
        )
    return path


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty string")
    if re.match(r"\w+://", text):
        raise argparse.ArgumentTypeError(f"expected a local path, got the URL {text!r}")
    return Path(expand_user(text))


def _project_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a name, got an empty string")
    if re.search(r"[/\\#?%:]", text):
        raise argparse.ArgumentTypeError(rf"expected a name without / \ # ? % :, got {text!r}")
    return text


def _gpu_count(text: str) -> int | str:
    parse = _number_parser(_to_int, lambda value: 0 <= value < 2**31, '"all" or an integer >= 0')
    return text if text == "all" else int(parse(text))


def _to_int(text: str) -> int:
    """Convert an integer, also in a sweep's spelling "32.0"."""
    number = float(text)
    return int(text) if not number.is_integer() or abs(number) >= 2**53 else int(number)


_positive_int = _number_parser(_to_int, lambda value: 1 <= value < 2**31, "an integer >= 1")
_non_negative_int = _number_parser(_to_int, lambda value: 0 <= value < 2**31, "an integer >= 0")
_seed = _number_parser(_to_int, lambda value: 0 <= value < 2**32, "an integer from 0 to 4294967295")
_positive_float = _number_parser(float, lambda value: 0 < value < math.inf, "a number > 0")
_rate = _number_parser(float, lambda value: 0 <= value < 1, "a number >= 0 and < 1")
_fraction = _number_parser(float, lambda value: 0 < value <= 1, "a number > 0 and <= 1")

PositiveInt = Annotated[int, ArgType(_positive_int, "N")]
NonNegativeInt = Annotated[int, ArgType(_non_negative_int, "N")]
Seed = Annotated[int, ArgType(_seed, "N")]
GpuCount = Annotated[int | str, ArgType(_gpu_count, "all|N")]
PositiveFloat = Annotated[float, ArgType(_positive_float, "X")]
Rate = Annotated[float, ArgType(_rate, "X")]
Directory = Annotated[Path, ArgType(_path, "DIR")]
# The default behavior (None) is described in each option's help.
OptionalInt = Annotated[int | None, ArgType(_positive_int, "N")]
OptionalFraction = Annotated[float | None, ArgType(_fraction, "X")]
OptionalProjectName = Annotated[str | None, ArgType(_project_name, "NAME")]
OptionalDirectory = Annotated[Path | None, ArgType(_path, "DIR")]
OptionalPaths = Annotated[list[Path] | None, ArgType(_path, "PATH", multiple=True)]
OptionalExportFormats = Annotated[
    list[str] | None, dataclasses.replace(choice(EXPORT_FORMATS), multiple=True)
]
Flag = Annotated[bool, "a flag without a --no-… counterpart"]

# ------------------------------------------------------------------------------------ options


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/fashion-mnist-features`, by default below `~/.cache`."""
    cache_home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "")))
    if not cache_home.is_absolute():  # to be ignored, according to the XDG specification
        cache_home = Path(os.path.expanduser("~/.cache"))
    return cache_home / "fashion-mnist-features"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data set and subset sizes; smaller subsets are nested in larger ones."""

    data_dir: OptionalDirectory = None
    """directory with the four IDX files, or one subdirectory of images per class (default: find
    Fashion-MNIST in Keras' cache or a system package, else download it)"""
    cache_dir: Directory = dataclasses.field(default_factory=default_cache_dir)
    """cache for features of the frozen backbone and for preprocessed images, shared by all runs"""
    train_size: OptionalInt = None
    """train on N class-balanced images (default: all; 55000 of Fashion-MNIST)"""
    validation_size: OptionalInt = None
    """validate on N class-balanced images (default: all; 5000)"""
    test_size: OptionalInt = None
    """test on N class-balanced images (default: all; 10000)"""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Training of the network, or of the head on frozen features."""

    epochs: PositiveInt = 10
    """passes over the training images"""
    batch_size: PositiveInt = 32
    """images per training step"""
    learning_rate: PositiveFloat = 1e-3
    """initial learning rate of Adam"""
    seed: Seed = 0
    """random seed of initial weights, shuffling and dropout"""


@dataclass(frozen=True, kw_only=True)
class ResultsOptions:
    """Output files and Weights & Biases."""

    output_dir: Directory = Path("outputs")
    """directory for the model, its metrics, figures and report.html"""
    require_accuracy: OptionalFraction = None
    """exit with code 1 if the final validation accuracy is below X, such as 0.9 (default: no
    check)"""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """mode of Weights & Biases; auto: W&B's configured mode, by default online; offline
    without an API key"""
    project: OptionalProjectName = None
    """W&B project (default: W&B's setting, such as WANDB_PROJECT, else fashion-mnist)"""


@dataclass(frozen=True, kw_only=True)
class ActionOptions:
    """Actions on the model in --output-dir, instead of training."""

    predict: OptionalPaths = None
    """classify image files, or all images in a directory"""
    export: OptionalExportFormats = None
    """write the model in formats of other runtimes, and compare the probabilities"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of both scripts; each script adds its own groups."""

    script_name: ClassVar[str]  # without .py; results appear under this name

    data: DataOptions = DataOptions()
    training: TrainingOptions = TrainingOptions()
    results: ResultsOptions = ResultsOptions()
    actions: ActionOptions = ActionOptions()

    def config(self) -> dict[str, Any]:
        """Return all options by name, as recorded in metrics.json; paths as strings."""
        values = {"model": self.script_name}
        for group in dataclasses.fields(self):
            options = getattr(self, group.name)
            for field in dataclasses.fields(options):
                value = getattr(options, field.name)
                values[field.name] = str(value) if isinstance(value, Path) else value
        return values


OptionsT = TypeVar("OptionsT", bound=Options)
