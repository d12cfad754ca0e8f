"""Helpers of the tests: running scripts, data, networks, W&B runs."""
