"""Recipes: named sets of defaults of other options."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fashion.options import Options, one_of

# What each stands for. All choices were made on validation images alone.
FAST = {"image_size": 112, "features": "conv4_3x3", "dropout": 0.5, "epochs": 20}
RECIPES: dict[str, dict[str, Any]] = {
    # As published: the last stage's averages of images enlarged to 224×224. 92.1 ± 0.1 %
    # validation, 91.6 ± 0.2 % test (5 seeds), 12 minutes on 2 cores, later runs 37 seconds.
    "published": {},
    # Where a garment has its parts tells more than ImageNet's classes do, and a quarter of the
    # pixels tells it as well. 94.9 ± 0.1 % validation, 94.8 ± 0.1 % test (5 seeds), 3.5 minutes on
    # 2 cores, later runs a minute: `python benchmarks/accuracy.py --rows fast`.
    "fast": FAST,
    # A finer grid, and mirrored copies for twice the pass. 95.4 ± 0.2 % validation, 95.2 ± 0.2 %
    # test (5 seeds), 8 minutes, later runs 2.6: `python benchmarks/accuracy.py --rows best`.
    "best": FAST | {"features": "conv4_4x4", "mirror": True},
}


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Defaults of the other options, made for resnet50; what is given on the command line wins."""

    recipe: Annotated[str, one_of(RECIPES)] = "published"
    """published: the last stage at 224×224; fast: a grid at 112×112; best: mirrored copies, too"""


AnyOptions = TypeVar("AnyOptions", bound=Options)


def defaults(options: AnyOptions, words: Sequence[str]) -> AnyOptions:
    """The defaults that hold where a command line's words name a recipe; else they stay."""
    name = _named(words)
    if name not in RECIPES or "recipe" not in options.config():
        return options  # parsing will say so
    values = {"recipe": name} | RECIPES[name]
    groups = {}
    for group in dataclasses.fields(options):
        before = getattr(options, group.name)
        names = {field.name for field in dataclasses.fields(before)}
        changes = {name: value for name, value in values.items() if name in names}
        groups[group.name] = dataclasses.replace(before, **changes)
    return dataclasses.replace(options, **groups)


def remark(options: Options) -> None:
    """Says on stderr where a recipe is used with another backbone than it was made for."""
    config = options.config()
    recipe, backbone = config.get("recipe", "published"), config.get("backbone")
    if recipe != "published" and backbone != "resnet50":
        print(f"--recipe {recipe} was made for resnet50, not for {backbone}.", file=sys.stderr)


def _named(words: Sequence[str]) -> str | None:
    named = None
    for word, following in itertools.pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option == "--recipe":
            named = value if equals else following
    return named
