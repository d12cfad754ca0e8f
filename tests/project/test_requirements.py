"""The versions that are asked for, and that CI tests the oldest of them."""

import importlib.metadata
import re

import pytest
from helpers.scripts import ROOT


def read(path):
    """{package: version} of a requirements file, each line `NAME>=X` or `NAME==X`."""
    lines = [x for x in (ROOT / path).read_text().splitlines() if not x.startswith("#")]
    return dict(re.fullmatch(r"([a-z0-9-]+)[>=]=([\d.]+)", line).groups() for line in lines)


BOUNDS = read("requirements.txt")


def numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def test_oldest_versions_that_are_tested_are_the_lower_bounds():
    oldest = read(".ci/oldest.txt")
    assert oldest.keys() == BOUNDS.keys()
    for name, version in oldest.items():
        assert f"{version}.".startswith(f"{BOUNDS[name]}."), name


def test_bounds_allow_what_colab_had_in_2025():
    """TensorFlow 2.19 with Keras 3.10 and NumPy 2.0: none of them may have to be replaced."""
    colab = {"tensorflow": "2.19.0", "keras": "3.10.0", "numpy": "2.0.2"}
    for name, version in colab.items():
        assert numbers(version) >= numbers(BOUNDS[name]), name


@pytest.mark.parametrize("name", BOUNDS)
def test_installed_version_is_within_the_bounds(name):
    assert numbers(importlib.metadata.version(name)) >= numbers(BOUNDS[name])
