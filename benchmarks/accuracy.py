"""The command behind README's accuracies: the scripts over seeds; mean ± standard deviation.

The table (a Markdown file in --output) has a row for each of --rows; its first column is what is
run. A picture (--picture) draws accuracy against minutes. Each row has a feature cache of its own
in --work: its first run starts from an empty one, the later ones from its features. Each run's
figures are kept there, too: an interrupted command goes on where it was. Delete a run's file to
measure it anew, all of a row's for its first run, too, and all after a change of the code.

The textbook script would take hours for its ten epochs. Its time is extrapolated from a slice, and
its accuracy is that of its head on the averages that the row `published`, run before, has kept.
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
    "small": "benchmarks/small_network.py",
    "textbook": "benchmarks/textbook.py resnet50",
    "subset": f"resnet50_fashion.py --recipe fast --image-size 64 {SUBSET}",
    "frozen": "resnet50_fashion.py --train-size 10000",
    "one_block": "resnet50_fashion.py --train-size 10000 --fine-tune-blocks 1",
}
DEFAULT = ("basic", "basic10", "published", "fast", "best", "small", "textbook")
LABELS = {"basic10": "10 units", "small": "small network", "textbook": "textbook script"}
AT_MOST = {"textbook": 1, "small": 3}  # seeds: an extrapolation, and 12 minutes each
SPLITS = ("train", "validation", "test")
SLICE = 128  # images of the textbook script's, in an epoch


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options, such as --data-dir, are handed on to the scripts.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=DEFAULT,
        metavar="ROW",
        help=f"of {', '.join(ROWS)} (default: {', '.join(DEFAULT)})",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of the table (default: %(default)s)",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        default=ROOT / "docs" / "frontier.png",
        help="the picture's file (default: %(default)s)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("outputs") / "accuracy",
        help="keeps figures and features (default: %(default)s)",
    )
    parser.add_argument("--weights", default="imagenet", help="as resnet50_fashion.py's")
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="keep no times of what runs now: the machine does other work, too",
    )
    options, options.more = parser.parse_known_args()
    if "textbook" in options.rows and [w for w in options.more[::2] if w != "--data-dir"]:
        parser.error(f"textbook.py does not take {' '.join(options.more)}: choose other --rows")
    return options


def measure(row: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """A run's figures, from an earlier call or by running it; exits if it fails."""
    script, *arguments = ROWS[row].split()
    if script != "cnn_basic.py" and row != "small":
        kept = "published" if row == "textbook" else row
        arguments += ["--weights", options.weights, "--cache-dir", str(options.work / kept)]
    arguments += [*options.more, *(() if row == "textbook" else ("--seed", str(seed)))]
    kept = options.work / f"{row}-{seed}.json"
    if kept.exists():
        result = json.loads(kept.read_text())
        if result["arguments"] != arguments:
            sys.exit(f"accuracy.py: error: {kept} is of other options: delete it, or use --work")
        return result
    if row == "textbook":
        if not (options.work / "published").exists():
            sys.exit("accuracy.py: error: textbook needs the row published's averages, run before")
        figures = textbook(script, arguments, kept.with_suffix(".log"))
    else:
        if not any(options.work.glob(f"{row}-*.json")):  # what an interrupted first run has left
            shutil.rmtree(options.work / row, ignore_errors=True)
        first = not (options.work / row).exists()
        figures = {"first": first} | run(script, arguments, kept.with_suffix(".log"))
    if options.untimed:
        figures["seconds"] = None
    result = {"arguments": arguments, **figures, "date": str(datetime.date.today())}
    part = kept.with_suffix(".incomplete")
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.replace(kept)
    return result


def start(script: str, arguments: Sequence[str], log: Path) -> str:
    """Runs a script: what it prints, which the log shows meanwhile; exits if it fails."""
    print("$", script, *arguments, flush=True)
    command = [sys.executable, str(ROOT / script), *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{log.read_text()}\naccuracy.py: error: {script} failed, see above")
    return log.read_text()


def run(script: str, arguments: list[str], log: Path) -> dict[str, Any]:
    """The figures of a script that leaves `metrics.json`."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        start(script, [*arguments, "--wandb", "disabled", "--output-dir", folder], log)
        seconds = time.perf_counter() - begin
        metrics = json.loads((Path(folder) / "metrics.json").read_text())
    return {
        "accuracy": {name: metrics[name]["accuracy"] for name in SPLITS},
        "interval95": metrics["test"]["interval95"],
        "seconds": seconds,
        "memory": metrics["memory"].get("peak_gb"),
        "versions": metrics["versions"],
    }


def textbook(script: str, arguments: list[str], log: Path) -> dict[str, Any]:
    """The same of the textbook script's ten epochs, whose time is extrapolated."""
    at = arguments.index("--cache-dir")
    slice_ = [*arguments[:at], *arguments[at + 2 :], "--epochs", "2"]
    slice_ += ["--train-size", str(SLICE), "--validation-size", str(SLICE)]
    part = json.loads(start(script, slice_, log).splitlines()[-1])  # its first epoch compiles
    training, validation = (
        part[f"{name}_seconds"][1] / SLICE for name in ("training", "validation")
    )
    head = json.loads(start(script, ["head", *arguments[1:]], log).splitlines()[-1])
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


def percent(results: list[dict[str, Any]], split: str) -> str:
    """Mean ± standard deviation (of a sample, so that of at least two)."""
    values = [100 * result["accuracy"][split] for result in results]
    if len(values) > 1:
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} %"
    if split != "test":
        return f"{values[0]:.2f} %"
    low, high = (100 * limit for limit in results[0]["interval95"])
    return f"{values[0]:.2f} % ({low:.1f} to {high:.1f})"


def median_seconds(results: list[dict[str, Any]], first: bool) -> float | None:
    """Of whole commands, the first or the later ones, as far as they were timed."""
    times = [r["seconds"] for r in results if r["first"] is first and r["seconds"]]
    return statistics.median(times) if times else None


def in_words(seconds: float | None) -> str:
    """Such as "58 s" or "3.5 min"."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Accuracy against minutes: each row's first run, and, hollow, its later ones."""
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
        colour = axes.plot(list(times.values()), [mean] * len(times), ":", zorder=1)[0].get_color()
        for first, time_ in times.items():
            face = colour if first and row != "textbook" else "white"
            axes.errorbar(
                *(time_, mean, deviation), fmt="o", color=colour, markerfacecolor=face, capsize=3
            )
        axes.annotate(
            LABELS.get(row, row),
            (max(times.values()), mean),
            xytext=(6, -14),
            textcoords="offset points",
            color=colour,
        )
    axes.set_xscale("log")
    axes.set_xlabel("minutes, whole command (hollow: from kept features, or extrapolated)")
    axes.set_ylabel("test accuracy, % (mean ± standard deviation)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.margins(x=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Each row's runs → the table and the picture."""
    options = parse_options()
    header = "command", "seeds", "train", "validation", "test", "first run", "later runs", "memory"
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    results = {}
    for row in options.rows:
        seeds = options.seeds[: AT_MOST.get(row)]
        results[row] = runs = [measure(row, seed, options) for seed in seeds]
        peaks = [run["memory"] for run in runs if run["memory"]]
        cells = [
            f"`python {ROWS[row]}`",
            str(len(runs)),
            *(percent(runs, split) for split in SPLITS),
            in_words(median_seconds(runs, first=True))
            + (" (extrapolated)" if row == "textbook" else ""),
            in_words(median_seconds(runs, first=False)),
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
        f"*Mean ± standard deviation over seeds {', '.join(map(str, options.seeds))} (of one seed: "
        "with the test images' 95 % interval); times of whole commands (the first from an empty "
        "cache, the later ones' median) without W&B on an idle machine, the largest peak memory; "
        f"{'; '.join(sorted(versions))}; weights {Path(options.weights).name}; "
        f"{' to '.join(sorted({dates[0], dates[-1]}))}; `python benchmarks/accuracy.py "
        f"{' '.join([*rows, '--seeds', *map(str, options.seeds), *options.more])}`*",
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "accuracy.md").write_text("\n".join(lines) + "\n")
    draw(results, options.picture)
    print("\n" + (options.output / "accuracy.md").read_text())


if __name__ == "__main__":
    main()
