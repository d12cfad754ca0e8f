"""Tracking of a run in progress: stages, epochs and the W&B session."""
