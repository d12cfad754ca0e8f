"""Comparison of a run with another run on the same test images."""

import contextlib
import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from fashion.results.evaluation import Z95, format_interval
from fashion.run import Run

import numpy as np

HEADER = ("model", "train images", "validation", "test (95% CI)", "time")
MIN_DISAGREEMENTS = 10  # fewer are too few for the interval of a paired difference
# Besides those that do not affect the results; test images are compared by checksum and number.
IGNORED_OPTIONS = {"seed", "data_dir", "test_size"}
Metrics = dict[str, Any]  # contents of metrics.json


class Comparison(NamedTuple):
    """A table of runs, and a sentence on their difference or ""."""

    rows: list[list[str]]  # the first row is the header
    difference: str


def compare(run: Run, directory: Path) -> Comparison:
    """Compare a run with the latest comparable one in its output directory or those next to it.

    Runs are comparable if they have the same test images, and differ in an option that affects the
    result, other than the seed. Trials of a sweep are left out. Runs of another script or recipe
    are preferred; among them, the latest one is taken. `directory` contains the run's
    predictions.csv, while `--output-dir` still contains the files of its previous run.
    """
    this = _table_row(run.metadata)
    fields = dataclasses.fields(run.options)
    ignored = {field.name for field in fields if not field.metadata["affects_results"]}
    ignored |= IGNORED_OPTIONS
    candidates = []
    for path in run.options.output_dir.resolve().parent.glob("*/metrics.json"):
        with contextlib.suppress(Exception):  # ignore unreadable files
            metrics = json.loads(path.read_text())
            row, data = _table_row(metrics), metrics["data"]
            old, new = metrics["config"], run.metadata["config"]
            changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
            # With the same data, equally many test images are the same images.
            has_same_images = all(run.metadata["data"][x] == data[x] for x in ("sha256", "test"))
            if has_same_images and changed - ignored and not metrics.get("sweep"):
                candidates.append((row[0] != this[0], path.stat().st_mtime, path.parent, row))
    if not candidates:
        return Comparison([list(HEADER), this], "")
    has_other_label, _, other_dir, other = max(candidates)
    if not has_other_label:
        other[0] += ", other options"
    difference = _format_difference(directory, other_dir, this[0], other[0])
    return Comparison([list(HEADER), other, this], difference)


def _table_row(metrics: Metrics) -> list[str]:
    """Return the cells below `HEADER`; the first is like the run's command: script and recipe."""
    config = metrics["config"]
    recipe = config.get("recipe", "plain")
    label = metrics["model"] if recipe == "plain" else f"{metrics['model']} {recipe}"
    if config.get("fine_tune_blocks") and recipe != "tuned":
        label += ", fine-tuned"
    return [
        label,
        f"{metrics['data']['train']:,}",
        f"{metrics['validation']['accuracy']:.1%}",
        f"{metrics['test']['accuracy']:.1%} ({format_interval(metrics['test']['accuracy_ci95'])})",
        f"{metrics['seconds']['total']:.0f} s",
    ]


def _load_test_results(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the test images' indices, int (N,), and whether predictions are correct, bool (N,)."""
    with open(directory / "predictions.csv", newline="", encoding="utf-8-sig") as file:
        rows = [[row["index"], row["label"], row["predicted"]] for row in csv.DictReader(file)]
    indices, labels, predicted = np.array(rows, int).T
    return indices, labels == predicted


def _format_difference(directory: Path, other_dir: Path, label: str, other_label: str) -> str:
    """Describe the paired difference in accuracy, or return "" if there is none to report.

    The interval of the mean paired difference is narrower than the intervals of the two accuracies
    suggest. On at least `MIN_DISAGREEMENTS` images, exactly one model must be right.
    """
    indices, correct = _load_test_results(directory)
    try:
        other_indices, other_correct = _load_test_results(other_dir)
    except Exception:  # ignore unreadable files
        return ""
    if not np.array_equal(indices, other_indices):
        return ""
    if np.count_nonzero(correct != other_correct) < MIN_DISAGREEMENTS:
        return ""
    differences = 100 * (correct.astype(float) - other_correct)
    mean = differences.mean()
    half_width = Z95 * differences.std(ddof=1) / math.sqrt(len(differences))
    return (
        f"On the same {len(correct):,} test images, {label} is {abs(mean):.1f} percentage points "
        f"{'better' if mean >= 0 else 'worse'} than {other_label} (difference, 95% CI: "
        f"{mean - half_width:+.1f} to {mean + half_width:+.1f})."
    )
