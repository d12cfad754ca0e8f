"""Measure README's accuracies: run the scripts with several seeds; mean ± standard deviation.

The benchmark writes to --output: accuracy.md, a table; frontier.png, a figure of accuracy against
minutes; and runs/, one file per run with its results, processor and versions. The table contains
every row with stored runs, the figure only timed rows without --backbone. A run that has a file is
skipped, so an interrupted benchmark resumes where it stopped; a run that was interrupted while
fine-tuning is resumed, and its time is not recorded. Each row has its own feature cache in
--work-dir: its first run starts with an empty cache. To repeat a row, delete its files. For rows
with different weights, run the benchmark once for each weights file.

The naive Keras script would take hours for ten epochs. Its time is extrapolated from a few images,
and its accuracy is that of its head on the cached features of the row `plain`, which must run
before.
"""

import argparse
import datetime
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import runner

ROWS = {
    "basic": "cnn_basic.py",
    "basic10": "cnn_basic.py --hidden-units 10",
    "plain": "resnet50_fashion.py",
    "fast": "resnet50_fashion.py --recipe fast",
    "best": "resnet50_fashion.py --recipe best",
    "tuned": "resnet50_fashion.py --recipe tuned",
    "mobilenetv2_fast": "resnet50_fashion.py --recipe fast --backbone mobilenetv2",
    "mobilenetv2_best": "resnet50_fashion.py --recipe best --backbone mobilenetv2",
    "efficientnetv2b0_best": "resnet50_fashion.py --recipe best --backbone efficientnetv2b0",
    "inceptionv3_best": "resnet50_fashion.py --recipe best --backbone inceptionv3",
    "small": "benchmarks/small_cnn.py",
    "naive": "benchmarks/naive_keras.py resnet50",
}
NUM_SEEDS = {"naive": 1, "tuned": 3}  # an extrapolation; an hour or two per run
NUM_SEEDS |= {row: 3 for row, command in ROWS.items() if "--backbone" in command}
SPLITS = ("train", "validation", "test")
HEADER = ["command", "seeds", *SPLITS, "calibration error", "first run", "later runs", "memory"]
HEADER += ["precision, weights"]
CAPTION = (
    "Mean ± standard deviation over the seeds, from 0 on (one seed: with the 95% CI over the test "
    "images); expected calibration error on the test images before and after calibration, mean; "
    "median times of complete commands without W&B (first run: the one with an empty cache; of "
    "scripts without a cache, all runs); largest peak memory"
)
Result = dict[str, Any]  # contents of a file in runs/


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    epilog = "Other options, such as --epochs, are passed on to the scripts."
    parser = runner.argument_parser(__doc__, epilog=epilog, allow_abbrev=False)
    text = f"rows to run, of one backbone if --weights is a file: {', '.join(ROWS)} (default: all; "
    text += "without a name: none, only write table and figure)"
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS, metavar="ROW", help=text)
    text = "seeds of each row (default: 0 to 4; of tuned and other backbones 0 to 2, of naive 0)"
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help=text)
    text = "directory of the table, the figure and the runs' results (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("outputs/accuracy"), help=text)
    text = "directory of features and interrupted runs (default: %(default)s)"
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/accuracy-work"), help=text)
    text = "do not record times, because the machine is also doing other work"
    parser.add_argument("--untimed", action="store_true", help=text)
    options, options.script_args = parser.parse_known_args()
    return options


# -------------------------------------------------------------------------------------- runs


def ensure_run(row: str, seed: int, options: argparse.Namespace) -> None:
    """Run a script unless its result is stored; exit if it fails or has other options."""
    arguments = [*ROWS[row].split()[1:], *options.script_args, "--seed", str(seed)]
    has_backbone = "resnet50" in ROWS[row]  # in the name of the script or the backbone
    # What is stored must not contain directories of this machine.
    weights = Path(options.weights).name if has_backbone else None
    identity = {"arguments": arguments, "weights": weights}
    path = options.output / "runs" / f"{row}-{seed}.json"
    if path.exists():
        stored = json.loads(path.read_text())
        if {name: stored[name] for name in identity} != identity:
            sys.exit(f"accuracy.py: error: {path} has other options; delete it")
        return
    if row == "naive":
        result = run_naive(options)
    else:
        paths = runner.path_args(options, has_backbone)
        result = run(row, seed, [*arguments, *paths], options)
    if options.untimed:
        result["seconds"] = None
    runner.write_json(path, {**identity, **result, "date": str(datetime.date.today())})


def run(row: str, seed: int, arguments: list[object], options: argparse.Namespace) -> Result:
    """Run a script, or resume its fine-tuning, and return its result."""
    cache_dir, output_dir = options.work_dir / row, options.work_dir / f"{row}-{seed}"
    is_resumed = (output_dir / "checkpoint" / "state.json").exists()
    has_runs = any((options.output / "runs").glob(f"{row}-*.json"))
    if not (is_resumed or has_runs):  # an interrupted run may have left features
        shutil.rmtree(cache_dir, ignore_errors=True)
    is_first = not cache_dir.exists()
    arguments = [*arguments, "--cache-dir", cache_dir, *(["--resume"] if is_resumed else [])]
    metrics = runner.measure(ROWS[row].split()[0], *arguments, output_dir=output_dir)
    shutil.rmtree(output_dir)
    seconds = None if is_resumed else metrics["command_seconds"]
    return summarize(metrics, seconds) | {"first": is_first}


def run_naive(options: argparse.Namespace) -> Result:
    """Return the result of the naive Keras script, with an extrapolated time."""
    cache_dir, output_dir = options.work_dir / "plain", options.work_dir / "naive"
    if not cache_dir.exists():
        sys.exit("accuracy.py: error: the row naive needs the features of plain; add it to --rows")
    rates = runner.naive_rates(options, output_dir)
    arguments = [*options.script_args, *runner.path_args(options), "--cache-dir", cache_dir]
    script = "benchmarks/naive_keras.py"
    head = runner.measure(script, "head", *arguments, output_dir=output_dir)
    seconds = runner.naive_seconds(head["data"], head["epochs"], statistics.median(rates))
    return summarize(head, seconds) | {"first": True, "memory": None}


def summarize(metrics: Result, seconds: float | None) -> Result:
    """Return what is stored of metrics.json."""
    errors = []
    if "calibration" in metrics:  # not of naive_keras.py
        errors = [metrics["calibration"]["uncalibrated_error"]]
        errors += [metrics["test"]["expected_calibration_error"]]
    return {
        "accuracy": {name: metrics[name]["accuracy"] for name in SPLITS},
        "accuracy_ci95": metrics["test"]["accuracy_ci95"],
        "calibration_errors": errors,
        "seconds": seconds,
        "memory": metrics["peak_gb"],
        "precision": metrics["weights"].get("precision"),  # not recorded by cnn_basic.py
        "weights_sha256": metrics["weights"].get("sha256"),
        "versions": metrics["versions"],
    }


def read_runs(output: Path) -> dict[str, list[Result]]:
    """Return the stored runs of each row that has any, in the order of `ROWS`."""
    paths = {row: sorted((output / "runs").glob(f"{row}-*.json")) for row in ROWS}
    return {
        row: [json.loads(path.read_text()) for path in paths[row]] for row in ROWS if paths[row]
    }


# -------------------------------------------------------------------------- table and figure


def format_accuracy(runs: Sequence[Result], split: str) -> str:
    """Format mean ± sample standard deviation, or one value with its interval."""
    text = runner.format_mean([run["accuracy"][split] for run in runs], digits=2)
    if split != "test" or len(runs) > 1:
        return text
    low, high = (100 * limit for limit in runs[0]["accuracy_ci95"])
    return f"{text} ({low:.1f} to {high:.1f})"


def median_seconds(runs: Sequence[Result], first: bool) -> float | None:
    """Return the median seconds of first or later runs, as far as they were timed."""
    times = [run["seconds"] for run in runs if run["first"] is first and run["seconds"]]
    return statistics.median(times) if times else None


def table_row(row: str, runs: Sequence[Result]) -> list[str]:
    """Return the cells of a row below `HEADER`."""
    times = [median_seconds(runs, first) for first in (True, False)]
    first_time, later_time = (runner.format_duration(time) if time else "–" for time in times)
    # Runs of naive_keras.py, and stored ones of a commit that did not calibrate, have no errors.
    errors = zip(*filter(None, (run["calibration_errors"] for run in runs)), strict=True)
    details = [run[name] for name in ("precision", "weights") for run in runs if run[name]]
    return [
        f"`python {ROWS[row]}`",
        str(len(runs)),
        *(format_accuracy(runs, split) for split in SPLITS),
        " → ".join(f"{statistics.mean(values):.3f}" for values in errors) or "–",
        f"{first_time} (extrapolated)" if row == "naive" else first_time,
        later_time,
        runner.format_memory(run["memory"] for run in runs),
        ", ".join(dict.fromkeys(details)) or "–",
    ]


def caption(table: dict[str, list[Result]]) -> str:
    """Return what the table contains, with all machines, versions and dates."""
    runs = [run for runs in table.values() for run in runs]
    machines = sorted({runner.describe(run["versions"]) for run in runs if run["versions"]})
    dates = [run["date"] for run in runs]
    parts = [CAPTION, *machines, " to ".join(dict.fromkeys([min(dates), max(dates)]))]
    command = "python benchmarks/accuracy.py --rows … --weights …"
    return f"*{'; '.join(parts)}; `{command}`, once per weights file*"


def plot_frontier(table: dict[str, list[Result]], path: Path) -> None:
    """Plot accuracy against minutes, in a color per script; hollow: later or extrapolated."""
    import matplotlib.pyplot as plt  # slow to import

    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    scripts = list(dict.fromkeys(command.split()[0] for command in ROWS.values()))
    for row, runs in table.items():
        values = [100 * run["accuracy"]["test"] for run in runs]
        mean, color = statistics.mean(values), f"C{scripts.index(ROWS[row].split()[0])}"
        deviation = statistics.stdev(values) if len(values) > 1 else None
        times = {first: median_seconds(runs, first) for first in (True, False)}
        minutes = {first: seconds / 60 for first, seconds in times.items() if seconds}
        if not minutes or "--backbone" in ROWS[row]:  # the points of backbones would overlap
            continue
        axes.plot(list(minutes.values()), [mean] * len(minutes), ":", color=color)
        for first, x in minutes.items():
            fill = color if first and row != "naive" else "white"
            axes.errorbar(x, mean, deviation, fmt="o", color=color, markerfacecolor=fill, capsize=3)
        end = max(minutes.values()), mean
        label = ROWS[row].removeprefix("resnet50_fashion.py ").removeprefix("benchmarks/")
        style = {"va": "center", "color": color, "size": "small"}
        axes.annotate(label, end, (8, 0), textcoords="offset points", **style)
    axes.set_xscale("log")
    hollow = "with cached features" + (", or extrapolated" if "naive" in table else "")
    axes.set_xlabel(f"minutes, complete command (hollow: {hollow})")
    axes.set_ylabel("test accuracy, % (mean ± standard deviation)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.margins(x=0.25)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run each row, and write the table and the figure of all stored runs."""
    options = parse_options()
    for row in options.rows:
        for seed in options.seeds or range(NUM_SEEDS.get(row, 5)):
            ensure_run(row, seed, options)
    table = read_runs(options.output)
    if not table:
        sys.exit(f"accuracy.py: error: {options.output} contains no runs; give --rows")
    text = runner.markdown_table(HEADER, [table_row(*row) for row in table.items()], caption(table))
    (options.output / "accuracy.md").write_text(text)
    plot_frontier(table, options.output / "frontier.png")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
