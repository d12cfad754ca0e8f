"""Recipes: what they set, and that what is given wins."""

from fashion.cli.recipes import RECIPES, defaults

import pytest
from conftest import parse

import cnn_basic
import resnet50_fashion

PLAIN = resnet50_fashion.Options().config()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_sets_its_options_and_no_other(name):
    config = parse(resnet50_fashion, "--recipe", name).config()
    assert config == PLAIN | {"recipe": name} | RECIPES[name]
    assert parse(resnet50_fashion, f"--recipe={name}").config() == config


def test_script_without_recipes_keeps_its_defaults():
    assert defaults(cnn_basic.Options(), ["--recipe", "fast"]) == cnn_basic.Options()


def test_recipes_are_steps_from_what_is_published():
    assert parse(resnet50_fashion).config() == PLAIN
    assert PLAIN["recipe"] == "published" and not RECIPES["published"]
    common = {"image_size": 112, "dropout": 0.5, "epochs": 20}
    assert RECIPES["fast"] == common | {"features": "conv4_3x3"}
    assert RECIPES["best"] == common | {"features": "conv4_4x4", "mirror": True}


@pytest.mark.parametrize("first", [True, False])
def test_what_is_given_wins(first):
    """Before or after the recipe; also what is given as the plain default has it."""
    given = ["--image-size", 64, "--features", "conv5", "--no-mirror", "--seed", 3]
    given += ["--dropout", 0.3, "--epochs", 30]
    recipe = ["--recipe", "best"]
    words = [*recipe, *given] if first else [*given, *recipe]
    config = parse(resnet50_fashion, *words).config()
    assert config == PLAIN | {"recipe": "best", "image_size": 64, "seed": 3}


def test_the_last_recipe_counts():
    config = parse(resnet50_fashion, "--recipe=best", "--recipe", "fast").config()
    assert config == PLAIN | {"recipe": "fast"} | RECIPES["fast"]


def test_help_shows_the_recipes_defaults(command_line):
    done = command_line(resnet50_fashion, "--recipe", "fast", "--help")
    assert done.code == 0
    text = "".join(done.out.split())
    assert "(default:112)" in text and "(default:conv4_3x3)" in text


@pytest.mark.parametrize("words", [["--recipe", "slow"], ["--recipe"], ["--recipe="]])
def test_unknown_recipe_is_a_usage_error(words, command_line):
    done = command_line(resnet50_fashion, *words)
    assert done.code == 2
    first, second = done.err.splitlines()
    assert first.startswith("resnet50_fashion.py: error: --recipe: expected ")
    assert second == "See resnet50_fashion.py --help."


def test_another_backbone_than_the_recipes_is_said(capsys):
    for words in ([], ["--recipe", "fast"], ["--backbone", "mobilenetv2"]):
        parse(resnet50_fashion, *words)
        assert capsys.readouterr().err == ""
    parse(resnet50_fashion, "--recipe", "fast", "--backbone", "mobilenetv2")
    said = capsys.readouterr().err
    assert said == "--recipe fast was made for resnet50, not for mobilenetv2.\n"
