"""Compare frozen backbones by validation accuracy, speed and width of the features.

Each combination of --backbones, --sizes and --heads is a run of resnet50_fashion.py on a part of
the training images, judged by validation accuracy. Runs with equal backbone and image size share
cached features. The table (backbones.md) contains all runs in --output; a run whose results are
there is not repeated, so an interrupted benchmark resumes where it stopped.

With --rounds, the networks of the table take turns at extracting the features of a few images, in
one process. The speedup compares with ResNet50 at 112×112 in the same round, by CPU time, which
other work on the machine affects less than images/s.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import accuracy

ROOT = Path(__file__).parents[1]
BACKBONES = ("resnet50", "mobilenetv2", "efficientnetv2b0", "inceptionv3")
HEADS = {
    "conv5": "--recipe fast --features conv5",
    "conv4": "--recipe fast --features conv4",
    "fast": "--recipe fast",
    "best": "--recipe best",
}
REFERENCE = "resnet50-112-fast"
HEADER = ["options", "validation", "features", "images/s", "speedup", "weights"]


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(flag: str, default: Any, text: str, **kwargs: Any) -> None:
        parser.add_argument(flag, default=default, help=f"{text} (default: %(default)s)", **kwargs)

    add("--backbones", BACKBONES, "backbones", nargs="+", metavar="NAME")
    add("--sizes", [112], "image sizes", nargs="+", type=int, metavar="N")
    add("--heads", list(HEADS), "heads", nargs="+", choices=HEADS, metavar="HEAD")
    add("--seeds", [0], "seeds of each run", nargs="+", type=int, metavar="N")
    add("--train-size", 12_000, "training images", type=int, metavar="N")
    add("--validation-size", 5000, "validation images", type=int, metavar="N")
    add("--precision", "auto", "as for the script", metavar="NAME")
    add("--rounds", 0, "rounds of the speed measurement", type=int, metavar="N")
    add("--images", 500, "images per round, a multiple of 125", type=int, metavar="N")
    add("--output", Path("outputs/backbones"), "directory of the results", type=Path)
    add("--work-dir", Path("outputs/backbones-work"), "features and logs", type=Path)
    add("--data-dir", None, "as for the scripts", type=Path)
    add("--weights", ["imagenet"], "as for accuracy.py", nargs="+", metavar="[BACKBONE=]WEIGHTS")
    options = parser.parse_args()
    if options.images < 1 or options.images % 125:
        parser.error(f"--images: must be a multiple of 125, got {options.images}")
    return options


def script_argv(name: str) -> list[str]:
    """Return the arguments of resnet50_fashion.py for "backbone-size-head"."""
    backbone, size, head = name.split("-")
    argv = HEADS[head].split()
    return [*argv, "--image-size", size] + (
        [] if backbone == "resnet50" else ["--backbone", backbone]
    )


def network_argv(name: str, options: argparse.Namespace) -> list[str]:
    """Return the arguments of `script_argv`, and those of weights and precision."""
    argv = script_argv(name)
    weights = accuracy.weights_of(" ".join(argv), options)
    return [*argv, "--weights", weights, "--precision", options.precision]


def identity(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what must be equal for the results of a run to be used again."""
    weights = accuracy.weights_of(" ".join(script_argv(name)), options)
    values = {
        "train_size": options.train_size,
        "validation_size": options.validation_size,
        "weights": Path(weights).name,  # no directories of this machine
    }
    return values if options.precision == "auto" else values | {"precision": options.precision}


def read_runs(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the results in --output, by "backbone-size-head"; exit if one has other options."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((options.output / "runs").glob("*.json")):
        name, result = path.stem.rsplit("-", 1)[0], json.loads(path.read_text())
        expected = identity(name, options)
        if {key: result[key] for key in expected} != expected:
            sys.exit(f"backbones.py: error: {path} has other options; use another --output")
        runs.setdefault(name, []).append(result)
    return runs


def measure_accuracy(name: str, seed: int, options: argparse.Namespace) -> None:
    """Run the script and store its validation accuracy; exit if it fails."""
    path = options.output / "runs" / f"{name}-{seed}.json"
    if path.exists():
        return
    argv = [*network_argv(name, options), "--seed", str(seed), "--test-size", "100"]
    argv += ["--train-size", str(options.train_size)]
    argv += ["--validation-size", str(options.validation_size)]
    argv += ["--cache-dir", str(options.work_dir / "features")]
    argv += ["--data-dir", str(options.data_dir)] if options.data_dir else []
    results = accuracy.run("resnet50_fashion.py", argv, options.work_dir / f"{name}-{seed}.log")
    result = {"validation": results["accuracy"]["validation"]} | identity(name, options)
    accuracy.write_json(path, result | {k: results[k] for k in ("precision", "versions")})


def measure_speed(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return width of the features, and images per second and per CPU second, by name."""
    sys.path.insert(0, str(ROOT))
    from fashion import devices
    from fashion.backbones.feature_cache import CHUNK_SIZE
    from fashion.cli import command_line

    import common
    import resnet50_fashion as script

    data = common.load_fashion_mnist(
        common.DataOptions(data_dir=options.data_dir, validation_size=CHUNK_SIZE)
    )
    networks, speed = {}, {}
    for name in names:
        argv = network_argv(name, options)
        script_options = command_line.parse_options(script.Options, None, argv)
        backbone = script.load_backbone(script_options)
        networks[name] = script.build_feature_extractors(backbone, script_options.head)
        outputs = networks[name][""].output
        width = sum(outputs[feature].shape[1] for feature in script_options.head.feature_names)
        speed[name] = {"width": width, "rates": [], "cpu_rates": []}
        for extractor in networks[name].values():  # compiles
            devices.predict_on_replicas(extractor, [data.validation.images])
    for _ in range(options.rounds):
        for name, extractors in networks.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(options.images // CHUNK_SIZE):
                for extractor in extractors.values():
                    devices.predict_on_replicas(extractor, [data.validation.images])
            speed[name]["rates"].append(options.images / (time.perf_counter() - start))
            speed[name]["cpu_rates"].append(options.images / (time.process_time() - cpu_start))
    return speed


def table_row(name: str, runs: list[dict[str, Any]], speed: dict[str, Any]) -> list[str]:
    """Return the cells of a row below `HEADER`."""
    values = [100 * run["validation"] for run in runs]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    cells = [f"`{' '.join(script_argv(name))}`", f"{statistics.mean(values):.2f}{spread} %"]
    if name not in speed:
        return [*cells, "–", "–", "–", runs[0]["weights"]]
    cpu_rates, reference = speed[name]["cpu_rates"], speed[REFERENCE]["cpu_rates"]
    ratios = [a / b for a, b in zip(cpu_rates, reference, strict=True)]
    cells += [str(speed[name]["width"]), f"{statistics.median(speed[name]['rates']):.0f}"]
    return [*cells, f"{statistics.median(ratios):.2f} ×", runs[0]["weights"]]


def caption(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return what was measured, and the machine and the versions."""
    first, num_seeds = next(iter(runs.values()))[0], max(map(len, runs.values()))
    v = first["versions"]
    return (
        f"*Validation accuracy with {first['train_size']:,} training and "
        f"{first['validation_size']:,} validation images (seeds: {num_seeds}); width of the "
        "features; extracted images/s (median of the rounds), and the speedup by CPU time over "
        f"`--recipe fast` of ResNet50 in the same round; {v['cores']} cores of {v['processor']}, "
        f"{first['precision']}; Python {v['python']}, TensorFlow {v['tensorflow']}, Keras "
        f"{v['keras']}; `python benchmarks/backbones.py`*"
    )


def main() -> None:
    """Measure what is missing and write the table."""
    options = parse_options()
    read_runs(options)  # before any work, in case that one has other options
    for backbone in options.backbones:
        for size in options.sizes:
            for head in options.heads:
                for seed in options.seeds:
                    measure_accuracy(f"{backbone}-{size}-{head}", seed, options)
    runs = read_runs(options)
    speed_path = options.output / "speed.json"
    if options.rounds:
        speed = measure_speed(sorted({*runs, REFERENCE}), options)
        accuracy.write_json(speed_path, speed)
    speed = json.loads(speed_path.read_text()) if speed_path.exists() else {}
    lines = [HEADER, ["---"] * len(HEADER), *(table_row(n, r, speed) for n, r in runs.items())]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    (options.output / "backbones.md").write_text(f"{table}\n\n{caption(runs)}\n")
    print(f"\n{table}")


if __name__ == "__main__":
    main()
