"""What other systems lack or do otherwise, as far as this one can be made to be like them."""

import subprocess
import sys

from fashion import environment

import pytest
from conftest import ROOT, SAMPLE, Result, load
from conftest import environment as process_environment

import cnn_basic


@pytest.fixture
def home(tmp_path):
    """A user's folder whose name is not as plain as those of tests."""
    folder = tmp_path / "Zoë Größe & Co (2)"
    folder.mkdir()
    return folder


def run_elsewhere(home, script, *words):
    """Runs a script by a console of Windows' code page, without sh, git or apt-get."""
    (home / "no programs").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, ROOT / f"{script}.py", "--data-dir", SAMPLE, *map(str, words)],
        cwd=home,
        env=process_environment(
            home,
            PATH=str(home / "no programs"),
            PYTHONIOENCODING="cp1252",
            XDG_CACHE_HOME=str(home / "cache"),
        ),
        capture_output=True,
        encoding="cp1252",
        timeout=600,
    )


def test_baseline_runs_where_names_are_odd_and_programs_missing(home):
    done = run_elsewhere(home, "cnn_basic", "--epochs", 1)
    assert (done.returncode, done.stderr) == (0, "")
    result = Result(home / "outputs" / "cnn_basic")
    assert result.metrics["versions"]["commit"] is None
    images = load().test.images
    assert result.model.predict(images, verbose=0).shape == (400, 10)
    assert list(home.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_fine_tuning_runs_there_too_and_so_does_the_models_use(home):
    """Cache, weights files and checkpoints lie in folders of such names."""
    words = ("--weights", "none", "--image-size", 64, "--epochs", 1, "--wandb", "disabled")
    words = (*words, "--train-size", 60, "--validation-size", 20, "--test-size", 20)
    words = (*words, "--fine-tune-blocks", 1, "--fine-tune-epochs", 1)
    done = run_elsewhere(home, "resnet50_fashion", *words)
    assert (done.returncode, done.stderr) == (0, "")
    output = home / "outputs" / "resnet50_fashion"
    assert len(Result(output).history) == 2
    assert list(home.glob("cache/fashion-mnist-features/*/activations-*/*/*.npz"))
    picture = output / "mistakes.png"
    done = run_elsewhere(home, "resnet50_fashion", "--predict", picture)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(picture))


def test_message_names_what_a_console_cannot_show(home):
    """A code page has no arrow: its number is written in place of it."""
    done = run_elsewhere(home, "cnn_basic", "--data-dir", home / "→")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("cnn_basic.py: error: --data-dir: ")
    assert "Zoë Größe & Co (2)" in line and r"\u2192" in line


def test_run_without_proc_leaves_all_its_files(run_main, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PROC", tmp_path / "proc")
    metrics = run_main(cnn_basic, "--data-dir", SAMPLE, "--epochs", 1).metrics
    assert "peak_gb" not in metrics["memory"]
    assert metrics["versions"]["processor"]
