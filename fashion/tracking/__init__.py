"""Tracking of a run while it goes on: stages, epochs and the W&B session."""
