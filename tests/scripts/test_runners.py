"""Scripts started by other programs, and with closed or full standard streams."""

import signal
import subprocess
import sys

import pytest
from helpers.scripts import ROOT, SAMPLE, Result, process_environment

pytestmark = pytest.mark.any_version

SCRIPT = str(ROOT / "cnn_basic.py")
ARGV = ("--data-dir", str(SAMPLE), "--wandb", "disabled", "--epochs", "1")


def run(directory, *command, **kwargs):
    """Run a command to its end in a directory."""
    return subprocess.run(
        command,
        cwd=directory,
        env=process_environment(directory, PYTHONPATH=str(ROOT)),
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        **{"stdout": subprocess.PIPE} | kwargs,
    )


def python(directory, *arguments, **kwargs):
    """Run Python to its end in a directory."""
    return run(directory, sys.executable, *arguments, **kwargs)


def test_profiler_runs_a_script(tmp_path):
    """The profiler is `__main__`, so the script's classes are not found there."""
    done = python(tmp_path, "-m", "cProfile", "-o", "profile", SCRIPT, "--help")
    assert done.returncode == 0, done.stderr
    assert "--hidden-units" in done.stdout and "units in the hidden layer" in done.stdout
    assert (tmp_path / "profile").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("-m", "cnn_basic"), ("-m", "pdb", "-c", "continue", SCRIPT), ("-OO", SCRIPT)]
)
def test_other_runners_run_a_script(command, tmp_path):
    done = python(tmp_path, *command, "--help", stdin=subprocess.DEVNULL)
    assert "--hidden-units" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


HOST = """
import runpy
import signal
import sys
before = signal.getsignal(signal.SIGTERM)
sys.argv = ["cnn_basic.py", *sys.argv[1:]]
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as error:
    print("ended with", error.code)
assert signal.getsignal(signal.SIGTERM) == before
print("the host lives")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (None, 0)]
)
def test_host_process_survives_a_script(signal_number, code, tmp_path):
    epochs = "1" if signal_number is None else "1000"
    argv = (*ARGV, "--epochs", epochs)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", HOST.format(script=SCRIPT), *argv],
            cwd=tmp_path,
            env=process_environment(tmp_path, PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        if signal_number:
            while "Epoch 3" not in process.stdout.readline():
                pass
            process.send_signal(signal_number)
        out, err = process.communicate(timeout=120)
        # Once in hundreds of runs, TensorFlow aborts when it is interrupted within a step.
        if process.returncode != -signal.SIGABRT or signal_number is None:
            break
    assert out.endswith(f"ended with {code}\nthe host lives\n"), err
    assert process.returncode == 0 and "Traceback" not in err


CALL = """
import cnn_basic
from fashion.errors import UserError
options = cnn_basic.Options()
import dataclasses, pathlib
data = dataclasses.replace(options.data, data_dir=pathlib.Path("nowhere"))
try:
    cnn_basic.main(dataclasses.replace(options, data=data))
except UserError as error:
    print("raised:", error)
"""


@pytest.mark.slow
def test_main_only_raises(tmp_path):
    done = python(tmp_path, "-c", CALL)
    assert done.stdout.startswith("raised: --data-dir: ") and done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_do_not_matter(closed, tmp_path):
    argv = " ".join((*ARGV, "--output-dir", "output"))
    done = run(tmp_path, "sh", "-c", f"exec {sys.executable} {SCRIPT} {argv} {closed}")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert Result(tmp_path / "output").metrics


@pytest.mark.slow
def test_warnings_are_no_errors(tmp_path):
    done = run(tmp_path, "env", "PYTHONWARNINGS=error", sys.executable, SCRIPT, *ARGV)
    assert done.returncode == 0, done.stderr


def test_deleted_working_directory_is_an_error_in_one_line(tmp_path):
    commands = (
        f"mkdir gone; cd gone; rmdir ../gone; exec {sys.executable} {SCRIPT} {' '.join(ARGV)}"
    )
    done = run(tmp_path, "sh", "-c", commands)
    assert done.returncode == 2
    assert done.stderr == (
        "cnn_basic.py: error: the working directory has been deleted; change to another one (cd)\n"
    )


@pytest.mark.slow
def test_full_disk_behind_stdout_is_an_error_in_one_line(tmp_path):
    with open("/dev/full", "w") as full:
        done = python(tmp_path, SCRIPT, *ARGV, stdout=full)
    assert done.returncode == 1
    assert done.stderr == "cnn_basic.py: error: [Errno 28] No space left on device\n"
