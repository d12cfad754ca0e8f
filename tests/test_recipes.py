"""Recipes: the options that they set, and precedence."""

from fashion.recipes import RECIPES, apply_recipe, default_options

import pytest
from helpers.scripts import parse_options

import cnn_basic
import resnet50_fashion

DEFAULTS = resnet50_fashion.Options().config()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_sets_only_its_options(name):
    config = parse_options(resnet50_fashion, "--recipe", name).config()
    assert config == DEFAULTS | {"recipe": name} | RECIPES[name]
    assert parse_options(resnet50_fashion, f"--recipe={name}").config() == config


def test_apply_recipe_to_script_without_recipes_keeps_defaults():
    assert apply_recipe(cnn_basic.Options(), ["--recipe", "fast"]) == cnn_basic.Options()


def test_default_options_have_only_the_recipe():
    given = ("--epochs", 3, "--seed", 4, "--mirror")
    for recipe in RECIPES:
        options = parse_options(resnet50_fashion, "--recipe", recipe, *given)
        assert default_options(options) == parse_options(resnet50_fashion, "--recipe", recipe)
    assert default_options(parse_options(cnn_basic, "--seed", 4)) == cnn_basic.Options()


def test_published_recipe_is_the_default():
    assert parse_options(resnet50_fashion).config() == DEFAULTS
    assert DEFAULTS["recipe"] == "published" and not RECIPES["published"]
    common = {"image_size": 112, "dropout": 0.5, "epochs": 20}
    assert RECIPES["fast"] == common | {"features": "conv4_3x3"}
    assert RECIPES["tuned"]["patience"] > RECIPES["tuned"]["fine_tune_epochs"]
    assert RECIPES["best"] == common | {"features": "conv4_4x4", "mirror": True}


@pytest.mark.parametrize("recipe_first", [True, False])
def test_given_options_win_over_the_recipe(recipe_first):
    """In any order, also if the given value is the default without a recipe."""
    given = ["--image-size", 64, "--features", "conv5", "--no-mirror", "--seed", 3]
    given += ["--dropout", 0.3, "--epochs", 30]
    recipe = ["--recipe", "best"]
    argv = [*recipe, *given] if recipe_first else [*given, *recipe]
    config = parse_options(resnet50_fashion, *argv).config()
    assert config == DEFAULTS | {"recipe": "best", "image_size": 64, "seed": 3}


def test_last_recipe_wins():
    config = parse_options(resnet50_fashion, "--recipe=best", "--recipe", "fast").config()
    assert config == DEFAULTS | {"recipe": "fast"} | RECIPES["fast"]


def test_help_after_recipe_shows_its_values(command_line):
    done = command_line(resnet50_fashion, "--recipe", "fast", "--help")
    assert done.code == 0
    text = "".join(done.out.split())
    assert "(default:112)" in text and "(default:conv4_3x3)" in text


@pytest.mark.parametrize("argv", [["--recipe", "slow"], ["--recipe"], ["--recipe="]])
def test_unknown_recipe_raises_usage_error(argv, command_line):
    done = command_line(resnet50_fashion, *argv)
    assert done.code == 2
    first, second = done.err.splitlines()
    assert first.startswith("resnet50_fashion.py: error: --recipe: expected ")
    assert second == "See resnet50_fashion.py --help."


def test_recipe_with_a_backbone_that_was_not_measured_warns(capsys):
    measured = ["--recipe", "fast"], ["--recipe", "best", "--backbone", "mobilenetv2"]
    for argv in ([], *measured, ["--backbone", "convnexttiny"]):
        parse_options(resnet50_fashion, *argv)
        assert capsys.readouterr().err == ""
    for recipe, backbone in ("fast", "convnexttiny"), ("tuned", "mobilenetv2"):
        parse_options(resnet50_fashion, "--recipe", recipe, "--backbone", backbone)
        expected = f"--recipe {recipe} was chosen for resnet50; it is untested with {backbone}."
        assert capsys.readouterr().err == f"WARNING: {expected}\n"
