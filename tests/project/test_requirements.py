"""The oldest versions that CI tests are the lower bounds of the requirements."""

import re

from helpers.scripts import ROOT


def read(path):
    """Return {package: version} of a requirements file, each line `NAME>=X` or `NAME==X`."""
    lines = [x for x in (ROOT / path).read_text().splitlines() if not x.startswith("#")]
    return dict(re.fullmatch(r"([a-z0-9-]+)[>=]=([\d.]+)", line).groups() for line in lines)


def test_oldest_versions_that_are_tested_are_the_lower_bounds():
    oldest, bounds = read(".ci/oldest.txt"), read("requirements.txt")
    assert oldest.keys() == bounds.keys()
    for name, version in oldest.items():
        assert f"{version}.".startswith(f"{bounds[name]}."), name
