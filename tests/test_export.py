"""`--export`: exported models of both scripts, and error messages.

The exported models are run by the snippets of docs/use-the-model.md.
"""

import importlib.util
import re
import sys
import zipfile

from fashion import export
from fashion.datasets.splits import CLASS_NAMES
from fashion.errors import UserError
from fashion.options import EXPORT_FORMATS
from fashion.results import output

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.networks import use_small_resnet
from helpers.scripts import (
    ROOT,
    SAMPLE,
    directory_contents,
    file_size_limit,
    run_python,
    train_in_process,
)

import cnn_basic
import resnet50_fashion

SNIPPETS = {
    heading.lower(): code
    for heading, code in re.findall(
        r"^## (\w+)$.+?^```python\n(.+?)^```$",
        (ROOT / "docs" / "use-the-model.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
}
MAX_DIFFERENCE = {"float32": 0.002, "float16": 0.02, "bfloat16": 0.1}  # the last two: documented
SMALL = ("--weights", "random", "--image-size", 64)
FINE_TUNE = ("--fine-tune-blocks", 1, "--fine-tune-epochs", 1)
RUNS = {
    "basic": (cnn_basic,),
    # With seed 2, few of the 100 images have two nearly equally likely classes.
    "flipped": (resnet50_fashion, *SMALL, "--precision=bfloat16", "--recipe=best", "--seed=2"),
    "fine_tuned": (resnet50_fashion, *SMALL, "--precision=float16", *FINE_TUNE),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory, shared_cache_dir):
    """The runs of `RUNS`, on the sample and with a small ResNet50."""
    directory, runs = tmp_path_factory.mktemp("results"), {}
    with pytest.MonkeyPatch.context() as patch:
        use_small_resnet(patch)
        for name, (script, *argv) in RUNS.items():
            argv += ["--data-dir", SAMPLE, "--cache-dir", shared_cache_dir]
            runs[name] = train_in_process(script, *argv, "--output-dir", directory / name)
    return runs


@pytest.fixture
def untrained(tmp_path):
    """An output directory with an untrained model of cnn_basic."""
    directory = tmp_path / "untrained"
    directory.mkdir()
    output.save_model(cnn_basic.build_model(32, 10), directory / "model.keras", CLASS_NAMES)
    return directory


RUN_SNIPPETS = """
import runpy
import sys
import numpy as np
for path in sys.argv[1:]:
    names = runpy.run_path(path)
    np.savez(path + ".npz", images=names["images"], probabilities=names["probabilities"])
"""


def run_snippets(formats, output_dirs, directory):
    """Run snippets in one process; return their images and probabilities by run and format."""
    (directory / "datasets").mkdir()
    (directory / "datasets" / "fashion-mnist").symlink_to(SAMPLE)  # used by Keras' `load_data`
    paths = {}
    for run, output_dir in output_dirs.items():
        for name in formats:
            code = SNIPPETS[name]
            assert code.count("outputs/resnet50_fashion") == 1
            paths[run, name] = directory / f"{run}_{name}.py"
            paths[run, name].write_text(code.replace("outputs/resnet50_fashion", str(output_dir)))
    done = run_python(directory, "-c", RUN_SNIPPETS, *paths.values(), KERAS_HOME=str(directory))
    assert done.returncode == 0, done.stderr
    return {key: np.load(f"{path}.npz") for key, path in paths.items()}


def load_in_float32(path, directory):
    """Load a model with all layers changed to float32."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(directory / "float32.keras", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                content = re.sub(rb"mixed_b?float16", b"float32", content)
            new.writestr(name, content)
    return keras.saving.load_model(directory / "float32.keras")


def check_exported_models(results, command_line, directory):
    """Compare probabilities with those in Keras, in all formats whose packages are installed."""
    formats = [
        name
        for name, export_format in export.FORMATS.items()
        if all(importlib.util.find_spec(p.replace("-", "_")) for p in export_format.packages)
    ]
    output_dirs = {}
    for name, result in results.items():
        script = sys.modules[result.metrics["model"]]
        argv = ["--output-dir", result.directory, "--data-dir", SAMPLE, "--export", *formats]
        done = command_line(script, *argv)
        assert done.code == 0, done.err
        lines = done.out.splitlines()
        assert len(lines) == len(formats) + 2
        assert lines[0].endswith("compared with Keras on 100 test images:")
        output_dirs[name] = directory / name  # only the exported files
        output_dirs[name].mkdir()
        for filename in (*(export.FORMATS[f].filename for f in formats), "classes.txt"):
            assert any(str(result.directory / filename) in line for line in lines)
            (result.directory / filename).rename(output_dirs[name] / filename)
        assert (output_dirs[name] / "classes.txt").read_text().splitlines()[1] == "Trouser"
    predictions = run_snippets(formats, output_dirs, directory)
    for (name, export_format), arrays in predictions.items():
        print(name, export_format)
        result, images, exported = results[name], arrays["images"], arrays["probabilities"]
        precision = result.metrics["weights"].get("precision", "float32")
        assert images.shape == (100, 28, 28) and exported.dtype == "float32"
        path = result.directory / "model.keras"
        exact = load_in_float32(path, directory).predict(images, verbose=0)
        assert np.ptp(exact, axis=0).max() > 0.5  # probabilities depend on the images
        assert np.abs(exported - exact).max() < MAX_DIFFERENCE["float32"]
        expected = result.model.predict(images, verbose=0)
        assert np.abs(exported - expected).max() < MAX_DIFFERENCE[precision]
        assert np.sum(exported.argmax(axis=1) == expected.argmax(axis=1)) >= 99


def test_each_format_has_a_snippet():
    assert tuple(export.FORMATS) == EXPORT_FORMATS
    assert set(EXPORT_FORMATS) <= SNIPPETS.keys()


@pytest.mark.slow
@pytest.mark.versions
def test_exported_models_predict_as_in_keras(results, command_line, tmp_path):
    check_exported_models(results, command_line, tmp_path)


@pytest.mark.slow
def test_exported_model_of_the_quick_start_predicts_as_in_keras(subset_run, command_line, tmp_path):
    """The real ResNet50."""
    check_exported_models({"real": subset_run}, command_line, tmp_path)


@pytest.mark.slow
@pytest.mark.versions
def test_calling_the_model_applies_no_dropout(results, sample):
    """Keras' Resizing would put dropout in training mode."""
    model, images = results["flipped"].model, sample.test.images[:100]
    np.testing.assert_array_equal(model(images), model(images))
    np.testing.assert_array_equal(model(images), model(images, training=False))


def test_savedmodel_is_compared_stores_each_weight_once_and_is_a_keras_layer(untrained, tmp_path):
    model = keras.saving.load_model(untrained / "model.keras")
    path, images = tmp_path / "model", np.arange(2 * 28 * 28, dtype="uint8").reshape(2, 28, 28)
    expected = model.predict(images, verbose=0)
    changed = expected.copy()
    changed[1, 4] += 0.005
    difference = export.export_and_compare(model, "savedmodel", path, images, changed)
    assert difference == pytest.approx(0.005, abs=1e-5)
    changed[1, 4] = np.nan
    with pytest.raises(UserError, match=r"the probabilities differ .* by nan, more than"):
        export.export_and_compare(model, "savedmodel", path, images, changed)
    (weights,) = (path / "variables").glob("*.data-*")
    assert weights.stat().st_size < 4 * model.count_params() + 2000
    probabilities = keras.layers.TFSMLayer(path)(tf.constant(images))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_export_replaces_earlier_files_and_keeps_them_on_failure(
    untrained, command_line, monkeypatch
):
    earlier = untrained / "model_savedmodel"
    earlier.mkdir()
    (earlier / "earlier").touch()
    before = directory_contents(untrained)
    argv = ["--output-dir", untrained, "--data-dir", SAMPLE, "--export", "savedmodel"]
    with monkeypatch.context() as patch:
        patch.setattr(export, "MAX_DIFFERENCE", -1.0)
        done = command_line(cnn_basic, *argv)
    assert done.code == 1 and not done.out
    start = "cnn_basic.py: error: --export savedmodel: the probabilities differ from those in Keras"
    assert re.fullmatch(rf"{start} by \S+, more than -1.0; no file was written\n", done.err)
    assert directory_contents(untrained) == before
    assert command_line(cnn_basic, *argv).code == 0
    assert not (earlier / "earlier").exists() and (earlier / "saved_model.pb").exists()
    assert {path.name for path in untrained.iterdir()} == {
        *("model.keras", "model_savedmodel", "classes.txt")
    }


def test_missing_space_is_an_error(untrained, command_line):
    with file_size_limit(10_000):
        done = command_line(cnn_basic, "--output-dir", untrained, "--export", "savedmodel")
    reason = "[Errno 27] File too large; raise the limit of the file size (`ulimit -f`)"
    message = f"cnn_basic.py: error: --output-dir: cannot write to {untrained}: {reason}\n"
    assert (done.code, done.err) == (1, message)
    assert [path.name for path in untrained.iterdir()] == ["model.keras"]


def test_without_the_data_set_generated_images_are_compared(
    untrained, command_line, tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr("fashion.datasets.fashion_mnist.DEBIAN_DIR", tmp_path / "debian")
    done = command_line(cnn_basic, "--output-dir", untrained, "--export", "savedmodel")
    assert done.code == 0, done.err
    assert " compared with Keras on 100 generated images:" in done.out.splitlines()[0]


def test_missing_packages_are_an_error_before_any_work(command_line, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = command_line(cnn_basic, "--export", "litert", "onnx", "litert")
    assert done.code == 2
    assert done.err == (
        "cnn_basic.py: error: --export litert onnx: packages are missing; run "
        "`pip install -r requirements.txt ai-edge-litert tf2onnx onnxruntime`\n"
    )
    assert not list(tmp_path.iterdir())
