"""Measure README's accuracies: run the scripts with several seeds; mean ± standard deviation.

The benchmark writes to --output: accuracy.md, a table with one row per name in --rows (other rows
of an existing table are kept); frontier.png, a figure of accuracy against minutes; and runs/, one
file per run with its results, processor and versions. A run that has a file is skipped, so an
interrupted benchmark resumes where it stopped; a run that was interrupted while fine-tuning is
resumed, and its time is not recorded. To repeat a run, delete its file; to repeat the first run of
a row, delete the row's files; after a code change, delete runs/. Each row has its own feature cache
in --work-dir: its first run starts with an empty cache, later ones use its features.

The naive Keras script would take hours for ten epochs. Its time is extrapolated from a few images,
and its accuracy is that of its head on the cached features of the row `published`, which must run
before.
"""

import argparse
import datetime
import json
import re
import shutil
import statistics
import subprocess
import sys
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
    "tuned": "resnet50_fashion.py --recipe tuned",
    "mobilenetv2_fast": "resnet50_fashion.py --recipe fast --backbone mobilenetv2",
    "mobilenetv2": "resnet50_fashion.py --recipe best --backbone mobilenetv2",
    "efficientnetv2b0": "resnet50_fashion.py --recipe best --backbone efficientnetv2b0",
    "inceptionv3": "resnet50_fashion.py --recipe best --backbone inceptionv3",
    "small": "benchmarks/small_cnn.py",
    "naive": "benchmarks/naive_keras.py resnet50",
    "subset": f"resnet50_fashion.py --recipe fast --image-size 64 {SUBSET}",
    "frozen": "resnet50_fashion.py --train-size 10000",
    "one_block": "resnet50_fashion.py --train-size 10000 --fine-tune-blocks 1",
}
DEFAULT = ("basic", "basic10", "published", "fast", "best", "small", "naive")
LABELS = {"basic10": "10 units", "small": "small CNN", "naive": "naive Keras script"}
MAX_SEEDS = {"naive": 1, "tuned": 2}  # an extrapolation; an hour per run
MAX_SEEDS |= {"mobilenetv2": 3, "efficientnetv2b0": 3, "inceptionv3": 3}
SPLITS = ("train", "validation", "test")
TIMED_IMAGES = 128  # per epoch of the naive Keras script
HEADER = [
    *("command", "seeds", *SPLITS, "first run", "later runs", "memory"),
    "measured on, with",
]
CAPTION = (
    "*Mean ± standard deviation over the seeds, from 0 on (one seed: with the 95 % interval over "
    "the test images); times of complete commands (the first with an empty cache, the median of "
    "later ones) without W&B; largest peak memory; `python benchmarks/accuracy.py --rows …`*"
)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options, such as --epochs, are passed on to the scripts.",
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
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2, 3, 4],
        metavar="N",
        help="seeds of each row (default: 0 1 2 3 4; fewer for long rows)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs") / "accuracy",
        help="directory of the table, the figure and the runs' results (default: %(default)s)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("outputs") / "accuracy-work",
        help="directory of features and logs (default: %(default)s)",
    )
    parser.add_argument("--data-dir", help="as for the scripts")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=["imagenet"],
        metavar="[BACKBONE=]WEIGHTS",
        help="as for resnet50_fashion.py, for all backbones or for one (default: imagenet)",
    )
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="do not record times, because the machine is also doing other work",
    )
    options, options.script_args = parser.parse_known_args()
    if "naive" in options.rows and options.script_args:
        parser.error(
            f"naive_keras.py does not accept {' '.join(options.script_args)}; choose other --rows"
        )
    return options


def weights_of(command: str, options: argparse.Namespace) -> str:
    """Return the --weights for a command's backbone: the last ones that are given for it."""
    words = command.split()
    backbone = words[words.index("--backbone") + 1] if "--backbone" in words else "resnet50"
    weights = "imagenet"
    for value in options.weights:
        match = re.fullmatch(r"(\w+)=(.+)", value)
        if not match or match[1] == backbone:
            weights = match[2] if match else value
    return weights


def measure(row: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return a run's results, stored or by running it; exit if it fails."""
    script, *arguments = [*ROWS[row].split(), *options.script_args]
    paths, weights = [], None
    if options.data_dir:
        paths += ["--data-dir", options.data_dir]
    if row != "naive":
        arguments += ["--seed", str(seed)]
    if script != "cnn_basic.py" and row != "small":
        cache_dir = options.work_dir / ("published" if row == "naive" else row)
        weights = weights_of(ROWS[row], options)
        paths += ["--weights", weights, "--cache-dir", str(cache_dir)]
    # What is stored must not contain directories of this machine.
    identity = {"arguments": arguments, "weights": weights and Path(weights).name}
    result_path = options.output / "runs" / f"{row}-{seed}.json"
    if result_path.exists():
        result = json.loads(result_path.read_text())
        if {name: result[name] for name in identity} != identity:
            sys.exit(
                f"accuracy.py: error: {result_path} has other options; delete it, or use another "
                "--output"
            )
        return result
    log = options.work_dir / f"{row}-{seed}.log"
    if row == "naive":
        if not (options.work_dir / "published").exists():
            sys.exit(
                "accuracy.py: error: the row naive needs the features of the row published; add "
                "published to --rows, before naive"
            )
        results = run_naive_keras(script, [*arguments, *paths], log)
    else:
        resumable = has_checkpoint(log.with_suffix(""))
        if not (resumable or any(result_path.parent.glob(f"{row}-*.json"))):
            # Features may have been left by an interrupted first run.
            shutil.rmtree(options.work_dir / row, ignore_errors=True)
        first = not (options.work_dir / row).exists()
        results = {"first": first} | run(script, [*arguments, *paths], log)
    if options.untimed:
        results["seconds"] = None
    result = identity | results | {"date": str(datetime.date.today())}
    write_json(result_path, result)
    return result


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically, with its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = path.with_suffix(".incomplete")
    tmp_path.write_text(json.dumps(content, indent=2) + "\n")
    tmp_path.replace(path)


def run_logged(script: str, arguments: Sequence[str], log: Path) -> str:
    """Run a script with its output in a log file; return the output; exit if it fails."""
    print("$", script, *arguments, flush=True)
    command = [sys.executable, str(ROOT / script), *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{log.read_text()}\n{Path(sys.argv[0]).name}: error: {script} failed, see above")
    return log.read_text()


def has_checkpoint(output_dir: Path) -> bool:
    """Return whether a run was interrupted while fine-tuning."""
    return (output_dir / "checkpoint" / "state.json").exists()


def run(script: str, arguments: list[str], log: Path) -> dict[str, Any]:
    """Run a script that writes metrics.json, or resume it, and return its results.

    Its output directory is named like the log file, and deleted at the end.
    """
    output_dir = log.with_suffix("")
    arguments = [*arguments, "--wandb", "disabled", "--output-dir", str(output_dir)]
    resumed = has_checkpoint(output_dir)
    start = time.perf_counter()
    run_logged(script, [*arguments, *(["--resume"] if resumed else [])], log)
    seconds = None if resumed else time.perf_counter() - start
    metrics = json.loads((output_dir / "metrics.json").read_text())
    shutil.rmtree(output_dir)
    return {
        "accuracy": {name: metrics[name]["accuracy"] for name in SPLITS},
        "interval95": metrics["test"]["interval95"],
        "seconds": seconds,
        "memory": metrics["memory"].get("peak_gb"),
        "precision": metrics["weights"].get("precision", "float32"),
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
        "precision": "float32",
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


def describe_origin(runs: list[dict[str, Any]]) -> str:
    """Return the machines, versions, weights and dates of a row's runs."""
    origins = set()
    for result in runs:
        if v := result["versions"]:
            origins.add(
                f"{v['cores']} cores of {v['processor']}, {result['precision']}; Python "
                f"{v['python']}, TensorFlow {v['tensorflow']}, Keras {v['keras']}"
            )
    weights = {result["weights"] for result in runs} - {None}
    dates = sorted(result["date"] for result in runs)
    date = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return "; ".join([*sorted(origins), *sorted(weights), date])


def table_row(row: str, runs: list[dict[str, Any]]) -> list[str]:
    """Return the cells of a row below `HEADER`."""
    peaks = [result["memory"] for result in runs if result["memory"]]
    extrapolated = " (extrapolated)" if row == "naive" else ""
    return [
        f"`python {ROWS[row]}`",
        str(len(runs)),
        *(format_accuracy(runs, split) for split in SPLITS),
        format_duration(median_seconds(runs, first=True)) + extrapolated,
        format_duration(median_seconds(runs, first=False)),
        f"{max(peaks):.1f} GB" if peaks else "–",
        describe_origin(runs),
    ]


def read_table(path: Path) -> dict[str, list[str]]:
    """Return {row name: cells} of a table that `main` wrote; {} if there is none."""
    if not path.exists():
        return {}
    names = {f"`python {command}`": name for name, command in ROWS.items()}
    table = {}
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in names:
            table[names[cells[0]]] = cells
    return table


def parse_minutes(cell: str) -> float | None:
    """Return the minutes of a cell that `format_duration` wrote, or None."""
    if not (match := re.match(r"([\d.]+) (s|min|h)", cell)):
        return None
    return float(match[1]) * {"s": 1 / 60, "min": 1, "h": 60}[match[2]]


def plot_frontier(table: dict[str, list[str]], path: Path) -> None:
    """Plot accuracy against minutes: first runs filled, later ones hollow."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for row, cells in table.items():
        mean, *deviation = map(float, re.findall(r"[\d.]+", cells[4].split("%")[0]))
        times = {first: parse_minutes(cells[5 if first else 6]) for first in (True, False)}
        times = {first: minutes for first, minutes in times.items() if minutes}
        if not times or "--train-size" in cells[0]:
            continue
        color = axes.plot(list(times.values()), [mean] * len(times), ":", zorder=1)[0].get_color()
        for first, minutes in times.items():
            face = color if first and row != "naive" else "white"
            axes.errorbar(
                *(minutes, mean, deviation[0] if deviation else None),
                fmt="o",
                color=color,
                markerfacecolor=face,
                capsize=3,
            )
        axes.annotate(
            LABELS.get(row, row),
            (max(times.values()), mean),
            xytext=(0, -20),
            textcoords="offset points",
            ha="center",
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
    path = options.output / "accuracy.md"
    table = read_table(path)
    for row in options.rows:
        seeds = options.seeds[: MAX_SEEDS.get(row)]
        table[row] = table_row(row, [measure(row, seed, options) for seed in seeds])
        print(*table[row], sep=" | ", flush=True)
    table = {row: table[row] for row in ROWS if row in table}
    options.output.mkdir(parents=True, exist_ok=True)
    lines = [HEADER, ["---"] * len(HEADER), *table.values()]
    path.write_text("\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{CAPTION}\n")
    plot_frontier(table, options.output / "frontier.png")
    print("\n" + path.read_text())


if __name__ == "__main__":
    main()
