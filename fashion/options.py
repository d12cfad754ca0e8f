"""The options that both scripts have, and the types of options.

Options are frozen dataclasses, a field and its sentence each. A group of options is a class; a
script's `Options` has a field for each group.
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

# ---------------------------------------------------------------------------- types of values


@dataclass(frozen=True)
class Word:
    """How an option reads its word, or each of its words; a part of its type, for `Annotated`."""

    parse: Callable[[str], Any]  # raises an `ArgumentTypeError` that says what it expected
    metavar: str
    several: bool = False


def _number(
    convert: Callable[[str], float], accepts: Callable[[float], bool], expected: str
) -> Callable[[str], float]:
    """A function that turns a word into a number and says what it expected."""

    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan  # fails every comparison
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


def one_of(names: Iterable[str]) -> Word:
    """One of these names."""
    names = tuple(names)

    def parse(text: str) -> str:
        if text not in names:
            expected = ", ".join(names)
            raise argparse.ArgumentTypeError(f"expected one of {expected}, got {text!r}")
        return text

    return Word(parse, "{" + ",".join(names) + "}")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got nothing")
    return Path(text)


def _project_name(text: str) -> str:
    if not text or re.search(r"[/\\#?%:]", text):
        raise argparse.ArgumentTypeError(rf"expected a name without / \ # ? % :, got {text!r}")
    return text


def _all_or_count(text: str) -> int | str:
    count = _number(int, lambda value: 0 <= value < 2**31, 'a whole number from 0, or "all"')
    return text if text == "all" else int(count(text))


_positive = _number(int, lambda value: 1 <= value < 2**31, "a whole number from 1")
_whole = _number(int, lambda value: 0 <= value < 2**31, "a whole number from 0")
_seed = _number(int, lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
_above_0 = _number(float, lambda value: 0 < value < math.inf, "a number above 0")
_below_1 = _number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
_share = _number(float, lambda value: 0 < value <= 1, "an accuracy between 0 and 1, such as 0.9")

PositiveInt = Annotated[int, Word(_positive, "N")]
WholeNumber = Annotated[int, Word(_whole, "N")]
Seed = Annotated[int, Word(_seed, "N")]
AllOrCount = Annotated[int | str, Word(_all_or_count, "all|N")]
PositiveFloat = Annotated[float, Word(_above_0, "X")]
Rate = Annotated[float, Word(_below_1, "X")]
Folder = Annotated[Path, Word(_path, "FOLDER")]
ProjectName = Annotated[str, Word(_project_name, "NAME")]
# What happens without these, their sentences say.
OptionalInt = Annotated[int | None, Word(_positive, "N")]
OptionalShare = Annotated[float | None, Word(_share, "X")]
OptionalFolder = Annotated[Path | None, Word(_path, "FOLDER")]
OptionalPaths = Annotated[list[Path] | None, Word(_path, "PICTURE", several=True)]
Flag = Annotated[bool, "without a --no-… of its own"]

# ------------------------------------------------------------------------------------ options


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/fashion-mnist-features`, by default below `~/.cache`."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(caches)) / "fashion-mnist-features"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Fashion-MNIST, or one's own pictures, or a part; a smaller part is one of a larger."""

    data_dir: OptionalFolder = None
    """folder with the four IDX files, or with a folder of pictures for each class (default:
    a cache's or a package's Fashion-MNIST, else downloaded)"""
    cache_dir: Folder = dataclasses.field(default_factory=default_cache_dir)
    """keeps, for later runs, own pictures as 28×28, and what a frozen network makes of images"""
    train_size: OptionalInt = None
    """use N class-balanced training images (default: all; of Fashion-MNIST 55000)"""
    validation_size: OptionalInt = None
    """use N class-balanced validation images (default: all; 5000)"""
    test_size: OptionalInt = None
    """use N class-balanced test images (default: all; 10000)"""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Of the whole network or, on frozen features, of the head."""

    epochs: PositiveInt = 10
    """passes over the training images"""
    batch_size: PositiveInt = 32
    """images per training step"""
    learning_rate: PositiveFloat = 1e-3
    """Adam's, at the start"""
    seed: Seed = 0
    """of initial weights, shuffling and dropout"""


@dataclass(frozen=True, kw_only=True)
class ResultsOptions:
    """What a run leaves, and where."""

    output_dir: Folder = Path("outputs")
    """gets the model, its results, pictures and report.html"""
    require_accuracy: OptionalShare = None
    """exit with 1 if the validation accuracy ends below X; 0.9 is 90 % (default: no such check)"""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases; auto is online where a key is configured, else offline"""
    project: ProjectName = "fashion-mnist"
    """W&B project"""


@dataclass(frozen=True, kw_only=True)
class UseOptions:
    """Instead of a training."""

    predict: OptionalPaths = None
    """classify these picture files, or those of a folder, by the model in --output-dir"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What both scripts take; a script adds its own groups."""

    script: ClassVar[str]  # its name, without .py: its results appear under it

    data: DataOptions = DataOptions()
    training: TrainingOptions = TrainingOptions()
    results: ResultsOptions = ResultsOptions()
    use_of_the_model: UseOptions = UseOptions()

    def config(self) -> dict[str, Any]:
        """Every option by its name, as a run notes them; a `Path` as text."""
        values = {"model": self.script}
        for group in dataclasses.fields(self):
            options = getattr(self, group.name)
            for field in dataclasses.fields(options):
                value = getattr(options, field.name)
                values[field.name] = str(value) if isinstance(value, Path) else value
        return values


AnyOptions = TypeVar("AnyOptions", bound=Options)
