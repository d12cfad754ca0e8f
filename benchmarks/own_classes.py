"""How many pictures of a class are enough: the scripts on Fashion-MNIST's own images as pictures.

For each of --counts, so many training images of each class are written as PNG files into a folder
for each class, and 100 test images of each; each command is run on them as on anybody's pictures.
The table (a Markdown file, --output) has test accuracies.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fashion.datasets import fashion_mnist

import numpy as np
from PIL import Image

COMMANDS = ("cnn_basic.py", "resnet50_fashion.py --recipe fast")
TEST = 100  # images of each class


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    counts = [10, 20, 50, 100, 200, 500]
    parser.add_argument("--counts", nargs="+", type=int, default=counts, metavar="N")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--data-dir", type=Path, help="as the scripts'")
    parser.add_argument("--weights", default="imagenet", help="as resnet50_fashion.py's")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results" / "own_classes.md",
        help="the table's file (default: %(default)s)",
    )
    return parser.parse_args()


def write(folder: Path, images: np.ndarray, labels: np.ndarray, count: int) -> None:
    """The first so many images of each class, as PNG files in the folder of its number."""
    for label in np.unique(labels):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for row in np.flatnonzero(labels == label)[:count]:
            Image.fromarray(images[row]).save(folder / str(label) / f"{row:05}.png")


def measure(command: str, seed: int, data: Path, options: argparse.Namespace) -> dict:
    """A run's metrics.json; exits if it fails."""
    script, *words = command.split()
    if script == "resnet50_fashion.py":
        words += ["--weights", options.weights]
    work = data.parent
    words += ["--data-dir", str(data), "--seed", str(seed), "--wandb", "disabled"]
    words += ["--cache-dir", str(work / "cache"), "--output-dir", str(work / "output")]
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nown_classes.py: error: {script} failed, see above")
    return json.loads((work / "output" / "metrics.json").read_text())


def main() -> None:
    """Each count's runs → the table."""
    options = parse_options()
    files = fashion_mnist.find(options.data_dir)
    lines = [
        f"| pictures a class | {' | '.join(f'`{command}`' for command in COMMANDS)} |",
        "|" + "---|" * (1 + len(COMMANDS)),
    ]
    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "data"
        write(data / "test", files.test_images, files.test_labels, TEST)
        for count in sorted(options.counts):  # the folder only gets more
            write(data / "train", files.train_images, files.train_labels, count)
            cells = [str(count)]
            for command in COMMANDS:
                results = [measure(command, seed, data, options) for seed in options.seeds]
                accuracies = [100 * result["test"]["accuracy"] for result in results]
                spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
                cells.append(f"{statistics.mean(accuracies):.1f}{spread} %")
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    versions = results[-1]["versions"]
    lines += [
        "",
        f"*Test accuracy on {TEST} pictures a class, mean ± standard deviation over seeds "
        f"{', '.join(map(str, options.seeds))}; of the pictures a class, a twelfth is for "
        f"validation. TensorFlow {versions['tensorflow']}, Keras {versions['keras']}; weights "
        f"{Path(options.weights).name}; {datetime.date.today()}; "
        f"`python benchmarks/own_classes.py --counts {' '.join(map(str, options.counts))} "
        f"--seeds {' '.join(map(str, options.seeds))}`*",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
