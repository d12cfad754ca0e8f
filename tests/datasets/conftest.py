"""Fixtures of the tests of data sets."""

from fashion.datasets import load_raw_dataset
from fashion.datasets.splits import make_splits

import pytest


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """Load a directory and split it."""
    cache_dir = tmp_path_factory.mktemp("cache")

    def load_dataset(directory, train_size=None, validation_size=None, test_size=None):
        raw = load_raw_dataset(directory, cache_dir)
        return make_splits(raw, train_size, validation_size, test_size)

    return load_dataset
