"""Recipes: named sets of defaults for other options."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fashion.options import Options, OptionsT, choice

# All hyperparameters were chosen on validation images. Accuracies: mean ± standard deviation of
# 5 seeds.
FAST = {"image_size": 112, "features": "conv4_3x3", "dropout": 0.5, "epochs": 20}
RECIPES: dict[str, dict[str, Any]] = {
    # The published recipe: the last stage's average pooling at 224×224. 92.1 ± 0.1 % validation,
    # 91.6 ± 0.2 % test; 12 minutes on 2 cores, later runs 37 seconds.
    "published": {},
    # conv3 keeps spatial layout, and conv5 is specific to ImageNet.
    # 94.9 ± 0.1 % validation, 94.8 ± 0.1 % test; 3.5 minutes on 2 cores, later runs a minute:
    # `python benchmarks/accuracy.py --rows fast`.
    "fast": FAST,
    # A finer grid, and horizontal flips for twice the extraction time. 95.4 ± 0.2 % validation,
    # 95.2 ± 0.2 % test; 8 minutes on 2 cores, later runs 2.6:
    # `python benchmarks/accuracy.py --rows best`.
    "best": FAST | {"features": "conv4_4x4", "mirror": True},
    # Fine-tuning of conv2 to conv4 with trained batch normalization and AdamW, below a linear
    # classifier. 2 seeds: 96.0 ± 0.1 % validation, 95.7 ± 0.4 % test; 67 minutes on 2 cores with
    # bfloat16: `python benchmarks/accuracy.py --rows tuned`.
    "tuned": {
        "image_size": 80,
        "features": "conv4_avg",
        "mirror": True,
        "hidden_units": 0,
        "dropout": 0.0,
        "epochs": 20,
        "patience": 100,  # the whole schedule
        "fine_tune_blocks": 13,
        "fine_tune_epochs": 12,
        "fine_tune_batch_size": 128,
        "fine_tune_learning_rate": 5e-4,
        "fine_tune_weight_decay": 0.05,
        "fine_tune_batch_norm": "trained",
        "fine_tune_inputs": "augmented",
    },
}
# Backbones with which recipes were measured: docs/fine-tuning.md#other-backbones.
MEASURED_BACKBONES = dict.fromkeys(
    ("fast", "best"), ("resnet50", "mobilenetv2", "efficientnetv2b0", "inceptionv3")
)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Named set of defaults, chosen for resnet50; other options take precedence."""

    recipe: Annotated[str, choice(RECIPES)] = "published"
    """published: average-pooled last stage at 224×224; fast: conv3 on a 3×3 grid and conv4 at
    112×112; best: like fast, with a 4×4 grid and horizontal flips; tuned: fine-tuned at 80×80
    (an hour or more)"""


def apply_recipe(options: OptionsT, argv: Sequence[str]) -> OptionsT:
    """Return the options with the values of the recipe that `argv` names, if any."""
    return _set_recipe(options, _recipe_in_argv(argv))


def default_options(options: OptionsT) -> OptionsT:
    """Return the defaults of the options' script with the values of the options' recipe."""
    return _set_recipe(type(options)(), options.config().get("recipe"))


def _set_recipe(options: OptionsT, name: str | None) -> OptionsT:
    """Return the options with the values of a recipe, if there is one of that name."""
    if name not in RECIPES or "recipe" not in options.config():
        return options  # the parser reports an invalid name
    values = {"recipe": name} | RECIPES[name]
    groups = {}
    for group in dataclasses.fields(options):
        group_options = getattr(options, group.name)
        names = {field.name for field in dataclasses.fields(group_options)}
        changes = {name: value for name, value in values.items() if name in names}
        groups[group.name] = dataclasses.replace(group_options, **changes)
    return dataclasses.replace(options, **groups)


def warn_if_untested_backbone(options: Options) -> None:
    """Warn if a recipe is combined with a backbone with which it was not measured."""
    config = options.config()
    recipe, backbone = config.get("recipe", "published"), config.get("backbone")
    if recipe != "published" and backbone not in MEASURED_BACKBONES.get(recipe, ("resnet50",)):
        print(
            f"WARNING: --recipe {recipe} was chosen for resnet50; it is untested with {backbone}.",
            file=sys.stderr,
        )


def _recipe_in_argv(argv: Sequence[str]) -> str | None:
    """Return the value of the last `--recipe` in `argv`, if any."""
    recipe = None
    for arg, next_arg in itertools.pairwise([*argv, ""]):
        option, equals, value = arg.partition("=")
        if option == "--recipe":
            recipe = value if equals else next_arg
    return recipe
