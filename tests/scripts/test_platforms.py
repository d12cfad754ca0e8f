"""Differences of other systems, simulated as far as possible."""

import subprocess
import sys

import pytest
from helpers.data import load_sample
from helpers.scripts import ROOT, SAMPLE, Result, process_environment


@pytest.fixture
def home(tmp_path):
    """A home directory with special characters in its name."""
    directory = tmp_path / "Zoë Größe & Co (2)"
    directory.mkdir()
    return directory


def run_with_code_page(home, script, *argv):
    """Run a script on a console with a Windows code page, without sh, git or apt-get."""
    (home / "no programs").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, ROOT / f"{script}.py", "--data-dir", SAMPLE, *map(str, argv)],
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


@pytest.mark.slow
@pytest.mark.versions
def test_baseline_runs_with_special_characters_and_without_programs(home):
    done = run_with_code_page(home, "cnn_basic", "--epochs", 1)
    assert (done.returncode, done.stderr) == (0, "")
    result = Result(home / "outputs" / "cnn_basic")
    assert result.metrics["versions"]["commit"] is None
    images = load_sample().test.images
    assert result.model.predict(images, verbose=0).shape == (400, 10)
    assert list(home.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_fine_tuning_and_predict_run_with_special_characters(home):
    """Cache, weights files and checkpoints are in directories with such names."""
    argv = ("--weights", "random", "--image-size", 64, "--epochs", 1, "--wandb", "disabled")
    argv = (*argv, "--train-size", 60, "--validation-size", 20, "--test-size", 20)
    argv = (*argv, "--fine-tune-blocks", 1, "--fine-tune-epochs", 1)
    done = run_with_code_page(home, "resnet50_fashion", *argv)
    assert (done.returncode, done.stderr) == (0, "")
    output = home / "outputs" / "resnet50_fashion"
    assert len(Result(output).history) == 2
    assert list(home.glob("cache/fashion-mnist-features/*/*/*.npy"))
    image = output / "mistakes.png"
    done = run_with_code_page(home, "resnet50_fashion", "--predict", image)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(image))


@pytest.mark.any_version
def test_message_escapes_characters_the_console_lacks(home):
    """The code page has no arrow."""
    done = run_with_code_page(home, "cnn_basic", "--data-dir", home / "→")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("cnn_basic.py: error: --data-dir: ")
    assert "Zoë Größe & Co (2)" in line and r"\u2192" in line


@pytest.mark.slow
@pytest.mark.parametrize("command", [("-m", "cnn_basic"), ("-OO", ROOT / "cnn_basic.py")])
def test_other_ways_to_start_a_script(command, tmp_path):
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        cwd=tmp_path,
        env=process_environment(tmp_path, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--hidden-units" in done.stdout and "units in the hidden layer" in done.stdout


@pytest.mark.slow
def test_deleted_working_directory_is_an_error_in_one_line(tmp_path):
    script = f"mkdir gone; cd gone; rmdir ../gone; exec {sys.executable} {ROOT / 'cnn_basic.py'}"
    done = subprocess.run(
        ["sh", "-c", f"{script} --data-dir {SAMPLE} --wandb disabled"],
        cwd=tmp_path,
        env=process_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("cnn_basic.py: error: ") and "No such file or directory" in line
