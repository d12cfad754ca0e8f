"""Compare the scripts with plain Keras and other runtimes on this machine.

Each section writes a table (a Markdown file in --output; docs/results.md contains copies):

  runtimes    feature extraction by ResNet50: this project, plain Keras, and, if installed (see
              docs/use-the-model.md), OpenVINO and ONNX Runtime, with equal weights and images
  end_to_end  first and later runs of the recipes, compared with the naive Keras script, whose
              time is extrapolated from a few images
  baseline    an epoch of the small dense network: cnn_basic.py and a plain `fit`
  time_to_90  README's quick run, whose 95% CI of the validation accuracy should lie above 90%

In each round, the compared commands take turns; a table shows medians over the rounds. Plain Keras
is timed in the validation inside `fit`, which trains no head, so that it is not made to look slow.
bfloat16 is slow on a CPU that does not support it. The machine must be idle.
"""

import argparse
import collections
import csv
import datetime
import importlib.metadata
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runner
from runner import format_duration, format_memory, format_range, measure

EPOCHS = 10  # of end_to_end and baseline
# Row of `runtimes`: its runtime ("" for plain Keras) and precision.
RUNTIMES = {
    "Keras, validation in `fit`, float32": ("", "float32"),
    "Keras, validation in `fit`, bfloat16": ("", "bfloat16"),
    "this project, float32": ("project", "float32"),
    "this project, bfloat16": ("project", "bfloat16"),
    "OpenVINO, float32": ("openvino", "float32"),
    "OpenVINO, bfloat16": ("openvino", "bfloat16"),
    "ONNX Runtime, float32": ("onnxruntime", "float32"),
}
QUICK_RUN = "resnet50_fashion.py --recipe fast --image-size 64"
QUICK_RUN += " --train-size 5000 --validation-size 2000 --test-size 2000"
Section = tuple[str, dict[str, Any]]  # table with notes, and versions of metrics.json


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = runner.argument_parser(__doc__)
    text = f"any of {', '.join(SECTIONS)} (default: all)"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=text)
    text = "rounds of each section (default: %(default)s)"
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help=text)
    directory, text = Path(__file__).parent / "results", "directory of the tables"
    parser.add_argument("--output", type=Path, default=directory, help=text)
    options = parser.parse_args()
    if unknown := sorted(set(options.sections) - set(SECTIONS)):
        parser.error(f"unknown section {unknown[0]}; choose from {', '.join(SECTIONS)}")
    return options


def main() -> None:
    """Run each section and write its table."""
    options = parse_options()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.sections or SECTIONS:
        with tempfile.TemporaryDirectory() as directory:
            text, versions = SECTIONS[name](options, Path(directory))
        details = [runner.describe(versions)]
        if name == "runtimes":
            packages = filter(importlib.util.find_spec, ("openvino", "onnxruntime"))
            details += [f"{package} {importlib.metadata.version(package)}" for package in packages]
        details.append(str(datetime.date.today()))
        command = f"python benchmarks/speed.py {name} --rounds {options.rounds}"
        if name != "baseline":
            command += f" --weights {Path(options.weights).name}"
        details.append(f"`{command}`")
        text += f"\n*{'; '.join(details)}*\n"
        (options.output / f"{name}.md").write_text(text)
        print(f"\n{text}", flush=True)


def runtimes(options: argparse.Namespace, directory: Path) -> Section:
    """Compare the feature extraction of the runtimes."""
    rates: dict[str, list[float]] = collections.defaultdict(list)
    results = {}
    for _ in range(options.rounds):
        for name, (runtime, precision) in RUNTIMES.items():
            if not runtime:
                rates[name] += runner.naive_rates(options, directory, precision)
            elif runtime == "project" or importlib.util.find_spec(runtime):
                argv = ["benchmarks/runtimes.py", runtime, "--precision", precision]
                argv += runner.path_args(options)
                results[name] = measure(*argv, output_dir=directory)
                rates[name] += results[name]["images_per_second"]
    rows = []
    reference = statistics.median(next(iter(rates.values())))
    for name, values in rates.items():
        speedup = f"{statistics.median(values) / reference:.1f} ×"
        difference = f"{results[name]['difference']:.1%}" if name in results else "–"
        rows.append([name, format_range(values), speedup, difference])
    header = ["runtime, precision", "images/s", "speedup", "difference"]
    notes = (
        f"Median (range) of {len(rates['this project, float32'])} turns. Keras: "
        f"{runner.NUM_NAIVE_IMAGES} images per turn, upscaled by tf.data; this project: 250, from "
        "raw images to files; others: 250 upscaled images in memory. Batch size 32, in this "
        "project 125. Difference: mean absolute difference of 32 images' features from those of "
        "Keras in float32, divided by their standard deviation."
    )
    versions = results["this project, float32"]["versions"]
    return runner.markdown_table(header, rows, notes), versions


def end_to_end(options: argparse.Namespace, directory: Path) -> Section:
    """Compare the recipes with the naive Keras script."""
    sizes = {"train": 10_000, "validation": 1000, "test": 2000}
    arguments = [*runner.path_args(options), "--epochs", EPOCHS, "--patience", EPOCHS]
    for name, size in sizes.items():
        arguments += [f"--{name}-size", size]
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    runs: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for i in range(options.rounds):
        for precision in rates:
            rates[precision] += runner.naive_rates(options, directory, precision)
        for recipe in ("plain", "fast", "best"):
            cache_dir = directory / f"{recipe}-{i}"
            argv = [*arguments, "--recipe", recipe, "--cache-dir", cache_dir]
            for label in "first run", "later run":
                metrics = measure("resnet50_fashion.py", *argv, output_dir=directory / "output")
                runs[f"`--recipe {recipe}`, {label}"].append(metrics)
    naive, rows = {}, []
    for precision, values in rates.items():
        naive[precision] = runner.naive_seconds(sizes, EPOCHS, statistics.median(values))
        time = f"{format_duration(naive[precision])} (extrapolated)"
        speedup = f"{naive['float32'] / naive[precision]:.1f} ×"
        rows.append([f"naive Keras script, {precision}", time, speedup, "–"])
    for name, results in runs.items():
        seconds = statistics.median(result["command_seconds"] for result in results)
        speedup = f"{naive['float32'] / seconds:,.0f} ×"
        memory = format_memory(result["peak_gb"] for result in results)
        rows.append([name, format_duration(seconds), speedup, memory])
    notes = (
        f"10,000 training, 1,000 validation, 2,000 test images, {EPOCHS} epochs; complete commands "
        f"of `resnet50_fashion.py` in {metrics['weights']['precision']}, medians (n = "
        f"{options.rounds}). The naive Keras script (frozen backbone inside `fit`, upscaling by "
        "tf.data) is extrapolated from its median rate in the validation of "
        f"{runner.NUM_NAIVE_IMAGES} images, {format_range(rates['float32'])} and "
        f"{format_range(rates['bfloat16'])} images/s. The naive script computes the features of "
        "`plain`; `fast` and `best` take a quarter of the pixels."
    )
    header = ["", "time", "speedup", "memory"]
    return runner.markdown_table(header, rows, notes), metrics["versions"]


def baseline(options: argparse.Namespace, directory: Path) -> Section:
    """Compare cnn_basic.py with a plain `fit`."""
    commands = {
        "plain `fit`": ["benchmarks/naive_keras.py", "basic"],
        "`cnn_basic.py`": ["cnn_basic.py"],
    }
    arguments = [*runner.path_args(options, has_backbone=False), "--epochs", EPOCHS]
    runs: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    epochs: dict[str, list[float]] = collections.defaultdict(list)
    for _ in range(options.rounds):
        for name, command in commands.items():
            runs[name].append(measure(*command, *arguments, output_dir=directory))
            seconds = runs[name][-1].get("epoch_seconds") or read_epoch_seconds(directory)
            epochs[name] += seconds[1:]  # the first epoch compiles
    rows = []
    reference = statistics.median(next(iter(epochs.values())))
    for name, results in runs.items():
        epoch = f"{format_range(epochs[name], 2)} s"
        speedup = f"{reference / statistics.median(epochs[name]):.1f} ×"
        command = f"{format_range([result['command_seconds'] for result in results])} s"
        memory = format_memory(result["peak_gb"] for result in results)
        rows.append([name, epoch, speedup, command, memory])
    header = ["", "epoch", "speedup", "complete command", "memory"]
    notes = (
        f"Median (range) of the epochs after the first, {EPOCHS} epochs, batch size 32, "
        f"{options.rounds} alternating commands each. The plain script does not evaluate the test "
        "images, and plots and saves nothing."
    )
    return runner.markdown_table(header, rows, notes), results[-1]["versions"]


def read_epoch_seconds(output_dir: Path) -> list[float]:
    """Return the seconds of each epoch in history.csv."""
    with open(output_dir / "history.csv") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)]


def time_to_90(options: argparse.Namespace, directory: Path) -> Section:
    """Measure README's quick run with an empty cache, each round with another seed."""
    runs = []
    for seed in range(options.rounds):
        argv = [*QUICK_RUN.split(), *runner.path_args(options), "--seed", seed]
        argv += ["--cache-dir", directory / f"cache-{seed}"]
        runs.append(measure(*argv, output_dir=directory / "output"))
    lowest = min(run["validation"]["accuracy_ci95"][0] for run in runs)
    row = [
        f"`{QUICK_RUN}`",
        runner.format_mean([run["validation"]["accuracy"] for run in runs], 1),
        f"{lowest:.1%}",
        format_duration(statistics.median(run["command_seconds"] for run in runs)),
        format_memory(run["peak_gb"] for run in runs),
    ]
    header = ["", "validation accuracy", "95% CI above", "time", "memory"]
    notes = (
        f"{options.rounds} complete commands with different seeds and an empty cache: mean ± "
        "standard deviation, the lowest bound of the 95% CIs, and median time."
    )
    return runner.markdown_table(header, [row], notes), runs[-1]["versions"]


SECTIONS: dict[str, Callable[[argparse.Namespace, Path], Section]] = {
    function.__name__: function for function in (runtimes, end_to_end, baseline, time_to_90)
}

if __name__ == "__main__":
    main()
