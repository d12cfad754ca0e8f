"""Measure test accuracy by the number of images per class, on image folders of Fashion-MNIST.

For each N of --counts, N training images and 100 test images of each class are written as PNG files
to one directory per class, and both scripts are run on them as on a user's image folder. The result
is a table of test accuracies (a Markdown file, --output).
"""

import datetime
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fashion.datasets import fashion_mnist

import numpy as np
from PIL import Image

import runner

COUNTS = (10, 20, 50, 100, 200, 500)
NUM_TEST_IMAGES = 100  # per class


def write_image_folder(directory: Path, images: np.ndarray, labels: np.ndarray, count: int) -> None:
    """Write the first `count` images of each class as PNG files, one directory per class."""
    for label in np.unique(labels):
        (directory / str(label)).mkdir(parents=True, exist_ok=True)
        for row in np.flatnonzero(labels == label)[:count]:
            Image.fromarray(images[row]).save(directory / str(label) / f"{row:05}.png")


def main() -> None:
    """Run the scripts for each count and write the table."""
    parser = runner.argument_parser(__doc__)
    text = f"training images per class (default: {' '.join(map(str, COUNTS))})"
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, metavar="N", help=text)
    text = "seeds of the scripts (default: 0 1 2)"
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help=text)
    path = Path(__file__).parent / "results" / "learning_curve.md"
    parser.add_argument("--output", type=Path, default=path, help="file of the table")
    options = parser.parse_args()

    raw = fashion_mnist.load_idx_dataset(options.data_dir)
    weights = ["--weights", options.weights]
    commands = {"cnn_basic.py": [], "resnet50_fashion.py --recipe fast": weights}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory, data_dir = Path(name), Path(name) / "data"
        test = raw.test_images, raw.test_labels
        write_image_folder(data_dir / "test", *test, NUM_TEST_IMAGES)
        paths = ["--data-dir", data_dir, "--cache-dir", directory / "cache"]
        for count in sorted(options.counts):  # ascending: images are only added
            write_image_folder(data_dir / "train", raw.train_images, raw.train_labels, count)
            rows.append([str(count)])
            for command, arguments in commands.items():
                results = []
                for seed in options.seeds:
                    argv = [*command.split(), *arguments, *paths, "--seed", seed]
                    results.append(runner.measure(*argv, output_dir=directory / "output"))
                accuracies = [result["test"]["accuracy"] for result in results]
                rows[-1].append(runner.format_mean(accuracies, digits=1))
    header = ["images per class", *(f"`{command}`" for command in commands)]
    notes = (
        f"*Test accuracy on {NUM_TEST_IMAGES} images per class, mean ± standard deviation over "
        f"{len(options.seeds)} seeds; a twelfth of the training images (at least one per class) is "
        f"used for validation; {runner.describe(results[-1]['versions'])}; weights "
        f"{Path(options.weights).name}; {datetime.date.today()}; "
        "`python benchmarks/learning_curve.py`*"
    )
    text = runner.markdown_table(header, rows, notes)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
