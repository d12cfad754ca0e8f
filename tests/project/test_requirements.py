"""The required versions, and the oldest of them, which CI tests."""

import importlib.metadata
import re

import pytest
from helpers.scripts import ROOT


def read(path):
    """Return {package: version} of a requirements file, each line `NAME>=X` or `NAME==X`."""
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


@pytest.mark.parametrize("name", BOUNDS)
def test_installed_version_is_within_the_bounds(name):
    assert numbers(importlib.metadata.version(name)) >= numbers(BOUNDS[name])
