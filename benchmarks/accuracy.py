"""The command behind README's accuracies: the scripts over seeds; mean ± standard deviation.

The table (a Markdown file, --output) has a row for each of --rows; its first column is what is run.
Each row has a feature cache of its own in --work: its first run starts from an empty one, the later
ones from its features. Each run's figures are kept there, too: an interrupted command goes on where
it was. Delete a file, or the folder, to measure anew.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    "subset": f"resnet50_fashion.py --features conv4 {SUBSET}",
    "frozen": "resnet50_fashion.py --train-size 10000",
    "tuned": "resnet50_fashion.py --train-size 10000 --fine-tune-blocks 1",
}
DEFAULT = ("basic", "basic10", "published", "fast", "best")


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
        default=Path(__file__).parent / "results" / "accuracy.md",
        help="the table's file (default: %(default)s)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("outputs") / "accuracy",
        help="keeps figures and features (default: %(default)s)",
    )
    parser.add_argument("--weights", default="imagenet", help="as resnet50_fashion.py's")
    options, options.more = parser.parse_known_args()
    return options


def measure(row: str, seed: int, options: argparse.Namespace) -> dict:
    """A run's figures, from an earlier call or by running it; exits if it fails."""
    script, *arguments = ROWS[row].split()
    if script == "resnet50_fashion.py":
        arguments += ["--weights", options.weights, "--cache-dir", str(options.work / row)]
    arguments += [*options.more, "--seed", str(seed)]
    kept = options.work / f"{row}-{seed}.json"
    if kept.exists():
        result = json.loads(kept.read_text())
        if result["arguments"] != arguments:
            sys.exit(f"accuracy.py: error: {kept} is of other options: delete it, or use --work")
        return result
    print("$", script, *arguments, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / script), *arguments]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--wandb", "disabled", "--output-dir", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{done.stdout}\naccuracy.py: error: {script} failed, see above")
        metrics = json.loads((Path(folder) / "metrics.json").read_text())
    result = {
        "arguments": arguments,
        "accuracy": {name: metrics[name]["accuracy"] for name in ("train", "validation", "test")},
        "seconds": seconds,
        "memory": metrics["memory"].get("peak_gb"),
        "extracted": (metrics.get("extraction") or {}).get("images_per_second") is not None,
        "versions": metrics["versions"],
        "date": str(datetime.date.today()),
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(".incomplete")
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.replace(kept)
    return result


def percent(accuracies: list[float]) -> str:
    """Mean ± standard deviation (of a sample, so that of at least two)."""
    values = [100 * accuracy for accuracy in accuracies]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation} %"


def minutes(results: list[dict]) -> str:
    """The median of whole commands."""
    if not results:
        return "–"
    seconds = statistics.median(result["seconds"] for result in results)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def main() -> None:
    """Each row's runs → the table."""
    options = parse_options()
    header = ["command", "train", "validation", "test", "first run", "later runs", "memory"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in options.rows:
        results = [measure(row, seed, options) for seed in options.seeds]
        accuracies = [
            percent([result["accuracy"][split] for result in results])
            for split in ("train", "validation", "test")
        ]
        first = [result for result in results if result["extracted"]]
        later = [result for result in results if not result["extracted"]]
        peak = max((result["memory"] or 0) for result in results)
        cells = [f"`python {ROWS[row]}`", *accuracies, minutes(first), minutes(later)]
        lines.append(f"| {' | '.join(cells)} | {peak:.1f} GB |")
        print(lines[-1], flush=True)
    versions = results[-1]["versions"]
    lines += [
        "",
        f"*Mean ± standard deviation over seeds {', '.join(map(str, options.seeds))}; times of "
        "whole commands (the first from an empty cache, the later ones' median), the largest peak "
        "memory; "
        f"{versions['cores']} cores of {versions['processor']}, Python {versions['python']}, "
        f"TensorFlow {versions['tensorflow']}, Keras {versions['keras']}; weights "
        f"{Path(options.weights).name}; {results[-1]['date']}; "
        f"`python benchmarks/accuracy.py --rows {' '.join(options.rows)} --seeds "
        f"{' '.join(map(str, options.seeds))}`*",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n")
    print("\n" + options.output.read_text())


if __name__ == "__main__":
    main()
