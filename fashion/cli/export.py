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
from dataclasses import dataclass
from pathlib import Path

from fashion import devices
from fashion.cli.trained_model import load_trained_model
from fashion.environment import check_disk_space, staging_dir
from fashion.errors import UsageError, UserError
from fashion.evaluation.embeddings import sample_rows
from fashion.options import Options

import keras
import numpy as np
import tensorflow as tf

import common

NUM_IMAGES = 100  # on which each exported model is compared with Keras
MAX_DIFFERENCE = 0.01  # of a probability


@dataclass(frozen=True)
class Format:
    """A format of exported models.

    Attributes:
        filename: File or directory that is written.
        write: Writes a float32 model.
        predict: Returns the probabilities of the written model, computed by its own runtime.
        packages: Packages that it needs besides those of `requirements.txt`.
        min_keras: First version of Keras that writes it, major and minor.
    """

    filename: str
    write: Callable[[keras.Model, Path], None]
    predict: Callable[[Path, np.ndarray], np.ndarray]
    packages: tuple[str, ...] = ()
    min_keras: tuple[int, int] = (3, 10)


def _write_onnx(model: keras.Model, path: Path) -> None:
    # With format="onnx", Keras 3.15 turns the constants of a ResNet50 into inputs.
    saved_model = path.with_name("saved_model_for_onnx")
    _write_savedmodel(model, saved_model)
    command = [sys.executable, "-P", "-m", "tf2onnx.convert", "--saved-model", str(saved_model)]
    done = subprocess.run([*command, "--output", str(path)], capture_output=True, text=True)
    if done.returncode:
        # Nothing if the process was killed, for example because memory ran out.
        lines = done.stderr.strip().splitlines() or [f"tf2onnx ended with {done.returncode}"]
        raise RuntimeError(lines[-1])


def _predict_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    (probabilities,) = onnxruntime.InferenceSession(path).run(None, {"images": images})
    return probabilities


def _write_litert(model: keras.Model, path: Path) -> None:
    model.export(str(path), format="litert", verbose=False)


def _predict_litert(path: Path, images: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    predict = Interpreter(str(path)).get_signature_runner()
    return predict(images=images)["output_0"]


def _write_openvino(model: keras.Model, path: Path) -> None:
    path.mkdir()
    model.export(str(path / "model.xml"), format="openvino", verbose=False)


def _predict_openvino(path: Path, images: np.ndarray) -> np.ndarray:
    import openvino

    # Otherwise, OpenVINO computes in bfloat16 on CPUs that support it.
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.compile_model(path / "model.xml", "CPU", config)(images)[0]


def _write_savedmodel(model: keras.Model, path: Path) -> None:
    model.export(str(path), format="tf_saved_model", verbose=False)


def _predict_savedmodel(path: Path, images: np.ndarray) -> np.ndarray:
    model = tf.saved_model.load(str(path))  # its variables live only as long as the object
    return model.signatures["serving_default"](images=tf.constant(images))["output_0"].numpy()


FORMATS = {
    "onnx": Format("model.onnx", _write_onnx, _predict_onnx, ("tf2onnx", "onnxruntime")),
    "litert": Format(
        "model.tflite", _write_litert, _predict_litert, ("ai-edge-litert",), min_keras=(3, 13)
    ),
    "openvino": Format(
        "model_openvino", _write_openvino, _predict_openvino, ("openvino",), min_keras=(3, 13)
    ),
    "savedmodel": Format("model_savedmodel", _write_savedmodel, _predict_savedmodel),
}


def export_model(names: Sequence[str], options: Options) -> None:
    """Export the model in `--output-dir`, and compare each exported model with it.

    All files are written, or none. Weights and computations are float32, whatever the precision of
    the training.

    Args:
        names: Names of formats.
        options: Options with the output directory and, for the comparison, the data directory.

    Raises:
        UsageError: If a format needs a package that is not installed.
        UserError: If there is no model, it cannot be exported, or the probabilities differ.
    """
    formats = {name: FORMATS[name] for name in names}
    _check_requirements(formats)
    model, class_names = load_trained_model(options)
    convert_to_float32(model)
    images, source = _load_images(options)
    expected = devices.predict_in_batches(model, images)
    output_dir, lines = options.results.output_dir, []
    try:
        with staging_dir(output_dir) as directory:
            # First, since converters on a full disk raise errors that do not say so. Each format
            # takes 4 bytes per weight; for ONNX, a SavedModel is written besides.
            check_disk_space(directory, 4 * model.count_params() * (len(formats) + 1))
            for name, export_format in formats.items():
                path = directory / export_format.filename
                difference = export_and_compare(model, name, path, images, expected)
                lines.append(
                    f"  {output_dir / path.name}, {_size(path) / 1e6:.1f} MB: probabilities "
                    f"differ by at most {difference:.1g}"
                )
            text = "".join(f"{name}\n" for name in class_names)
            (directory / "classes.txt").write_text(text, encoding="utf-8")
            _move_all(
                [*(f.filename for f in formats.values()), "classes.txt"], directory, output_dir
            )
    except OSError as error:
        raise UserError(
            f"--export: {error}; --output-dir must be writable and have free space"
        ) from None
    print(f"Exported in float32, and compared with Keras on {len(images)} {source}:")
    print(*lines, f"  {output_dir / 'classes.txt'}: names of the classes", sep="\n")


def _check_requirements(formats: dict[str, Format]) -> None:
    """Raise a `UsageError` with the `pip install` command for missing packages, if any."""
    min_keras = max(export_format.min_keras for export_format in formats.values())
    installed_keras = tuple(map(int, keras.version().split(".")[:2]))
    missing = [f"'keras>={min_keras[0]}.{min_keras[1]}'"] if installed_keras < min_keras else []
    for export_format in formats.values():
        for package in export_format.packages:
            if not importlib.util.find_spec(package.replace("-", "_")):
                missing.append(package)
    if missing:
        # With requirements.txt, pip keeps versions that TensorFlow and W&B can use.
        command = " ".join(["pip install -r requirements.txt", *missing])
        raise UsageError(
            f"--export {' '.join(formats)}: packages are missing or too old; run `{command}`"
        )


def convert_to_float32(model: keras.Model) -> None:
    """Change all layers of a model to compute in float32."""
    layers = [model]
    for layer in layers:  # the loop appends nested layers
        layers += getattr(layer, "layers", [])
        layer.dtype_policy = "float32"


def _load_images(options: Options) -> tuple[np.ndarray, str]:
    """Return images to compare models on, uint8 (N, 28, 28), and a description.

    They are test images if the data set is on this machine, else random blocks of gray.
    """
    try:
        images = common.load_raw_dataset(options.data, download=False).test_images
    except UserError:
        if options.data.data_dir:
            raise
        blocks = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 7, 7), dtype="uint8")
        return np.kron(blocks, np.ones((1, 4, 4), "uint8")), "generated images"
    return images[sample_rows(len(images), NUM_IMAGES)], "test images"


def export_and_compare(
    model: keras.Model, name: str, path: Path, images: np.ndarray, expected: np.ndarray
) -> float:
    """Write a model in a format and return the largest difference of a probability.

    Raises:
        UserError: If it cannot be written or run, or the difference is above `MAX_DIFFERENCE`.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Keras 3.13 prints despite verbose=False
            FORMATS[name].write(model, path)
        # Two batch sizes, since an exported model takes any.
        batches = [FORMATS[name].predict(path, part) for part in (images[:1], images)]
    except OSError:
        raise
    except Exception as error:  # each converter and runtime raises its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--export {name}: {reason}") from None
    difference = max(float(np.abs(part - expected[: len(part)]).max()) for part in batches)
    if not difference <= MAX_DIFFERENCE:  # also if it is not a number
        raise UserError(
            f"--export {name}: probabilities differ from Keras' by {difference:.2g}, more than "
            f"{MAX_DIFFERENCE}; no file was written"
        )
    return difference


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a directory."""
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())


def _move_all(filenames: Sequence[str], source: Path, target: Path) -> None:
    """Move files and directories; on an error, restore those that were in `target` before."""
    previous = source / "previous"
    previous.mkdir()
    try:
        for filename in filenames:
            if os.path.lexists(target / filename):
                (target / filename).replace(previous / filename)
            (source / filename).replace(target / filename)
    except BaseException:  # also Ctrl-C and SIGTERM
        for filename in filenames:
            if os.path.lexists(target / filename) and not os.path.lexists(source / filename):
                (target / filename).replace(source / filename)
            if os.path.lexists(previous / filename):
                (previous / filename).replace(target / filename)
        raise
