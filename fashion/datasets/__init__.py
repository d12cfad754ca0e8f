"""Data sets: loading, checking, splitting and preprocessing images."""
