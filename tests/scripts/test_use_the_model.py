"""The snippets of docs/use-the-model.md, run on models of both scripts."""

import importlib.util
import re
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from helpers.networks import use_small_resnet
from helpers.scripts import ROOT, SAMPLE, process_environment, train_in_process

import cnn_basic
import resnet50_fashion

SNIPPETS = {
    name: (pip, code)
    for name, pip, code in re.findall(
        r"^## (\w+)$.+?^```bash\n(pip install .+?)\n```$.+?^```python\n(.+?)^```$",
        (ROOT / "docs" / "use-the-model.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
}
FORMATS = ("LiteRT", "OpenVINO", "ONNX")
BOUNDS = {"float32": 0.002, "float16": 0.02, "bfloat16": 0.1}  # as documented
SMALL = ("--weights", "none", "--image-size", 64)
RUNS = {
    "basic": (cnn_basic,),
    "mirrored": (resnet50_fashion, *SMALL, "--precision", "bfloat16", "--recipe", "best"),
    "frozen": (resnet50_fashion, *SMALL, "--precision", "float32", "--recipe", "fast"),
    "fine_tuned": (
        *(resnet50_fashion, *SMALL, "--precision", "float16"),
        *("--fine-tune-blocks", 1, "--fine-tune-epochs", 1),
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory, shared_cache_dir):
    """Return the run with a name of `RUNS`, on the sample and with a small ResNet50."""
    directory, runs = tmp_path_factory.mktemp("results"), {}

    def result(name):
        if name not in runs:
            script, *argv = RUNS[name]
            argv += ["--data-dir", SAMPLE, "--cache-dir", shared_cache_dir]
            with pytest.MonkeyPatch.context() as patch:
                use_small_resnet(patch)
                runs[name] = train_in_process(script, *argv, "--output-dir", directory / name)
        return runs[name]

    return result


RUN = """
import runpy
import sys
import numpy as np
for run in sys.argv[1:]:
    names = runpy.run_path(run + ".py")
    np.savez(run, images=names["images"], probabilities=names["probabilities"])
"""


def run_snippet(name, results, directory):
    """Run a snippet for several runs, in one process.

    Returns:
        {name of the run: (images, probabilities of the exported model)}.
    """
    pip, code = SNIPPETS[name]
    if tuple(map(int, keras.version().split(".")[:2])) < (3, 15):
        pytest.skip("needs Keras 3.15")
    for package in pip.split()[2:]:
        if not importlib.util.find_spec(package.replace("-", "_")):
            pytest.skip(f"needs its runtime, by {pip}")
    (directory / "datasets").mkdir()
    (directory / "datasets" / "fashion-mnist").symlink_to(SAMPLE)  # used by Keras' `load_data`
    path = "outputs/resnet50_fashion"
    for run, result in results.items():
        (directory / f"{run}.py").write_text(code.replace(path, str(result.directory)))
    done = subprocess.run(
        [sys.executable, "-c", RUN, *results],
        cwd=directory,
        env=process_environment(directory, KERAS_HOME=str(directory)),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    predictions = {}
    for run in results:
        with np.load(directory / f"{run}.npz") as file:
            predictions[run] = file["images"], file["probabilities"]
    return predictions


def load_in_float32(path, directory):
    """Load a model with all layers changed to float32."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(directory / "float32.keras", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                content = re.sub(rb"mixed_b?float16", b"float32", content)
            new.writestr(name, content)
    return keras.saving.load_model(directory / "float32.keras")


def check(result, images, exported, directory):
    """Compare an exported model's probabilities with those of the model in Keras."""
    precision = result.metrics.get("weights", {}).get("precision", "float32")
    assert images.shape == (100, 28, 28) and exported.dtype == "float32"
    expected = result.model.predict(images, verbose=0)
    exact = load_in_float32(result.directory / "model.keras", directory).predict(images, verbose=0)
    assert np.ptp(exact, axis=0).max() > 0.5  # probabilities depend on the images
    assert np.abs(exported - exact).max() < BOUNDS["float32"]
    assert np.abs(exported - expected).max() < BOUNDS[precision]
    assert np.sum(exported.argmax(axis=1) == expected.argmax(axis=1)) >= 99


def test_each_format_has_a_snippet():
    assert tuple(SNIPPETS) == FORMATS


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_exported_models_predict_as_in_keras(name, results, subset_run, tmp_path):
    """Models of both scripts, of each precision, and the real ResNet50."""
    runs = {run: results(run) for run in RUNS} | {"real": subset_run}
    for run, (images, exported) in run_snippet(name, runs, tmp_path).items():
        print(run)
        check(runs[run], images, exported, tmp_path)


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("run", ["basic", "mirrored"])
def test_calling_the_model_applies_no_dropout(run, results, sample):
    """Keras' Resizing would put dropout in training mode."""
    model, images = results(run).model, sample.test.images[:100]
    np.testing.assert_array_equal(model(images), model(images))
    np.testing.assert_array_equal(model(images), model(images, training=False))
