"""Measure the extraction of ResNet50's pooled features at 224×224 by this project or a runtime.

`project` extracts as resnet50_fashion.py does, from raw images to files. `openvino` and
`onnxruntime` take upscaled images in memory, in batches of 32. metrics.json in --output-dir
contains the images/s of three turns, and the difference of 32 images' features from those of plain
Keras in float32: the mean absolute difference, divided by their standard deviation.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fashion import errors, machine

import keras
import numpy as np

import common
import naive_keras
import resnet50_fashion
import runner

NUM_IMAGES = 250  # per turn; the feature cache stores 125 per file


def prepare_openvino(model: keras.Model, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """Convert a model to OpenVINO."""
    import openvino  # not required by the scripts

    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "model.xml")
        model.export(path, format="openvino", verbose=False)
        hint = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}
        compiled = openvino.Core().compile_model(path, "CPU", hint)
    return lambda batch: compiled(batch)[0]


def prepare_onnxruntime(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Convert a model to ONNX Runtime."""
    import onnxruntime  # not required by the scripts

    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "model.onnx")
        model.export(path, format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def main() -> None:
    """Prepare the runtime, take the time of each turn, and write metrics.json."""
    parser = runner.argument_parser(__doc__)
    parser.add_argument("runtime", choices=("project", "openvino", "onnxruntime"))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/runtimes"))
    options = parser.parse_args()

    data_options = resnet50_fashion.Options(data_dir=options.data_dir, test_size=NUM_IMAGES)
    split = common.load_fashion_mnist(data_options).test
    batches = [x.numpy() for x, _ in naive_keras.upscaled_batches(split, shuffle=False)]
    model = naive_keras.build_pooled_resnet50(options.weights)
    expected = model.predict_on_batch(batches[0])
    if options.runtime == "project":
        machine.set_precision(options.precision)
        cache = naive_keras.feature_cache(options.weights, Path())
    elif options.runtime == "openvino":
        predict = prepare_openvino(model, options.precision)
    else:
        predict = prepare_onnxruntime(model)

    def extract() -> np.ndarray:
        if options.runtime != "project":
            return np.concatenate([predict(batch) for batch in batches])
        with tempfile.TemporaryDirectory() as directory:
            cache.directory = Path(directory)
            return naive_keras.load_pooled_features(cache, split)

    features = extract()[: len(expected)]  # compiles
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        extract()
        rates.append(split.size / (time.perf_counter() - start))
    difference = float(np.abs(features - expected).mean() / expected.std())
    metrics = {"images_per_second": rates, "difference": difference}
    metrics |= {"memory": machine.peak_memory(), "versions": machine.environment_info()}
    runner.write_json(options.output_dir / "metrics.json", metrics)


if __name__ == "__main__":
    errors.run_and_exit(main)
