"""Data sets: finding, loading, checking, splitting and preprocessing images."""
