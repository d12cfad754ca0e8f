"""docs/use-the-model.md: its snippets run as they stand there, on both scripts' models."""

import importlib.util
import re
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from conftest import ROOT, SAMPLE, environment, make_resnet_small, train

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
BOUNDS = {"float32": 0.002, "float16": 0.02, "bfloat16": 0.1}  # as the document has them
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
def results(tmp_path_factory, shared_cache):
    """Runs on the sample, each made when it is asked for; the ResNet50 is a small one."""
    folder, found = tmp_path_factory.mktemp("results"), {}

    def result(name):
        if name not in found:
            script, *words = RUNS[name]
            words += ["--data-dir", SAMPLE, "--cache-dir", shared_cache]
            with pytest.MonkeyPatch.context() as patch:
                make_resnet_small(patch)
                found[name] = train(script, *words, "--output-dir", folder / name)
        return found[name]

    return result


RUN = """
import runpy
import numpy as np
names = runpy.run_path("snippet.py")
np.savez("answers.npz", images=names["images"], probabilities=names["probabilities"])
"""


def run_snippet(name, result, folder):
    """The images and an exported model's probabilities, by the document's snippet, as a process."""
    pip, code = SNIPPETS[name]
    if tuple(map(int, keras.version().split(".")[:2])) < (3, 15):
        pytest.skip("needs Keras 3.15")
    for package in pip.split()[2:]:
        if not importlib.util.find_spec(package.replace("-", "_")):
            pytest.skip(f"needs its runtime, by {pip}")
    (folder / "datasets").mkdir()
    (folder / "datasets" / "fashion-mnist").symlink_to(SAMPLE)  # for Keras' `load_data`
    path = "outputs/resnet50_fashion"
    (folder / "snippet.py").write_text(code.replace(path, str(result.folder)))
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder,
        env=environment(folder, KERAS_HOME=str(folder)),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "answers.npz") as file:
        return file["images"], file["probabilities"]


def in_float32(path, folder):
    """The same model, whose file says that all of its layers compute in float32."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(folder / "float32.keras", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                content = re.sub(rb"mixed_b?float16", b"float32", content)
            new.writestr(name, content)
    return keras.saving.load_model(folder / "float32.keras")


def check(name, result, folder):
    precision = result.metrics.get("weights", {}).get("precision", "float32")
    images, exported = run_snippet(name, result, folder)
    assert images.shape == (100, 28, 28) and exported.dtype == "float32"
    answers = result.model.predict(images, verbose=0)
    exact = in_float32(result.folder / "model.keras", folder).predict(images, verbose=0)
    assert np.ptp(exact, axis=0).max() > 0.5  # they depend on the images
    assert np.abs(exported - exact).max() < BOUNDS["float32"]
    assert np.abs(exported - answers).max() < BOUNDS[precision]
    assert np.sum(exported.argmax(axis=1) == answers.argmax(axis=1)) >= 99


def test_each_format_has_a_snippet():
    assert tuple(SNIPPETS) == FORMATS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("run", ["basic", "mirrored"])
def test_exported_model_answers_as_in_keras(run, name, results, tmp_path):
    check(name, results(run), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("run", ["frozen", "fine_tuned"])
def test_so_does_one_of_another_precision(run, name, results, tmp_path):
    check(name, results(run), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_so_does_a_real_resnet50(name, subset_run, tmp_path):
    check(name, subset_run, tmp_path)


@pytest.mark.parametrize("run", ["basic", "mirrored"])
def test_model_called_without_a_word_on_training_leaves_nothing_out(run, results, sample):
    """Keras' Resizing would have the dropout after it work."""
    model, images = results(run).model, sample.test.images[:100]
    np.testing.assert_array_equal(model(images), model(images))
    np.testing.assert_array_equal(model(images), model(images, training=False))
