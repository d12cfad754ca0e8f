"""The command behind README's accuracies: runs the scripts over seeds; mean ± standard deviation.

The table (a Markdown file, --output) has a row for each of --rows: what is run is in its first
column. The features are kept in --cache-dir as ever, so only the first ResNet50 run is a long one.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUBSET = "--train-size 5000 --validation-size 2000 --test-size 2000"
ROWS = {
    "basic": "cnn_basic.py",
    "basic16": "cnn_basic.py --hidden-units 16",
    "basic10": "cnn_basic.py --hidden-units 10",
    "conv5": "resnet50_fashion.py",
    "conv4": "resnet50_fashion.py --features conv4",
    "subset": f"resnet50_fashion.py --features conv4 {SUBSET}",
    "frozen": "resnet50_fashion.py --train-size 10000",
    "tuned": "resnet50_fashion.py --train-size 10000 --fine-tune-blocks 1",
}
LONG = {"frozen", "tuned"}  # one of these fine-tunes: 10 minutes a seed on 2 cores


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
        default=[name for name in ROWS if name not in LONG],
        metavar="ROW",
        help=f"of {', '.join(ROWS)} (default: all but the long ones, {', '.join(sorted(LONG))})",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results" / "accuracy.md",
        help="the table's file (default: %(default)s)",
    )
    parser.add_argument("--weights", default="imagenet", help="as resnet50_fashion.py's")
    options, options.more = parser.parse_known_args()
    return options


def run(row: str, seed: int, options: argparse.Namespace, folder: Path) -> dict:
    """Runs a row's command: its `metrics.json`; exits if it fails."""
    script, *arguments = ROWS[row].split()
    if script == "resnet50_fashion.py":
        arguments += ["--weights", options.weights]
    arguments += [*options.more, "--seed", str(seed)]
    print("$", script, *arguments, flush=True)
    command = [sys.executable, str(ROOT / script), *arguments]
    output = folder / f"{row}-{seed}"
    done = subprocess.run(
        [*command, "--wandb", "disabled", "--output-dir", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\naccuracy.py: error: {script} failed, see above")
    return json.loads((output / "metrics.json").read_text())


def percent(accuracies: list[float]) -> str:
    """Mean ± standard deviation (of a sample, so that of at least two)."""
    values = [100 * accuracy for accuracy in accuracies]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation} %"


def main() -> None:
    """Each row's runs → the table."""
    options = parse_options()
    lines = ["| command | train | validation | test |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        for row in options.rows:
            results = [run(row, seed, options, Path(name)) for seed in options.seeds]
            cells = [
                percent([metrics[split]["accuracy"] for metrics in results])
                for split in ("train", "validation", "test")
            ]
            lines.append(f"| `python {ROWS[row]}` | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    versions = results[0]["versions"]
    lines += [
        "",
        f"*Mean ± standard deviation over {len(options.seeds)} seeds; {versions['cores']} cores of "
        f"{versions['processor']}, Python {platform.python_version()}, TensorFlow "
        f"{versions['tensorflow']}, Keras {versions['keras']}; weights "
        f"{Path(options.weights).name}; {datetime.date.today()}; "
        f"`python benchmarks/accuracy.py --rows {' '.join(options.rows)}`*",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n")
    print("\n" + options.output.read_text())


if __name__ == "__main__":
    main()
