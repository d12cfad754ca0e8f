"""Benchmark the scripts against plain Keras and other runtimes on this machine.

Each section writes a table (a Markdown file in --output; docs/results.md contains copies):

  runtimes    feature extraction by ResNet50: this project, plain Keras and other runtimes with
              equal weights and images, as a fraction of the CPU's matrix-multiplication rate.
              Each runtime is a process, and they take turns. Also the recipes' extraction,
              compared with the network alone, without reading, writing and progress.
  end_to_end  first and later runs of the recipes, compared with the naive Keras script, whose
              time is measured on a few images and extrapolated
  baseline    an epoch of the small dense network: cnn_basic.py and a plain `fit` at batch size 32
  scaling     seconds and memory of a first run by the number of images, and a linear fit
  fine_tuning images/s of fine-tuning conv2 to conv4 at 80×80, with frozen and with trained batch
              normalization (Keras' layer, and the fused one), by batch size; and the share of the
              input pipeline
  time_to_90  seconds until the 95 % interval of the validation accuracy lies above 90 %, with the
              smallest subset that reaches it with three seeds

The default sections are runtimes, end_to_end and baseline: about 10 minutes on 2 cores with all
runtimes installed (pip install openvino onnxruntime onnx tf2onnx torch), and 5 without. All
runtimes are in memory at the same time; in docs/results.md, their peaks add up to 29 GB.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np  # nothing larger: a child's peak memory is at least its parent's at the fork

ROOT = Path(__file__).parents[1]
PROCESSES = multiprocessing.get_context("spawn")  # a fork's peak memory is at least its parent's
BATCH_SIZE = 32  # of the other runtimes; Keras' default
TRAIN, VALIDATION, TEST = "--train-size", "--validation-size", "--test-size"
RECIPES = "published", "fast", "best"
SMALL_RUN_ARGS = "--recipe", "fast", "--image-size", 64
# Training and validation images, smallest first. More validation images narrow the interval.
SUBSET_SIZES = [
    (5000, 2000),
    (5000, 3000),
    (6000, 3000),
    (8000, 3000),
    (8000, 4000),
    (10_000, 4000),
]


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help="default: runtimes end_to_end baseline"
    )
    parser.add_argument("--data-dir", type=Path, help="as for the scripts")
    parser.add_argument("--weights", default="imagenet", help="as for the scripts")
    parser.add_argument(
        "--images",
        type=int,
        default=125,
        help="images per turn of a runtime (default: %(default)s)",
    )
    parser.add_argument(
        "--extraction-images",
        type=int,
        default=2000,
        help="images per turn of a recipe's extraction (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="rounds of runtimes, baseline and fine_tuning (default: %(default)s)",
    )
    parser.add_argument(
        "--train-size",
        type=int,
        default=1000,
        help="training images of end_to_end, with 10 %% as many validation and 20 %% as many test "
        "images (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=10,
        help="epochs of end_to_end and baseline (default: %(default)s)",
    )
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=RECIPES,
        default=RECIPES,
        help="recipes of end_to_end (default: all)",
    )
    parser.add_argument(
        "--timed-images",
        type=int,
        default=128,
        help="images of the naive Keras script that are timed (default: %(default)s)",
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[500, 1000, 2000, 4000],
        help="numbers of images of scaling (default: %(default)s)",
    )
    parser.add_argument(
        "--tuning-images",
        type=int,
        default=1024,
        help="images per epoch of fine_tuning (default: %(default)s)",
    )
    parser.add_argument(
        "--tuning-blocks",
        type=int,
        default=13,
        help="blocks that fine_tuning trains (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        default=[64, 128, 256],
        help="batch sizes of fine_tuning (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="directory of the tables (default: %(default)s)",
    )
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(
            f"unknown section {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}"
        )
    if (
        min(
            options.images, options.rounds, options.train_size, options.epochs, options.timed_images
        )
        < 1
    ):
        parser.error(
            "--images, --rounds, --train-size, --epochs, --timed-images: expected numbers >= 1"
        )
    if min(options.sizes) < 50 or len(set(options.sizes)) < 2:
        parser.error("--sizes: at least two different sizes >= 50 are needed")
    return options


def main() -> None:
    """Run each section and write its table."""
    options = parse_options()
    for name in options.sections or ("runtimes", "end_to_end", "baseline"):
        table = SECTIONS[name](options)
        path = options.output / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{table}\n\n{caption(name, options)}\n")
        print(f"\n{path.read_text()}", flush=True)


def caption(section: str, options: argparse.Namespace) -> str:
    """Return machine, versions, date and command of a table."""
    command = ["python benchmarks/speed.py", section]
    for name in SECTION_OPTIONS[section]:
        values = np.ravel(getattr(options, name)).tolist()
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else ())
        if line.startswith("model name")
    ]
    packages = ("tensorflow", "keras", "openvino", "onnxruntime", "torch")
    found = {
        distribution.metadata["Name"].lower(): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    versions = ", ".join(f"{name} {found[name]}" for name in packages if name in found)
    return (
        f"*{os.cpu_count()} cores of {names[0] if names else platform.processor()}, Python "
        f"{platform.python_version()}, {versions}; {datetime.date.today()}; "
        f"weights {Path(options.weights).name}; `{' '.join(command)}`*"
    )


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def format_median_range(values: list[float], digits: int = 1) -> str:
    """Format median and range."""
    median = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    for unit, size in ("h", 3600), ("min", 60):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


# ---------------------------------------------------------------------------------- runtimes

# Each function returns `predict`: uint8 (N, 28, 28), or RGB images from `upscale`, whose time is
# not measured → float32 (N, 2048). Each runs in its own process.


def this_project(options: argparse.Namespace, precision: str) -> Callable:
    """Extract as resnet50_fashion.py does, including upscaling and all six features."""
    from fashion import devices
    from fashion.backbones.architectures import NetworkOptions
    from fashion.backbones.feature_cache import CHUNK_SIZE
    from fashion.devices import DeviceOptions

    import resnet50_fashion as script

    network = NetworkOptions(weights=options.weights)
    all_options = script.Options(network=network, devices=DeviceOptions(precision=precision))
    extractor = script.build_feature_extractor(script.load_backbone(all_options), ("conv5_avg",))

    def predict(images: np.ndarray) -> np.ndarray:
        chunks = [images[start : start + CHUNK_SIZE] for start in range(0, len(images), CHUNK_SIZE)]
        outputs = [devices.predict_on_replicas(extractor, [chunk])[0] for chunk in chunks]
        return np.concatenate([output["conv5_avg"] for output in outputs])

    return predict


def plain_keras(options: argparse.Namespace, policy: str = "float32") -> Callable:
    """Call `keras.applications.ResNet50(…).predict` on the backend of $KERAS_BACKEND."""
    model = plain_model(options, policy)
    return lambda rgb: model.predict(rgb, batch_size=BATCH_SIZE, verbose=0)


def plain_model(options: argparse.Namespace, policy: str = "float32"):
    """Build ResNet50 with average pooling: float32 (N, 224, 224, 3) → (N, 2048)."""
    import keras

    keras.config.set_dtype_policy(policy)
    is_imagenet = options.weights == "imagenet"
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(
        include_top=False,
        weights="imagenet" if is_imagenet else None,
        input_shape=(224, 224, 3),
        pooling="avg",
    )
    if not is_imagenet and options.weights != "none":
        model.load_weights(options.weights)
    return model


def pytorch(options: argparse.Namespace, policy: str) -> Callable:
    """Run the network eagerly on Keras' PyTorch backend, with tensors in channels_last order."""
    import torch

    model = plain_model(options, policy)

    def predict(rgb: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batches = [
                model(rgb[i : i + BATCH_SIZE], training=False)
                for i in range(0, len(rgb), BATCH_SIZE)
            ]
            return torch.cat(batches).float().numpy(force=True)

    return predict


def openvino(options: argparse.Namespace, precision: str) -> Callable:
    """Run the network with OpenVINO on the CPU."""
    import openvino

    with tempfile.TemporaryDirectory() as directory:
        plain_model(options).export(directory, verbose=False)
        model = openvino.convert_model(directory)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return lambda rgb: np.concatenate(
        [compiled(rgb[i : i + BATCH_SIZE])[0] for i in range(0, len(rgb), BATCH_SIZE)]
    )


def onnx_runtime(options: argparse.Namespace) -> Callable:
    """Run the network with ONNX Runtime on the CPU."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        model = plain_model(options)
        model(np.zeros((1, 224, 224, 3), "float32"))  # required by Keras' export to ONNX
        model.export(path, format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda rgb: np.concatenate(
        [
            session.run(None, {name: rgb[i : i + BATCH_SIZE]})[0]
            for i in range(0, len(rgb), BATCH_SIZE)
        ]
    )


# name: (function, arguments, Keras backend, whether it takes raw images)
RUNTIMES = {
    "Keras `ResNet50.predict`, float32": (plain_keras, ("float32",), "tensorflow", False),
    "Keras `ResNet50.predict`, bfloat16": (plain_keras, ("mixed_bfloat16",), "tensorflow", False),
    "this project, float32": (this_project, ("float32",), "tensorflow", True),
    "this project, bfloat16": (this_project, ("bfloat16",), "tensorflow", True),
    "OpenVINO, float32": (openvino, ("f32",), "tensorflow", False),
    "OpenVINO, bfloat16": (openvino, ("bf16",), "tensorflow", False),
    "ONNX Runtime, float32": (onnx_runtime, (), "tensorflow", False),
    "Keras on PyTorch (eager), float32": (pytorch, ("float32",), "torch", False),
    "Keras on PyTorch (eager), bfloat16": (pytorch, ("mixed_bfloat16",), "torch", False),
}


def upscale(images: np.ndarray) -> np.ndarray:
    """Upscale and preprocess images with Pillow: float32 (N, 224, 224, 3)."""
    from PIL import Image

    gray = [Image.fromarray(image.astype("float32")) for image in images]
    upscaled = np.stack([image.resize((224, 224), Image.Resampling.BILINEAR) for image in gray])
    # Like `keras.applications.resnet50.preprocess_input`: BGR minus ImageNet's means.
    return upscaled[..., None] - np.array([103.939, 116.779, 123.68], "float32")


def runtime_worker(
    name: str, options: argparse.Namespace, pipe: multiprocessing.connection.Connection
):
    """Run in a process: answer each request with seconds, outputs and memory, or an error."""
    function, arguments, backend, raw = RUNTIMES[name]
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(ROOT))
    try:
        predict = function(options, *arguments)
        images = pipe.recv()
        inputs = images if raw else upscale(images)
        predict(inputs)  # compiles
        while True:
            start = time.perf_counter()
            outputs = predict(inputs)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * maxrss_unit()
            pipe.send((seconds, np.asarray(outputs, "float32"), peak))
            pipe.recv()
    except ModuleNotFoundError as error:
        pipe.send(f"{error.name} is not installed")
    except EOFError:
        pass
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"failed: {str(error).splitlines()[0][:80]}")


def maxrss_unit() -> int:
    """Return the bytes per unit of `ru_maxrss`."""
    return 1 if sys.platform == "darwin" else 1024


def matmul_rates(rounds: int, pipe: multiprocessing.connection.Connection) -> None:
    """Run in a process: send {dtype: GFLOP/s} of the fastest large matrix multiplication."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    rates = {}
    for dtype in "float32", "bfloat16":
        rates[dtype] = 0.0
        for size in 1024, 2048, 4096:
            matrix = tf.cast(tf.random.normal((size, size)), dtype)
            for _ in range(2 * rounds):
                start = time.perf_counter()
                (matrix @ matrix)[0, 0].numpy()
                rate = 2 * size**3 / (time.perf_counter() - start) / 1e9
                rates[dtype] = max(rates[dtype], rate)
    pipe.send(rates)


def send_test_images(options: argparse.Namespace, count: int, pipe) -> None:
    """Run in a process: send uint8 (count, 28, 28) test images and ResNet50's GFLOP per image."""
    sys.path.insert(0, str(ROOT))
    import common

    model = plain_model(argparse.Namespace(weights="none"))
    flop = sum(
        2 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
        for layer in model.layers
        if "conv" in layer.name and hasattr(layer, "kernel")
    )
    data = common.load_fashion_mnist(common.DataOptions(data_dir=options.data_dir))
    pipe.send((data.test.all_images[:count], flop / 1e9))


def spawn(function: Callable, *arguments: object) -> tuple:
    """Spawn a process that gets a pipe as its last argument; return process and pipe."""
    parent_conn, child_conn = PROCESSES.Pipe()
    process = PROCESSES.Process(target=function, args=(*arguments, child_conn), daemon=True)
    process.start()
    child_conn.close()
    return process, parent_conn


def call_in_process(function: Callable, *arguments: object) -> object:
    """Run a function in a spawned process and return its message; exit if there is none."""
    process, pipe = spawn(function, *arguments)
    try:
        return pipe.recv()
    except EOFError:
        sys.exit("speed.py: error: a process ended early, see above")
    finally:
        process.join()


def runtimes(options: argparse.Namespace) -> str:
    """Compare the runtimes."""
    limit = call_in_process(matmul_rates, options.rounds)
    images, gflop = call_in_process(send_test_images, options, options.images)
    workers, failures = {}, {}
    for name in RUNTIMES:
        print(f"Starting {name} …", flush=True)
        _, pipe = spawn(runtime_worker, name, options)
        pipe.send(images)
        message = pipe.recv()
        if isinstance(message, str):
            failures[name] = message
        else:
            workers[name] = pipe, message[1]
    seconds = {name: [] for name in workers}
    peaks = {}
    for _ in range(options.rounds):
        for name, (pipe, _) in workers.items():
            pipe.send("next turn")
            taken, _, peaks[name] = pipe.recv()
            seconds[name].append(taken)
    reference, expected = next(iter(workers)), next(iter(workers.values()))[1]
    rows = []
    for name in RUNTIMES:
        if name in failures:
            rows.append([name, failures[name], "", "", "", ""])
            continue
        rates = [len(images) / taken for taken in seconds[name]]
        ratio = [a / b for a, b in zip(seconds[reference], seconds[name], strict=True)]
        fraction = statistics.median(rates) * gflop / limit[name.rsplit(" ", 1)[1]]
        error = np.abs(workers[name][1] - expected).mean() / expected.std()
        rows.append(
            [
                *(
                    name,
                    format_median_range(rates),
                    f"{format_median_range(ratio)} ×",
                    f"{fraction:.0%}",
                ),
                *(f"{peaks[name] / 1e9:.1f} GB", f"{error:.1%}"),
            ]
        )
    header = (
        "runtime, precision",
        "images/s",
        "speedup",
        "relative to matrix multiplication",
        "memory",
        "difference",
    )
    return (
        markdown_table(header, rows)
        + f"\n\nMedian (range) of {options.rounds} rounds of {len(images)} images; other runtimes "
        f"at batch size {BATCH_SIZE} on upscaled images, this project including upscaling. Matrix "
        f"multiplication: the fastest large one, {limit['float32']:.0f} GFLOP/s in float32 and "
        f"{limit['bfloat16']:.0f} in bfloat16, at {gflop:.1f} GFLOP per image. Difference: mean "
        "absolute difference from the features of the first row, divided by their standard "
        f"deviation.\n\n{extraction_table(options)}"
    )


def extraction_rates(options: argparse.Namespace, recipe: str, pipe) -> None:
    """Run in a process: send images/s of a recipe's network alone, and of its extraction."""
    sys.path.insert(0, str(ROOT))
    from fashion.backbones.feature_cache import CHUNK_SIZE, FeatureCache
    from fashion.backbones.progress import Progress
    from fashion.cli import command_line

    import wandb

    import common
    import resnet50_fashion as script

    argv = ["--recipe", recipe, "--weights", str(options.weights)]
    recipe_options = command_line.parse_options(script.Options, None, argv)
    data = common.load_fashion_mnist(
        common.DataOptions(data_dir=options.data_dir, test_size=options.extraction_images)
    )
    extractor = script.build_feature_extractor(
        script.load_backbone(recipe_options), recipe_options.head.feature_names
    )
    chunk = np.resize(data.test.images, (CHUNK_SIZE, 28, 28))
    extractor.predict_on_batch(chunk)  # compiles
    alone, complete, turns = [], [], math.ceil(data.test.size / CHUNK_SIZE)
    for _ in range(options.rounds):
        start = time.perf_counter()
        for _ in range(turns):
            extractor.predict_on_batch(chunk)
        alone.append(turns * CHUNK_SIZE / (time.perf_counter() - start))
        with tempfile.TemporaryDirectory() as directory, wandb.init(mode="disabled") as run:
            start = time.perf_counter()
            cache = FeatureCache(Path(directory), extractor)
            cache.compute_missing([data.test], Progress("Features", run))
            complete.append(data.test.size / (time.perf_counter() - start))
    pipe.send((alone, complete))


def extraction_table(options: argparse.Namespace) -> str:
    """Compare the recipes' extraction with their networks alone."""
    rows = []
    for recipe in RECIPES[:2]:  # `best` runs the same network as `fast`, twice
        alone, complete = call_in_process(extraction_rates, options, recipe)
        ratio = [a / b for a, b in zip(complete, alone, strict=True)]
        rows.append(
            [
                f"`--recipe {recipe}`",
                format_median_range(alone),
                format_median_range(complete),
                format_median_range(ratio, 2),
            ]
        )
    header = "", "`predict_on_batch`, images/s", "feature extraction, images/s", "ratio"
    return (
        markdown_table(header, rows)
        + f"\n\nMedian (range) of {options.rounds} rounds: the network alone on one batch in "
        "memory, and the extraction of a run, from images to files."
    )


# ------------------------------------------------------------------------------- fine-tuning

BATCH_NORMS = "frozen", "trained, Keras' layer", "trained, fused", "trained, fused, float32"


def fine_tuning_rates(options: argparse.Namespace, name: str, batch_size: int, pipe) -> None:
    """Run in a process: send seconds per image of training and of the input pipeline alone."""
    sys.path.insert(0, str(ROOT))
    from fashion.backbones.augmentation import add_augmentation
    from fashion.cli import command_line
    from fashion.fine_tuning import batch_norm
    from fashion.fine_tuning.freezing import FreezePoint
    from fashion.fine_tuning.input_pipeline import InputPipeline

    import keras

    import common
    import resnet50_fashion as script

    if "Keras" in name:
        batch_norm.BatchNormalization = keras.layers.BatchNormalization
    argv = ["--recipe", "tuned", "--fine-tune-blocks", str(options.tuning_blocks)]
    argv += ["--weights", str(options.weights)]
    argv += ["--precision", "float32" if "float32" in name else "auto"]
    run_options = command_line.parse_options(script.Options, None, argv)
    data = common.load_fashion_mnist(
        common.DataOptions(data_dir=options.data_dir, train_size=options.tuning_images)
    )
    backbone, features = script.load_backbone(run_options), run_options.head.feature_names
    freeze_point = FreezePoint.from_end(
        run_options.fine_tuning.fine_tune_blocks, backbone, features, name != "frozen"
    )
    head_features = np.random.default_rng(0).uniform(size=(100, 1024))
    head = script.build_head(head_features, len(data.class_names), run_options, backbone.precision)
    frozen, _, trainable = freeze_point.split_model(head)
    model = add_augmentation(keras.Model(frozen.input, trainable(frozen.output)), max_shift=1)
    model.compile(keras.optimizers.AdamW(1e-5), "categorical_crossentropy")
    pipeline, times = InputPipeline(model, None, batch_size), []
    for epoch in range(options.rounds + 1):  # the first epoch compiles
        start = time.perf_counter()
        model.fit(pipeline.dataset(data.train, [0, epoch]), shuffle=False, verbose=0)
        times.append((time.perf_counter() - start) / data.train.size)
    start = time.perf_counter()
    for _ in pipeline.dataset(data.train, [0, 0]):
        pass
    pipeline_seconds = (time.perf_counter() - start) / data.train.size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * maxrss_unit()
    pipe.send((times[1:], pipeline_seconds, peak))


def fine_tuning(options: argparse.Namespace) -> str:
    """Compare batch normalization and batch sizes in fine-tuning."""
    rows, reference = [], None
    for batch_size in options.batch_sizes:
        for name in BATCH_NORMS:
            times, pipeline, peak = call_in_process(fine_tuning_rates, options, name, batch_size)
            median = statistics.median(times)
            reference = reference or median
            rows.append(
                [
                    name,
                    batch_size,
                    format_median_range([1 / seconds for seconds in times]),
                    f"{reference / median:.2f} ×",
                    f"{pipeline / median:.1%}",
                    f"{peak / 1e9:.1f} GB",
                ]
            )
            print(*rows[-1], flush=True)
    header = "batch normalization", "batch size", "images/s", "speedup", "input pipeline", "memory"
    return (
        markdown_table(header, rows)
        + f"\n\nMedian (range) of {options.rounds} epochs of {options.tuning_images} augmented "
        f"images after the first, with {options.tuning_blocks} trained blocks and otherwise the "
        "options of `resnet50_fashion.py --recipe tuned`. Input pipeline: its time alone, as a "
        "share of a step's."
    )


# ----------------------------------------------------------------------------- complete runs


def run(script: str, *arguments: object, cwd: Path) -> tuple[float, float, str]:
    """Run a script; return seconds, peak memory in GB and output; exit if it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    print("$", script, *arguments, flush=True)
    start = time.perf_counter()
    with open(cwd / "log", "w+") as log:
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # the memory of this child only
        seconds = time.perf_counter() - start
        log.seek(0)
        output = log.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{output}\nspeed.py: error: {script} failed, see above")
    return seconds, usage.ru_maxrss * maxrss_unit() / 1e9, output


def data_dir_args(options: argparse.Namespace) -> list[object]:
    """Return `--data-dir`, if given."""
    return ["--data-dir", options.data_dir.absolute()] if options.data_dir else []


def run_resnet50(
    options: argparse.Namespace, directory: Path, *argv: object
) -> tuple[float, float, dict]:
    """Run resnet50_fashion.py; return seconds, peak memory in GB and metrics.json."""
    weights = options.weights
    weights = weights if weights in ("imagenet", "none") else Path(weights).absolute()
    seconds, memory, _ = run(
        *("resnet50_fashion.py", *data_dir_args(options), "--weights", weights),
        *("--wandb", "disabled", "--output-dir", "outputs", *argv),
        cwd=directory,
    )
    return seconds, memory, json.loads((directory / "outputs" / "metrics.json").read_text())


def time_naive_keras(options: argparse.Namespace, directory: Path) -> tuple[float, float, float]:
    """Return the naive script's seconds per training and validation image, and memory in GB."""
    weights = options.weights
    weights = weights if weights in ("imagenet", "none") else Path(weights).absolute()
    half = max(options.timed_images // 2, BATCH_SIZE)
    _, memory, output = run(
        *("benchmarks/naive_keras.py", "resnet50", *data_dir_args(options), "--weights", weights),
        *(TRAIN, options.timed_images, VALIDATION, half, "--epochs", 2),
        cwd=directory,
    )
    result = json.loads(output.splitlines()[-1])  # the first epoch compiles
    return (
        result["training_seconds"][1] / options.timed_images,
        result["validation_seconds"][1] / half,
        memory,
    )


def end_to_end(options: argparse.Namespace) -> str:
    """Compare the recipes with the naive script, which is timed before each recipe."""
    train, epochs = options.train_size, options.epochs
    sizes = {TRAIN: train, VALIDATION: max(train // 10, 10), TEST: max(train // 5, 10)}
    argv = [arg for pair in sizes.items() for arg in pair]
    argv += ["--epochs", epochs, "--patience", epochs]
    timings, measured = [], {}
    with tempfile.TemporaryDirectory() as directory:
        for recipe in options.recipes:
            timings.append(time_naive_keras(options, Path(directory)))
            for label in "first run", "later run":
                measured[f"`--recipe {recipe}`, {label}"] = run_resnet50(
                    *(options, Path(directory), *argv, "--recipe", recipe, "--cache-dir", recipe)
                )
    training, validation = (statistics.mean(part[i] for part in timings) for i in range(2))
    naive = epochs * (sizes[TRAIN] * training + sizes[VALIDATION] * validation)
    naive += sizes[TEST] * validation
    rows = [
        [
            "naive Keras script",
            f"{format_duration(naive)} (extrapolated)",
            "1 ×",
            f"{timings[0][2]:.1f} GB",
        ]
    ]
    for name, (seconds, memory, _) in measured.items():
        ratio, peak = f"{naive / seconds:,.0f} ×", f"{memory:.1f} GB"
        rows.append([name, format_duration(seconds), ratio, peak])
    rates = format_median_range([1 / part[0] for part in timings])
    return (
        markdown_table(["", "time", "speedup", "memory"], rows)
        + f"\n\n{sizes[TRAIN]:,} training, {sizes[VALIDATION]:,} validation, {sizes[TEST]:,} test "
        f"images, {epochs} epochs; the complete commands of `resnet50_fashion.py` are measured. "
        "The naive Keras script (frozen base inside `fit`, upscaling by tf.data) is timed before "
        f"each recipe on {options.timed_images} training images, {rates} images/s, and "
        f"{options.timed_images // 2} validation images, {1 / validation:.1f} images/s; the "
        "extrapolation uses the mean time per image."
    )


def baseline(options: argparse.Namespace) -> str:
    """Compare cnn_basic.py with a plain `fit`."""
    plain, this = [], []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for _ in range(options.rounds):
            arguments = *data_dir_args(options), "--epochs", options.epochs
            seconds, memory, output = run(
                "benchmarks/naive_keras.py", "basic", *arguments, cwd=directory
            )
            result = json.loads(output.splitlines()[-1])
            epochs = np.add(result["training_seconds"], result["validation_seconds"])
            plain.append((seconds, memory, epochs[1:] if len(epochs) > 1 else epochs))
            output_dir = directory / "outputs"
            seconds, memory, _ = run(
                *("cnn_basic.py", *arguments, "--wandb", "disabled", "--output-dir", output_dir),
                cwd=directory,
            )
            lines = (output_dir / "history.csv").read_text().splitlines()
            column = lines[0].split(",").index("seconds")
            epochs = [float(line.split(",")[column]) for line in lines[1:]]
            this.append((seconds, memory, epochs[1:] or epochs))
    rows = []
    reference = statistics.median(np.concatenate([part[2] for part in plain]))
    for name, parts in ("plain `fit`, batch size 32", plain), ("`cnn_basic.py`", this):
        epochs = np.concatenate([part[2] for part in parts]).tolist()
        ratio = f"{reference / statistics.median(epochs):.1f} ×"
        command = format_median_range([part[0] for part in parts])
        rows.append(
            [
                name,
                f"{format_median_range(epochs, 2)} s",
                ratio,
                f"{command} s",
                f"{parts[0][1]:.1f} GB",
            ]
        )
    return (
        markdown_table(["", "epoch", "speedup", "complete command", "memory"], rows)
        + f"\n\nMedian (range) of the epochs after the first, {options.epochs} epochs, "
        f"{options.rounds} alternating commands each. The plain script does not evaluate the test "
        "images, and plots and saves nothing."
    )


def scaling(options: argparse.Namespace) -> str:
    """Measure seconds and memory by the number of images."""
    rows, points = [], []
    for images in sorted(set(options.sizes)):
        tenth = images // 10
        with tempfile.TemporaryDirectory() as name:
            seconds, memory, metrics = run_resnet50(
                options,
                Path(name),
                *(
                    TRAIN,
                    images - 2 * tenth,
                    VALIDATION,
                    tenth,
                    TEST,
                    tenth,
                    "--cache-dir",
                    "cache",
                ),
            )
        points.append((images, seconds))
        extraction = metrics["seconds"]["extraction"]
        rows.append([f"{images:,}", f"{seconds:.1f} s", f"{extraction:.1f} s", f"{memory:.2f} GB"])
    slope, fixed = np.polyfit(*zip(*points, strict=True), 1)
    worst = max(abs(fixed + slope * images - seconds) for images, seconds in points)
    return (
        markdown_table(["images", "complete command", "of which extraction", "memory"], rows)
        + f"\n\nWith an empty cache; 80 % of the images are training images. Linear fit: "
        f"{fixed:.1f} s + {1000 * slope:.1f} s per 1,000 images; largest residual {worst:.1f} s."
    )


def time_to_90(options: argparse.Namespace) -> str:
    """Measure the time to 90 % validation accuracy."""
    argv = *SMALL_RUN_ARGS, TEST, 2000, "--cache-dir", "cache"
    with tempfile.TemporaryDirectory() as name:
        for train, validation in SUBSET_SIZES:
            lows = []
            for seed in range(3):
                sizes = TRAIN, train, VALIDATION, validation
                metrics = run_resnet50(options, Path(name), *argv, *sizes, "--seed", seed)[2]
                lows.append(metrics["validation"]["interval95"][0])
                if lows[-1] <= 0.9:
                    break
            print(train, validation, lows, flush=True)
            if min(lows) > 0.9:
                break
        else:
            return "None of the subset sizes reaches 90 %."
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        seconds, memory, metrics = run_resnet50(options, directory, *argv, *sizes)
        training, evaluation, _ = time_naive_keras(options, directory)
    accuracy, (low, high) = metrics["validation"]["accuracy"], metrics["validation"]["interval95"]
    epoch = 55_000 * training + 5_000 * evaluation
    rows = [
        [
            *(
                f"`resnet50_fashion.py {' '.join(map(str, SMALL_RUN_ARGS))}`",
                f"{train:,} + {validation:,}",
            ),
            *(
                f"{accuracy:.1%} ({low:.1%} to {high:.1%})",
                format_duration(seconds),
                f"{memory:.1f} GB",
            ),
        ],
        [
            *("naive Keras script, one epoch", "55,000 + 5,000", "not measured"),
            *(f"{format_duration(epoch)} (extrapolated)", ""),
        ],
    ]
    header = "", "training + validation images", "validation accuracy", "time", "memory"
    return (
        markdown_table(header, rows)
        + "\n\nThe complete command with an empty cache and 2,000 test images. This subset is the "
        f"first of {', '.join(f'{t:,} + {v:,}' for t, v in SUBSET_SIZES)} with which the 95 % "
        "interval lies above 90 % with each of the seeds 0, 1 and 2."
    )


SECTIONS = {
    "runtimes": runtimes,
    "end_to_end": end_to_end,
    "baseline": baseline,
    "scaling": scaling,
    "fine_tuning": fine_tuning,
    "time_to_90": time_to_90,
}
# Options of each section besides data and weights.
SECTION_OPTIONS = {
    "runtimes": ("images", "extraction_images", "rounds"),
    "end_to_end": ("recipes", "train_size", "epochs", "timed_images"),
    "baseline": ("epochs", "rounds"),
    "scaling": ("sizes",),
    "fine_tuning": ("tuning_images", "tuning_blocks", "batch_sizes", "rounds"),
    "time_to_90": ("timed_images",),
}

if __name__ == "__main__":
    main()
