"""Measure test accuracy by the number of images per class, on image folders of Fashion-MNIST.

For each N of --counts, N training images and 100 test images of each class are written as PNG files
to one directory per class, and both scripts are run on them as on a user's image folder. The result
is a table of test accuracies (a Markdown file, --output).
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
TEST_IMAGES_PER_CLASS = 100


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    counts = [10, 20, 50, 100, 200, 500]
    parser.add_argument(
        "--counts",
        nargs="+",
        type=int,
        default=counts,
        metavar="N",
        help=f"training images per class (default: {' '.join(map(str, counts))})",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="N",
        help="seeds of the scripts (default: 0 1 2)",
    )
    parser.add_argument("--data-dir", type=Path, help="as for the scripts")
    parser.add_argument("--weights", default="imagenet", help="as for resnet50_fashion.py")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results" / "learning_curve.md",
        help="file of the table (default: %(default)s)",
    )
    return parser.parse_args()


def write_image_folder(directory: Path, images: np.ndarray, labels: np.ndarray, count: int) -> None:
    """Write the first `count` images of each class as PNG files, one directory per class."""
    for label in np.unique(labels):
        (directory / str(label)).mkdir(parents=True, exist_ok=True)
        for row in np.flatnonzero(labels == label)[:count]:
            Image.fromarray(images[row]).save(directory / str(label) / f"{row:05}.png")


def measure(command: str, seed: int, data: Path, options: argparse.Namespace) -> dict:
    """Run a script and return its metrics.json; exit if it fails."""
    script, *argv = command.split()
    if script == "resnet50_fashion.py":
        argv += ["--weights", options.weights]
    work_dir = data.parent
    argv += ["--data-dir", str(data), "--seed", str(seed), "--wandb", "disabled"]
    argv += ["--cache-dir", str(work_dir / "cache"), "--output-dir", str(work_dir / "output")]
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nlearning_curve.py: error: {script} failed, see above")
    return json.loads((work_dir / "output" / "metrics.json").read_text())


def main() -> None:
    """Run the scripts for each count and write the table."""
    options = parse_options()
    raw = fashion_mnist.load_idx_dataset(options.data_dir)
    lines = [
        f"| images per class | {' | '.join(f'`{command}`' for command in COMMANDS)} |",
        "|" + "---|" * (1 + len(COMMANDS)),
    ]
    with tempfile.TemporaryDirectory() as work_dir:
        data = Path(work_dir) / "data"
        write_image_folder(data / "test", raw.test_images, raw.test_labels, TEST_IMAGES_PER_CLASS)
        for count in sorted(options.counts):  # ascending: images are only added
            write_image_folder(data / "train", raw.train_images, raw.train_labels, count)
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
        f"*Test accuracy on {TEST_IMAGES_PER_CLASS} images per class, mean ± standard deviation "
        f"over seeds {', '.join(map(str, options.seeds))}; a twelfth of the training images (at "
        f"least one per class) is used for validation. "
        f"TensorFlow {versions['tensorflow']}, Keras {versions['keras']}; "
        f"weights {Path(options.weights).name}; {datetime.date.today()}; "
        f"`python benchmarks/learning_curve.py --counts {' '.join(map(str, options.counts))} "
        f"--seeds {' '.join(map(str, options.seeds))}`*",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
