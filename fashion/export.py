"""`--export`: the trained model in the formats of other runtimes.

An exported model takes raw uint8 (N, 28, 28) images, any number of them, and returns float32
(N, classes) probabilities, like `model.keras`.
"""

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fashion import datasets
from fashion.datasets.photos import IMAGE_SIZE
from fashion.datasets.splits import write_class_names
from fashion.errors import UsageError, UserError, first_line
from fashion.files import check_disk_space, staging_dir
from fashion.options import SharedOptions
from fashion.results.evaluation import sample_rows
from fashion.results.output import load_trained_model

import keras
import numpy as np
import tensorflow as tf

NUM_IMAGES = 100  # on which each exported model is compared with Keras
MAX_DIFFERENCE = 0.01  # of a probability


def _write_savedmodel(model: keras.Model, path: Path) -> None:
    # `model.export` would store each weight twice (keras-team/keras#23553).
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    images = tf.TensorSpec((None, IMAGE_SIZE, IMAGE_SIZE), "uint8", "images")
    module.serve = tf.function(lambda images: model(images, training=False), [images])
    tf.saved_model.save(module, str(path), module.serve)


def _predict_savedmodel(path: Path, images: np.ndarray) -> np.ndarray:
    model = tf.saved_model.load(str(path))  # its variables live only as long as the object
    return model.signatures["serving_default"](images=tf.constant(images))["output_0"].numpy()


def _write_onnx(model: keras.Model, path: Path) -> None:
    # Keras 3.15 and `tf2onnx.convert.from_function` turn constants of a ResNet50 into inputs.
    saved_model = path.with_name("saved_model_for_onnx")
    _write_savedmodel(model, saved_model)
    command = [sys.executable, "-P", "-m", "tf2onnx.convert", "--saved-model", str(saved_model)]
    done = subprocess.run([*command, "--output", str(path)], capture_output=True, text=True)
    if done.returncode:
        # Nothing if the process was killed, for example because memory ran out.
        reason = done.stderr.strip() or f"tf2onnx ended with {done.returncode}"
        raise RuntimeError(reason.splitlines()[-1])


def _predict_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    (probabilities,) = onnxruntime.InferenceSession(path).run(None, {"images": images})
    return probabilities


def _write_litert(model: keras.Model, path: Path) -> None:
    model.export(str(path), format="litert", verbose=False)


def _predict_litert(path: Path, images: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path)).get_signature_runner()(images=images)["output_0"]


def _write_openvino(model: keras.Model, path: Path) -> None:
    path.mkdir()
    model.export(str(path / "model.xml"), format="openvino", verbose=False)


def _predict_openvino(path: Path, images: np.ndarray) -> np.ndarray:
    import openvino

    # Otherwise, OpenVINO computes in bfloat16 on CPUs that support it.
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.compile_model(path / "model.xml", "CPU", config)(images)[0]


class Format(NamedTuple):
    """A format of exported models."""

    filename: str  # file or directory
    write: Callable[[keras.Model, Path], None]
    predict: Callable[[Path, np.ndarray], np.ndarray]  # in the runtime of the format
    packages: tuple[str, ...] = ()  # besides requirements.txt


FORMATS = {
    "onnx": Format("model.onnx", _write_onnx, _predict_onnx, ("tf2onnx", "onnxruntime")),
    "litert": Format("model.tflite", _write_litert, _predict_litert, ("ai-edge-litert",)),
    "openvino": Format("model_openvino", _write_openvino, _predict_openvino, ("openvino",)),
    "savedmodel": Format("model_savedmodel", _write_savedmodel, _predict_savedmodel),
}


def export_model(names: Sequence[str], options: SharedOptions) -> None:
    """Export the model in `--output-dir` in formats, and compare each exported model with it.

    All files are written, or none. Weights and computations are float32, whatever the precision of
    the training.
    """
    names = list(dict.fromkeys(names))
    _check_packages(names)
    model, class_names = load_trained_model(options)
    layers = [model]  # all are changed to float32
    for layer in layers:  # the loop appends nested layers
        layers += getattr(layer, "layers", [])
        layer.dtype_policy = "float32"
    images, source = _load_images(options)
    expected = model.predict(images, verbose=0)
    output_dir, lines = options.output_dir, []
    with staging_dir(output_dir, kind="export") as directory:
        # First, since converters on a full disk raise errors that do not mention it.
        # For ONNX, a SavedModel is also written.
        check_disk_space(output_dir, 4 * model.count_params() * (len(names) + ("onnx" in names)))
        for name in names:
            path = directory / FORMATS[name].filename
            difference = export_and_compare(model, name, path, images, expected)
            # A file, or all files in a directory.
            size = sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())
            lines.append(
                f"  {output_dir / path.name}, {size / 1e6:.1f} MB: probabilities differ by at most "
                f"{difference:.1g}"
            )
        write_class_names(directory, class_names)
        for filename in (*(FORMATS[name].filename for name in names), "classes.txt"):
            # Directories cannot be overwritten, so move them away; classes.txt must survive a kill.
            if filename != "classes.txt" and os.path.lexists(output_dir / filename):
                (output_dir / filename).replace(directory / f"previous-{filename}")
            (directory / filename).replace(output_dir / filename)
    print(f"Exported in float32, and compared with Keras on {len(images)} {source}:")
    print(*lines, f"  {output_dir / 'classes.txt'}: names of the classes", sep="\n")


def _check_packages(names: list[str]) -> None:
    """Raise a `UsageError` with the `pip install` command for missing packages, if any."""
    packages = [package for name in names for package in FORMATS[name].packages]
    missing = [p for p in packages if not importlib.util.find_spec(p.replace("-", "_"))]
    if missing:
        # With requirements.txt, pip keeps versions that TensorFlow and W&B can use.
        command = " ".join(["pip install -r requirements.txt", *missing])
        raise UsageError(f"--export {' '.join(names)}: packages are missing; run `{command}`")


def _load_images(options: SharedOptions) -> tuple[np.ndarray, str]:
    """Return images to compare models on, uint8 (N, 28, 28), and a description.

    They are test images if the data set is on this machine, else random blocks of gray.
    """
    try:
        raw = datasets.load_raw_dataset(options.data_dir, options.cache_dir, download=False)
    except UserError:
        if options.data_dir:
            raise
        blocks = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 7, 7), dtype="uint8")
        return np.kron(blocks, np.ones((1, 4, 4), "uint8")), "generated images"
    return raw.test_images[sample_rows(len(raw.test_images), NUM_IMAGES)], "test images"


def export_and_compare(
    model: keras.Model, name: str, path: Path, images: np.ndarray, expected: np.ndarray
) -> float:
    """Write a float32 model in a format, and return the largest difference of a probability.

    The probabilities of the written model for `images`, uint8 (N, 28, 28), are compared with
    `expected`, (N, classes).
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Keras 3.13 prints despite verbose=False
            FORMATS[name].write(model, path)
        # Two batch sizes, since an exported model takes any.
        batches = [FORMATS[name].predict(path, part) for part in (images[:1], images)]
    except OSError:
        raise
    except Exception as error:  # each converter and runtime raises its own
        raise UserError(f"--export {name}: {first_line(error)}") from None
    difference = float(np.max([np.abs(part - expected[: len(part)]).max() for part in batches]))
    if not difference <= MAX_DIFFERENCE:  # also if it is NaN
        raise UserError(
            f"--export {name}: the probabilities differ from those in Keras by {difference:.2g}, "
            f"more than {MAX_DIFFERENCE}; no file was written"
        )
    return difference
