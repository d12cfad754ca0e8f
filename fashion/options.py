"""The options that both scripts have, and the command line that is made of a script's options.

Options are frozen dataclasses, a field and its sentence each. A group of options is a class; a
script's `Options` has a field for each group. `tyro` makes a command line of them, flat: the groups
are headings of `--help`.
"""

import contextlib
import dataclasses
import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from fashion.errors import UsageError

import tyro

# ---------------------------------------------------------------------------- types of values


def one_word(parse: Callable[[str], object], metavar: str) -> object:
    """How an option reads its word, for `Annotated`; what `parse` expected, its `ValueError` says.

    Within the type, a range needs no `__post_init__`, whose errors tyro prints with the class's
    name; and `X | None` is shown by its metavar alone.
    """
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: parse(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def number(
    convert: Callable[[str], float], accepts: Callable[[float], bool], expected: str
) -> Callable[[str], float]:
    """A function that turns a word into a number and says what it expected."""

    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan  # fails every comparison
        if not accepts(value):
            raise ValueError(f"expected {expected}, got {text!r}")
        return value

    return parse


def project_name(text: str) -> str:
    """What W&B takes for a project."""
    if not text or re.search(r"[/\\#?%:]", text):
        raise ValueError(rf"expected a name without / \ # ? % :, got {text!r}")
    return text


def one_of(names: Iterable[str]) -> object:
    """For `Annotated`: one of these names."""
    names = tuple(names)

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"expected one of {', '.join(names)}, got {text!r}")
        return text

    return one_word(parse, "{" + ",".join(names) + "}")


def _paths(words: list[str]) -> tuple[Path, ...]:
    if not words:
        raise ValueError("expected at least one file or folder")
    return tuple(map(Path, words))


_positive = number(int, lambda value: 1 <= value < 2**31, "a whole number from 1")
_whole = number(int, lambda value: 0 <= value < 2**31, "a whole number from 0")
_seed = number(int, lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
_above_0 = number(float, lambda value: 0 < value < math.inf, "a number above 0")
_below_1 = number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
_share = number(float, lambda value: 0 < value <= 1, "an accuracy between 0 and 1, such as 0.9")

PositiveInt = Annotated[int, one_word(_positive, "N")]
WholeNumber = Annotated[int, one_word(_whole, "N")]
Seed = Annotated[int, one_word(_seed, "N")]
PositiveFloat = Annotated[float, one_word(_above_0, "X")]
Rate = Annotated[float, one_word(_below_1, "X")]
# What is not given has its own words in the sentence of the option.
_SAID = tyro.conf.arg(help_behavior_hint="")
OptionalInt = Annotated[int | None, one_word(_positive, "N"), _SAID]
OptionalPath = Annotated[Path | None, one_word(Path, "PATH"), _SAID]
OptionalShare = Annotated[float | None, one_word(_share, "X"), _SAID]
AllOrCount = Annotated[
    int | str, one_word(lambda text: text if text == "all" else _whole(text), "all|N")
]
ProjectName = Annotated[str, one_word(project_name, "NAME")]
OptionalPaths = Annotated[
    tuple[Path, ...] | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="PICTURE [PICTURE ...]",
        instance_from_str=_paths,
        is_instance=lambda value: True,
        str_from_instance=lambda value: list(map(str, value or ())),
    ),
    _SAID,
]

# ------------------------------------------------------------------------------------ options


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Fashion-MNIST or a part of it; smaller parts are within larger ones."""

    data_dir: OptionalPath = None
    """folder with the four IDX files (default: a cache's or a package's, else downloaded)"""
    train_size: OptionalInt = None
    """use N class-balanced training images (default: all 55000)"""
    validation_size: OptionalInt = None
    """use N class-balanced validation images (default: all 5000)"""
    test_size: OptionalInt = None
    """use N class-balanced test images (default: all 10000)"""


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

    output_dir: Path = Path("outputs")
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


# ------------------------------------------------------------------------------- command line

AnyOptions = TypeVar("AnyOptions", bound=Options)


def parse(
    options: type[AnyOptions], description: str | None, arguments: Sequence[str] | None = None
) -> AnyOptions:
    """The options of a command line; `--batch_size` (as a W&B sweep writes it) is `--batch-size`.

    Args:
        options: a script's.
        description: the first lines of `--help`.
        arguments: the words after the script's name; by default the process's own.

    Raises:
        UsageError: a word cannot be used.
        SystemExit: after `--help`.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                options,
                prog=f"{options.script}.py",
                description=(description or "").split("\n\n")[0],  # tyro would not wrap the rest
                args=sys.argv[1:] if arguments is None else list(arguments),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as end:
        if not end.code:
            raise
        # tyro frames its errors: of the frame, the first paragraph says what is wrong.
        lines = [line.strip("│ ") for line in box.getvalue().splitlines()[1:]]
        paragraph = re.split("(?:─|╰)", "\n".join(lines))[0]
        message = " ".join(paragraph.split()).removeprefix("Error parsing ")
    raise UsageError(f"{message}\nSee {options.script}.py --help.")
