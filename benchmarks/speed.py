"""How fast this project's way is, measured on this machine against what people would otherwise run.

Sections, each a table (a Markdown file in --output, of which docs/results.md shows a copy):

  runtimes  the pass through the ResNet50: this project's, plain Keras', other runtimes', on the
            same weights and images, and what share of the processor's matrix-multiply rate each
            reaches. Every runtime is a process of its own, and they take turns. And the recipes'
            passes, against their network alone, without reading, writing and progress.
  job       a whole job: the recipes' first and later runs, against the textbook script, whose
            cost is measured on a slice and extrapolated
  baseline  an epoch of the small dense network: cnn_basic.py against a plain `fit` at batch 32
  growth    seconds and memory of a first run by the number of images, and the fitted line
  ninety    seconds until the validation accuracy's 95 % interval lies above 90 %, with the fewest
            images that get there with each of three seeds

Without a section named, runtimes, job and baseline: about 10 minutes on 2 cores with all runtimes
installed (pip install openvino onnxruntime onnx tf2onnx torch), and 5 without; then up to
24 GB of memory, too, since all wait for their turns at once.
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

import numpy as np  # and nothing larger: a child's peak memory is at least its parent's at birth

ROOT = Path(__file__).parents[1]
BATCH = 32  # of the other runtimes; Keras' default
TRAIN, VALIDATION, TEST = "--train-size", "--validation-size", "--test-size"
RECIPES = "published", "fast", "best"
QUICK = "--recipe", "fast", "--image-size", 64
# Training and validation images, the fewest first. The more of these, the narrower the interval.
NINETY = [(5000, 2000), (5000, 3000), (6000, 3000), (8000, 3000), (8000, 4000), (10_000, 4000)]


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="default: the quick ones")
    parser.add_argument("--data-dir", type=Path, help="as the scripts'")
    parser.add_argument("--weights", default="imagenet", help="as the scripts'")
    parser.add_argument(
        "--images", type=int, default=125, help="in one turn of a runtime (default: %(default)s)"
    )
    parser.add_argument(
        "--pass-images",
        type=int,
        default=2000,
        help="in one turn of a recipe's pass (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="turns of each in runtimes and baseline (default: %(default)s)",
    )
    parser.add_argument(
        "--train-size",
        type=int,
        default=1000,
        help="training images of job; a tenth of them as validation, two tenths as test images"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs", type=int, default=10, help="of job and baseline (default: %(default)s)"
    )
    parser.add_argument(
        "--slice", type=int, default=128, help="images of the slice (default: %(default)s)"
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[500, 1000, 2000, 4000],
        help="numbers of images of growth (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of the tables (default: %(default)s)",
    )
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if min(options.images, options.rounds, options.train_size, options.epochs, options.slice) < 1:
        parser.error("numbers must be at least 1")
    if min(options.sizes) < 50 or len(set(options.sizes)) < 2:
        parser.error("--sizes: at least two different ones, from 50")
    return options


def main() -> None:
    """Each section → its table."""
    options = parse_options()
    for name in options.sections or ("runtimes", "job", "baseline"):
        table = SECTIONS[name](options)
        path = options.output / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{table}\n\n{caption(name, options)}\n")
        print(f"\n{path.read_text()}", flush=True)


def caption(section: str, options: argparse.Namespace) -> str:
    """Where, when and by what a table was made."""
    command = ["python benchmarks/speed.py", section]
    for name in USED[section]:
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


def markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    for unit, size in ("h", 3600), ("min", 60):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


# ---------------------------------------------------------------------------------- runtimes

# Each returns `predict`: uint8 (N, 28, 28), or RGB images made from them by `enlarged`, which
# nobody is charged for → float32 (N, 2048). They run in processes of their own.


def this_project(options: argparse.Namespace, precision: str) -> Callable:
    """The extraction of resnet50_fashion.py, enlarging included, and all of its six features."""
    from fashion import devices
    from fashion.backbones.architectures import NetworkOptions
    from fashion.backbones.feature_cache import CHUNK
    from fashion.devices import DeviceOptions

    import resnet50_fashion as script

    network = NetworkOptions(weights=options.weights)
    all_options = script.Options(network=network, devices=DeviceOptions(precision=precision))
    extractor = script.build_extractor(script.load_backbone(all_options), ("conv5_avg",))

    def predict(images: np.ndarray) -> np.ndarray:
        chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
        outputs = [devices.predict_batches(extractor, [chunk])[0] for chunk in chunks]
        return np.concatenate([output["conv5_avg"] for output in outputs])

    return predict


def plain_keras(options: argparse.Namespace, policy: str = "float32") -> Callable:
    """`keras.applications.ResNet50(…).predict`, on the backend that $KERAS_BACKEND names."""
    model = plain_model(options, policy)
    return lambda rgb: model.predict(rgb, batch_size=BATCH, verbose=0)


def plain_model(options: argparse.Namespace, policy: str = "float32"):
    """The ResNet50 without its top, averaged: float32 (N, 224, 224, 3) → (N, 2048)."""
    import keras

    keras.config.set_dtype_policy(policy)
    named = options.weights == "imagenet"
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(
        include_top=False,
        weights="imagenet" if named else None,
        input_shape=(224, 224, 3),
        pooling="avg",
    )
    if not named and options.weights != "none":
        model.load_weights(options.weights)
    return model


def pytorch(options: argparse.Namespace, policy: str) -> Callable:
    """The same network on Keras' PyTorch backend: eager, its tensors in channels_last order."""
    import torch

    model = plain_model(options, policy)

    def predict(rgb: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batches = [model(rgb[i : i + BATCH], training=False) for i in range(0, len(rgb), BATCH)]
            return torch.cat(batches).float().numpy(force=True)

    return predict


def openvino(options: argparse.Namespace, precision: str) -> Callable:
    """OpenVINO on the processor."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        plain_model(options).export(folder, verbose=False)
        model = openvino.convert_model(folder)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return lambda rgb: np.concatenate(
        [compiled(rgb[i : i + BATCH])[0] for i in range(0, len(rgb), BATCH)]
    )


def onnx_runtime(options: argparse.Namespace) -> Callable:
    """ONNX Runtime on the processor."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model = plain_model(options)
        model(np.zeros((1, 224, 224, 3), "float32"))  # or Keras' export to ONNX refuses
        model.export(path, format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda rgb: np.concatenate(
        [session.run(None, {name: rgb[i : i + BATCH]})[0] for i in range(0, len(rgb), BATCH)]
    )


# name: (function, argument, Keras' backend, whether it takes the images as they are)
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


def enlarged(images: np.ndarray) -> np.ndarray:
    """Preprocessed RGB images, float32 (N, 224, 224, 3), by Pillow."""
    from PIL import Image

    gray = [Image.fromarray(image.astype("float32")) for image in images]
    large = np.stack([image.resize((224, 224), Image.Resampling.BILINEAR) for image in gray])
    # What `keras.applications.resnet50.preprocess_input` does: BGR less ImageNet's means.
    return large[..., None] - np.array([103.939, 116.779, 123.68], "float32")


def serve(name: str, options: argparse.Namespace, pipe: multiprocessing.connection.Connection):
    """A runtime's process: answers each request with (seconds, outputs), or with an error."""
    function, arguments, backend, raw = RUNTIMES[name]
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(ROOT))
    try:
        predict = function(options, *arguments)
        images = pipe.recv()
        inputs = images if raw else enlarged(images)
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
    """Bytes in a unit of `ru_maxrss`."""
    return 1 if sys.platform == "darwin" else 1024


def matmul_rates(pipe: multiprocessing.connection.Connection) -> None:
    """A process: sends {dtype: GFLOP/s}, the fastest of some large matrix multiplications."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    rates = {}
    for dtype in "float32", "bfloat16":
        rates[dtype] = 0.0
        for size in 1024, 2048, 4096:
            matrix = tf.cast(tf.random.normal((size, size)), dtype)
            for _ in range(6):
                start = time.perf_counter()
                (matrix @ matrix)[0, 0].numpy()
                rate = 2 * size**3 / (time.perf_counter() - start) / 1e9
                rates[dtype] = max(rates[dtype], rate)
    pipe.send(rates)


def test_images(options: argparse.Namespace, count: int, pipe) -> None:
    """A process: sends uint8 (count, 28, 28) test images and the ResNet50's GFLOP an image."""
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


def start(function: Callable, *arguments: object) -> tuple:
    """A process of its own, not forked, and the pipe to it, which it gets as last argument."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def ask(function: Callable, *arguments: object) -> object:
    """What a process of its own sends; exits with an error if it sends nothing."""
    process, pipe = start(function, *arguments)
    try:
        return pipe.recv()
    except EOFError:
        sys.exit("speed.py: error: a process ended early, see above")
    finally:
        process.join()


def runtimes(options: argparse.Namespace) -> str:
    """The runtimes' table."""
    limit = ask(matmul_rates)
    images, gflop = ask(test_images, options, options.images)
    workers, failures = {}, {}
    for name in RUNTIMES:
        print(f"Starting {name} …", flush=True)
        _, pipe = start(serve, name, options)
        pipe.send(images)
        answer = pipe.recv()
        if isinstance(answer, str):
            failures[name] = answer
        else:
            workers[name] = pipe, answer[1]
    seconds = {name: [] for name in workers}
    peaks = {}
    for _ in range(options.rounds):
        for name, (pipe, _) in workers.items():
            pipe.send("again")
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
        share = statistics.median(rates) * gflop / limit[name.rsplit(" ", 1)[1]]
        error = np.abs(workers[name][1] - expected).mean() / expected.std()
        rows.append(
            [
                *(name, spread(rates), f"{spread(ratio)} ×", f"{share:.0%}"),
                *(f"{peaks[name] / 1e9:.1f} GB", f"{error:.1%}"),
            ]
        )
    header = "runtime, precision", "images/s", "ratio", "of the limit", "memory", "difference"
    return (
        markdown(header, rows)
        + f"\n\nMedian (range) of {options.rounds} turns of {len(images)} images, other runtimes' "
        f"at batch {BATCH}, already enlarged; this project's with the enlarging. Limit: the "
        f"fastest matrix multiplication, {limit['float32']:.0f} GFLOP/s in float32 and "
        f"{limit['bfloat16']:.0f} in bfloat16, for {gflop:.1f} GFLOP an image. Difference: mean "
        "absolute difference of the features from the first row's, by their standard deviation."
        + f"\n\n{passes(options)}"
    )


def pass_rates(options: argparse.Namespace, recipe: str, pipe) -> None:
    """A process: sends images/s of a recipe's network alone, in turns, and of its pass."""
    sys.path.insert(0, str(ROOT))
    from fashion.backbones.feature_cache import CHUNK, FeatureCache
    from fashion.backbones.progress import Progress

    import wandb

    import common
    import resnet50_fashion as script

    words = ["--recipe", recipe, "--weights", str(options.weights)]
    chosen = common.parse(script.Options, None, words)
    data = common.load_fashion_mnist(
        common.DataOptions(data_dir=options.data_dir, test_size=options.pass_images)
    )
    extractor = script.build_extractor(script.load_backbone(chosen), chosen.head.names)
    chunk = np.resize(data.test.images, (CHUNK, 28, 28))
    extractor.predict_on_batch(chunk)  # compiles
    alone, whole, turns = [], [], math.ceil(data.test.size / CHUNK)
    for _ in range(options.rounds):
        begin = time.perf_counter()
        for _ in range(turns):
            extractor.predict_on_batch(chunk)
        alone.append(turns * CHUNK / (time.perf_counter() - begin))
        with tempfile.TemporaryDirectory() as folder, wandb.init(mode="disabled") as run:
            begin = time.perf_counter()
            cache = FeatureCache(Path(folder), extractor)
            cache.fill([data.test], Progress("Features", run))
            whole.append(data.test.size / (time.perf_counter() - begin))
    pipe.send((alone, whole))


def passes(options: argparse.Namespace) -> str:
    """The table of the recipes' passes."""
    rows = []
    for recipe in RECIPES[:2]:  # the third is the second, twice
        alone, whole = ask(pass_rates, options, recipe)
        ratio = [a / b for a, b in zip(whole, alone, strict=True)]
        rows.append([f"`--recipe {recipe}`", spread(alone), spread(whole), spread(ratio, 2)])
    header = "", "`predict_on_batch`, images/s", "the pass, images/s", "ratio"
    return (
        markdown(header, rows)
        + f"\n\nMedian (range) of {options.rounds} turns, each of the same network: on a batch in "
        "memory again and again, and as a run does it, from images to files."
    )


# -------------------------------------------------------------------------------- whole runs


def run(script: str, *arguments: object, cwd: Path) -> tuple[float, float, str]:
    """Runs a script: its seconds, peak memory in GB, and output; exits if it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    print("$", script, *arguments, flush=True)
    begin = time.perf_counter()
    with open(cwd / "log", "w+") as log:
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # this child's memory alone
        seconds = time.perf_counter() - begin
        log.seek(0)
        output = log.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{output}\nspeed.py: error: {script} failed, see above")
    return seconds, usage.ru_maxrss * maxrss_unit() / 1e9, output


def common_options(options: argparse.Namespace) -> list[object]:
    """`--data-dir`, if given."""
    return ["--data-dir", options.data_dir.absolute()] if options.data_dir else []


def ours(options: argparse.Namespace, folder: Path, *more: object) -> tuple[float, float, dict]:
    """Runs resnet50_fashion.py: its seconds, peak memory in GB, and `metrics.json`."""
    weights = options.weights
    weights = weights if weights in ("imagenet", "none") else Path(weights).absolute()
    seconds, memory, _ = run(
        *("resnet50_fashion.py", *common_options(options), "--weights", weights),
        *("--wandb", "disabled", "--output-dir", "outputs", *more),
        cwd=folder,
    )
    return seconds, memory, json.loads((folder / "outputs" / "metrics.json").read_text())


def textbook_slice(options: argparse.Namespace, folder: Path) -> tuple[float, float, float]:
    """Seconds of an image of training, of validation, and the peak memory in GB, measured."""
    weights = options.weights
    weights = weights if weights in ("imagenet", "none") else Path(weights).absolute()
    half = max(options.slice // 2, BATCH)
    _, memory, output = run(
        *("benchmarks/textbook.py", "resnet50", *common_options(options), "--weights", weights),
        *(TRAIN, options.slice, VALIDATION, half, "--epochs", 2),
        cwd=folder,
    )
    result = json.loads(output.splitlines()[-1])  # its first epoch compiles
    return (
        result["training_seconds"][1] / options.slice,
        result["validation_seconds"][1] / half,
        memory,
    )


def job(options: argparse.Namespace) -> str:
    """The whole job's table: the textbook script's cost, from a slice before each recipe."""
    train, epochs = options.train_size, options.epochs
    sizes = {TRAIN: train, VALIDATION: max(train // 10, 10), TEST: max(train // 5, 10)}
    more = [word for pair in sizes.items() for word in pair]
    more += ["--epochs", epochs, "--patience", epochs]
    slices, measured = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for recipe in RECIPES:
            slices.append(textbook_slice(options, Path(folder)))
            for run in "first run", "later run":
                measured[f"`--recipe {recipe}`, {run}"] = ours(
                    *(options, Path(folder), *more, "--recipe", recipe, "--cache-dir", recipe)
                )
    training, validation = (statistics.mean(part[i] for part in slices) for i in range(2))
    textbook = epochs * (sizes[TRAIN] * training + sizes[VALIDATION] * validation)
    textbook += sizes[TEST] * validation
    rows = [
        ["textbook script", f"{duration(textbook)} (extrapolated)", "1 ×", f"{slices[0][2]:.1f} GB"]
    ]
    for name, (seconds, memory, _) in measured.items():
        ratio, peak = f"{textbook / seconds:,.0f} ×", f"{memory:.1f} GB"
        rows.append([name, duration(seconds), ratio, peak])
    rates = spread([1 / part[0] for part in slices])
    return (
        markdown(["", "time", "ratio", "memory"], rows)
        + f"\n\n{sizes[TRAIN]:,} training, {sizes[VALIDATION]:,} validation, {sizes[TEST]:,} test "
        f"images, {epochs} epochs; `resnet50_fashion.py`'s commands measured whole, the textbook "
        "script (frozen base within `fit`, enlarging by tf.data) on slices, one before each "
        f"recipe, of {options.slice} images: {rates} images/s in training, {1 / validation:.1f} in "
        "validation."
    )


def baseline(options: argparse.Namespace) -> str:
    """The baseline's table."""
    plain, this = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(options.rounds):
            arguments = *common_options(options), "--epochs", options.epochs
            seconds, memory, output = run("benchmarks/textbook.py", "basic", *arguments, cwd=folder)
            result = json.loads(output.splitlines()[-1])
            epochs = np.add(result["training_seconds"], result["validation_seconds"])
            plain.append((seconds, memory, epochs[1:] if len(epochs) > 1 else epochs))
            output_dir = folder / "outputs"
            seconds, memory, _ = run(
                *("cnn_basic.py", *arguments, "--wandb", "disabled", "--output-dir", output_dir),
                cwd=folder,
            )
            lines = (output_dir / "history.csv").read_text().splitlines()
            column = lines[0].split(",").index("seconds")
            epochs = [float(line.split(",")[column]) for line in lines[1:]]
            this.append((seconds, memory, epochs[1:] or epochs))
    rows = []
    reference = statistics.median(np.concatenate([part[2] for part in plain]))
    for name, parts in ("plain `fit`, batch 32", plain), ("`cnn_basic.py`", this):
        epochs = np.concatenate([part[2] for part in parts]).tolist()
        ratio = f"{reference / statistics.median(epochs):.1f} ×"
        command = spread([part[0] for part in parts])
        rows.append(
            [name, f"{spread(epochs, 2)} s", ratio, f"{command} s", f"{parts[0][1]:.1f} GB"]
        )
    return (
        markdown(["", "an epoch", "ratio", "whole command", "memory"], rows)
        + f"\n\nMedian (range) of the epochs after the first, {options.epochs} epochs, "
        f"{options.rounds} commands each in turn. The plain script evaluates, draws and saves "
        "nothing, and its commands are the shorter for it."
    )


def growth(options: argparse.Namespace) -> str:
    """The table of seconds and memory by the number of images."""
    rows, points = [], []
    for images in sorted(set(options.sizes)):
        tenth = images // 10
        with tempfile.TemporaryDirectory() as name:
            seconds, memory, metrics = ours(
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
        markdown(["images", "whole command", "of it extraction", "memory"], rows)
        + f"\n\nFrom an empty cache; 80 % of the images are for training. Fitted: {fixed:.1f} s + "
        f"{1000 * slope:.1f} s for each 1,000 images; no point is off by more than {worst:.1f} s."
    )


def ninety(options: argparse.Namespace) -> str:
    """The table of the time to 90 %."""
    more = *QUICK, TEST, 2000, "--cache-dir", "cache"
    with tempfile.TemporaryDirectory() as name:
        for train, validation in NINETY:
            lows = []
            for seed in range(3):
                sizes = TRAIN, train, VALIDATION, validation
                metrics = ours(options, Path(name), *more, *sizes, "--seed", seed)[2]
                lows.append(metrics["validation"]["interval95"][0])
                if lows[-1] <= 0.9:
                    break
            print(train, validation, lows, flush=True)
            if min(lows) > 0.9:
                break
        else:
            return "None of the sizes tried got there."
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, memory, metrics = ours(options, folder, *more, *sizes)
        training, evaluation, _ = textbook_slice(options, folder)
    accuracy, (low, high) = metrics["validation"]["accuracy"], metrics["validation"]["interval95"]
    epoch = 55_000 * training + 5_000 * evaluation
    rows = [
        [
            *(f"`resnet50_fashion.py {' '.join(map(str, QUICK))}`", f"{train:,} + {validation:,}"),
            *(f"{accuracy:.1%} ({low:.1%} to {high:.1%})", duration(seconds), f"{memory:.1f} GB"),
        ],
        [
            *("textbook script, one epoch", "55,000 + 5,000", "not measured"),
            *(f"{duration(epoch)} (extrapolated)", ""),
        ],
    ]
    header = "", "training + validation images", "validation accuracy", "time", "memory"
    return (
        markdown(header, rows)
        + "\n\nThe whole command from an empty cache, 2,000 test images; the fewest images of "
        f"{', '.join(f'{t:,} + {v:,}' for t, v in NINETY)} whose 95 % interval lies above 90 % "
        "with seeds 0, 1 and 2."
    )


SECTIONS = {
    "runtimes": runtimes,
    "job": job,
    "baseline": baseline,
    "growth": growth,
    "ninety": ninety,
}
# The options that a section heeds, besides data and weights.
USED = {
    "runtimes": ("images", "pass_images", "rounds"),
    "job": ("train_size", "epochs", "slice"),
    "baseline": ("epochs", "rounds"),
    "growth": ("sizes",),
    "ninety": ("slice",),
}

if __name__ == "__main__":
    main()
