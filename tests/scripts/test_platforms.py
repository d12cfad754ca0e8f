"""Differences of other systems, simulated as far as possible."""

import pytest
from helpers.scripts import ROOT, SAMPLE, Result, run_python, run_script

pytestmark = pytest.mark.slow


@pytest.mark.versions
def test_code_page_special_characters_and_missing_programs(tmp_path):
    """A console with a Windows code page, a home "Zoë …", no sh, no git, no apt-get."""
    home = tmp_path / "Zoë Größe & Co (2)"
    (home / "no programs").mkdir(parents=True)
    paths = {"PATH": str(home / "no programs"), "XDG_CACHE_HOME": str(home / "cache")}

    def run(*argv):
        encoding = {"encoding": "cp1252", "PYTHONIOENCODING": "cp1252"}
        return run_script(home, "resnet50_fashion.py", *argv, **encoding, **paths)

    argv = ("--data-dir", SAMPLE, "--weights", "random", "--image-size", 64, "--epochs", 1)
    argv = (*argv, "--train-size", 60, "--validation-size", 20, "--test-size", 20)
    done = run(*argv, "--fine-tune-blocks", 1, "--fine-tune-epochs", 1)
    assert (done.returncode, done.stderr) == (0, "")
    result = Result(home / "outputs" / "resnet50_fashion")
    assert len(result.history) == 2
    assert result.metrics["versions"]["commit"] is None
    assert list(home.glob("cache/fashion-mnist-features/*/*/*.npy"))
    assert list(home.glob("wandb/offline-run-*/*.wandb"))

    image = result.directory / "mistakes.png"
    done = run("--predict", image)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(image))

    done = run("--data-dir", home / "→")  # the code page has no arrow
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("resnet50_fashion.py: error: --data-dir: ")
    assert home.name in line and r"\u2192" in line


def test_module_without_docstrings_can_be_started(tmp_path):
    done = run_python(tmp_path, "-OO", "-m", "cnn_basic", "--help", PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (0, "")
    assert "--hidden-units" in done.stdout and "units in the hidden layer" in done.stdout
