"""Measure README's accuracies: run the scripts with several seeds; mean ± standard deviation.

The table (a Markdown file in --output) has one row per name in --rows; its first column is the
command. A figure (--figure) plots accuracy against minutes. Each row has its own feature cache in
--work-dir: its first run starts with an empty cache, later ones use its features. Results are
stored there as well, so an interrupted benchmark resumes where it stopped. Delete a run's file to
measure it again, all files of a row to measure its first run again, and all after a code change.

The naive Keras script would take hours for ten epochs. Its time is extrapolated from a few images,
and its accuracy is that of its head on the cached features of the row `published`, which must run
before.
"""

import argparse
import datetime
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SUBSET = "--train-size 5000 --validation-size 2000 --test-size 2000"
ROWS = {
    "basic": "cnn_basic.py",
    "basic16": "cnn_basic.py --hidden-units 16",
    "basic10": "cnn_basic.py --hidden-units 10",
    "published": "resnet50_fashion.py",
    "conv4": "resnet50_fashion.py --features conv4",
    "fast": "resnet50_fashion.py --recipe fast",
    "best": "resnet50_fashion.py --recipe best",
    "small": "benchmarks/small_cnn.py",
    "naive": "benchmarks/naive_keras.py resnet50",
    "subset": f"resnet50_fashion.py --recipe fast --image-size 64 {SUBSET}",
    "frozen": "resnet50_fashion.py --train-size 10000",
    "one_block": "resnet50_fashion.py --train-size 10000 --fine-tune-blocks 1",
}
DEFAULT = ("basic", "basic10", "published", "fast", "best", "small", "naive")
LABELS = {"basic10": "10 units", "small": "small CNN", "naive": "naive Keras script"}
MAX_SEEDS = {"naive": 1, "small": 3}  # an extrapolation, and 12 minutes per run
SPLITS = ("train", "validation", "test")
TIMED_IMAGES = 128  # per epoch of the naive Keras script


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options, such as --data-dir, are passed on to the scripts.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=DEFAULT,
        metavar="ROW",
        help=f"any of {', '.join(ROWS)} (default: {', '.join(DEFAULT)})",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="directory of the table (default: %(default)s)",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        default=ROOT / "docs" / "frontier.png",
        help="file of the figure (default: %(default)s)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("outputs") / "accuracy",
        help="directory for results and features (default: %(default)s)",
    )
    parser.add_argument("--weights", default="imagenet", help="as for resnet50_fashion.py")
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="do not record times, because the machine is also doing other work",
    )
    options, options.script_args = parser.parse_known_args()
    if "naive" in options.rows and [w for w in options.script_args[::2] if w != "--data-dir"]:
        parser.error(
            f"naive_keras.py does not accept {' '.join(options.script_args)}; choose other --rows"
        )
    return options


def measure(row: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return a run's results, stored or by running it; exit if it fails."""
    script, *arguments = ROWS[row].split()
    if script != "cnn_basic.py" and row != "small":
        cache_name = "published" if row == "naive" else row
        arguments += [
            "--weights",
            options.weights,
            "--cache-dir",
            str(options.work_dir / cache_name),
        ]
    arguments += [*options.script_args, *(() if row == "naive" else ("--seed", str(seed)))]
    result_path = options.work_dir / f"{row}-{seed}.json"
    if result_path.exists():
        result = json.loads(result_path.read_text())
        if result["arguments"] != arguments:
            sys.exit(
                f"accuracy.py: error: {result_path} has other options; delete it, or use --work-dir"
            )
        return result
    if row == "naive":
        if not (options.work_dir / "published").exists():
            sys.exit("accuracy.py: error: the row naive needs the features of the row published")
        results = run_naive_keras(script, arguments, result_path.with_suffix(".log"))
    else:
        if not any(options.work_dir.glob(f"{row}-*.json")):  # left by an interrupted first run
            shutil.rmtree(options.work_dir / row, ignore_errors=True)
        first = not (options.work_dir / row).exists()
        results = {"first": first} | run(script, arguments, result_path.with_suffix(".log"))
    if options.untimed:
        results["seconds"] = None
    result = {"arguments": arguments, **results, "date": str(datetime.date.today())}
    tmp_path = result_path.with_suffix(".incomplete")
    tmp_path.write_text(json.dumps(result, indent=2) + "\n")
    tmp_path.replace(result_path)
    return result


def run_logged(script: str, arguments: Sequence[str], log: Path) -> str:
    """Run a script with its output in a log file; return the output; exit if it fails."""
    print("$", script, *arguments, flush=True)
    command = [sys.executable, str(ROOT / script), *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{log.read_text()}\naccuracy.py: error: {script} failed, see above")
    return log.read_text()


def run(script: str, arguments: list[str], log: Path) -> dict[str, Any]:
    """Run a script that writes metrics.json and return its results."""
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        run_logged(script, [*arguments, "--wandb", "disabled", "--output-dir", directory], log)
        seconds = time.perf_counter() - start
        metrics = json.loads((Path(directory) / "metrics.json").read_text())
    return {
        "accuracy": {name: metrics[name]["accuracy"] for name in SPLITS},
        "interval95": metrics["test"]["interval95"],
        "seconds": seconds,
        "memory": metrics["memory"].get("peak_gb"),
        "versions": metrics["versions"],
    }


def run_naive_keras(script: str, arguments: list[str], log: Path) -> dict[str, Any]:
    """Return the results of ten epochs of the naive Keras script; the time is extrapolated."""
    index = arguments.index("--cache-dir")
    timed_args = [*arguments[:index], *arguments[index + 2 :], "--epochs", "2"]
    timed_args += ["--train-size", str(TIMED_IMAGES), "--validation-size", str(TIMED_IMAGES)]
    timed = json.loads(
        run_logged(script, timed_args, log).splitlines()[-1]
    )  # the first epoch compiles
    training, validation = (
        timed[f"{name}_seconds"][1] / TIMED_IMAGES for name in ("training", "validation")
    )
    head = json.loads(run_logged(script, ["head", *arguments[1:]], log).splitlines()[-1])
    images, accuracies = head["images"], (head["accuracy"][-1], head["val_accuracy"][-1])
    epochs = len(head["accuracy"])
    evaluated = epochs * images["validation"] + images["test"]
    return {
        "accuracy": dict(zip(SPLITS, (*accuracies, head["test"]["accuracy"]), strict=True)),
        "interval95": head["test"]["interval95"],
        "seconds": epochs * images["train"] * training + evaluated * validation,
        "first": True,
        "memory": None,
        "versions": None,
    }


def format_accuracy(results: list[dict[str, Any]], split: str) -> str:
    """Format mean ± sample standard deviation, or one value with its interval."""
    values = [100 * result["accuracy"][split] for result in results]
    if len(values) > 1:
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} %"
    if split != "test":
        return f"{values[0]:.2f} %"
    low, high = (100 * limit for limit in results[0]["interval95"])
    return f"{values[0]:.2f} % ({low:.1f} to {high:.1f})"


def median_seconds(results: list[dict[str, Any]], first: bool) -> float | None:
    """Return the median seconds of first or later runs, as far as they were timed."""
    times = [r["seconds"] for r in results if r["first"] is first and r["seconds"]]
    return statistics.median(times) if times else None


def format_duration(seconds: float | None) -> str:
    """Format a duration, such as "58 s" or "3.5 min"."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plot_frontier(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Plot accuracy against minutes: first runs filled, later ones hollow."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for row, runs in results.items():
        accuracies = [100 * run["accuracy"]["test"] for run in runs]
        mean = statistics.mean(accuracies)
        deviation = statistics.stdev(accuracies) if len(runs) > 1 else None
        times = {
            first: seconds / 60
            for first in (True, False)
            if (seconds := median_seconds(runs, first))
        }
        color = axes.plot(list(times.values()), [mean] * len(times), ":", zorder=1)[0].get_color()
        for first, time_ in times.items():
            face = color if first and row != "naive" else "white"
            axes.errorbar(
                *(time_, mean, deviation), fmt="o", color=color, markerfacecolor=face, capsize=3
            )
        axes.annotate(
            LABELS.get(row, row),
            (max(times.values()), mean),
            xytext=(6, -14),
            textcoords="offset points",
            color=color,
        )
    axes.set_xscale("log")
    axes.set_xlabel("minutes, complete command (hollow: with cached features, or extrapolated)")
    axes.set_ylabel("test accuracy, % (mean ± standard deviation)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.margins(x=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run each row and write the table and the figure."""
    options = parse_options()
    header = "command", "seeds", "train", "validation", "test", "first run", "later runs", "memory"
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    results = {}
    for row in options.rows:
        seeds = options.seeds[: MAX_SEEDS.get(row)]
        results[row] = runs = [measure(row, seed, options) for seed in seeds]
        peaks = [run["memory"] for run in runs if run["memory"]]
        cells = [
            f"`python {ROWS[row]}`",
            str(len(runs)),
            *(format_accuracy(runs, split) for split in SPLITS),
            format_duration(median_seconds(runs, first=True))
            + (" (extrapolated)" if row == "naive" else ""),
            format_duration(median_seconds(runs, first=False)),
            f"{max(peaks):.1f} GB" if peaks else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    dates = sorted({run["date"] for runs in results.values() for run in runs})
    versions = {
        f"{v['cores']} cores of {v['processor']}, Python {v['python']}, TensorFlow "
        f"{v['tensorflow']}, Keras {v['keras']}"
        for runs in results.values()
        for run in runs
        if (v := run["versions"])
    }
    rows = () if tuple(options.rows) == DEFAULT else ("--rows", *options.rows)
    lines += [
        "",
        f"*Mean ± standard deviation over seeds {', '.join(map(str, options.seeds))} (one seed: "
        "with the 95 % interval over the test images); times of complete commands (the first with "
        "an empty cache, the median of later ones) without W&B on an idle machine; largest peak "
        "memory; "
        f"{'; '.join(sorted(versions))}; weights {Path(options.weights).name}; "
        f"{' to '.join(sorted({dates[0], dates[-1]}))}; `python benchmarks/accuracy.py "
        f"{' '.join([*rows, '--seeds', *map(str, options.seeds), *options.script_args])}`*",
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "accuracy.md").write_text("\n".join(lines) + "\n")
    plot_frontier(results, options.figure)
    print("\n" + (options.output / "accuracy.md").read_text())


if __name__ == "__main__":
    main()
