"""Measured commands and Markdown tables, shared by the benchmarks."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NUM_NAIVE_IMAGES = 128  # of the naive Keras script that are timed


def argument_parser(description: str | None, **kwargs: Any) -> argparse.ArgumentParser:
    """Return a parser with the options for data and weights."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter, **kwargs)
    parser.add_argument("--data-dir", type=Path, help="as for the scripts")
    parser.add_argument(
        "--weights", default="imagenet", help="as for resnet50_fashion.py (default: %(default)s)"
    )
    return parser


def path_args(options: argparse.Namespace, has_backbone: bool = True) -> list[object]:
    """Return `--data-dir`, if given, and `--weights` as arguments."""
    arguments = ["--data-dir", options.data_dir] if options.data_dir else []
    return [*arguments, "--weights", options.weights] if has_backbone else arguments


def measure(script: object, *arguments: object, output_dir: Path) -> dict[str, Any]:
    """Run a script without W&B; exit if it fails.

    Returns:
        Its metrics.json, with "command_seconds" and "peak_gb" of the complete command.
    """
    argv = [str(ROOT / str(script)), *map(str, arguments), "--output-dir", str(output_dir)]
    print("$ python", script, *argv[1:], flush=True)
    environment = os.environ | {"WANDB_MODE": "disabled"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *argv], env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {script} failed, see above")
    metrics = json.loads((output_dir / "metrics.json").read_text())
    return metrics | {"command_seconds": seconds, "peak_gb": metrics["memory"].get("peak_gb")}


def naive_rates(
    options: argparse.Namespace, output_dir: Path, precision: str = "float32"
) -> list[float]:
    """Return the images/s of ResNet50 in the validation inside `fit`, by epoch.

    Validation trains no head, so plain Keras is not made to look slow. The first epoch, which
    compiles, is left out.
    """
    argv = ["benchmarks/naive_keras.py", "resnet50", "--precision", precision, "--epochs", 4]
    argv += ["--train-size", 32, "--validation-size", NUM_NAIVE_IMAGES, *path_args(options)]
    metrics = measure(*argv, output_dir=output_dir)
    return [NUM_NAIVE_IMAGES / seconds for seconds in metrics["validation_seconds"][1:]]


def naive_seconds(sizes: dict[str, int], epochs: int, rate: float) -> float:
    """Extrapolate the seconds of the naive Keras script from images/s.

    All training and validation images go through the network in each epoch, the test images at the
    end.
    """
    return (epochs * (sizes["train"] + sizes["validation"]) + sizes["test"]) / rate


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically, with its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = path.with_suffix(".incomplete")
    tmp_path.write_text(json.dumps(content, indent=2) + "\n")
    tmp_path.replace(path)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], notes: str) -> str:
    """Format a Markdown table, with notes below it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{notes}\n"


def format_range(values: Sequence[float], digits: int = 1) -> str:
    """Format median and range."""
    low, median, high = min(values), statistics.median(values), max(values)
    return f"{median:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def format_duration(seconds: float) -> str:
    """Format a duration, such as "58 s" or "3.5 min"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_mean(fractions: Sequence[float], digits: int) -> str:
    """Format mean ± sample standard deviation in percent."""
    values = [100 * fraction for fraction in fractions]
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}%"


def format_memory(peaks: Iterable[float | None]) -> str:
    """Format the largest of peak memories in GB, as far as they are known."""
    known = [peak for peak in peaks if peak]
    return f"{max(known):.1f} GB" if known else "–"


def describe(versions: dict[str, Any]) -> str:
    """Describe machine and versions as recorded in metrics.json."""
    return (
        f"{versions['cores']} cores of {versions['processor']}; Python {versions['python']}, "
        f"TensorFlow {versions['tensorflow']}, Keras {versions['keras']}"
    )
